"""Training, evaluation and single answers: where the parts meet. Knows no task and no model by name."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from beit3_vqa.assemble import (
    Parts,
    assemble,
    checkpoint_to_evaluate,
    config_of_checkpoint,
    load_for_inference,
    make_task,
    with_task_defaults,
)
from beit3_vqa.batch_size import with_batch_size
from beit3_vqa.config import FIT, RunConfig
from beit3_vqa.data.decoding import memory_for
from beit3_vqa.data.images import image_size
from beit3_vqa.data.rows import LETTERS
from beit3_vqa.dry_run import describe, dry_run
from beit3_vqa.engine import distributed
from beit3_vqa.engine.checkpoint import options_of, read_checkpoint
from beit3_vqa.engine.contents import check_contents
from beit3_vqa.engine.distributed import processes
from beit3_vqa.engine.evaluate import finite, naming
from beit3_vqa.engine.host import tune_allocator
from beit3_vqa.engine.manifest import finish_renames, keep_temperature, read_temperature, require_manifest, sha256_of
from beit3_vqa.engine.precision import pick_device
from beit3_vqa.engine.run_lock import run_lock
from beit3_vqa.errors import InputError
from beit3_vqa.evaluation import evaluate_fully
from beit3_vqa.files import require_writable
from beit3_vqa.models.families import find_family, with_family_defaults
from beit3_vqa.questions import EVALUATE, MOST_OPTIONS, Asked, check_question, naming_saved_options
from beit3_vqa.restore import check_same_answers, check_same_checksums, find_run, restore, restore_weights, with_fold_of
from beit3_vqa.same_run import with_beginning_of
from beit3_vqa.saving import TrainState
from beit3_vqa.schema import AttentionMap, Batch, EvalResult, Example, Prediction, PredictionsInfo
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task
from beit3_vqa.training import Training, set_up_training, train_epochs


def train(config: RunConfig) -> TrainState:
    """Trains as `config` says, from scratch, from pretrained weights, or on from a checkpoint.

    Raises:
        InputError: something the user gave doesn't work.
        TrainingDiverged: the gradient stays not finite.
        Stopped: a signal came; the step was finished and saved.
        ProcessLost: another process of the run ended.
    """
    config = with_task_defaults(config)
    if not config.run.output_dir and not config.run.dry_run:
        raise InputError("--output_dir: say where checkpoints and results go.")
    if config.compute.tune_allocator:
        tune_allocator()
    lock = nullcontext() if config.run.dry_run else run_lock(config.run.output_dir)
    with processes(pick_device(config.compute.device), config.compute.dist_timeout), lock:
        if not config.run.dry_run:
            distributed.decided(lambda: finish_renames(Path(config.run.output_dir)))
        found = find_run(config)
        run = _begin(config) if found is None else _go_on(config, *found)
        describe(run)
        if config.run.dry_run:
            dry_run(run)
            return run.state
        return train_epochs(run)


def _begin(config: RunConfig) -> Training:
    config = with_family_defaults(config)
    parts = assemble(config, make_task(config))
    parts.family.initialise(parts.model, parts.processor)
    run = set_up_training(with_batch_size(parts))
    torch.manual_seed(config.run.seed + distributed.rank())  # the weights are everyone's, stochastic depth each one's
    return run


def _go_on(config: RunConfig, path: Path, content: dict[str, Any]) -> Training:
    where = f"--resume {path}"
    config = config_of_checkpoint(config, content, where)
    config = with_beginning_of(config, options_of(content), where)
    parts = assemble(config, make_task(config), path)
    parts = with_batch_size(parts)
    restore_weights(parts, content, path)
    run = set_up_training(parts)
    restore(run, content, path)
    return run


def evaluate(config: RunConfig) -> EvalResult:
    """Evaluates a checkpoint on `config.run.split` and writes the result files.

    Raises:
        InputError: something the user gave doesn't work.
    """
    if config.compute.tune_allocator:
        tune_allocator()
    with processes(pick_device(config.compute.device), config.compute.dist_timeout):
        return _evaluate(config)


def _evaluate(config: RunConfig) -> EvalResult:
    path, flag = checkpoint_to_evaluate(config)
    folder = Path(config.run.output_dir or path.parent)
    require_writable(folder)
    config = with_task_defaults(config)
    content = read_checkpoint(path, flag, trust=config.trusts(path), mapped=True)
    where = f"{flag} {path}"
    checksum = sha256_of(path)  # now: training may put another in its place before the end
    if flag == "--resume":
        check_contents(content, where)
    config = config_of_checkpoint(config, content, where)
    config = with_fold_of(config, options_of(content))
    task = make_task(config)
    check_same_answers(task, content, where)
    parts = assemble(config, task, path)
    check_same_checksums(parts, content)
    load_for_inference(parts, content, where, exact=flag == "--resume")
    average = bool(content.get("model_ema"))
    del content
    parts.model.to(parts.precision.device)
    print(f"evaluating {path}")
    if average and "model_key" not in config.given:
        print("its moving average, that is (model_ema); --model_key model takes the weights themselves")
    fit = config.run.temperature == FIT
    if fit:
        require_manifest(path)
    else:
        _set_temperature(task, path, config.temperature)
    with naming(str(path)):
        result, fitted = evaluate_fully(parts, fit=fit)
    if fit:
        if sha256_of(path) != checksum:
            raise InputError(f"{where}: was replaced while it was evaluated, so its temperature can't be kept there.")
        about = {**fitted, "data_path": config.data.data_path, "fold": config.data.fold}
        kept = distributed.decided(lambda: keep_temperature(path, fitted["temperature"], about))
        print(f"temperature {fitted['temperature']:g} kept in {kept}: --eval and predict take it from there")
    info = PredictionsInfo(
        task=task.name,
        model=config.model.model,
        parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
        checkpoint=str(path),
        split=config.run.split,
        data_path=config.data.data_path,
        image_root=str(task.image_root()),
        best_metric=task.best_metric,
        chance=task.chance(),
        sha256=checksum,
    )
    for written in distributed.decided(lambda: task.write_results(result, info, folder)):
        print(f"wrote {written}")
    if result.metrics:
        score = result.metrics[task.best_metric]
        print(f"{config.run.split} {task.best_metric}: {score:.2f} (chance {task.chance():.2f})")
    return result


def _set_temperature(task: Task, checkpoint: Path, given: float | None) -> None:
    """Sets the temperature that is given, or else what is kept beside the checkpoint."""
    kept = read_temperature(checkpoint) if given is None and task.takes_temperature else None
    task.temperature = given or kept or 1.0
    if kept:
        print(f"temperature {kept:g}, kept beside the checkpoint")


class Answerer:
    """A trained model, ready for questions; made by `load` from `checkpoint`."""

    def __init__(self, parts: Parts, checkpoint: str):
        self.parts = parts
        self.checkpoint = checkpoint

    @property
    def option_counts(self) -> range:
        """How many options a question may have; none at all (an empty range) for an open-ended model.

        A head has one output for each option and a prompt one place, so that it takes what it was trained with. A
        family that scores option by option takes any number; more than `MOST_OPTIONS` nobody reads.
        """
        task = self.parts.task
        if not task.answers_are_options:
            return range(0)
        if self.parts.family.any_number_of_options or task.passes > 1:
            return range(2, max(MOST_OPTIONS, task.num_classes) + 1)
        return range(task.num_classes, task.num_classes + 1)

    def predict(self, image: str | Path, question: str, choices: Sequence[str] = ()) -> Prediction:
        """Answers one question about one image.

        Args:
            image: a file.
            question: as text.
            choices: the options, of which the model says how many there may be; empty for an open-ended model.

        Raises:
            InputError: an image that can't be read, another number of options, or a task without questions.
        """
        return self.predict_many([self.prepare(image, question, choices)])[0]

    def prepare(self, image: str | Path, question: str, choices: Sequence[str] = ()) -> Asked:
        """The half of `predict` that can fail and that needs no model: one thread at a time may do it.

        Raises:
            InputError: as `predict`.
        """
        task = self.parts.task
        if not task.asks:
            raise InputError(f"the model was trained on {task.name}, which has no single questions. {EVALUATE}")
        check_question(question, choices, self.option_counts)
        example = Example(id="0", image_path=str(image), question=question, choices=tuple(choices))
        with memory_for(str(image)):
            return Asked(example, task.tensors(example, self.parts.processor, None), image_size(image))

    def predict_many(self, asked: Sequence[Asked]) -> list[Prediction]:
        """Answers B questions in one forward pass; they have the same number of options.

        Raises:
            NotFiniteError: the model's outputs are no numbers that could be an answer.
        """
        task, batch = self._batch(asked)
        with torch.no_grad(), self.parts.precision.autocast():
            outputs = task.infer(self.parts.model, batch)
        return task.predictions(finite(outputs, self.checkpoint), batch)

    def look_many(self, asked: Sequence[Asked]) -> tuple[list[Prediction], list[AttentionMap]]:
        """`predict_many`, and where the model looked at each image, which takes a little longer.

        Of a task that passes each option through the model it is where it looked with the option that was chosen.
        """
        task, batch = self._batch(asked)
        parts, passes = self.parts, task.passes
        sizes = [one.size for one in asked for _ in range(passes)]
        with torch.no_grad(), parts.precision.autocast():
            outputs, maps = parts.family.attention(parts.model, parts.processor, batch.inputs, sizes)
        finite([one.patches for one in maps], self.checkpoint)
        predictions = task.predictions(finite(outputs, self.checkpoint), batch)
        chosen = [LETTERS.index(p.answer) if passes > 1 else 0 for p in predictions]
        return predictions, [maps[place * passes + option] for place, option in enumerate(chosen)]

    def _batch(self, asked: Sequence[Asked]) -> tuple[Task, Batch]:
        """The questions as a batch, and the task for as many options as they have."""
        task = self.parts.task
        options = len(asked[0].example.choices)
        if options and options != task.num_classes:
            task = task.with_options(options)
        inputs = task.collate([one.inputs for one in asked], self.parts.processor)
        batch = Batch(inputs, tuple(one.example for one in asked))
        return task, batch.to(self.parts.precision.device)


def load(
    checkpoint: str | Path,
    device: str = "auto",
    sentencepiece_model: str = "",
    pretrained: str = "",
    precision: str = "auto",
) -> Answerer:
    """A trained model from one of your checkpoints, with everything else it needs.

    Args:
        checkpoint: `checkpoint-best.pth` or `checkpoint-N.pth`.
        device: auto, cpu, cuda, cuda:N or mps.
        sentencepiece_model: the tokenizer, where tokenizer.spm no longer lies beside the checkpoint.
        pretrained: the model that was fine-tuned, where it no longer lies where it did (CLIP).
        precision: auto, fp32, bf16 or fp16; in fp32 an answer is, to 1e-5, the same whatever is asked beside it.

    Raises:
        InputError: not such a checkpoint, or no tokenizer or pretrained model where it is looked for.
    """
    places = {"sentencepiece_model": sentencepiece_model, "pretrained": pretrained}
    given = {"device": device, "precision": precision} | {name: place for name, place in places.items() if place}
    parts = _load(Path(checkpoint), given)
    parts.model.to(parts.precision.device).eval()
    return Answerer(parts, str(checkpoint))


def export(checkpoint: str | Path, folder: str | Path, *, merge: bool = False, pretrained: str = "") -> None:
    """Writes a trained model in the format of its family's library.

    Args:
        checkpoint: `checkpoint-best.pth` or `checkpoint-N.pth`.
        folder: new or empty.
        merge: the whole model; else the adapters alone.
        pretrained: the model that was fine-tuned, where it no longer lies where it did.

    Raises:
        InputError: not such a checkpoint, or a family without such a format.
    """
    given = {"device": "cpu", "precision": "fp32"} | ({"pretrained": pretrained} if pretrained else {})
    parts = _load(Path(checkpoint), given, to_export=True)
    with naming(str(checkpoint)):
        parts.family.export(parts.model, parts.processor, Path(folder), merge=merge)
    print(f"wrote {folder}; the text of an option was {parts.config.model.prompt_template!r}")


def _load(path: Path, given: dict[str, str], *, to_export: bool = False) -> Parts:
    """The parts of a checkpoint's run with its weights, and the options `given` on top of its own."""
    where = f"--checkpoint {path}"
    content = read_checkpoint(path, "--checkpoint", mapped=True)
    check_contents(content, where)
    task_name = options_of(content).get("task")
    if "task_state" not in content or not isinstance(task_name, str):
        raise InputError(f"{where}: isn't a checkpoint of this package's training. {EVALUATE}")
    with naming_saved_options(where):
        find_task(task_name)  # an unknown one is an error of its own
        config = with_task_defaults(RunConfig(typed_flags=frozenset(given)).updated({"task": task_name}))
        config = config_of_checkpoint(config, content, where).updated(given, given=frozenset(given))
        if to_export and not find_family(config.model.model).exports:
            raise InputError(f"{where}: is a {config.model.model}; its checkpoints are its format, there is no other.")
        task = find_task(task_name).from_checkpoint(config, content["task_state"], where)
        parts = assemble(config, task, path)
        check_same_checksums(parts, content)
    load_for_inference(parts, content, where)
    task.temperature = read_temperature(path) or 1.0
    return parts
