"""`--report-to`: the curve of a run in an experiment tracker, beside curve.jsonl, which is always written.

| name | where it goes, unless the environment says otherwise | the environment's words |
|---|---|---|
| tensorboard | RUN/tensorboard | |
| trackio | trackio's own local folder | TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_PROJECT |
| wandb | RUN/wandb, offline; `wandb sync` sends it | WANDB_MODE, WANDB_DIR, WANDB_PROJECT |
| mlflow | mlflow.db beside the run folder | MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME |

Nothing leaves the machine unless the environment asks for it: the usage reports of MLflow and the error reports of wandb
are switched off, too, where the environment does not say. A tracker that fails is left out with one warning; the run
goes on. RUN/tracking.json says what each has been given, so that a resumed run sends nothing twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import os
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bird.errors import UsageError, unknown_name
from bird_pipelines.progress import tell
from bird_pipelines.runs import read_json, write_json

__all__ = ["TRACKERS", "Told", "Tracker", "Trackers", "trackers_named"]

PROJECT = "bird"
SCORES = ("accuracy", "f1_macro", "auroc", "mean_deo", "max_deo")


@final
@dataclass(frozen=True)
class Told:
    """What a tracker is told of a run: its folder, a name for people, its settings."""

    folder: Path
    name: str
    settings: Mapping[str, str | int | float]


class Tracker(ABC):
    """A tracker's record of one run. `id` is drawn once for a run; a resumed run gives it again."""

    package = ""
    """what is imported"""
    quiet: Mapping[str, str] = {}
    """what is set in the environment, where it is not set, before the package is imported"""

    @abstractmethod
    def begin(self, run: Told, id: str, *, resumed: bool) -> None:
        """Open the record, or go on with the one of that id."""

    @abstractmethod
    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Numbers of an epoch, from 1."""

    @abstractmethod
    def end(self, *, complete: bool) -> None:
        """Close the record: the run is complete, or will be resumed."""


@final
class TensorBoard(Tracker):
    """Event files in RUN/tensorboard."""

    package = "tensorboard"

    def begin(self, run: Told, id: str, *, resumed: bool) -> None:
        """A new event file; TensorBoard reads all of a folder as one."""
        from tensorboard.summary import Writer

        self.writer: Any = Writer(str(run.folder / "tensorboard"))

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def end(self, *, complete: bool) -> None:
        """Close the file."""
        self.writer.close()


@final
class Trackio(Tracker):
    """A run of trackio, in its local folder."""

    package = "trackio"

    def begin(self, run: Told, id: str, *, resumed: bool) -> None:
        """Several runs may be open side by side: in a context of its own, `init` does not end the one before."""
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        options = {"config": dict(run.settings), "resume": "allow", "embed": False}
        options |= {"auto_log_gpu": False, "auto_log_cpu": False}
        context = contextvars.copy_context()
        self.run: Any = context.run(trackio.init, project=project, name=f"{run.name}-{id}", **options)

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self.run.log(dict(values), step=epoch)

    def end(self, *, complete: bool) -> None:
        """Wait until all is written."""
        self.run.finish()


@final
class WandB(Tracker):
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise."""

    package = "wandb"
    quiet: Mapping[str, str] = {"WANDB_ERROR_REPORTING": "false"}

    def begin(self, run: Told, id: str, *, resumed: bool) -> None:
        """A run of that id; offline, each resumption is a folder of its own with the same id."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            mode=mode,
            config=dict(run.settings),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        self.run.log(dict(values), step=epoch)

    def end(self, *, complete: bool) -> None:
        """Wait until all is written."""
        self.run.finish(exit_code=0 if complete else 1)


@final
class MLflow(Tracker):
    """A run of MLflow, in a database beside the run folder unless MLFLOW_TRACKING_URI names another place. (MLflow no longer
    develops its store of plain files.)"""

    package = "mlflow"
    quiet: Mapping[str, str] = {"MLFLOW_DISABLE_TELEMETRY": "true"}

    def begin(self, run: Told, id: str, *, resumed: bool) -> None:
        """The run with that tag, or a new one."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        beside = run.folder.resolve().parent
        own = os.environ.get("MLFLOW_TRACKING_URI")
        self.client: Any = MlflowClient(own or f"sqlite:///{beside / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        place = None if own else (beside / "mlartifacts").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=place)
        earlier = self.client.search_runs([experiment], f"tags.bird_id = '{id}'") if resumed else []
        if earlier:
            self.id = earlier[0].info.run_id
            return
        self.id = self.client.create_run(experiment, run_name=run.name, tags={"bird_id": id}).info.run_id
        self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in run.settings.items()])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Metrics by name, in one call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, epoch) for name, value in values.items()])

    def end(self, *, complete: bool) -> None:
        """Mark it as finished, or as stopped."""
        self.client.set_terminated(self.id, "FINISHED" if complete else "KILLED")


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
    "mlflow": MLflow,
}


def trackers_named(names: str | None) -> list[str]:
    """The trackers of `--report-to`, separated by commas. Raises UsageError for an unknown one, or one that is not
    installed."""
    found = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in found:
        if name not in TRACKERS:
            raise unknown_name("--report-to", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name].package) is None:
            raise UsageError(
                where=f"--report-to {name}",
                found=f"no package {TRACKERS[name].package}",
                wanted="the tracker's own package",
                fix=f"pip install 'bird-distill[{name}]'",
            )
    return list(dict.fromkeys(found))


@final
class Trackers:
    """The trackers of one run. Each is opened at its first number; one that fails is left out from then on."""

    def __init__(self, names: str | None, folder: Path, settings: Mapping[str, Any]) -> None:
        """Raises UsageError as `trackers_named`."""
        told = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
        name = "/".join(folder.resolve().parts[-2:])
        self.run = Told(folder, name, told)
        self.waiting = trackers_named(names)
        self.open: dict[str, Tracker] = {}

    def epochs(self, curve: Sequence[Mapping[str, Any]]) -> None:
        """Send the lines of the curve that a tracker does not have yet."""
        self._send([(each["epoch"], _numbers(each)) for each in curve], ended=False)

    def end(self, curve: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Send what is left of the curve and the scores of the finished student, by split, and close the records."""
        self.epochs(curve)
        values: dict[str, float] = {}
        for split, each in metrics.items():
            if split == "meta":  # it is in the curve
                continue
            values |= {f"{split}/{name}": each[name] for name in SCORES if _is(each.get(name))}
            if _is(each.get("mean_deo")):
                values |= {f"{split}/mean_deo_floor": each["deo_floor"]["mean"]}
                values |= {f"{split}/trivial": float(bool(each.get("trivial")))}
        self._send([(len(curve), values)], ended=True)

    def release(self) -> None:
        """Close what is still open, since the run was stopped; nothing, where it is complete."""
        while self.open:
            _, tracker = self.open.popitem()
            with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                tracker.end(complete=False)

    def _send(self, lines: Sequence[tuple[int, Mapping[str, float]]], *, ended: bool) -> None:
        if not self.waiting and not self.open:
            return
        path = self.run.folder / "tracking.json"
        given = read_json(path) if path.exists() else {}
        for name in [*self.waiting, *self.open]:
            mine = given.get(name) or {"id": secrets.token_hex(4), "epoch": 0, "ended": False}
            if mine["ended"]:
                continue
            try:
                with contextlib.redirect_stdout(sys.stderr):  # stdout is the command's own
                    self._send_one(name, mine, lines, resumed=name in given, ended=ended)
            except Exception as error:  # whatever a tracker raises is no reason to lose a run
                self.open.pop(name, None)
                self.waiting = [each for each in self.waiting if each != name]
                said = str(error).strip().split("\n")[0][:200]
                tell(f"warning: --report-to {name} failed and is left out from now on ({type(error).__name__}: {said})")
                continue
            given[name] = mine
            write_json(path, given)

    def _send_one(
        self,
        name: str,
        mine: dict[str, Any],
        lines: Sequence[tuple[int, Mapping[str, float]]],
        *,
        resumed: bool,
        ended: bool,
    ) -> None:
        if name in self.waiting:
            kind = TRACKERS[name]
            for variable, value in kind.quiet.items():
                os.environ.setdefault(variable, value)
            tracker = kind()
            tracker.begin(self.run, mine["id"], resumed=resumed)
            self.open[name] = tracker
            self.waiting.remove(name)
        for epoch, values in lines:
            if ended or epoch > mine["epoch"]:
                self.open[name].log(epoch, values)
                mine["epoch"] = epoch
        if ended:
            self.open.pop(name).end(complete=True)
            mine["ended"] = True


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the curve; a gap comes with the mark that says whether it tells anything."""
    found = {name: value for name, value in line.items() if name not in ("epoch", "step") and _is(value)}
    meta = line.get("meta") or {}
    found |= {f"meta/{name}": value for name, value in meta.items() if _is(value)}
    return found | ({"meta/trivial": float(bool(meta.get("trivial")))} if meta else {})


def _is(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
