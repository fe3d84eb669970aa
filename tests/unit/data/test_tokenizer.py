import io
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartphoTokenizer, XLMRobertaTokenizer

from beit3_vqa.data.tokenizer import Tokenizer, mask_words, pad_batch, train_tokenizer
from beit3_vqa.errors import InputError

SPECIAL_STRINGS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]

CORPUS = [
    f"{question} the {thing} {place}? Choices: A. {thing} B. two C. on the left D. 10"
    for question in ("What color is", "How many people hold", "Who is standing behind", "Why is there no mask on")
    for thing in ("red car", "small dog", "tennis ball", "wooden table", "street sign", "pad")
    for place in ("in the picture", "on the street", "next to the door")
] + [
    f"{place} {thing} {question}"
    for question in ("무슨 색인가요?", "몇 마리가 있나요?", "무엇을 하고 있나요?", "어디에 있나요?")
    for thing in ("강아지는", "고양이가", "빨간 자동차는", "사람들은")
    for place in ("그림의 왼쪽에 있는", "오른쪽의", "길 위에서")
]

PLAIN_TEXTS = [
    *("", " ", "   \t\n  ", "What color is the dog?", "  two   spaces ", "tab\tnew\nline\r\n", "UPPER case", "1,000.5"),
    *("강아지는 무슨 색인가요?", "뷁쀍", "각", "漢字かな", "😀", "dog 😀👨‍👩‍👧 강아지", "ﬁ①ＡＢ", "naïve café"),
    *("a\x00b", "\x01\x02", "a\x07\x1b[0m b", "a\u200bb", "a\u00a0b", "a\u2028b", "\ufeffbom", "\ufffd", "▁", "a▁b ▁"),
    *("<", "s>", "< s >", "</ s>", "＜s＞", "<mask", "[MASK]", "⁇", " ⁇ ", "x" * 500, "\U0010ffff", "e\u0301\u0301"),
]

PLAIN_TEXT = st.text(
    st.one_of(st.sampled_from("".join(sorted(set("".join(CORPUS)))) + "<>/▁ \t\n\u3000"), st.characters(codec="utf-8"))
).filter(lambda text: not any(special in text for special in SPECIAL_STRINGS))
ANY_TEXT = st.lists(st.one_of(PLAIN_TEXT, st.sampled_from(SPECIAL_STRINGS)), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(CORPUS, 300, tmp_path_factory.mktemp("tokenizer") / "small.spm")


# transformers 5 reads XLM-R's model by a library of its own, which splits some words otherwise. BARTpho's tokenizer has
# the same ids once its dictionary lists SentencePiece's pieces, and every version reads it by SentencePiece.
ORACLES = ["bartpho", *(["xlm-r"] if hasattr(XLMRobertaTokenizer, "_convert_token_to_id") else [])]


@pytest.fixture(scope="module", params=ORACLES)
def oracle(tokenizer, tmp_path_factory, request):
    if request.param == "xlm-r":
        return XLMRobertaTokenizer(str(tokenizer.path))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    dictionary = tmp_path_factory.mktemp("bartpho") / "dict.txt"
    lines = [f"{pieces.id_to_piece(number)} 1\n" for number in range(3, len(pieces))]  # after <unk>, <s>, </s>
    dictionary.write_text("".join(lines), encoding="utf-8")
    return BartphoTokenizer(str(tokenizer.path), str(dictionary))


def oracle_ids(oracle, text, **options):
    return oracle.convert_tokens_to_ids(oracle.tokenize(text, **options))


def test_special_ids_are_those_of_xlm_r(tokenizer, oracle):
    ours = (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id)
    assert ours == (0, 1, 2, 3, tokenizer.vocab_size - 1)
    assert list(ours) == oracle.convert_tokens_to_ids(SPECIAL_STRINGS)
    assert tokenizer.vocab_size == len(oracle) <= 300


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_ids_equal_those_of_transformers(tokenizer, oracle, text):
    assert tokenizer.encode(text) == oracle_ids(oracle, text)


def test_a_batch_has_the_ids_of_each_text_alone(tokenizer, oracle):
    assert tokenizer.encode_batch(PLAIN_TEXTS) == [oracle_ids(oracle, text) for text in PLAIN_TEXTS]
    assert tokenizer.encode_batch(tuple(CORPUS)) == [tokenizer.encode(text) for text in CORPUS]
    assert tokenizer.encode_batch([]) == []


@settings(max_examples=200, deadline=None)
@given(text=PLAIN_TEXT)
def test_ids_equal_those_of_transformers_on_any_plain_text(tokenizer, oracle, text):
    assert tokenizer.encode(text) == oracle_ids(oracle, text)


@pytest.mark.parametrize("special", SPECIAL_STRINGS)
def test_special_strings_are_ordinary_text(tokenizer, oracle, special):
    text = f"What color is {special} the dog?"
    ids = tokenizer.encode(text)
    assert oracle.convert_tokens_to_ids(special) in oracle_ids(oracle, text)
    assert not {0, 1, 2, tokenizer.mask_id} & set(ids)
    assert ids == oracle_ids(oracle, text, split_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_no_text_gives_a_special_id(tokenizer, oracle, text):
    ids = tokenizer.encode(text)
    assert all(3 <= token_id < tokenizer.mask_id for token_id in ids)
    assert ids == oracle_ids(oracle, text, split_special_tokens=True)


def test_decode_gives_the_text_back_without_special_ids(tokenizer):
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([0, *ids, 2, 1, 1, tokenizer.mask_id, tokenizer.vocab_size + 5]) == text
    assert tokenizer.decode([]) == tokenizer.decode([0, 2]) == ""
    assert "⁇" in tokenizer.decode(tokenizer.encode("dog 😀"))
    assert tokenizer.decode(torch.tensor(tokenizer.encode(CORPUS[0]))) == CORPUS[0]


def test_half_a_surrogate_pair_is_unknown_text(tokenizer):
    assert tokenizer.encode("dog \ud83d") == tokenizer.encode("dog \ufffd")


def test_a_pickled_tokenizer_needs_no_file(tmp_path):
    original = train_tokenizer(CORPUS, 100, tmp_path / "gone.spm")
    content = pickle.dumps(original)
    original.path.unlink()
    copy = pickle.loads(content)
    assert copy.encode_batch(CORPUS) == original.encode_batch(CORPUS)
    assert (copy.path, copy.vocab_size, copy.mask_id) == (original.path, original.vocab_size, original.mask_id)


def test_importing_the_tokenizer_loads_no_sentencepiece():
    code = "import sys, beit3_vqa.data.tokenizer; sys.exit('sentencepiece' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_and_damaged_models_are_input_errors(tokenizer, tmp_path):
    whole = tokenizer.path.read_bytes()
    for name, content in {"empty": b"", "page": b"<html>404</html>", "cut": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.spm"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.spm \([\d,]+ bytes\) is not a SentencePiece model"):
            Tokenizer(path)
    with pytest.raises(InputError, match=r"there is no tokenizer .*smal\.spm\. Did you mean 'small\.spm'\?"):
        Tokenizer(tokenizer.path.with_name("smal.spm"))
    with pytest.raises(InputError, match=r"there is no tokenizer.*`beit3-vqa download beit3\.spm` fetches"):
        Tokenizer(tmp_path / "nowhere" / "beit3.spm")
    with pytest.raises(InputError, match="can't be read"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    "ids", [{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, {"bos_id": -1, "eos_id": -1}], ids=["t5", "unk only"]
)
def test_models_with_other_first_pieces_are_refused(tmp_path, ids):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=100, minloglevel=2, num_threads=1, **ids
    )
    path = tmp_path / "other.spm"
    path.write_bytes(model.getvalue())
    with pytest.raises(InputError, match="first pieces must be <unk>, <s>, </s>"):
        Tokenizer(path)


def test_training_is_deterministic_and_quiet(tokenizer, tmp_path, capfd):
    again = train_tokenizer(iter(CORPUS), 300, str(tmp_path / "again.spm"))
    assert again.path.read_bytes() == tokenizer.path.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [again.path]


def test_a_trained_tokenizer_has_the_size_asked_for(tmp_path):
    assert train_tokenizer(CORPUS, 150, tmp_path / "asked.spm").vocab_size == 150
    assert train_tokenizer(["yes", "no", ""], 8000, tmp_path / "few.spm").vocab_size < 30


def test_text_of_few_words_is_not_cut_into_letters(tmp_path):
    texts = [f"is the {color} shape a {shape}?" for color in ("red", "blue") for shape in ("circle", "square")]
    trained = train_tokenizer(texts, 500, tmp_path / "few.spm")
    assert [trained.decode([token_id]) for token_id in trained.encode(texts[0])] == [
        *("is", "the", "red", "shape", "a", "circle", "?")
    ]


def test_training_gives_every_character_a_piece(tmp_path):
    texts = [*CORPUS, "뷁", "a long question " * 1000 + "쀍"]
    trained = train_tokenizer(texts, 300, tmp_path / "rare.spm")
    assert 3 not in trained.encode("뷁쀍")


# SentencePiece 0.2.2, the oldest that is allowed, trains on anything.
NEEDS_LETTERS = pytest.mark.skipif(sentencepiece.__version__ == "0.2.2", reason="0.2.2 needs no letters")


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 100, "no text"),
        (["", " \n"], 100, "no text"),
        (CORPUS, 0, "of 0 ids"),
        (CORPUS, 10, r"10 ids is too small: .* alone take \d+; ask"),
        pytest.param(["\x01"], 100, "are there letters in the 1 text", marks=NEEDS_LETTERS),
    ],
)
def test_training_errors_leave_no_file(tmp_path, texts, vocab_size, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(texts, vocab_size, tmp_path / "new.spm")
    assert list(tmp_path.iterdir()) == []


def test_the_size_an_error_asks_for_is_enough(tmp_path):
    with pytest.raises(InputError) as caught:
        train_tokenizer(CORPUS, 10, tmp_path / "new.spm")
    needed = int(str(caught.value).partition("alone take ")[2].partition(";")[0])
    assert train_tokenizer(CORPUS, needed, tmp_path / "new.spm").vocab_size == needed


def test_a_failed_write_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "old.spm"
    path.write_bytes(b"old")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(InputError, match="No space left"):
        train_tokenizer(CORPUS, 100, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="can't be written"):
        train_tokenizer(CORPUS, 100, path / "below.spm")


def test_pad_batch_pads_on_the_right_and_masks_the_padding():
    ids, padding_mask = pad_batch([[0, 5, 2], [0, 2], [0, 7, 1, 2]])
    assert ids.tolist() == [[0, 5, 2, 1], [0, 2, 1, 1], [0, 7, 1, 2]]
    assert padding_mask.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert pad_batch([[4], []], pad_id=9)[0].tolist() == [[4], [9]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 64_001), max_size=8), max_size=5))
def test_pad_batch_keeps_every_token(sequences):
    ids, padding_mask = pad_batch(sequences)
    assert ids.dtype == padding_mask.dtype == torch.int64
    assert ids.shape == padding_mask.shape == (len(sequences), max(map(len, sequences), default=0))
    kept = [row[mask == 0].tolist() for row, mask in zip(ids, padding_mask, strict=True)]
    assert kept == sequences
    assert (ids[padding_mask == 1] == 1).all()


MASK, SIZE = 151, 152


@given(st.lists(st.integers(3, 150), max_size=40), st.floats(0.01, 1), st.integers())
def test_masking_chooses_the_right_number_of_tokens_and_never_the_first(words, probability, seed):
    ids = [0, *words, 2]
    masked, places = mask_words(ids, random.Random(seed), probability, MASK, SIZE)
    assert mask_words(ids, random.Random(seed), probability, MASK, SIZE) == (masked, places)
    assert len(places) == min(max(1, int(len(ids) * probability + 0.5)), len(ids) - 1)
    assert places == sorted(set(places))
    assert min(places) >= 1
    assert masked[0] == 0
    assert len(masked) == len(ids)
    assert all(masked[place] == ids[place] for place in set(range(len(ids))) - set(places))
    assert all(3 <= token < SIZE for place in places for token in [masked[place]] if token != ids[place])


def test_masked_kept_and_random_words_have_berts_shares():
    rng, kinds, ended = random.Random(0), Counter(), 0
    ids = [0, *[7] * 20, 2]
    for _ in range(500):
        masked, places = mask_words(ids, rng, 0.6, MASK, SIZE)
        ended += ids.index(2) in places
        for place in places:
            kinds["mask" if masked[place] == MASK else "same" if masked[place] == ids[place] else "other"] += 1
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["same"] / total == pytest.approx(0.1, abs=0.02)
    assert kinds["other"] / total == pytest.approx(0.1, abs=0.02)
    assert ended / 500 == pytest.approx(13 / 21, abs=0.1)  # </s> is masked as often as any word
