"""The loggers of `--log_with`: TensorBoard, Weights & Biases, MLflow. Each gets the same scalars and the config.

A logger that fails is left out for the rest of the session, with one line: curves are no reason to lose a training.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

from beit3_vqa.errors import InputError, first_line, one_line
from beit3_vqa.runtime.distributed import is_main
from beit3_vqa.runtime.files import read_json, write_text

log = logging.getLogger(__name__)

STATE_FILE = "loggers.json"  # in --output_dir: {logger: {"id": its run, "written": {scalar: last step}}}
MAX_STATE = 1_000_000  # bytes of it
PROJECT = "beit3_vqa"  # of W&B, and the experiment of MLflow


@dataclass(frozen=True)
class LoggedRun:
    """What a logger needs to know of a run.

    Attributes:
        folder: `--output_dir`.
        log_dir: folder of TensorBoard.
        config: option name -> value.
        first_step: optimizer steps already done.
        goes_on: whether `folder` holds this run already.
    """

    folder: Path
    log_dir: Path
    config: dict[str, object]
    first_step: int = 0
    goes_on: bool = False


class Logger(Protocol):
    """Somewhere to draw curves. Any method may raise any error.

    Attributes:
        id: name of its run, by which it goes on with it; empty if the folder is enough.
    """

    id: str

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write the values of an optimizer step."""

    def flush(self) -> None:
        """Write what is buffered."""

    def close(self, failed: bool) -> None:
        """Write all that is left; `failed` tells that the run ended before its time."""


class TensorBoard:
    """TensorBoard, which hides the events of steps that are trained again."""

    id = ""

    def __init__(self, run: LoggedRun, id: str):
        from torch.utils.tensorboard import SummaryWriter

        purged = run.first_step + 1 if run.first_step else None
        self.writer: Any = SummaryWriter(str(run.log_dir), purge_step=purged)
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        self.writer.add_text("config", f"```json\n{text}\n```", run.first_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Add an event for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write the events to disk."""
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """Write the events to disk, and end the thread that does it."""
        self.writer.close()


class Wandb:
    """Weights & Biases. Its own variables have their say: WANDB_MODE, WANDB_PROJECT, WANDB_NAME, WANDB_DIR."""

    def __init__(self, run: LoggedRun, id: str):
        import wandb

        ours = {"WANDB_PROJECT": PROJECT, "WANDB_NAME": run.folder.resolve().name, "WANDB_DIR": str(run.folder)}
        project, name, folder = (None if os.environ.get(variable) else value for variable, value in ours.items())
        self.run: Any = wandb.init(
            project=project, name=name, dir=folder, id=id or None, resume="allow" if id else None, config=run.config,
            allow_val_change=True,
        )  # fmt: skip
        # W&B's own step only counts up, and would drop what is written late; so the step is a value like the others.
        self.run.define_metric("*", step_metric="step")
        self.id: str = self.run.id

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Hand the values to W&B's own process, which writes and uploads them."""
        self.run.log({**values, "step": step})

    def flush(self) -> None:
        """Do nothing: W&B's own process writes at once."""

    def close(self, failed: bool) -> None:
        """Wait until all is written, and uploaded if W&B is online."""
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """MLflow: the server of MLFLOW_TRACKING_URI, or else files in `--output_dir/mlruns`."""

    def __init__(self, run: LoggedRun, id: str):
        store = os.environ.get("MLFLOW_TRACKING_URI")
        if not store:
            # MLflow 3 refuses a store of files without it. Its databases take packages that most users don't have.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self.client: Any = MlflowClient(tracking_uri=store or (run.folder / "mlruns").resolve().as_uri())
        if not store:  # MLflow keeps a store open; an earlier run in this process may have made it, and it was moved
            (run.folder / "mlruns" / ".trash").mkdir(parents=True, exist_ok=True)
        known: dict[str, str] = {}
        try:
            if id:
                known = self.client.get_run(id).data.params
                # The end of its last session has set another.
                self.client.update_run(id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            id = ""  # it was deleted there, or this is another store
        if not id:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self.client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else self.client.create_experiment(experiment)
            id = self.client.create_run(number, run_name=run.folder.resolve().name).info.run_id
        self.id = id
        config = {name: str(value)[:500] for name, value in run.config.items()}  # older versions take no more
        new = [Param(name, value) for name, value in config.items() if name not in known]
        for first in range(0, len(new), 100):  # the most that it takes at once
            self.client.log_batch(id, params=new[first : first + 100])
        # It can't change a parameter. A tag says what an option is from here on.
        for name, value in config.items():
            if known.get(name, value) != value:
                self.client.set_tag(id, f"resumed.{name}", value)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write the values at once."""
        from mlflow.entities import Metric

        # MLflow counts in milliseconds.
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(_mlflow_name(name), value, now, step) for name, value in values.items()])

    def flush(self) -> None:
        """Do nothing: `scalars` has written all."""

    def close(self, failed: bool) -> None:
        """Say how the run ended."""
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow takes: it refuses `val/what?`, and `..` between slashes."""
    return "/".join(re.sub(r"[^\w\-. :]", "_", part).strip(".") or "_" for part in name.split("/"))[:250]


LOGGERS: dict[str, Callable[[LoggedRun, str], Logger]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}


class Loggers:
    """The loggers of a run; only the main process has any.

    A run that goes on does so in its runs of W&B and MLflow, whose ids are in loggers.json. Nothing can be taken back
    there, so the steps that are trained again are left out: the file also says how far each scalar was written.

    Args:
        names: keys of `LOGGERS`.
        run: the run.
    """

    def __init__(self, names: tuple[str, ...], run: LoggedRun):
        self.path = run.folder / STATE_FILE
        self.open: dict[str, Logger] = {}
        self.state = _read_state(self.path) if run.goes_on and is_main() else {}
        for name in names if is_main() else ():
            with self._left_out_if_it_fails(name):
                kept = self.state.get(name, {"id": "", "written": {}})
                logger = LOGGERS[name](run, kept["id"])
                self.open[name] = logger
                if logger.id:
                    # A run whose id isn't the one that was asked for is a new one, and has no points yet.
                    self.state[name] = kept if logger.id == kept["id"] else {"id": logger.id, "written": {}}
                    self._write_state()
        self.before = {name: dict(kept["written"]) for name, kept in self.state.items()}
        for name in self.open:
            last = max(self.before.get(name, {}).values(), default=0)
            if last > run.first_step:
                log.info(f"{name} has its points up to step {last} already; until then it gets no new ones")

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write the values of an optimizer step to each logger."""
        for name, logger in list(self.open.items()):
            with self._left_out_if_it_fails(name):
                before = self.before.get(name, {})
                new = {key: value for key, value in values.items() if step > before.get(key, -1)}
                if new:
                    logger.scalars(new, step)
                if new and logger.id:
                    self.state[name]["written"] |= dict.fromkeys(new, step)
                    self._write_state()

    def flush(self) -> None:
        """Write what is buffered."""
        for name, logger in list(self.open.items()):
            with self._left_out_if_it_fails(name):
                logger.flush()

    def close(self, failed: bool = False) -> None:
        """End all loggers; `failed` tells that the run ended before its time."""
        for name, logger in list(self.open.items()):
            with self._left_out_if_it_fails(name):
                logger.close(failed)
        self.open.clear()

    def _write_state(self) -> None:
        write_text(self.path, json.dumps(self.state, ensure_ascii=False) + "\n")

    @contextmanager
    def _left_out_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever their code raises
            self.open.pop(name, None)
            missing = isinstance(error, ModuleNotFoundError)
            why = f"pip install 'beit3_vqa[{name}]'" if missing and name != "tensorboard" else first_line(error)
            log.warning(one_line(f"--log_with {name}: fails ({why}); the training goes on without it"))


class _State(TypedDict):
    """What loggers.json keeps of a logger: its run's id, and the step of each name's last point."""

    id: str
    written: dict[str, int]


def _read_state(path: Path) -> dict[str, _State]:
    """Read loggers.json; what isn't as we wrote it is left out, and its logger begins a new run."""
    try:
        loaded = read_json(path, MAX_STATE) if path.exists() else {}
    except InputError as error:
        log.warning(f"{error} Its loggers begin new runs.")
        return {}
    state = loaded if isinstance(loaded, dict) else {}
    return {name: kept for name, kept in state.items() if name in LOGGERS and _is_state(kept)}


def _is_state(kept: object) -> bool:
    if not isinstance(kept, dict) or not isinstance(kept.get("id"), str) or not isinstance(kept.get("written"), dict):
        return False
    return all(type(step) is int for step in kept["written"].values())
