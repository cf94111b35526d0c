"""Many runs in one process: what can be trained side by side is, the rest one by one. The folders are those of single runs.

Adapters that differ in nothing but their seed and in what weighs their losses form a stack (bird.step.stack). Each run of it
is an ordinary trainer: it keeps its own order of batches, its own meta draws, its own checkpoint, curve and student, so that
a run begun in a stack can be finished alone, and the other way round.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bird.devices import choose_device, enough_memory, send, threads
from bird.errors import DivergedError, UsageError
from bird.launch import launched
from bird.methods import METHODS, Batch, Hyperparameters, build_method
from bird.precision import in_bf16, require_precision
from bird.step.stack import StackedLearner
from bird.students import STUDENTS
from bird_cache.order import shuffled, slices
from bird_cache.store import open_cache
from bird_pipelines import runs
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.epoch_losses import Pending
from bird_pipelines.distilling.profiling import Clock
from bird_pipelines.distilling.requirements import hyperparameters, require_groups, required_method, tell_empty_cells
from bird_pipelines.distilling.schedule import rate_factor, scale_rate
from bird_pipelines.distilling.teacher_head import teacher_logits
from bird_pipelines.distilling.training import LESS, Trainer, distill, outcome, read
from bird_pipelines.progress import Interrupted, progress, stop_requests

__all__ = ["distill_many", "groups_of", "models_at_once", "stacks_of"]

# What the runs of a stack may differ in.
OWN = ("seed", "lambda", "alpha", "mu1", "mu2", "lr", "fitnet_weight", "mfd_weight")
# Numbers in one stacked weight matrix: five models of 1024 features. A bound on memory; more at once gain little
# (bench/stack.py).
STACK_NUMBERS = 8 << 20


def distill_many(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Train (or finish) all runs and return what `distill` returns for each, in their order. Finished ones are skipped.

    Raises UsageError for two runs in one folder and under torchrun, and whatever `distill` raises; a run of a stack that is
    interrupted resumes from its last checkpoint, with others or alone.
    """
    if launched().world > 1:
        raise UsageError(
            where="torchrun",
            found=f"many runs for {launched().world} processes",
            wanted="one run that they train together",
            fix="run it without torchrun: many runs go side by side in one process",
        )
    folders = [config.place.out.resolve() for config in configs]
    if repeated := sorted({str(out) for out in folders if folders.count(out) > 1}):
        raise UsageError(
            where="runs", found=f"{repeated[0]} more than once", wanted="a folder a run", fix="choose another --out"
        )
    groups, held = groups_of(configs), Held()
    for group in groups if len(groups) > 1 else []:  # a group by itself looks before it trains
        require_all(group, held)
    for group in groups:
        data = held.of(group[0]) if stackable(group[0]) else None
        if data is not None and isinstance(data.features, Tensor):
            train_group(group, data)
        else:  # or too large to be held, let alone standardised beside itself
            for config in group:
                distill(config)
    return [outcome(config) for config in configs]


def require_all(group: Sequence[RunConfig], held: Held) -> None:
    """Look at what the runs of a group need, and at their folders, before any run is begun: raise what training would
    raise, and touch nothing."""
    left = [config for config in group if not (config.place.out / "run.json").exists()]
    data = held.of(group[0])
    if left:
        require_groups(left[0].method, required_method(left[0], data), data)
    for config in group:
        runs.refuse_another(config, data.fingerprint)


@final
class Held:
    """The data that were read last: runs that read the same come after each other."""

    def __init__(self) -> None:
        self.reads = ""
        self.data: RunData | None = None

    def of(self, config: RunConfig) -> RunData:
        """What the run may see. Raises what `read` raises."""
        reads = json.dumps([str(config.source), config.student])
        if self.data is None or self.reads != reads:
            self.reads, self.data = reads, read(config)
        return self.data


def groups_of(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """The runs that may be trained side by side, in the order of their first."""
    groups: dict[str, list[RunConfig]] = defaultdict(list)
    for config in configs:
        same = {name: value for name, value in config.identity().items() if name not in OWN}
        place = [str(config.source.cache), str(config.source.data_root), config.place.device]
        groups[json.dumps([same, place], sort_keys=True)].append(config)
    return list(groups.values())


def stacks_of(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """The runs as they are trained: each list is a stack, or a run that is trained alone. Raises the cache's errors."""
    stacks: list[list[RunConfig]] = []
    for group in groups_of(configs):
        if not stackable(group[0]) or group[0].source.cache is None:
            stacks += [[config] for config in group]
            continue
        width = open_cache(group[0].source.cache).manifest.layers()["penultimate"].shape[-1]
        most = runs_at_once(width)
        stacks += [group[start : start + most] for start in range(0, len(group), most)]
    return stacks


def stackable(config: RunConfig) -> bool:
    """Whether runs like this one can be trained side by side. Runs that stop early each end at an epoch of their own."""
    if config.training.early_stop:
        return False
    if config.student not in STUDENTS or STUDENTS[config.student].input != "features" or config.method not in METHODS:
        return False
    return build_method(config.method, Hyperparameters(), 2).stackable


def train_group(group: Sequence[RunConfig], data: RunData) -> None:
    """Train those of the group that are not finished, as many at once as are faster so."""
    require_precision(group[0].training.precision, choose_device(group[0].place.device))
    with threads(1):  # made before the folders are, as in `distill`
        source = None if all((config.place.out / "run.json").exists() for config in group) else Source(group[0], data)
    if source is not None:
        require_groups(group[0].method, source.method, data)
    with ExitStack() as held:
        for config in group:
            held.enter_context(runs.held(config, data.fingerprint))
        left = [config for config in group if not (config.place.out / "run.json").exists()]
        most = models_at_once(data)
        if left:
            tell_empty_cells(data)
        with threads(1), enough_memory(f"{len(group)} runs, --batch-size {group[0].training.batch_size}", LESS):
            for start in range(0, len(left), most):
                assert source is not None
                trainers = [Trainer(config, data) for config in left[start : start + most]]
                try:
                    for trainer in trainers:
                        trainer.restore()
                    for together in at_one_place(trainers):
                        Stack(together, source).run()
                    for trainer in trainers:
                        trainer.conclude()
                finally:
                    for trainer in trainers:
                        trainer.trackers.release()


def models_at_once(data: RunData) -> int:
    """How many runs on these data a stack should hold."""
    assert isinstance(data.features, Tensor)
    return runs_at_once(data.features.shape[-1])


def runs_at_once(width: int) -> int:
    """How many models of `width` features a stack should hold."""
    return max(1, int(STACK_NUMBERS // width**2))


def at_one_place(trainers: Sequence[Trainer]) -> Iterator[list[Trainer]]:
    """Trainers by how far they are: a kill may come between two checkpoints of one stack."""
    places: dict[tuple[int, int], list[Trainer]] = defaultdict(list)
    for trainer in trainers:
        places[trainer.epoch, trainer.consumed].append(trainer)
    yield from places.values()


@final
class Source:
    """What a stack's batches are gathered from, held once for all its models: features, standardised; labels and groups."""

    def __init__(self, config: RunConfig, data: RunData) -> None:
        assert isinstance(data.features, Tensor)
        trainer = Trainer(config, data)
        mean, std = data.moments()
        self.device, self.method = trainer.device, trainer.method
        self.features = ((data.features - mean) / std).to(self.device)
        self.labels, self.groups = (
            torch.from_numpy(each).to(self.device) for each in (data.table.labels, data.table.groups)
        )
        self.posterior = None if data.posterior is None else data.posterior.to(self.device)
        self.logits = teacher_logits(data, config.training, self.device).to(self.device) if self.method.logits else None

    def batch(self, rows: NDArray[np.int64], stored: NDArray[np.int64] | None = None) -> Batch:
        """The batches of S models, of rows (S, B); `stored` says which stored view of each (default: the first)."""
        index = send(torch.from_numpy(rows), self.device)
        features = self.features
        if features.ndim == 2:
            inputs = features[index]
        else:
            inputs = features[index, 0 if stored is None else send(torch.from_numpy(stored), self.device)]
        return Batch(
            inputs=inputs,
            labels=self.labels[index],
            groups=self.groups[index],
            teacher=inputs if self.method.features else None,
            teacher_logits=None if self.logits is None else self.logits[index],
            posterior=None if self.posterior is None else self.posterior[index],
        )


@final
class Stack:
    """Trainers at one place of their runs, and the learner that takes their steps all at once."""

    def __init__(self, trainers: Sequence[Trainer], source: Source) -> None:
        self.trainers, self.source, self.first = trainers, source, trainers[0]
        for trainer in trainers:
            trainer.beside = len(trainers)
        self.learner = StackedLearner([trainer.learner for trainer in trainers])
        if self.first.config.training.precision == "bf16":
            in_bf16(self.learner.model)
        self.pending = Pending()
        self.clock = Clock(source.device)
        self.clock.watch(self.learner)
        hyper = hyper_of([trainer.config for trainer in trainers], source.device)
        self.method = build_method(self.first.config.method, hyper, len(self.first.data.group_names))
        self.method.prepare(self.first.data.cell_counts("train"), self.first.data.cell_counts("meta"))

    def run(self) -> None:
        """All epochs that are left."""
        first, config = self.first, self.first.config
        size = len(first.train_rows)
        total, done = config.training.epochs * size, first.epoch * size + first.consumed
        what = f"{config.method} -> {config.student}, {len(self.trainers)} at once"
        with stop_requests() as stop, progress(what, "samples", total, done) as advance:
            while first.epoch < config.training.epochs:
                self.method.begin_epoch(first.epoch)
                scale_rate(self.learner.optimizer, rate_factor(config.training, first.epoch))
                orders = np.stack([shuffled(each.train_rows, each.seed, each.epoch) for each in self.trainers])
                began = saved = time.monotonic()
                self.clock.start()
                for start, end in slices(size, config.training.batch_size, first.consumed):
                    self.one_step(orders[:, start:end])
                    advance(min(end, size) - start, f"epoch {first.epoch + 1}/{config.training.epochs}")
                    now = time.monotonic()
                    if stop() or now - saved > config.place.checkpoint_seconds:
                        self.spend(now - began)
                        began = saved = now
                        self.settle()
                        self.each(Trainer.save)
                    if stop():
                        raise Interrupted
                self.spend(time.monotonic() - began)
                self.settle()
                self.each(Trainer.end_epoch)

    def each(self, do: Callable[[Trainer], None]) -> None:
        """The same for each run; one that has diverged is told of last, so that the others keep what they have learnt."""
        diverged: DivergedError | None = None
        for trainer in self.trainers:
            try:
                do(trainer)
            except DivergedError as error:
                diverged = diverged or error
        if diverged is not None:
            raise diverged

    def one_step(self, rows: NDArray[np.int64]) -> None:
        """One update of every model from its own row of train rows (S, B)."""
        clock = self.clock
        clock.enter("data")
        batch = self.source.batch(rows, self.stored_views(rows.shape[1]))
        clock.enter("forward")
        self.method.number = self.first.step
        losses = self.method.step(
            self.learner,
            batch,
            clock.around("data", self.meta_batch, "meta"),
            warm=self.first.warm,
        )
        clock.enter("other")
        self.pending.add(losses, rows.shape[1], self.sums())
        for trainer in self.trainers:
            trainer.count(rows.shape[1])

    def settle(self) -> None:
        """Let each run know what its steps have lost."""
        self.pending.settle(self.sums())

    def sums(self) -> list[dict[str, float]]:
        """Each run's own, which a new epoch replaces."""
        return [trainer.sums for trainer in self.trainers]

    def meta_batch(self) -> Batch:
        """Each model's own meta batch of this step."""
        return self.source.batch(np.stack([each.meta_rows.draw(each.step) for each in self.trainers]))

    def stored_views(self, count: int) -> NDArray[np.int64] | None:
        """Which stored view each model's samples are seen in, (S, B), as in single runs."""
        views = [each for trainer in self.trainers if (each := trainer.stored_views(trainer.step, count)) is not None]
        return np.stack(views) if views else None

    def spend(self, seconds: float) -> None:
        """A run's seconds are its share of the stack's, also by part."""
        self.clock.enter("other")
        for trainer in self.trainers:
            trainer.seconds += seconds / len(self.trainers)
            for part, spent in self.clock.seconds.items():
                trainer.clock.seconds[part] += spent / len(self.trainers)
        self.clock.seconds = dict.fromkeys(self.clock.seconds, 0.0)


def hyper_of(configs: Sequence[RunConfig], device: torch.device) -> Hyperparameters:
    """The runs' hyperparameters as one: a number where all agree, else (S,)."""
    each = [dataclasses.asdict(hyperparameters(config.weights)) for config in configs]

    def joint(name: str) -> Any:
        values = [one[name] for one in each]
        return values[0] if len({*values}) == 1 or name == "mu2" else torch.tensor(values, device=device)

    return Hyperparameters(**{name: joint(name) for name in each[0]})
