"""Files that ask for too much memory, never end, or hold what no program writes: each one clear error, at once."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from PIL import Image

from beit3_vqa.cli.main import main
from beit3_vqa.config.config import read_config_values
from beit3_vqa.config.resolve import GivenOptions, SavedOptions, resolve
from beit3_vqa.data.answers import AnswerTable
from beit3_vqa.data.images import open_image
from beit3_vqa.data.index import DatasetInfo
from beit3_vqa.data.rows import MAX_ROW, read_rows
from beit3_vqa.data.tables import read_text
from beit3_vqa.data.tokenizer import Tokenizer, train_tokenizer
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint
from beit3_vqa.engine.checkpoint.validate import validate_content
from beit3_vqa.errors import MAX_PROBLEMS, InputError
from beit3_vqa.models.weights import mismatches
from beit3_vqa.preparation import choices_csv, prepare
from beit3_vqa.preparation.writer import PrepareOptions
from beit3_vqa.tasks.vqa import VQACustom
from tests.helpers.options import TRUSTING, build_config

READERS = {
    "config.json": read_config_values,
    "answer2label.txt": AnswerTable.read,
    "dataset.json": lambda path: DatasetInfo.read(path.parent),
    "rows.jsonl": read_rows,
    "tokenizer.spm": Tokenizer,
    "questions.csv": read_text,
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_huge_files_are_refused_unread(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a pipe or a device"):
        READERS[name](path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2 * 10**12)  # sparse: no byte of it is on the disk
    started = time.process_time()
    with pytest.raises(InputError, match=r"2,000,000,000,000 bytes"):
        READERS[name](path)
    assert time.process_time() - started < 1


def test_a_row_of_an_index_that_never_ends_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = b'{"image_path": "a.jpg", "id": 1, "question": "?"}\n'
    path.write_bytes(row + b'{"id": "' + b"x" * (MAX_ROW + 1))
    with pytest.raises(InputError, match=r"rows\.jsonl:2: a row of more than 10,000,000 bytes"):
        read_rows(path)


def test_a_packed_checkpoint_is_not_unpacked(tmp_path):
    stored, packed = io.BytesIO(), tmp_path / "x.pth"
    torch.save({"model": {"w": torch.zeros(4)}}, stored)
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(10**8) if name.endswith("data/0") else old.read(name))
    assert packed.stat().st_size < 10**6
    for given in (None, TRUSTING):
        with pytest.raises(InputError, match="packed zip archive"):
            read_checkpoint(packed, "--finetune", given)


def test_an_expanded_tensor_is_refused_before_it_fills_memory(tmp_path):
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"model": {"w": huge}}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 10**4
    weights = read_checkpoint(tmp_path / "x.pth", "--finetune")["model"]
    assert "not a plain tensor" in mismatches({"w": torch.zeros(1).expand(10**6, 10**6)}, weights)[0]
    assert "shape of w" in mismatches({"w": torch.zeros(2)}, weights)[0]
    state = {"exp_avg": huge, "exp_avg_sq": torch.zeros(1), "step": 1}
    with pytest.raises(InputError, match="its 'optimizer'"):
        validate_content({"optimizer": {"state": {0: state}, "param_groups": []}}, "--resume x.pth")


@pytest.mark.parametrize(
    "entries",
    [
        {"random_state": {"cpu": torch.full_like(torch.get_rng_state(), 255)}},
        {"optimizer": {"state": {}, "param_groups": [{"params": [[0]]}]}},
        {
            "optimizer": {
                "state": {0: {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1), "step": torch.zeros(5)}},
                "param_groups": [],
            }
        },
        {"epoch": 10**6000},
        {"best_score": -(10**5000)},
    ],
)
def test_states_that_torch_or_python_would_choke_on_are_refused(entries):
    with pytest.raises(InputError, match=f"its '{next(iter(entries))}' is"):
        validate_content(entries, "--resume x.pth")


def test_options_of_another_kind_are_never_compared_or_shown_whole():
    laughs: list = ["ha"]
    for _ in range(60):
        laughs = [laughs] * 10
    saved = get_options({"args": {"lr": torch.zeros(3), "model": laughs, "epochs": 3, "opt_betas": (0.9, 0.98)}})
    assert saved["epochs"] == 3
    assert saved["opt_betas"] == (0.9, 0.98)
    assert (saved["lr"] == 0.001) is False  # a tensor's answer would be three answers
    with pytest.raises(InputError, match="options that are not valid for a model") as error:
        resolve(GivenOptions({}), saved=SavedOptions({"vocab_size": saved["model"]}, "x.pth"))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("root", ["a\0b", "\ud800", 3, None, "x" * 50_000])
def test_image_roots_that_are_no_folder_name_are_refused(tmp_path, root):
    AnswerTable(["yes", "no"]).write(tmp_path / "answer2label.txt")
    (tmp_path / "vqacustom.train.jsonl").write_text('{"image_path": "a", "id": 1, "question": "?", "answer": "no"}')
    (tmp_path / "dataset.json").write_text(json.dumps({"image_root": root}))
    task = VQACustom.from_folder(build_config({"data_path": str(tmp_path)}))
    with pytest.raises(InputError, match=r"dataset\.json|--image_root"):
        task.dataset("train", None, training=False)


def charsmap_of(nodes: bytes) -> bytes:
    """A protobuf field with a normalisation trie of these nodes, in a model's normalizer_spec."""
    content = struct.pack("<I", len(nodes)) + nodes + b"a\0"
    inner = b"\x12" + varint(len(content)) + content
    return b"\x1a" + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data, value = data + bytes([value & 127 | 128]), value >> 7
    return data + bytes([value])


@pytest.mark.parametrize("filling", [b"\xff", b"\x00", b"\x9a\xff\x12\xfe"], ids=["ones", "zeros", "jumps"])
def test_hostile_tokenizer_tries_do_not_kill_the_process(tmp_path, filling):
    """SentencePiece before 0.2.2 dies of them; in a process of its own, so that it could."""
    train_tokenizer(["what is in the picture of the cat and the dog"] * 9, 60, tmp_path / "good.spm")
    nodes = (filling * 1024)[:1024]
    # Of a field that is there twice the last counts.
    (tmp_path / "bad.spm").write_bytes((tmp_path / "good.spm").read_bytes() + charsmap_of(nodes))
    code = (
        "import sys\nfrom beit3_vqa.data.tokenizer import Tokenizer\nfrom beit3_vqa.errors import InputError\n"
        "try: Tokenizer(sys.argv[1]).encode('what is it? 무엇')\nexcept InputError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bad.spm")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_tokenizer_pieces_that_are_not_utf8_are_refused(tmp_path):
    good = train_tokenizer(["what is in the picture of the cat and the dog"] * 9, 60, tmp_path / "good.spm")
    content = good.path.read_bytes()
    assert b"\xe2\x96\x81" in content  # SentencePiece's sign for a space
    (tmp_path / "bad.spm").write_bytes(content.replace(b"\xe2\x96\x81", b"\xe2\x96\xff", 1))
    with pytest.raises(InputError, match=r"bad\.spm"):
        Tokenizer(tmp_path / "bad.spm")


def test_a_small_file_of_a_huge_image_is_refused(tmp_path):
    path = tmp_path / "x.webp"
    Image.new("RGBA", (8, 8)).save(path, lossless=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"VP8L") + 9  # 14 bits of width - 1, 14 bits of height - 1
    bits = struct.unpack("<I", data[at : at + 4])[0] & 0xF0000000 | 9999 | 9999 << 14
    data[at : at + 4] = struct.pack("<I", bits)
    path.write_bytes(data)
    with pytest.raises(InputError, match="10000 x 10000 pixels, more than 50,000,000"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"," * 5_000_000, "x.csv:1: a line of more than 4,000,000 characters"),
        (b'ID,img_path,Question,A,B,C,D,answer\n1,a.jpg,"' + b"q,\n" * 10**6, "a quote missing its partner"),
        (b"ID,img_path,Question,A,B,C,D,answer\n" + b"1\n" * 20_000, "too many problems before this row"),
        (b"ID,img_path,Question,A,B,C,D,answer\n" + b"\n" * 10**5 + b"1\n", "x.csv:100002: 1 cells"),
        (b"ID,img_path,Question,A,B,C,D,answer\n" + b"\n" * 10**8, "x.csv:100002: 100,000 blank lines"),
    ],
    ids=["commas", "open quote", "short rows", "blank lines", "nothing but blank lines"],
)
def test_hostile_csvs_are_refused_within_seconds(tmp_path, content, says):
    (tmp_path / "x.csv").write_bytes(content)
    arguments = choices_csv.Arguments(train=str(tmp_path / "x.csv"))
    started = time.process_time()
    problems = choices_csv.read(arguments, PrepareOptions(data_path="out", image_root=str(tmp_path))).problems
    assert time.process_time() - started < 5
    assert any(says in problem for problem in problems)
    assert len(problems) <= MAX_PROBLEMS + 1


@pytest.mark.parametrize(("kind", "argument"), [("dacon_json", "train"), ("visual7w", "json")])
def test_json_of_another_kind_lists_a_bounded_number_of_problems(tmp_path, kind, argument):
    items = [0] * (MAX_PROBLEMS + 5000)
    good = {"question_id": 1, "image_id": "a", "question": "?", "answer": "x"}
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "x.json").write_text(json.dumps([good, *items] if kind == "dacon_json" else {"images": items}))
    options = PrepareOptions(data_path=str(tmp_path / "out"), image_root=str(tmp_path), val_ratio=0.0)
    with pytest.raises(InputError, match=f"{MAX_PROBLEMS + 1} problems") as error:
        prepare(kind, {argument: str(tmp_path / "x.json")}, options)
    assert "isn't an object" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_json_of_numbers_is_one_problem(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([0] * (MAX_PROBLEMS + 5000)))
    options = PrepareOptions(data_path=str(tmp_path / "out"), image_root=str(tmp_path))
    with pytest.raises(InputError, match=r"1 problem found\n.*x\.json: item 1 isn't an object"):
        prepare("table", {"train": str(tmp_path / "x.json")}, options)


def test_files_of_another_kind_are_not_read_to_the_end(tmp_path):
    for name, read in (("x.jsonl", read_rows), ("x.txt", AnswerTable.read)):
        (tmp_path / name).write_bytes(b"x\n" * (MAX_PROBLEMS + 5000))
        with pytest.raises(InputError, match=f"and {MAX_PROBLEMS - 20} more"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300, "가" * 100, "a/" * 3000], ids=["300 letters", "300 bytes", "a long path"])
def test_names_that_no_file_can_have_are_one_error_in_every_command(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    train = ["finetune", "--task", "vqacustom", "--model", "beit3_tiny_patch8_32", "--device", "cpu"]
    ask = ["predict", "--device", "cpu", "--image", "x.jpg", "--question", "?", "--choices", "a", "b", "--checkpoint"]
    choices = ["prepare", "choices", "--image_root", ".", "--train"]
    commands = [
        [*train, "--data_path", name],
        [*train, "--data_path", ".", "--resume", name],
        [*train, "--data_path", ".", "--output_dir", name],
        [*train, "--eval", "--data_path", ".", "--resume", name],
        [*train, "--config", name],
        [*ask, name],
        ["serve", "--checkpoint", name],
        ["export", "--checkpoint", name, "--output_dir", "out"],
        ["ensemble", name, "--output", "out/x.csv"],
        ["score", name, "--answers", "x.csv"],
        ["report", name],
        ["report", ".", "--output", name],
        [*choices, name, "--data_path", "out"],
        [*choices, "x.csv", "--data_path", name],
        ["prepare", "imagenet", "--image_root", name, "--data_path", "out"],
    ]
    for command in commands:
        assert main(command) == 2, command
        assert capsys.readouterr().err.startswith("error: "), command
    assert not list(tmp_path.iterdir())
