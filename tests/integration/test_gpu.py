"""Runs on a stand-in for a GPU (see `tests.helpers.stand_in_gpu`): no device is mixed up, no step waits unseen."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from beit3_vqa.cli.main import main
from beit3_vqa.data.types import Batch, Example
from beit3_vqa.engine import trainer
from beit3_vqa.engine.checkpoint.io import read_checkpoint
from beit3_vqa.engine.loop import Learner, train_epoch
from beit3_vqa.engine.optim import CosineSchedule
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime.precision import Precision
from tests.helpers.captioned import prepare_captioned
from tests.helpers.checkpoint_files import tensors
from tests.helpers.commands import TINY, finetune_clip
from tests.helpers.generated import write_imagenet, write_nlvr2, write_vqav2
from tests.helpers.stand_in_gpu import GPU, needs_fake_gpu, stand_in_gpu
from tests.helpers.upstream import SIZES, fill, ragged_batch

MIXED = ["--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.5"]
OWN_FLAGS = {"imagenet": MIXED, "coco_captioning": ["--num_beams", "2", "--num_max_bpe_tokens", "8"]}
QUICK = ("vqacustom", "clip")
TASKS = ["vqacustom", "vqarank", "clip", "vqav2", "nlvr2", "imagenet", "coco_captioning", "flickr30k"]

# The waits of an epoch of training of up to ten steps: a point of TensorBoard's curves (loss and norm of the gradient),
# the line with the loss, the flags of skipped steps, the sums of the epoch. They are also all that a step may do.
OF_AN_EPOCH = Counter(
    {
        "engine.trainer.after_step: _local_scalar_dense": 2,
        "engine.trainer.<lambda>: _local_scalar_dense": 1,
        "engine.loop.check: tolist": 1,
        "engine.trainer._after_steps: tolist": 1,
        "engine.trainer._after_steps: tensor of numbers": 1,
    }
)
SETTING_UP = ("to the GPU", "save")
COPYING = "runtime.memory."  # what a checkpoint is written from


def waits_of(counted: Counter[str]) -> Counter[str]:
    """Leave out those of setting up and of saving, and forget all."""
    found = {name: count for name, count in counted.items() if not name.endswith(SETTING_UP)}
    found = Counter({name: count for name, count in found.items() if not name.startswith(COPYING)})
    counted.clear()
    return found


@pytest.fixture(scope="module")
def data(scpc, tmp_path_factory) -> dict[str, Path]:
    """A small prepared folder for each task."""
    found = {"vqacustom": scpc / "data", "vqarank": scpc / "data"}
    for task, write in (("vqav2", write_vqav2), ("nlvr2", write_nlvr2), ("imagenet", write_imagenet)):
        folder = tmp_path_factory.mktemp(task)
        source = write(folder / "source", 5 if task == "imagenet" else 17)
        found[task] = folder / "data"
        command = ["prepare", task, "--image_root", str(source), "--data_path", str(found[task])]
        if task != "imagenet":
            command += ["--annotations", str(source), "--train_tokenizer", "60"]
        if task == "vqav2":
            command += ["--val_images", "5", "--min_count", "4"]
        assert main(command) == 0
    captioned = prepare_captioned(tmp_path_factory.mktemp("captioned"), train=9)
    return {**found, "coco_captioning": captioned, "flickr30k": captioned}


@pytest.fixture(scope="module")
def command(scpc, data, clip_folder):
    """Make the command line of a task."""

    def make(task: str, out: Path, device: str, *flags: str) -> list[str]:
        if task == "clip":
            words = finetune_clip(scpc, clip_folder, out)
        else:
            words = ["finetune", "--task", task, *TINY, "--data_path", str(data[task]), "--output_dir", str(out)]
            words += ["--num_workers", "0", *OWN_FLAGS.get(task, [])]
        # Its page-locked memory is the one thing that the loader would ask of a real GPU. No line but an epoch's last.
        words += ["--no_pin_mem", "--log_interval", "1000", "--batch_size", "3", "--eval_batch_size", "4"]
        return [*words, "--device", device, *flags]

    return make


@pytest.mark.parametrize(
    "task",
    # The others take a minute, and `.ci/today` runs them; their forward passes are in other tests here.
    [task if task in QUICK else pytest.param(task, marks=pytest.mark.slow) for task in TASKS],
)
def test_a_run_computes_on_a_gpu_what_it_computes_on_a_cpu(task, command, tmp_path):
    """From the data to weights, from weights to predictions; the host waits once where it reads a batch's outputs."""
    on_cpu, on_gpu = tmp_path / "cpu", tmp_path / "gpu"
    flags = ["--epochs", "1", "--update_freq", "2", "--clip_grad", "1", "--model_ema", "--drop_path", "0.2"]
    assert main(command(task, on_cpu, "cpu", *flags)) == 0
    with stand_in_gpu() as counted:
        assert main(command(task, on_gpu, "cuda", *flags)) == 0
        trained = waits_of(counted)
        assert main(command(task, on_gpu, "cuda", "--eval", "--split", "val")) == 0
        evaluated = waits_of(counted)
    assert main(command(task, on_cpu, "cpu", "--eval", "--split", "val")) == 0

    one, two = (dict(tensors(read_checkpoint(out / "checkpoint-best.pth", "x"))) for out in (on_cpu, on_gpu))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, msg=lambda said, name=name: f"{name}: {said}")
    texts = [(out / "predictions_val.json").read_text() for out in (on_cpu, on_gpu)]
    assert texts[0] == texts[1]

    assert trained == OF_AN_EPOCH + evaluated
    if task == "coco_captioning":  # a beam search asks after each word which images go on
        assert {name.split(":")[0].rsplit(".", 1)[0] for name in evaluated} == {"models.beit3.beam_search"}
        words = evaluated["models.beit3.beam_search.beam_search: nonzero"]
        assert evaluated.total() <= 6 * words + 4 * len(json.loads(texts[0]))
        return
    batches = -(-len(json.loads(texts[0])) // 4)
    module = {"nlvr2": "classification", "imagenet": "classification", "flickr30k": "retrieval"}.get(task, "vqa")
    expected = {"runtime.precision.outputs_are_finite: _local_scalar_dense": batches}
    expected[f"tasks.{module}.predictions: to the CPU"] = batches
    if task == "flickr30k":  # which rows share an image
        expected["tasks.retrieval.infer: index"] = 2 * batches
    assert evaluated == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.slow
def test_waits_are_few_and_not_one_for_each_step(precision, command, tmp_path, monkeypatch):
    """Twenty steps in two epochs."""
    monkeypatch.setattr(trainer, "SCALAR_STEPS", 4)
    flags = ["--epochs", "2", "--precision", precision, "--max_bad_steps", "3", "--no_save_ckpt"]
    with stand_in_gpu() as counted:
        assert main(command("vqacustom", tmp_path / "out", "cuda", *flags)) == 0
    waits = waits_of(counted)
    assert waits["engine.trainer.after_step: _local_scalar_dense"] == 2 * len({4, 8, 10, 12, 16, 20})
    assert waits["engine.loop.check: tolist"] == 2 * len({3, 6, 9, 10})
    assert waits["engine.trainer._after_steps: tolist"] == waits["engine.trainer.<lambda>: _local_scalar_dense"] == 2
    assert not [name for name in waits if name.startswith("engine.loop.") and "check" not in name]


def step_waits(plant) -> Counter[str]:
    """The waits of ten steps of a small model, whose loss does something with the outputs beside."""

    def loss(outputs, batch):
        plant(outputs)
        return F.cross_entropy(outputs, batch.targets)

    with stand_in_gpu() as counted:
        model = torch.nn.Linear(3, 4).to(GPU)
        optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], fused=True)
        learner = Learner(model, loss, optimizer, Precision("fp32", GPU), examples=20, batch_size=2)
        examples = (Example("0", "", ""), Example("1", "", ""))
        batches = [Batch({"input": torch.randn(2, 3)}, examples, torch.tensor([1, 2])) for _ in range(10)]
        counted.clear()
        train_epoch(learner, batches, CosineSchedule(0.1, 0.1, 0, 100), lambda report: None)
        return Counter(counted)


WAITING = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool(x.isfinite().all()),
    "float": lambda x: float(x.detach().sum()),
    "cpu": lambda x: x.detach().cpu(),
    "to": lambda x: x.detach().to("cpu"),
    "numpy": lambda x: x.detach().numpy(),
    "nonzero": lambda x: (x > 0).nonzero(),
    "mask": lambda x: x[x > 0],
    "new tensor": lambda x: x.new_tensor([1.0]),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
}
REFUSED = {
    "matrix": lambda x: x @ torch.ones(4, 4),
    "sum": lambda x: x + torch.arange(4),
    "joined": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "mask": lambda x: x.masked_fill(torch.zeros(2, 4, dtype=torch.bool), 0.0),
    "labels": lambda x: F.cross_entropy(x, torch.tensor([0, 1])),
    "rows": lambda x: x.index_select(0, torch.tensor([0, 1])),
    "table": lambda x: F.embedding(x.argmax(1), torch.ones(4, 4)),
}
ALLOWED = {
    "number": lambda x: x * torch.tensor(2.0),
    "indices": lambda x: x[torch.tensor([0, 1])],
    "chosen": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "copy": lambda x: torch.zeros_like(x).copy_(torch.ones(2, 4)),
}


def test_the_stand_in_refuses_indices_on_a_gpu_for_a_tensor_on_the_cpu():
    """So does a GPU; torch's fake tensors let it pass."""
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        step_waits(lambda x: torch.ones(4, 4)[x.argmax(1)])


def test_a_step_reads_its_flags_once_in_ten_steps():
    assert step_waits(lambda outputs: None) == {"engine.loop.check: tolist": 1}


@pytest.mark.parametrize("how", WAITING)
def test_a_wait_that_is_planted_in_a_step_is_counted(how):
    found = step_waits(WAITING[how]) - Counter({"engine.loop.check: tolist": 1})
    assert found.total() == 10
    assert all(name.startswith("engine.loop.train_epoch: ") for name in found)


@needs_fake_gpu
@pytest.mark.parametrize("how", [*REFUSED, *ALLOWED])
def test_the_stand_in_refuses_what_torch_says_a_gpu_refuses(how):
    """FakeTensorMode knows the rules of each operation."""
    operation = (REFUSED | ALLOWED)[how]
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        outputs = torch.ones(2, 4, device=GPU)
        if how in ALLOWED:
            assert operation(outputs).device == GPU
        else:
            with pytest.raises(RuntimeError, match=r"two (different )?devices"):
                operation(outputs)
    if how in ALLOWED:
        step_waits(operation)
    else:
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
            step_waits(operation)


HEADS = {
    "vqacustom": ("image", "question"),
    "nlvr2": ("image_a", "image_b", "text_description"),
    "imageclassification": ("image",),
    "retrieval": ("image", "text_description"),
    "captioning": ("image", "text_ids"),
}


def head_and_inputs(head: str):
    """A small model with a head, and a batch for it."""
    classes = {"num_classes": 4} if head in ("vqacustom", "nlvr2", "imageclassification") else {}
    model = build_model(f"beit3_base_patch16_64_{head}", attention="matmul", **SIZES, **classes)
    image, text, padding_mask = ragged_batch()
    inputs = {name: image if name.startswith("image") else text for name in HEADS[head]}
    return fill.fill(model).eval(), inputs | ({"padding_mask": padding_mask} if len(inputs) > 1 else {})


@needs_fake_gpu
@pytest.mark.parametrize("head", HEADS)
def test_heads_compute_on_torchs_own_fake_gpu(head, monkeypatch):
    """Shapes and devices by torch's rules, under the autocast of a GPU; a table that stays behind is refused."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    model, inputs = head_and_inputs(head)
    table = model.beit3.encoder.embed_positions.A
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        on_cpu = torch.nn.Parameter(mode.from_tensor(table.weight))
        for module in model.modules():  # Module.to would ask for a driver
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(mode.from_tensor(parameter).to(GPU)))
        batch = Batch({name: mode.from_tensor(value) for name, value in inputs.items()}, ()).to(GPU)
        for name in ("fp32", "bf16", "fp16"):
            with Precision(name, GPU).autocast():
                outputs = model(**batch.inputs)
            assert outputs.device == GPU
            assert len(outputs) == 4
        table.weight = on_cpu
        with pytest.raises(RuntimeError, match=r"two (different )?devices"):
            model(**batch.inputs)


def test_a_mask_that_stays_on_the_cpu_ends_the_run(command, tmp_path, monkeypatch):
    moved = Batch.to

    def forgetful(batch, device):
        there = moved(batch, device)
        return Batch({**there.inputs, "padding_mask": batch.inputs["padding_mask"]}, there.examples, there.targets)

    monkeypatch.setattr(Batch, "to", forgetful)
    with stand_in_gpu(), pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        main(command("vqacustom", tmp_path / "out", "cuda", "--epochs", "1"))
