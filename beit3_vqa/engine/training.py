"""What is trained, how far it has come, and when it is over."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.data.mixture import get_digest
from beit3_vqa.engine.checkpoint.save import TrainState
from beit3_vqa.engine.components import Components
from beit3_vqa.engine.logging import format_seconds
from beit3_vqa.engine.loop import Learner
from beit3_vqa.engine.optim import ModelEma, Schedule, make_optimizer, make_schedule
from beit3_vqa.engine.parallel import make_strategy
from beit3_vqa.engine.time_budget import TimeBudget, Work
from beit3_vqa.errors import InputError, plural
from beit3_vqa.runtime import distributed

logger = logging.getLogger(__name__)

# (epochs done, the score of a validation) -> why training is to end there; empty: it goes on.
Judge = Callable[[float, float], str]


@dataclass(kw_only=True)
class Training(Learner):
    """A training run: the model and what trains it (see `Learner`), its data, and how far it has come.

    Attributes:
        components: task, model, processor and options.
        train: batches of the training split.
        val: batches of the validation split; None if the data have none.
        beside: of each other source that has such a split, by number: batches, and the components to evaluate them.
        resumed: checkpoint that the run goes on from; None if it begins.
        best_is_of_other_data: whether the best checkpoint so far was chosen on another validation split.
        judge: whoever else decides after each validation whether training goes on; None: nobody.
        verdict: why the judge ended training; empty if it didn't.
        state: epochs done, place inside the epoch, best score.
    """

    components: Components
    train: BatchLoader
    val: BatchLoader | None
    beside: dict[int, tuple[Components, BatchLoader]] = field(default_factory=dict)
    resumed: Path | None = None
    best_is_of_other_data: bool = False
    judge: Judge | None = None
    verdict: str = ""
    state: TrainState = field(default_factory=TrainState)

    @property
    def step(self) -> int:
        """Return the optimizer steps done since the start of the run."""
        return self.state.epoch * self.steps_per_epoch + self.state.inside.steps

    @property
    def schedule(self) -> Schedule:
        """Return the learning rate as a function of the step, valid until the next validation."""
        return make_schedule(self.components.config.optim, self.steps_per_epoch, self.state.val_losses)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step to come."""
        # A run that ends before its last epoch walks through the whole schedule all the same, in longer strides.
        return self.schedule(step * self.work.total // self.last_step)

    @property
    def last_step(self) -> int:
        """Return the optimizer steps after which the run is to end: all, or those that `--max_hours` plans."""
        planned = self.state.time.kept.last_step if self.state.time else 0
        return min(self.work.total, planned or self.work.total)

    @property
    def work(self) -> Work:
        """Return what there is to do."""
        config, steps = self.components.config, self.steps_per_epoch

        def inside(every: int) -> int:
            # Not at the epoch's last step, after which comes its own.
            return (steps - 1) // every if every else 0

        return Work(
            epochs=config.optim.epochs,
            steps=steps,
            validations=1 + inside(config.optim.eval_steps) if self.val else 0,
            saves=1 + inside(config.run.save_steps) if config.run.save_ckpt else 0,
            validation_in_steps=self.validation_rows * steps / self.examples,
        )

    @property
    def validation_rows(self) -> int:
        """Return the rows of a validation, over all sources."""
        loaders = [self.val, *(loader for _, loader in self.beside.values())]
        return sum(loader.batches.rows for loader in loaders if loader)

    @property
    def validated(self) -> float:
        """Return the share of the epoch's examples that were done at its last validation; 0: there was none."""
        return self.state.inside.validated / self.examples

    @property
    def order(self) -> dict[str, object]:
        """Return everything that decides the order of an epoch's examples."""
        seed, data = self.components.config.run.seed, self.components.config.data
        rows = self.components.fingerprints["train"].order
        groups = self.train.batches.groups
        mix: dict[str, object] = {"mix": [group.draws for group in groups]} if groups else {}
        if data.hard_examples:
            mix["hard_examples"] = get_digest(groups)
        if data.balance_within != "all":
            mix["balance_within"] = data.balance_within
        return {"rows": self.examples, "seed": seed, "balance_answers": data.balance_answers, "data": rows, **mix}

    @property
    def stays_in_its_folder(self) -> bool:
        """Return whether the run goes on from a checkpoint in its own `--output_dir`."""
        folder = Path(self.components.config.run.output_dir)
        return self.resumed is not None and self.resumed.parent.resolve() == folder.resolve()

    def why_over(self) -> str:
        """Return why there is nothing left to train, and which option would change that; empty if there is."""
        state, options = self.state, self.components.config.optim
        if state.epoch >= options.epochs:
            return f"{state.epoch} of {plural(options.epochs, 'epoch')} done; raise --epochs for more"
        if options.patience and state.waited >= options.patience:
            best = f"{state.best_score:.2f} of epoch {state.best_epoch}" if state.best_score is not None else "before"
            waited = plural(state.waited, "validation")
            return f"{waited} in a row without a better score than {best}; raise --patience for more"
        if self.verdict:
            return self.verdict
        time = state.time
        if time is None:
            return ""
        hours, done = f"--max_hours {time.hours:g}", time.in_epochs(self.step, self.work)
        # The run ends with a validation: one that was stopped before it has that left.
        if self.step >= self.last_step and state.inside.validated == state.inside.examples:
            return (
                f"{done} are done, as planned for {hours}, in {format_seconds(time.used)}; raise --max_hours for more"
            )
        # The main process's clock decides, so that all end at the same step.
        if time.is_up or distributed.run_on_main(lambda: time.no_time_left):
            time.is_up = True
            return f"the time of {hours} is used up, {done} are done; raise --max_hours for more"
        return ""

    def plan(self) -> bool:
        """Look at the clock, and plan at which step the run is to end; return whether that has changed.

        Every process must call it; the main one decides.
        """
        time, work = self.state.time, self.work
        if time is None:
            return False
        changed, kept = distributed.run_on_main(lambda: (time.plan_anew(self.step, work), time.kept))
        time.kept = kept
        return changed


def set_up_training(components: Components) -> Training:
    """Return a run that is ready for its first step.

    Args:
        components: of the run; the model has its weights already, since the moving average begins with them.

    Raises:
        InputError: the precision is for trained models only.
    """
    config, options = components.config, components.config.optim
    if components.precision.int8:
        raise InputError("--precision int8 rounds a trained model: it is for --eval, predict and serve. Take auto.")
    # Before it is wrapped: fsdp shards a model where it is.
    components.model.to(components.precision.device)
    train_loader = components.training_loader()
    val_loader = components.loader("val") if "val" in components.task.folder.splits() else None
    if val_loader is None:
        of = f" in {config.sources.folder} (--val_from chooses another)" if len(components.sources) > 1 else ""
        logger.info(f"no validation split{of}, so the last epoch counts as the best")
        if components.task.folder.folds():
            logger.info("the training rows have folds: --fold K holds one of them out as val")
        if options.patience:
            logger.warning("--patience has no validation to follow: training goes on to its last epoch")
        if options.eval_steps:
            logger.warning("--eval_steps has no validation split, and so no effect")
        if options.sched == "plateau":
            logger.warning("--sched plateau has no validation loss to follow: the learning rate stays as it is")
    elif seen := components.fingerprints["val"].count_in(components.fingerprints["train"].asked):
        rows = plural(len(components.fingerprints["val"].rows), "row")
        logger.warning(
            f"val: {seen:,} of {rows} are trained on too, with the same image and text, so the score there flatters"
        )
    if val_loader is not None and (shared := components.count_shared_images()):
        logger.warning(f"val: images that another --data_path trains on: {shared:,}. So the score there may flatter")
    strategy = make_strategy(config.compute.strategy)
    # Before the optimizer and the moving average are made: fsdp replaces the parameters that they hold.
    model = strategy.wrap(components.model)
    hours = options.max_hours
    return Training(
        components=components,
        train=train_loader,
        val=val_loader,
        beside=components.loaders_beside("val") if val_loader else {},
        model=model,
        loss=components.task.loss,
        optimizer=make_optimizer(components.model, options, strategy, components.precision.dtype),
        precision=components.precision,
        examples=train_loader.batches.rows,
        batch_size=components.step_size.batch_size,
        update_freq=components.step_size.update_freq,
        clip_grad=options.clip_grad,
        max_bad_steps=options.max_bad_steps,
        ema=make_ema(components) if options.model_ema else None,
        strategy=strategy,
        state=TrainState(time=TimeBudget(hours) if hours is not None else None),
    )


def make_ema(components: Components) -> ModelEma:
    """Return a moving average that begins with the model's weights."""
    options = components.config.optim
    return ModelEma(components.model, options.model_ema_decay, "cpu" if options.model_ema_force_cpu else None)
