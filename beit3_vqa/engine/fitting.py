"""`beit3_vqa.fit`: train from Python, with the flags of `beit3-vqa finetune` as keywords."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_vqa.config.config import option_kinds
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.engine.api import train
from beit3_vqa.engine.checkpoint.folder import BEST, checkpoints
from beit3_vqa.engine.logging import LOG, VALIDATION, read_log
from beit3_vqa.errors import InputError
from beit3_vqa.preparation.summary import Summary
from beit3_vqa.runtime.fields import from_python


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained; `print` shows it.

    Attributes:
        output_dir: its folder: checkpoints, log.txt, config.json, and the tokenizer.
        checkpoint: the best checkpoint, for `beit3_vqa.load`; the newest if there is no best one; None after a
            `dry_run`.
        best_epoch: the epoch of the best checkpoint, counted from 0; None if none was saved.
        epochs: epochs that are done.
        metrics: of the best validation, by name; accuracies are in percent. Empty without one.
        history: a dict for each validation or epoch, in order, of what log.txt says: `pandas.DataFrame(run.history)`
            is a table.
    """

    output_dir: Path
    checkpoint: Path | None
    best_epoch: int | None
    epochs: int
    metrics: dict[str, object]
    history: tuple[dict[str, object], ...]

    def __str__(self) -> str:
        numbers = [f"{name} {value:.4g}" for name, value in self.metrics.items() if isinstance(value, (int, float))]
        lines = {
            "checkpoint": self.checkpoint or "none",
            "epochs": f"{self.epochs}" + (f", best: {self.best_epoch}" if self.best_epoch is not None else ""),
            "validation": ", ".join(numbers) or "none",
        }
        return "\n".join([f"run in {self.output_dir}", *(f"  {name:<12}{text}" for name, text in lines.items())])


def fit(
    data: Summary | str | Path | Sequence[Summary | str | Path], *, config: str | Path = "", **flags: object
) -> TrainedRun:
    """Train on prepared data, as `beit3-vqa finetune` does.

    A run whose `output_dir` holds checkpoints goes on from the newest, as the command does. The random state of torch
    is set from `seed`. Ctrl-C lets the step finish, saves, and raises `Stopped`; the same call then goes on.

    Args:
        data: what `beit3_vqa.prepare` returned, or the path of a prepared folder; several are sources that are
            trained on together (`mix`, `val_from`).
        config: a saved config.json; keywords take precedence over it.
        **flags: any flag of `beit3-vqa finetune`, such as `model="beit3_base_patch16_480"`, `epochs=5`, `lr=2e-5`,
            `output_dir="out"`; `beit3-vqa finetune --help` lists them. `--no_X` is `X=False`.

    Returns:
        Where the best checkpoint is, and what the epochs were like.

    Raises:
        InputError: an unknown keyword (the nearest flag is named), a value that an option can't have, or data that
            can't be used.
        TrainingDiverged: the gradient wasn't finite for `max_bad_steps` steps in a row.
    """
    if "data_path" in flags:
        raise InputError("fit: data_path is the first argument: fit(DATA, ...).")
    if flags.get("eval"):
        raise InputError("fit trains; beit3_vqa.load(CHECKPOINT).evaluate_frame(...) evaluates.")
    folder = [_get_folder(one) for one in data] if isinstance(data, (list, tuple)) else _get_folder(data)
    given = GivenOptions.with_config(from_python({"data_path": folder, **flags}, option_kinds(), "fit"), config)
    state = train(given, say_next=False)
    output_dir = Path(given["output_dir"])
    if given["dry_run"]:
        return TrainedRun(output_dir, None, None, state.epoch, {}, ())
    best, history = output_dir / BEST, tuple(read_log(output_dir / LOG))
    of_epoch = [line for line in history if line["epoch"] == state.best_epoch]
    # With `eval_steps` an epoch has several lines; the best one has the best score.
    of_best = next((line for line in of_epoch if state.best_score in line.values()), of_epoch[-1] if of_epoch else {})
    metrics = {name.removeprefix(VALIDATION): v for name, v in of_best.items() if name.startswith(VALIDATION)}
    newest = best if best.is_file() else next(reversed(checkpoints(output_dir)), None)
    return TrainedRun(output_dir, newest, state.best_epoch, state.epoch, metrics, history)


def _get_folder(data: object) -> object:
    return data.data_path if isinstance(data, Summary) else data
