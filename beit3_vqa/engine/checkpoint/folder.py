"""The checkpoints of a run's folder: their names, their order, and what is moved out of the way or deleted.

`checkpoint-3.pth` is epoch 3 done; `checkpoint-3-step120.pth` is 120 optimizer steps into epoch 3.
"""

import logging
import re
from collections.abc import Callable, Container
from pathlib import Path

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import link_or_copy, next_previous

logger = logging.getLogger(__name__)

BEST = "checkpoint-best.pth"
KEPT_STEPS = 2  # checkpoints inside an epoch: the newest, and the one to fall back to if that is damaged
# What a run leaves in its folder; anything else there is the user's.
_RUN_FILES: tuple[str, ...] = ("checkpoint-*.pth", "checkpoint-*.json", "config.json", "log.txt", "tensorboard")
_RUN_FILES += ("loggers.json", "wandb", "mlruns")
_RUN_FILES += ("tokenizer.spm", "predictions*.json", "metrics*.json", "submission*.csv", "submit_*.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})(?:-step(\d{1,12}))?\.pth")
_DEEPSPEED = "checkpoint-*/*model_states.pt"
_END = 10**12  # takes the place of the steps in an epoch's own checkpoint, which comes after those of its steps


def epoch_file(folder: Path, epoch: int) -> Path:
    """Return the path of the checkpoint that is written at the end of an epoch."""
    return folder / f"checkpoint-{epoch}.pth"


def step_file(folder: Path, epoch: int, steps: int) -> Path:
    """Return the path of the checkpoint that is written after `steps` optimizer steps of an epoch."""
    return folder / f"checkpoint-{epoch}-step{steps}.pth"


def manifest_file(path: Path) -> Path:
    """Return the path of the JSON beside a checkpoint."""
    return path.with_suffix(".json")


def checkpoints(folder: Path) -> list[Path]:
    """List every checkpoint that training can go on from, oldest first: of epochs, and from inside an epoch."""
    return [path for _, path in sorted(_places(folder))]


def epoch_checkpoints(folder: Path) -> dict[int, Path]:
    """Map each epoch to the checkpoint that was made at its end, oldest first."""
    return {epoch: path for (epoch, steps), path in sorted(_places(folder)) if steps == _END}


def _places(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """List ((epoch, steps into it), file) of every checkpoint in a folder; sorted, they are in order of time."""
    found = ((path, _CHECKPOINT.fullmatch(path.name)) for path in folder.glob("checkpoint-*.pth"))
    return [((int(m[1]), int(m[2]) if m[2] else _END), path) for path, m in found if m and not path.is_dir()]


def deepspeed_weights(folder: Path) -> list[Path]:
    """List the files that upstream's runs with DeepSpeed left in `folder/checkpoint-N`, oldest first."""
    numbers = {path: re.fullmatch(r"checkpoint-(\d{1,9})", path.parent.name) for path in folder.glob(_DEEPSPEED)}
    return sorted(numbers, key=lambda path: (int(m[1]) if (m := numbers[path]) else -1, path.name))


def tell_deepspeed(folder: Path, *, wanted: bool) -> None:
    """Print that a folder holds a run with DeepSpeed.

    Raises:
        InputError: there is one, and it is the run to go on with (`wanted`).
    """
    theirs = deepspeed_weights(folder)
    if not theirs:
        return
    if not wanted:
        logger.warning(f"{theirs[-1].parent} is of another run, with DeepSpeed; it isn't used")
        return
    in_parts = theirs[-1].name.startswith("zero_")  # stage 3: no file has all weights
    join = f"Join its parts with {folder / 'zero_to_fp32.py'}, then give the file to --finetune"
    go_on = f"Go on from its weights with --resume {theirs[-1]} --resume_weights_only and another --output_dir"
    raise InputError(
        f"--output_dir {folder} holds a run with DeepSpeed ({theirs[-1].parent.name}), whose optimizer this one "
        f"can't go on with. {join if in_parts else go_on}; --no_auto_resume starts over beside it."
    )


def prune_checkpoints(folder: Path, keep: int, is_rolling: Callable[[Path], bool]) -> None:
    """Delete checkpoints of epochs that are no longer needed; the best one and the newest always stay.

    Args:
        folder: of the run.
        keep: how many of the newest stay; 0: all.
        is_rolling: tells a checkpoint that was only to stay until the next one is written; it doesn't count in `keep`.
    """
    *older, newest = [*epoch_checkpoints(folder).values()] or [folder]
    rolling = [path for path in older if is_rolling(path)]
    kept = [path for path in older if path not in rolling]
    places = keep if newest == folder or is_rolling(newest) else keep - 1  # the newest takes one of them
    surplus = kept[: max(0, len(kept) - places)] if keep else []
    for path in rolling + surplus:
        _delete(path)


def prune_steps(folder: Path) -> None:
    """Delete checkpoints from inside an epoch: all but the newest two, and those older than a finished epoch's."""
    places = sorted(_places(folder))
    ends = [place for place, _ in places if place[1] == _END]
    steps = [(place, path) for place, path in places if place[1] < _END]
    newest = steps[-KEPT_STEPS:]
    for place, path in steps:
        if (place, path) not in newest or (ends and place < ends[-1]):
            _delete(path)


def prune(folder: Path, keep: int, is_rolling: Callable[[Path], bool]) -> None:
    """Delete what the checkpoint of an epoch makes useless; see `prune_checkpoints` and `prune_steps`."""
    prune_checkpoints(folder, keep, is_rolling)
    prune_steps(folder)


def _delete(path: Path) -> None:
    try:
        # The JSON goes last: if the process is killed in between, no checkpoint is without its checksum.
        path.unlink(missing_ok=True)
        manifest_file(path).unlink(missing_ok=True)
    except OSError as error:  # a network drive's whim costs space, not the run
        logger.warning(f"{path} can't be deleted ({error.strerror}); training goes on")


def is_checkpoint(path: Path) -> bool:
    """Return whether a file has the name of a checkpoint that training can go on from."""
    return _CHECKPOINT.fullmatch(path.name) is not None


def archive_previous_run(folder: Path, named: Path) -> Path | None:
    """Move what an earlier run left in `folder` into `folder/previous-N`.

    Args:
        folder: of the run.
        named: the checkpoint of `--finetune`. If it is the earlier run's best one, it stays, since the same command
            typed again must find it; the archive gets a hard link to it, or a copy.

    Returns:
        `folder/previous-N`; None if there are no checkpoints.
    """
    best = folder / BEST
    if not _places(folder) and not best.exists():
        return None
    stays = {best, manifest_file(best)} if best.exists() and named.exists() and best.samefile(named) else set()
    if stays and not _places(folder) and any(best.samefile(other) for other in folder.glob(f"previous-*/{BEST}")):
        return None  # the new run was killed before its first checkpoint: the earlier run is archived already
    return _move_aside([path for pattern in _RUN_FILES for path in folder.glob(pattern)], folder, stays)


def archive_best(folder: Path) -> Path | None:
    """Move the best checkpoint into `folder/previous-N`, which is returned; None if there is none."""
    return archive([folder / BEST], folder) if (folder / BEST).exists() else None


def later_checkpoints(folder: Path, epoch: int, steps: int) -> list[Path]:
    """List the checkpoints whose names say that they were made after `steps` optimizer steps of an epoch."""
    return [path for place, path in _places(folder) if place > (epoch, steps)]


def archive(paths: list[Path], folder: Path) -> Path:
    """Move checkpoints of a folder, each with its JSON, into `folder/previous-N`, which is returned."""
    return _move_aside([file for path in paths for file in (path, manifest_file(path)) if file.exists()], folder)


def _move_aside(files: list[Path], folder: Path, stays: Container[Path] = ()) -> Path:
    aside = next_previous(folder)
    aside.mkdir()
    for path in files:
        if path in stays:
            link_or_copy(path, aside / path.name)
        else:
            path.rename(aside / path.name)
    return aside
