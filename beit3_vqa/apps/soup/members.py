"""The checkpoints of a soup: read once and checked in full, then read again piece by piece."""

import gc
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from beit3_vqa.apps.soup.options import MOST_MEMBERS
from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.resolve import GivenOptions
from beit3_vqa.data.fingerprint import Numbers
from beit3_vqa.engine.build import build, make_task, resolve_checkpoint_config
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, with_saved_task
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.engine.checkpoint.portable import find_best_checkpoint
from beit3_vqa.engine.checkpoint.resume import check_same_answers, check_same_fingerprints, fold_of_evaluation
from beit3_vqa.engine.checkpoint.same_run import trained_on
from beit3_vqa.engine.checkpoint.validate import Content, validate_content
from beit3_vqa.engine.components import Components
from beit3_vqa.errors import InputError, short
from beit3_vqa.models.lora import adapter_scale, without_adapters
from beit3_vqa.models.weights import asked_weights, mismatches
from beit3_vqa.runtime.files import real_path
from beit3_vqa.tasks import without_task

FLAG = "checkpoint"  # what the errors of a member's file begin with
AVERAGE = "model_ema"
# Options of a model that don't change what it computes: places of files, and what training alone looks at.
_FREE = frozenset({"sentencepiece_model", "pretrained", "lora_dropout", "input_size", "num_classes"})
_FREE |= {"model", "lora_alpha"}  # compared in other words
_FINGERPRINTS = {"tokenizer_sha256": "tokenizer", "base_sha256": "pretrained weights"}
_BESIDE = ("args", "task_state", *_FINGERPRINTS)


@dataclass(frozen=True)
class Member:
    """A checkpoint of a soup.

    Attributes:
        name: as the user typed it.
        path: the file.
        given: options to read it with.
        config: options of an evaluation of it.
        kept: names of the options that are the checkpoint's, whatever the user gave.
        sha256: of the file.
        key: the entry whose weights are taken; empty if they are the file itself.
        identity: what tells whether the file is still the one that was checked.
        saved: what it holds beside tensors.
        trained_on: what its training rows ask, as `Fingerprint.asked`; nothing if the file doesn't say.
    """

    name: str
    path: Path
    given: GivenOptions
    config: RunConfig
    kept: tuple[str, ...]
    sha256: str
    key: str
    identity: tuple[int, ...]
    saved: Content = field(repr=False)
    trained_on: Numbers = field(repr=False)

    def weights(self) -> dict[str, Tensor]:
        """Read the weights that `--eval` would take; they stay in the file until they are used.

        Raises:
            InputError: the file isn't the one that was checked.
        """
        if _identity(self.path) != self.identity:
            raise InputError(f"{self.name}: was replaced while the soup was made; type the command again.")
        with redirect_stdout(None):  # what is to be said of the file was said when it was checked
            content = read_checkpoint(self.path, FLAG, self.given, mapped=True, verified=True)
            return _get_weights(content, self.config, self.name)


def find_files(names: Sequence[str]) -> list[Path]:
    """Return the checkpoints that the names stand for, without reading them.

    Raises:
        InputError: a file isn't there, one is named twice, or there are too many.
    """
    if len(names) > MOST_MEMBERS:
        raise InputError(f"{len(names)} checkpoints: a soup takes at most {MOST_MEMBERS}. Leave the worst out.")
    paths = [find_best_checkpoint(name) for name in names]
    seen: dict[Path, str] = {}
    for name, path in zip(names, map(real_path, paths), strict=True):
        if path in seen:
            raise InputError(f"{name}: is the same file as {seen[path]}; name each checkpoint once.")
        seen[path] = name
    return paths


def read_members(
    names: Sequence[str], paths: Sequence[Path], evaluation: Mapping[str, object], split: str
) -> tuple[list[Member], Components]:
    """Read and check the checkpoints one after the other.

    Args:
        names: as the user typed them.
        paths: what `find_files` returned for them.
        evaluation: options of `--eval` by flat name.
        split: name of the split that they are compared on.

    Returns:
        The members, those with the same weights once; and the components of the run that evaluates their soups, whose
        model has no adapters, and no weights that matter beside those that CLIP's adapters leave alone.

    Raises:
        InputError: one can't be read, doesn't fit the data, isn't of the same model as the first, or its weights aren't
            finite.
    """
    members: list[Member] = []
    components: Components | None = None
    seen: dict[bytes, str] = {}
    for name, path in zip(names, paths, strict=True):
        member, content = _read(name, path, evaluation, split)
        if components is None:
            components = _build(member)
        else:
            _check_same_model(members[0], member)
        weights = _get_weights(content, member.config, name)
        problems = mismatches(components.model.state_dict(), weights)
        if problems:
            of = f"the model of {members[0].name}" if members else "its model"
            raise InputError.of_problems(
                f"{name} doesn't fit {of}:", problems, "A soup is of checkpoints of one model."
            )
        digest = _digest(weights)
        if digest in seen:
            print(f"{name}: holds the same weights as {seen[digest]}, which count once")
            continue
        seen[digest] = name
        members.append(member)
    assert components is not None
    first = members[0]
    if first.config.model.lora_rank:
        del components, weights, content
        gc.collect()  # one model at a time
        given = first.given.also(**without_adapters(first.config.model))
        config = resolve_checkpoint_config(given, first.saved, first.name, kept=first.kept)
        # The file may hold adapters alone: it is far smaller than the model.
        components = build(config, make_task(config), first.path, holds_all=False)
    return members, components


def _build(member: Member) -> Components:
    """Build the components of a member's run; InputError if it doesn't fit the data or their tokenizer."""
    task = make_task(member.config)
    check_same_answers(task, member.saved, member.name)
    components = build(member.config, task, member.path)
    check_same_fingerprints(components, member.saved)
    return components


def _read(name: str, path: Path, evaluation: Mapping[str, object], split: str) -> tuple[Member, Content]:
    """Read a checkpoint and settle the options that it is evaluated with."""
    values = {**evaluation, "eval": True, "resume": str(path), "split": split}
    given = GivenOptions(values, typed_flags=frozenset(evaluation))  # nobody typed the file after --resume
    identity = _identity(path)
    content = read_checkpoint(path, FLAG, given, mapped=True)
    validate_content(content, name)
    saved = get_options(content)
    given = with_saved_task(given, content)
    kept = fold_of_evaluation(given, saved)
    config = resolve_checkpoint_config(given, content, name, kept=kept)
    asked = "model_key" in given
    keys = config.init.model_key.split("|") if asked else [AVERAGE, *config.init.model_key.split("|")]
    key = next((key for key in keys if content.get(key)), "")
    print(f"{name}: its moving average ({AVERAGE})" if key == AVERAGE else f"{name}: its weights", flush=True)
    beside = {entry: content[entry] for entry in _BESIDE if entry in content}
    sha256 = get_sha256(path)
    return Member(name, path, given, config, kept, sha256, key, identity, beside, trained_on(content)), content


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _get_weights(content: Content, config: RunConfig, where: str) -> dict[str, Tensor]:
    return asked_weights(content, config, where, first=AVERAGE)


def _check_same_model(one: Member, other: Member) -> None:
    """Raise InputError if two checkpoints aren't of the same model on the same task; it lists what differs."""
    task, theirs = one.config.run.task, other.config.run.task
    problems = [] if task == theirs else [_differs("task", theirs, other, task, one)]
    ours, others = asdict(one.config.model), asdict(other.config.model)
    names = [without_task(member.config.model.model, member.config.run.task) for member in (one, other)]
    problems += [] if names[0] == names[1] else [_differs("model", names[1], other, names[0], one)]
    problems += [
        _differs(name, others[name], other, value, one)
        for name, value in ours.items()
        if name not in _FREE and others[name] != value
    ]
    scales = adapter_scale(one.config.model), adapter_scale(other.config.model)
    problems += (
        [] if scales[0] == scales[1] else [_differs("alpha / rank of the adapters", scales[1], other, scales[0], one)]
    )
    if one.config.data.fold != other.config.data.fold:
        folds = _differs("fold", other.config.data.fold, other, one.config.data.fold, one)
        problems.append(f"{folds}; each was trained on the other's validation rows")
    if not problems and other.saved.get("task_state") != one.saved.get("task_state"):
        problems.append(f"the answer table of {other.name} is another one than that of {one.name}")
    problems += [
        f"the {what} of {other.name} isn't that of {one.name}"
        for entry, what in _FINGERPRINTS.items()
        if {entry} <= one.saved.keys() & other.saved.keys() and one.saved[entry] != other.saved[entry]
    ]
    if problems:
        raise InputError.of_problems(
            "the checkpoints aren't of one model:", problems, "Models that differ can vote: `beit3-vqa ensemble`."
        )


def _differs(what: str, value: object, of: Member, other: object, of_other: Member) -> str:
    return f"{what}: {short(value)} in {of.name}, {short(other)} in {of_other.name}"


def _digest(weights: dict[str, Tensor]) -> bytes:
    """Return a hash of the weights' bytes, which two files with the same weights share."""
    digest = hashlib.blake2b(digest_size=16)
    for _, value in sorted(weights.items()):
        digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
