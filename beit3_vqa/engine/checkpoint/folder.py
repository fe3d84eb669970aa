"""The checkpoints of a run's folder: their names, their order, and what is moved out of the way or deleted.

`checkpoint-3.pth` is epoch 3 done; `checkpoint-3-step120.pth` is 120 optimizer steps into epoch 3.
"""

import re
import shutil
from collections.abc import Callable, Container
from pathlib import Path

from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import next_previous

BEST = "checkpoint-best.pth"
# Of those inside an epoch: the newest, and the one to fall back to.
KEPT_STEPS = 2
# What a run leaves in its folder; anything else there is the user's.
_RUN_FILES: tuple[str, ...] = ("checkpoint-*.pth", "checkpoint-*.json", "config.json", "log.txt", "tensorboard")
_RUN_FILES += ("tokenizer.spm", "predictions*.json", "metrics*.json", "submission*.csv", "submit_*.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,9})(?:-step(\d{1,12}))?\.pth")
_DEEPSPEED = "checkpoint-*/*model_states.pt"
# Where an epoch's own checkpoint stands among those of its steps.
_END = 10**12


def epoch_file(folder: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies."""
    return folder / f"checkpoint-{epoch}.pth"


def step_file(folder: Path, epoch: int, steps: int) -> Path:
    """Where the checkpoint lies that was made after so many optimizer steps of an epoch."""
    return folder / f"checkpoint-{epoch}-step{steps}.pth"


def manifest_file(path: Path) -> Path:
    """The JSON beside a checkpoint."""
    return path.with_suffix(".json")


def checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint to go on from, oldest first: those of epochs and those inside an epoch."""
    return [path for _, path in sorted(_places(folder))]


def epoch_checkpoints(folder: Path) -> dict[int, Path]:
    """Epoch -> file, oldest first, of the checkpoints made at the end of an epoch."""
    return {epoch: path for (epoch, steps), path in sorted(_places(folder)) if steps == _END}


def _places(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """((epoch, steps into it), file) of every checkpoint in a folder."""
    found = ((path, _CHECKPOINT.fullmatch(path.name)) for path in folder.glob("checkpoint-*.pth"))
    return [((int(m[1]), int(m[2]) if m[2] else _END), path) for path, m in found if m and not path.is_dir()]


def deepspeed_weights(folder: Path) -> list[Path]:
    """Return the files that DeepSpeed left in `folder/checkpoint-N`, where upstream runs with it, oldest first."""
    numbers = {path: re.fullmatch(r"checkpoint-(\d{1,9})", path.parent.name) for path in folder.glob(_DEEPSPEED)}
    return sorted(numbers, key=lambda path: (int(m[1]) if (m := numbers[path]) else -1, path.name))


def tell_deepspeed(folder: Path, *, wanted: bool) -> None:
    """Say that a folder holds a run of DeepSpeed's; InputError where that is the run to go on with."""
    theirs = deepspeed_weights(folder)
    if not theirs:
        return
    if not wanted:
        print(f"{theirs[-1].parent} is of another run, with DeepSpeed; it isn't used")
        return
    in_parts = theirs[-1].name.startswith("zero_")  # stage 3: no file has all weights
    join = f"Join its parts with {folder / 'zero_to_fp32.py'}, then give the file to --finetune"
    go_on = f"Go on from its weights with --resume {theirs[-1]} --resume_weights_only and another --output_dir"
    raise InputError(
        f"--output_dir {folder} holds a run with DeepSpeed ({theirs[-1].parent.name}), whose optimizer this one "
        f"can't go on with. {join if in_parts else go_on}; --no_auto_resume starts over beside it."
    )


def prune_checkpoints(folder: Path, keep: int, is_rolling: Callable[[Path], bool]) -> None:
    """Deletes the rolling epoch checkpoints but the newest, and all but the `keep` newest of the others; 0 keeps all.

    The best one, and the newest, stay in any case.
    """
    *older, newest = [*epoch_checkpoints(folder).values()] or [folder]
    rolling = [path for path in older if is_rolling(path)]
    kept = [path for path in older if path not in rolling]
    places = keep if newest == folder or is_rolling(newest) else keep - 1  # the newest takes one of them
    surplus = kept[: len(kept) - places] if keep else []
    for path in rolling + surplus:
        _delete(path)


def prune_steps(folder: Path) -> None:
    """Deletes checkpoints inside an epoch: those an epoch's own has overtaken, and all but the newest few."""
    places = sorted(_places(folder))
    ends = [place for place, _ in places if place[1] == _END]
    steps = [(place, path) for place, path in places if place[1] < _END]
    newest = steps[-KEPT_STEPS:]
    for place, path in steps:
        if (place, path) not in newest or (ends and place < ends[-1]):
            _delete(path)


def prune(folder: Path, keep: int, is_rolling: Callable[[Path], bool]) -> None:
    """Deletes what the checkpoint of an epoch leaves without use: see `prune_checkpoints` and `prune_steps`."""
    prune_checkpoints(folder, keep, is_rolling)
    prune_steps(folder)


def _delete(path: Path) -> None:
    try:
        # The JSON last: a checkpoint without one is still checked, by its own checksums.
        path.unlink(missing_ok=True)
        manifest_file(path).unlink(missing_ok=True)
    except OSError as error:  # a network drive's whim costs space, not the run
        print(f"{path} can't be deleted ({error.strerror}); training goes on", flush=True)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file has the name of a checkpoint to go on from."""
    return _CHECKPOINT.fullmatch(path.name) is not None


def archive_previous_run(folder: Path, named: Path) -> Path | None:
    """Moves what an earlier run left in `folder` into `folder/previous-N`; None where there are no checkpoints.

    Args:
        folder: of the run.
        named: a checkpoint that the command names: typed again, it must find it, so that it stays, and a second name
            for it, or a copy, goes with the others.
    """
    best = folder / BEST
    if not _places(folder) and not best.exists():
        return None
    stays = {best, manifest_file(best)} if best.exists() and named.exists() and best.samefile(named) else set()
    if stays and not _places(folder) and any(best.samefile(other) for other in folder.glob(f"previous-*/{BEST}")):
        return None  # killed before its first checkpoint, and typed again
    return _move_aside([path for pattern in _RUN_FILES for path in folder.glob(pattern)], folder, stays)


def archive_best(folder: Path) -> Path | None:
    """Moves the best checkpoint into `folder/previous-N`; None: there is none."""
    best = [path for path in (folder / BEST, manifest_file(folder / BEST)) if path.exists()]
    return _move_aside(best, folder) if best else None


def archive_later(folder: Path, epoch: int, steps: int) -> Path | None:
    """Moves checkpoints of what is about to be trained again into `folder/previous-N`; None: there are none.

    Args:
        folder: of the run.
        epoch: in which training goes on.
        steps: optimizer steps of that epoch that are done.
    """
    later = [path for place, path in _places(folder) if place > (epoch, steps)]
    manifests = [manifest for path in later if (manifest := manifest_file(path)).exists()]
    return _move_aside(later + manifests, folder) if later else None


def _move_aside(files: list[Path], folder: Path, stays: Container[Path] = ()) -> Path:
    aside = next_previous(folder)
    aside.mkdir()
    for path in files:
        if path in stays:
            _give_second_name(path, aside / path.name)
        else:
            path.rename(aside / path.name)
    return aside


def _give_second_name(path: Path, other: Path) -> None:
    """A later file takes the first name, and leaves what has the second as it was."""
    try:
        other.hardlink_to(path)
    except OSError:  # not every file system can
        shutil.copy2(path, other)
