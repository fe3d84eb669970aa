"""Command lines that train and evaluate models of a few seconds."""

from pathlib import Path

from beit3_vqa.models.clip.scratch import TinyCLIP

TINY = ["--model", "beit3_tiny_patch8_32", "--vocab_size", "300", "--device", "cpu", "--precision", "fp32"]
CLIP = TinyCLIP(width=32, layers=2, img_size=32, patch_size=8, max_tokens=48)


def finetune_clip(folder: Path, clip: Path, out: Path, *flags: str) -> list[str]:
    """A command line that trains adapters of a tiny CLIP on a folder's data/."""
    arguments = ["finetune", "--task", "vqacustom", "--model", f"{CLIP.name}_lora", "--pretrained", str(clip)]
    arguments += ["--data_path", str(folder / "data"), "--output_dir", str(out), "--device", "cpu"]
    return [*arguments, "--precision", "fp32", "--batch_size", "8", "--lora_rank", "4", "--num_workers", "0", *flags]


def finetune(folder: Path, out: Path, *flags: str) -> list[str]:
    """A command line that trains a tiny model on a folder's data/."""
    arguments = [
        "finetune",
        "--task",
        "vqacustom",
        *TINY,
        "--data_path",
        str(folder / "data"),
        "--output_dir",
        str(out),
    ]
    return [*arguments, "--batch_size", "8", "--num_workers", "0", *flags]


def train_on(data: Path, task: str, out: Path, *flags: str) -> list[str]:
    """A command line that trains a tiny model on a task."""
    arguments = ["finetune", "--task", task, "--model", "beit3_tiny_patch8_32", "--vocab_size", "160"]
    arguments += ["--data_path", str(data), "--output_dir", str(out), "--device", "cpu", "--precision", "fp32"]
    arguments += ["--batch_size", "16", "--lr", "1e-3", "--layer_decay", "1", "--flip", "0", "--crop_scale", "0.9"]
    return [*arguments, "--num_workers", "0", *flags]


def evaluate_on(data: Path, task: str, checkpoint: Path, out: Path, *flags: str) -> list[str]:
    """A command line that evaluates."""
    arguments = ["finetune", "--eval", "--task", task, "--data_path", str(data), "--resume", str(checkpoint)]
    return [*arguments, "--output_dir", str(out), "--device", "cpu", "--num_workers", "0", *flags]
