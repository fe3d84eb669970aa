"""Build the components of a run: task, family, processor, model, and the weights to answer with.

The order is always the same. `resolve` settles the options, `make_sources` opens the data, and `build` makes everything
else on top of them, with a model whose weights don't matter yet. Then the weights are loaded: `Family.initialise` or
`checkpoint.resume` to train, `load_for_inference` to evaluate and to answer questions.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from beit3_vqa.config.config import DEFAULT_OF, GROUP_OF, RunConfig
from beit3_vqa.config.options import AUTO
from beit3_vqa.config.resolve import GivenOptions, SavedOptions, resolve
from beit3_vqa.data.bad_images import BadImages
from beit3_vqa.data.prompt import ONE_OPTION
from beit3_vqa.engine.checkpoint.folder import BEST, deepspeed_weights
from beit3_vqa.engine.checkpoint.io import get_options, read_checkpoint, with_saved_task
from beit3_vqa.engine.checkpoint.portable import checkpoint_file
from beit3_vqa.engine.checkpoint.validate import Content
from beit3_vqa.engine.components import Components, StepSize
from beit3_vqa.errors import InputError
from beit3_vqa.models.base import Family, TaskShape
from beit3_vqa.models.families import family_key, find_family
from beit3_vqa.models.weights import asked_weights, mismatches
from beit3_vqa.runtime import memory
from beit3_vqa.runtime.precision import Precision, pick_device
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task

logger = logging.getLogger(__name__)


def build(
    config: RunConfig,
    task: Task,
    checkpoint: Path | None = None,
    sources: tuple[Task, ...] = (),
    *,
    holds_all: bool = True,
) -> Components:
    """Build the components of a run; the weights are loaded afterwards.

    Args:
        config: the run's options.
        task: what is learned.
        checkpoint: the file whose weights will be loaded; the tokenizer beside it is used.
        sources: the task on each of its data sets, `task` among them; by default `task` alone.
        holds_all: whether all of the model's weights are to come from that file.

    Raises:
        InputError: options contradict each other, or the model is too large for the checkpoint or for memory.
    """
    device = pick_device(config.compute.device)
    family = _family(config, task)
    if config.model.input_size not in (None, family.img_size):
        raise InputError(
            f"--input_size {config.model.input_size} contradicts --model {config.model.model}, which is for "
            f"{family.img_size} pixels. Change the model's name; --input_size isn't needed."
        )
    _require_possible(family, checkpoint if holds_all else None)  # before anything of the model's size is allocated
    torch.manual_seed(config.run.seed)  # fresh weights are drawn below
    wanted = config.compute.precision
    # A family may know better than the hardware: CLIP's recipe on a GPU is fp16.
    precision = Precision(family.auto_precision.get(device.type, wanted) if wanted == "auto" else wanted, device)
    _tell_unused(config, family, task)
    processor = family.processor(checkpoint.parent if checkpoint else None)
    bad_images = BadImages(config.data.skip_bad_images)
    options = config.optim
    # With `auto`, `engine.batch_size` finds out how many fit once the model is there.
    step_size = StepSize(
        1 if options.batch_size == AUTO else options.batch_size,
        options.update_freq,
        None if options.eval_batch_size == AUTO else options.eval_batch_size,
    )
    model = family.build(precision)
    return Components(
        config, task, family, processor, model, precision, step_size, bad_images, sources=sources or (task,)
    )


def _family(config: RunConfig, task: Task) -> Family:
    outputs_are_options = task.answers_are_options and task.outputs == task.num_classes
    spec = task.spec
    shape = TaskShape(spec.name, task.outputs, outputs_are_options, spec.head, spec.inputs, spec.option_by_option)
    return find_family(config.model.model)(config, shape)


def _require_possible(family: Family, checkpoint: Path | None) -> None:
    """Raise InputError if the checkpoint is too small to hold the model's parameters, or free memory is."""
    skeleton = family.skeleton()
    name = family.config.model.model
    saved = sum(value.numel() for value in skeleton.state_dict().values())
    # Every number takes at least a byte. The factor of 2 leaves room for image positions, which may be interpolated
    # to a higher resolution.
    if checkpoint is not None and saved > 2 * (size := checkpoint.stat().st_size):
        raise InputError(
            f"{checkpoint}: has {size:,} bytes, too few for the {saved:,} numbers of a {name} with the sizes that the "
            "checkpoint says. It is damaged, or of another model."
        )
    needed = sum(value.numel() * value.element_size() for value in skeleton.parameters())
    main_memory = torch.device("cpu")  # a model is made there before it moves to a GPU
    if memory.can_measure(main_memory) and needed > (free := memory.free(main_memory)):
        raise InputError(
            f"--model {name}: its weights alone take {needed / 2**30:,.1f} GiB of memory, of which "
            f"{free / 2**30:,.1f} GiB are free. Is the name right?"
        )


# An option that does nothing without another -> that one, and an example of it.
_NEEDED = {
    "balance_within": ("balance_answers", " 1, say"),
    "hard_ratio": ("hard_examples", " predictions.json, say"),
    "model_ema_decay": ("model_ema", ""),
    "model_ema_force_cpu": ("model_ema", ""),
    "lora_alpha": ("lora_rank", " 16, say"),
    "lora_targets": ("lora_rank", " 16, say"),
    "lora_dropout": ("lora_rank", " 16, say"),
    "teacher_weight": ("teacher", " predictions.json, say"),
    "teacher_temperature": ("teacher", " predictions.json, say"),
    "checkpoint_every": ("checkpoint_activations", ""),
}


def _tell_unused(config: RunConfig, family: Family, task: Task) -> None:
    """Print which of the options that the user gave have no effect on the family or the task."""
    values = config.flat()
    # Only those that aren't at their default: a config.json gives every option.
    given = sorted(name for name in config.given if values[name] != DEFAULT_OF[name])
    for name in given:
        if GROUP_OF[name] == "of_task" and name not in task.spec.own_options:
            logger.warning(f"--{name} has no effect on --task {task.spec.name}")
    for name in given:
        if name in family.unused:
            logger.warning(f"--{name} has no effect on {config.model.model}")
    if "prompt_template" in given and task.spec.option_by_option and ONE_OPTION not in config.model.prompt_template:
        logger.warning(f"--prompt_template has no effect on --task {task.spec.name} without {ONE_OPTION}")
    for name, (needed, example) in _NEEDED.items():
        if name in given and not values[needed]:
            logger.warning(f"--{name} has no effect without --{needed}; give --{needed}{example}")
    for name in ("plateau_factor", "plateau_patience"):
        if name in given and config.optim.sched != "plateau":
            logger.warning(f"--{name} has no effect without --sched plateau")


def build_run(config: RunConfig, checkpoint: Path | None = None) -> Components:
    """Build the components of a run on its data; see `build`."""
    sources = make_sources(config)
    return build(config, sources[config.sources.main], checkpoint, sources)


def make_task(config: RunConfig) -> Task:
    """Return the task of `--task`, set up on the data of `--data_path`; of several sources on the one that validates.

    Raises:
        InputError: as `make_sources`.
    """
    return make_sources(config)[config.sources.main]


def make_sources(config: RunConfig) -> tuple[Task, ...]:
    """Return the task of `--task` on each folder of `--data_path`, in order.

    Raises:
        InputError: a folder can't be used, or one model can't learn from all of them.
    """
    kind, sources = find_task(config.run.task), config.sources
    if len(sources.folders) < 2:
        return (kind.from_folder(config),)
    apart = [kind.from_folder(config.of_source(number)) for number in range(len(sources.folders))]
    tasks = tuple(task.joined(apart) for task in apart)
    for folder, task in zip(sources.folders, tasks, strict=True):
        if task.state() != tasks[sources.main].state():
            raise InputError(
                f"--data_path {folder}: its answers or classes aren't those of {sources.folder}, in the same order, so "
                "one model can't learn both. Prepare both with the same table; for open-ended questions "
                "--answer2label FILE gives all sources one."
            )
    return tasks


def checkpoint_to_evaluate(given: GivenOptions) -> tuple[Path, str]:
    """Return the checkpoint to evaluate, and the flag that names it.

    It is the file of `--resume`, or else that of `--finetune`, or else the best one in `--output_dir`.

    Raises:
        InputError: none of them is there.
    """
    if given["resume"]:
        return checkpoint_file(Path(given["resume"])), "--resume"
    if given["finetune"]:
        return checkpoint_file(Path(given["finetune"])), "--finetune"
    folder = Path(given["output_dir"])
    best = folder / BEST
    if given["output_dir"] and best.is_file():
        return best, "--resume"
    theirs = deepspeed_weights(folder) if given["output_dir"] else []
    there = f" {folder} holds {theirs[-1]}, of a run with DeepSpeed." if theirs else ""
    raise InputError(f"--eval: say what to evaluate with --resume CHECKPOINT or --finetune CHECKPOINT.{there}")


def resolve_checkpoint_config(
    given: GivenOptions, content: Content, where: str, kept: tuple[str, ...] = (), unless_given: tuple[str, ...] = ()
) -> RunConfig:
    """Settle the options of a run or an evaluation that loads a checkpoint.

    Args:
        given: the user's options.
        content: of the checkpoint.
        where: its flag and file, for messages.
        kept: names of options that stay the checkpoint's, whatever the user gave; the model's options needn't be named.
        unless_given: names of options that are the checkpoint's unless the user gave them, as the model's are.

    Raises:
        InputError: options contradict each other, or the checkpoint is of another family of models.
    """
    spec = find_task(given["task"]).spec
    # The model's name says the one, the table of answers or classes the other.
    saved = {name: value for name, value in get_options(content).items() if name not in ("input_size", "num_classes")}
    if saved and "vqa_loss" not in saved and spec.takes_vqa_loss:
        saved["vqa_loss"] = "bce"  # upstream's scripts and their forks know no other
        if "vqa_loss" not in given:
            logger.info("the checkpoint is of upstream's scripts: --vqa_loss bce, as they train")
    config = resolve(given, spec.defaults, SavedOptions(saved, where, kept, unless_given))
    before = saved.get("model")
    if isinstance(before, str) and before.split("_")[0] != family_key(config.model.model):
        raise InputError(
            f"{where} is a {before}, --model says {config.model.model}: no weight of the one fits the other. Give the "
            "run another --output_dir, or start over with --no_auto_resume."
        )
    return config


def plan_evaluation(given: GivenOptions) -> tuple[GivenOptions, int]:
    """Check that an evaluation can run, without loading a weight.

    Returns:
        The options, with the task that the checkpoint was trained on; and the number of the model's parameters.

    Raises:
        InputError: as the evaluation would: no such checkpoint, a damaged one, data that don't fit.
    """
    path, flag = checkpoint_to_evaluate(given)
    # Mapped: only the options are wanted, not gigabytes of weights.
    content = read_checkpoint(path, flag, given, mapped=True)
    given = with_saved_task(given, content)
    config = resolve_checkpoint_config(given, content, f"{flag} {path}")
    family = _family(config, make_task(config))
    _require_possible(family, path)
    return given, family.count_parameters()


def load_for_inference(components: Components, content: Content, where: str, *, exact: bool = True) -> None:
    """Load the weights to answer with: those of `--model_key` if given, else the moving average if there is one.

    Args:
        components: whose model is filled.
        content: of the checkpoint.
        where: its name, for messages.
        exact: every weight must fit. If false, weights are adapted as `--finetune` adapts them (another resolution,
            say), but none may be missing.

    Raises:
        InputError: the weights don't fit.
    """
    weights = asked_weights(content, components.config, where, first="model_ema")
    if exact:
        load_weights(components.model, weights, where, "Was it trained as another model? If not, it is damaged.")
        return
    missing = components.family.load_pretrained(components.model, weights, where)
    if missing:
        raise InputError(
            f"{where}: lacks {', '.join(missing[:4])}, so there is nothing to evaluate. Train first, or give a "
            "checkpoint that was fine-tuned on these answers."
        )


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str, advice: str) -> None:
    """Load a state dict that must fit exactly.

    Args:
        model: to be filled.
        weights: the state dict.
        where: the checkpoint's name, for messages.
        advice: what the user can do if it doesn't fit; ends the message.

    Raises:
        InputError: a name or a shape differs; it lists them.
    """
    problems = mismatches(model.state_dict(), weights)
    if problems:
        raise InputError.of_problems(f"{where} doesn't fit the model:", problems, advice)
    model.load_state_dict(weights)
