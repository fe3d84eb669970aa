"""The entry points of a run: `train` and `evaluate`. Single questions: `predictor.load`.

Each takes what the user gave, settles the options, builds the components, loads the weights and does its work.
"""

import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from beit3_vqa.config.config import FIT, RunConfig
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.data.types import EvalResult, PredictionsInfo
from beit3_vqa.engine import time_budget
from beit3_vqa.engine.batch_size import with_batch_size, with_eval_batch_size
from beit3_vqa.engine.build import (
    build,
    build_run,
    checkpoint_to_evaluate,
    load_for_inference,
    make_sources,
    resolve_checkpoint_config,
)
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, with_saved_task
from beit3_vqa.engine.checkpoint.manifest import (
    finish_renames,
    get_sha256,
    keep_temperature,
    read_temperature,
    require_manifest,
)
from beit3_vqa.engine.checkpoint.resume import (
    check_same_answers,
    check_same_fingerprints,
    find_run,
    fold_of_evaluation,
    restore,
    restore_weights,
    tell_other_answers,
)
from beit3_vqa.engine.checkpoint.same_run import get_beginning, trained_on
from beit3_vqa.engine.checkpoint.save import TrainState
from beit3_vqa.engine.checkpoint.validate import Content, validate_content
from beit3_vqa.engine.dry_run import describe, dry_run
from beit3_vqa.engine.evaluator import compare_sources, evaluate_fully, naming, round_to_int8
from beit3_vqa.engine.run_lock import run_lock
from beit3_vqa.engine.trainer import fit
from beit3_vqa.engine.training import Judge, Training, set_up_training
from beit3_vqa.errors import InputError, plural
from beit3_vqa.metrics.summary import without_looking
from beit3_vqa.runtime import distributed
from beit3_vqa.runtime.distributed import processes
from beit3_vqa.runtime.files import require_writable
from beit3_vqa.runtime.host import tune_allocator
from beit3_vqa.runtime.precision import pick_device
from beit3_vqa.runtime.spinning import watch_spinning
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task

logger = logging.getLogger(__name__)


def train(given: GivenOptions, *, say_next: bool = True, judge: Judge | None = None) -> TrainState:
    """Train from scratch, from pretrained weights, or on from a checkpoint; with `--dry_run`, only try it.

    Args:
        given: the options.
        say_next: print at the end which command evaluates the best checkpoint.
        judge: whoever decides after each validation whether training goes on; one process only.

    Raises:
        InputError: something the user gave doesn't work.
        TrainingDiverged: the gradient wasn't finite for `--max_bad_steps` steps in a row.
        Stopped: a signal came; the step was finished and saved.
        ProcessLost: another process of the run ended or can't be reached.
    """
    started = time_budget.now()
    find_task(given["task"])  # an unknown one is an error before anything is made
    if not given["output_dir"] and not given["dry_run"]:
        raise InputError("--output_dir: say where checkpoints and results go.")
    if given["tune_allocator"]:
        tune_allocator()
    watch_spinning()
    lock = nullcontext() if given["dry_run"] else run_lock(given["output_dir"])
    # In this order: the main process takes the lock for all, and they are told of it.
    with processes(pick_device(given["device"]), given["dist_timeout"]), lock:
        if not given["dry_run"]:
            # Before a checkpoint is looked for: the newest may still have its temporary name.
            distributed.run_on_main(lambda: finish_renames(Path(given["output_dir"])))
        found = find_run(given)
        run = _begin(given) if found is None else _go_on(given, *found)
        run.judge = judge
        if run.state.time:
            run.state.time.started = started  # --max_hours counts the time that it took to load model and data, too
        describe(run)
        if given["dry_run"]:
            dry_run(run)
            return run.state
        return fit(run, say_next=say_next)


def _begin(given: GivenOptions) -> Training:
    config = resolve(given, find_task(given["task"]).spec.defaults)
    components = build_run(config)
    finetune = config.init.finetune
    content = read_checkpoint(finetune, "--finetune", given, mapped=True) if finetune else None
    if content is not None:
        _check_adapters(config, content)
    new = components.family.initialise(components.model, components.processor, content)
    if content is not None:
        if content.get("model_ema") and "model_key" not in config.given:
            logger.info(f"--finetune {finetune}: its weights were taken; --model_key model_ema takes their average")
        tell_other_answers(components.task, content, new, f"--finetune {finetune}")
    del content  # free the memory before the batch size is measured
    run = set_up_training(with_batch_size(components))
    # Until here every process drew the same numbers, for the same weights. In training each draws its own.
    torch.manual_seed(config.run.seed + distributed.rank())
    return run


def _check_adapters(config: RunConfig, content: Content) -> None:
    """Raise InputError if the adapters of `--finetune` counted more, or less, than this run's would."""
    saved = get_options(content)
    rank, alpha = config.model.lora_rank, saved.get("lora_alpha")
    alpha = 2 * rank if alpha is None else alpha  # the default
    if not rank or saved.get("lora_rank") != rank or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1e6:
        return
    if alpha != config.model.alpha:
        raise InputError(
            f"--finetune {config.init.finetune}: its adapters were trained with --lora_alpha {alpha:g}, and this run "
            f"has {config.model.alpha:g}: give --lora_alpha {alpha:g}."
        )


def _go_on(given: GivenOptions, path: Path, content: Content) -> Training:
    where = f"--resume {path}"
    config = resolve_checkpoint_config(given, content, where, kept=get_beginning(given, get_options(content)))
    components = build_run(config, path)
    components = with_batch_size(components)
    restore_weights(components, content, path)
    run = set_up_training(components)
    restore(run, content, path)
    return run


def evaluate(given: GivenOptions) -> EvalResult:
    """Evaluate a checkpoint on `--split` and write the result files.

    Raises:
        InputError: something the user gave doesn't work.
        NotFiniteError: the model's outputs aren't finite.
        ProcessLost: another process ended or can't be reached.
    """
    if given["tune_allocator"]:
        tune_allocator()
    watch_spinning()
    with processes(pick_device(given["device"]), given["dist_timeout"]):
        return _evaluate(given)


def _evaluate(given: GivenOptions) -> EvalResult:
    path, flag = checkpoint_to_evaluate(given)
    folder = Path(given["output_dir"] or path.parent)
    require_writable(folder)
    find_task(given["task"])  # an unknown one is an error before a file is read
    content = read_checkpoint(path, flag, given, mapped=True)
    where = f"{flag} {path}"
    checksum = get_sha256(path)  # now, since a training that runs beside may replace the file meanwhile
    if flag == "--resume":
        validate_content(content, where)
    _require_head(given["task"], content, where)
    # What a score depends on, and isn't the model's: the test is to be measured as the validation was.
    measured_by = (*find_task(given["task"]).spec.evaluation_options, "label_smoothing")
    fold = fold_of_evaluation(given, get_options(content))
    config = resolve_checkpoint_config(given, content, where, fold, measured_by)
    sources = make_sources(config)
    task = sources[config.sources.main]
    check_same_answers(task, content, where)
    components = build(config, task, path, sources)
    check_same_fingerprints(components, content)
    load_for_inference(components, content, where, exact=flag == "--resume")
    average, asked = bool(content.get("model_ema")), trained_on(content)
    # The temperature beside a checkpoint belongs to the weights that are taken unless --model_key names others.
    other_weights = average and given["model_key"] != "model_ema" and "model_key" in given
    del content
    components.model.to(components.precision.device)
    logger.info(f"evaluating {path}")
    if components.precision.int8:
        with naming(str(path)):
            round_to_int8(components)
    components.precision.cast_frozen(components.model.requires_grad_(False))
    components = with_eval_batch_size(components)
    if average and "model_key" not in given:
        logger.info("evaluating its moving average (model_ema); --model_key model takes the plain weights")
    fit, temperature = config.run.temperature == FIT, None
    if fit:
        require_manifest(path)
    else:
        temperature = _temperature(task, None if other_weights else path, config.temperature)
    with naming(str(path)):
        result, fitted = evaluate_fully(components, temperature)
        split = config.run.split
        label, beside = f"evaluating {split}", components.loaders_beside(split)
        by_source = compare_sources(components, result.metrics, beside, label, split)
    if result.metrics:
        result = replace(result, metrics=result.metrics | by_source)
    here = components.fingerprints.get(split)
    if result.metrics and split != "train" and here and (seen := here.count_in(asked)):
        logger.warning(
            f"{split}: the model was trained on {seen:,} of the {plural(len(here.rows), 'row')}, so the score flatters"
        )
    if fitted and other_weights:
        print(f"temperature {fitted['temperature']:g} isn't kept: it is that of --model_key {given['model_key']}")
    elif fitted:
        if get_sha256(path) != checksum:
            raise InputError(f"{where}: was replaced while it was evaluated, so its temperature can't be kept there.")
        about = {**fitted, "data_path": config.sources.folder, "fold": config.data.fold}
        kept = distributed.run_on_main(lambda: keep_temperature(path, fitted["temperature"], about))
        logger.info(f"temperature {fitted['temperature']:g} kept in {kept}: --eval and predict take it from there")
    info = PredictionsInfo(
        task=task.spec.name,
        model=config.model.model,
        parameters=sum(parameter.numel() for parameter in components.model.parameters()),
        checkpoint=str(path),
        split=config.run.split,
        data_path=config.sources.folder,
        image_root=str(task.folder.image_root()),
        best_metric=task.spec.best_metric,
        chance=result.chance,
        sha256=checksum,
        temperature=fitted["temperature"] if fitted else temperature or 1.0,
        tta=config.run.tta,
    )
    for written in distributed.run_on_main(lambda: task.write_results(result, info, folder)):
        print(f"wrote {written}")
    if result.metrics:
        score = result.metrics[task.spec.best_metric]
        blind = without_looking(result.metrics)
        told = f"(chance {result.chance:.2f}{blind and f'; {blind}'})"
        print(f"{config.run.split} {task.spec.best_metric}: {score:.2f} {told}")
    return result


def _require_head(task: str, content: Content, where: str) -> None:
    """Raise InputError if a checkpoint of ours was trained on a task whose head is another than the asked task's."""
    saved = with_saved_task(GivenOptions({"task": task}), content)["task"]
    trained, asked = find_task(saved).spec, find_task(task).spec
    if (trained.head, trained.option_by_option) != (asked.head, asked.option_by_option):
        raise InputError(f"{where}: was trained with --task {saved}; give that in place of --task {task}.")


def _temperature(task: Task, checkpoint: Path | None, given: float | None) -> float:
    """Return the temperature that the user gave, else the one that is kept beside the checkpoint, else 1."""
    kept = read_temperature(checkpoint) if checkpoint and given is None and task.spec.takes_temperature else None
    if kept:
        logger.info(f"temperature {kept:g}, kept beside the checkpoint")
    return given or kept or 1.0
