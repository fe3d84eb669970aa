"""A soup from its checkpoints to one checkpoint: read, try out, compare with the best single one, write."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from beit3_vqa.apps.soup.learn import learn_weights
from beit3_vqa.apps.soup.members import Member, find_files, read_members
from beit3_vqa.apps.soup.mixer import Mixer
from beit3_vqa.apps.soup.options import GREEDY, LEARNED, UNIFORM, SoupOptions
from beit3_vqa.apps.soup.trials import Trial, Trials
from beit3_vqa.data.predictions import json_text
from beit3_vqa.engine.batch_size import with_eval_batch_size
from beit3_vqa.engine.checkpoint.folder import BEST, archive_best, checkpoints
from beit3_vqa.engine.checkpoint.io import read_checkpoint, save_checkpoint
from beit3_vqa.engine.checkpoint.manifest import get_sha256
from beit3_vqa.engine.checkpoint.validate import SOUP
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.export import about_model
from beit3_vqa.engine.run_lock import require_lock, run_lock
from beit3_vqa.errors import InputError, plural
from beit3_vqa.runtime.distributed import refuse_several, run_on_main
from beit3_vqa.runtime.files import make_folder, refuse_to_replace, write_text

TABLE = "soup.json"
WHY_EVEN = "every training row was seen by all folds but one, so there are no rows to choose other weights on"


def soup(options: SoupOptions, evaluation: Mapping[str, object]) -> dict[str, object]:
    """Average checkpoints, compare the averages with the best single one, and write the best if it isn't worse.

    Args:
        options: what to average, and how.
        evaluation: options of `--eval` by flat name.

    Returns:
        What soup.json holds.

    Raises:
        InputError: the checkpoints aren't of one model, or something else can't be used; nothing is written then.
    """
    refuse_several("soup works on one device: start it without torchrun.")
    if evaluation.get("precision") == "int8":
        raise InputError("--precision int8 rounds a trained model: mix it first, and take int8 with --eval or predict.")
    if not evaluation.get("data_path"):
        raise InputError("--data_path: say on which prepared folder the soups are to be compared.")
    paths = find_files(options.members)
    _check_place(options.output_dir, paths)
    with run_lock(options.output_dir):
        return _soup(options, paths, evaluation)


def _check_place(folder: Path, inputs: Sequence[Path]) -> None:
    """Raise InputError if a soup that is written to a folder would replace something else."""
    best = folder / BEST
    refuse_to_replace("--output_dir", best, inputs)
    # The file says it itself: a soup that was killed right after it was written has no JSON yet.
    if checkpoints(folder) or (best.exists() and SOUP not in read_checkpoint(best, "--output_dir", mapped=True)):
        raise InputError(f"--output_dir {folder}: holds a run's checkpoints; give the soup a folder of its own.")


def _soup(options: SoupOptions, paths: Sequence[Path], evaluation: Mapping[str, object]) -> dict[str, object]:
    """Do the same, as the only process that works in `--output_dir`."""
    members, components = read_members(options.members, paths, evaluation, options.split)
    spec, names = components.task.spec, [member.name for member in members]
    if LEARNED in options.methods and not spec.per_example:
        raise InputError(f"--method learned: {spec.name} has no loss of a single row; take uniform or greedy.")
    components.model.to(components.precision.device)
    components = with_eval_batch_size(components)
    mixer = Mixer(components.model, members, members[0].config.model)
    trials = Trials(components, mixer, options.split, options.seed)
    _tell_seen(members, components, options.split)
    singles = [trials.try_out(alone, name) for alone, name in zip(_one_hot(len(names)), names, strict=True)]
    best = max(singles, key=lambda trial: trial.rank)
    soups = _try_methods(trials, singles, names, options)
    method = max(soups, key=lambda name: soups[name].rank)
    is_kept = options.keep_anyway or soups[method].score >= best.score
    results = _results(trials, members, singles, soups, best)
    print(_table(results, spec.best_metric, options.split))
    about = _about(members, soups[method].weights, method, components, options.split)
    path = options.output_dir / BEST
    if is_kept:
        mixer.fill(soups[method].weights)  # since then others were tried
        components.family.save_assets(components.processor, options.output_dir)
        require_lock(options.output_dir)
        _write(path, components, about, soups[method].score)
    elif path.exists():  # what lies there isn't what the table is about
        print(f"the soup that lay there is in {archive_best(options.output_dir)} now")
    kept = {"kept": method, "checkpoint": path.name, "sha256": get_sha256(path)} if is_kept else {"kept": None}
    content = {**about, **results, **kept}
    table = write_text(options.output_dir / TABLE, json_text(content, indent=2) + "\n")
    if is_kept:
        used = [name for name, weight in zip(names, soups[method].weights, strict=True) if weight]
        if len(used) == 1:
            print(f"the {method} soup is {used[0]} alone")
        elif method != UNIFORM:
            print(f"its weights were chosen on {options.split}, so its score there is flattering")
        print(f"wrote {path}: the {method} soup")
    else:
        print(f"no soup is as good as {names[singles.index(best)]}, so none is written; --keep_anyway insists")
    print(f"wrote {table}")
    return content


def average_folds(names: Sequence[str], evaluation: Mapping[str, object], folder: Path) -> None:
    """Average the models of folds evenly, without comparing anything; every process calls it, the main one writes.

    Other weights would be chosen on rows that all members but one were trained on.

    Args:
        names: the folds' checkpoints, however many.
        evaluation: options of `--eval` by flat name, on a prepared folder with a test split.
        folder: for the checkpoint and soup.json.

    Raises:
        InputError: the checkpoints aren't of one model, or something else can't be used; nothing is written then.
    """
    if checkpoints(folder):
        raise InputError(f"{folder}: holds a run's checkpoints, but the soup of the folds goes there; move them away.")
    members, components = read_members(names, list(map(Path, names)), evaluation, "test")
    weights = [1 / len(members)] * len(members)
    Mixer(components.model, members, members[0].config.model).fill(weights)
    about = _about(members, weights, UNIFORM, components, "") | {"why": WHY_EVEN}

    def write() -> None:
        make_folder(folder)
        components.family.save_assets(components.processor, folder)
        _write(folder / BEST, components, about)
        kept = {"kept": UNIFORM, "checkpoint": BEST, "sha256": get_sha256(folder / BEST)}
        write_text(folder / TABLE, json_text({**about, **kept}, indent=2) + "\n")

    run_on_main(write)


def _one_hot(count: int) -> list[list[float]]:
    return [[float(row == column) for column in range(count)] for row in range(count)]


def _tell_seen(members: Sequence[Member], components: Components, split: str) -> None:
    """Print which members were trained on rows of the split."""
    here = components.fingerprints[split]
    for member in members:
        if seen := here.count_in(member.trained_on):
            print(
                f"{member.name}: was trained on {seen:,} of the {plural(len(here.rows), 'row')} of {split}: "
                "its score flatters"
            )


def _try_methods(
    trials: Trials, singles: Sequence[Trial], names: Sequence[str], options: SoupOptions
) -> dict[str, Trial]:
    """Return the soup of each method."""
    count = len(singles)
    soups: dict[str, Trial] = {}
    if UNIFORM in options.methods:
        soups[UNIFORM] = trials.try_out([1.0] * count, "the uniform soup")
    if GREEDY in options.methods:
        soups[GREEDY] = _greedy(trials, singles, names)
    if LEARNED in options.methods:
        known = [*singles, *soups.values()]
        soups[LEARNED] = _learned(trials, known, options.passes) if count > 1 else singles[0]
    return soups


def _greedy(trials: Trials, singles: Sequence[Trial], names: Sequence[str]) -> Trial:
    """Add the members from the best to the worst, and keep each with which the soup doesn't get worse."""
    order = sorted(range(len(singles)), key=lambda index: singles[index].rank, reverse=True)
    taken, best = order[:1], singles[order[0]]
    for index in order[1:]:
        weights = [float(place in (*taken, index)) for place in range(len(singles))]
        trial = trials.try_out(weights, f"the greedy soup with {names[index]}")
        print(f"greedy: {trial.score:.2f} with {names[index]}, {best.score:.2f} without")
        if trial.score >= best.score:
            taken, best = [*taken, index], trial
    return best


def _learned(trials: Trials, known: Sequence[Trial], passes: int) -> Trial:
    """Learn weights from the mixture with the lowest loss so far; return that one if none is better."""

    def loss(trial: Trial) -> float:
        return float("inf") if trial.loss is None else trial.loss

    start = min(known, key=loss)
    number = 0

    def slope(weights: list[float]) -> tuple[float, list[float]]:
        nonlocal number
        number += 1
        found = trials.slope(weights)
        print(f"learned: pass {number} of at most {passes}, loss {found[0]:.5f}", flush=True)
        return found

    weights, _ = learn_weights(slope, start.weights, passes)
    return min([start, trials.try_out(weights, "the learned soup")], key=loss)


# What soup.json says of what was compared.


class _Described(TypedDict):
    score: float
    low: float | None
    high: float | None
    loss: float | None
    difference: dict[str, Any] | None  # a `Difference` as a dict


class _Single(_Described):
    file: str


class _Mixture(_Described):
    weights: list[float]


class _Results(TypedDict):
    rows: int
    singles: list[_Single]
    best_single: str
    soups: dict[str, _Mixture]


def _results(
    trials: Trials, members: Sequence[Member], singles: Sequence[Trial], soups: Mapping[str, Trial], best: Trial
) -> _Results:
    """Return the table as plain data."""

    def described(trial: Trial) -> _Described:
        low, high = trial.interval or (None, None)
        difference = trials.difference(trial, best)
        return {
            "score": trial.score,
            "low": low,
            "high": high,
            "loss": trial.loss,
            # Against itself there is nothing to test.
            "difference": None if trial is best or difference is None else asdict(difference),
        }

    return {
        "rows": len(trials.loader.dataset),
        "singles": [{"file": member.name, **described(trial)} for member, trial in zip(members, singles, strict=True)],
        "best_single": members[list(singles).index(best)].name,
        "soups": {name: {"weights": list(trial.weights), **described(trial)} for name, trial in soups.items()},
    }


def _table(results: _Results, metric: str, split: str) -> str:
    """Write out the results; the numbers of a soup are its weights, in the order of the checkpoints."""
    lines = [
        f"{metric} on {plural(results['rows'], 'row')} of {split}, with its 95% interval; the difference to the best "
        "single checkpoint, with that of a paired bootstrap over images, and the p of a paired permutation test"
    ]
    rows: list[tuple[_Described, str]] = [(single, single["file"]) for single in results["singles"]]
    for name, mixture in results["soups"].items():
        weights = mixture["weights"]
        used = [f"{weight:.3f}" for weight in weights if weight]
        evenly = (
            f"{len(used)} of {len(weights)}, evenly" if len(set(used)) == 1 else " ".join(f"{w:.3f}" for w in weights)
        )
        rows.append((mixture, f"{name} soup: {evenly}"))
    for found, what in rows:
        interval = "" if found["low"] is None else f"{found['low']:6.2f} to {found['high']:6.2f}"
        loss = "" if found["loss"] is None else f"loss {found['loss']:.4f}"
        told = found["difference"]
        points = "" if told is None else "{mean:+6.2f} ({low:+.2f} to {high:+.2f})".format(**told["points"])
        p = "" if told is None else "p < 0.001" if told["p"] < 0.001 else f"p {told['p']:.3f}"
        lines.append(f"  {found['score']:6.2f}  {interval:16}  {loss:11}  {points:26}  {p:9}  {what}")
    return "\n".join(lines)


def _about(
    members: Sequence[Member], weights: Sequence[float], method: str, components: Components, split: str
) -> dict[str, object]:
    """Return what a soup was made of, and where it was compared, as plain data."""
    return {
        "method": method,
        "members": [
            {"file": str(member.path), "sha256": member.sha256, "weights_of": member.key, "weight": weight}
            for member, weight in zip(members, weights, strict=True)
        ],
        "adapters_merged": bool(members[0].config.model.lora_rank),
        "task": components.task.spec.name,
        "model": components.config.model.model,
        "metric": components.task.spec.best_metric,
        "split": split,
        "data_path": components.config.sources.folder,
    }


def _write(path: Path, components: Components, about: dict[str, object], score: float | None = None) -> None:
    """Write the model as a checkpoint without an optimizer; what it was made of stands in it and beside it."""
    content = {
        "model": {name: value.cpu() for name, value in components.model.state_dict().items()},
        **about_model(components),
        SOUP: about,
    }
    told = {} if score is None else {"score": score}
    save_checkpoint(path, content, {**told, SOUP: about, "config": components.config.to_dict()})
