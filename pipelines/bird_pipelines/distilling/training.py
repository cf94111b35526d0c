"""Phase two: train a student from the cache. The teacher is never loaded, and need not exist any more.

Every random choice is a pure function of (seed, epoch, step), and a checkpoint holds everything else: a run that was
killed ends with the same weights as one that was not. So a step's batches can be made while the step before is computed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bird.devices import choose_device, enough_memory, threads
from bird.errors import EmptyCellError
from bird.methods import Batch
from bird.precision import require_precision
from bird.step.offsets import Offsets
from bird.student_views import draw_views
from bird.students import student_files
from bird_cache.files import replace
from bird_cache.order import StratifiedRows, batches, raw, shuffled
from bird_pipelines import runs
from bird_pipelines.config import RunConfig
from bird_pipelines.distilling.checkpoints import take, tensors_of
from bird_pipelines.distilling.data import RunData, load_data
from bird_pipelines.distilling.epoch_losses import Pending, gate_histogram
from bird_pipelines.distilling.groups import with_known_groups
from bird_pipelines.distilling.learners import make_learner
from bird_pipelines.distilling.profiling import PARTS, Clock, Tracer
from bird_pipelines.distilling.ranks import ONE, World, joined, refuse_ranks
from bird_pipelines.distilling.requirements import require_groups, required_method, tell_empty_cells, tell_student
from bird_pipelines.distilling.schedule import (
    best_epoch,
    rate_factor,
    scale_rate,
    stopped_early,
)
from bird_pipelines.distilling.scoring import meta_score, require_finite, score
from bird_pipelines.distilling.summary import summary_of
from bird_pipelines.distilling.teacher_head import teacher_logits
from bird_pipelines.marks import with_caveats
from bird_pipelines.prefetch import one_ahead
from bird_pipelines.progress import Interrupted, progress, stop_requests
from bird_pipelines.tracking import Trackers

__all__ = ["Material", "Trainer", "distill", "outcome"]

LESS = "lower --batch-size or --meta-per-cell, or add --recompute; what was saved is kept"


def distill(config: RunConfig) -> dict[str, Any]:
    """Train (or finish training) the run that `config` describes in `config.place.out`, evaluate it, and return run.json
    with its metrics.

    Raises RunError if the folder holds another run, the cache's and the data set's errors, UsageError for a method
    that needs what is not there or a precision that the device has not, EmptyCellError for one that needs a sample in
    every cell; all of them before the folder is touched. Interrupted after saving a checkpoint. Under torchrun all of
    its processes train the run together (bird_pipelines.distilling.ranks); LostRankError where another one ends.
    """
    with joined(config.place) as world:
        require_precision(config.training.precision, choose_device(config.place.device))
        data = read(config)
        with enough_memory(f"--batch-size {config.training.batch_size}", LESS):
            finish(config, data, world)
        return outcome(config)


def read(config: RunConfig) -> RunData:
    """What the run may see."""
    data = load_data(config.source, config.student, config.place.workers, config.part("dataset"))
    return with_known_groups(data, config.source.groups_known, config.method)


def finish(config: RunConfig, data: RunData, world: World = ONE) -> None:
    """Do what is left of a run. Rank 0 of the world has the folder."""
    # Made before the folder is: what is refused leaves none.
    _, done = world.decide(False, (config.place.out / "run.json").exists())
    trainer = None if done else Trainer(config, data, world)
    if trainer is not None:
        require_groups(config.method, trainer.method, data)
    with runs.held(config, data.fingerprint) if world.first else nullcontext():
        _, done = world.decide(False, (config.place.out / "run.json").exists())
        if trainer is not None and not done:
            tell_empty_cells(data)
            tell_student(trainer.learner.model.student, config.training, config.place.out)
            # An adapter's matrices are small: a second thread gained 14 % on an idle machine, and cost a factor of five
            # beside another program, since idle threads spin.
            with threads(1 if data.images is None else world.threads()):
                try:
                    trainer.run()
                    trainer.conclude()
                finally:
                    trainer.trackers.release()
        world.wait()


def outcome(config: RunConfig) -> dict[str, Any]:
    """run.json of a finished run, with its metrics. Raises RunError where there is none."""
    info = runs.read_json(config.place.out / "run.json")
    metrics = {split: runs.read_json(config.place.out / f"metrics-{split}.json") for split in config.scored()}
    marked = {split: with_caveats(each, info["class_names"]) for split, each in metrics.items()}
    return info | {"out": str(config.place.out), "metrics": marked}


@final
class Material(NamedTuple):
    """What one step works on, on its device: the batch, and the meta batch where the step has one; how many rows the batches
    of all ranks have, and what share of them is in this one."""

    batch: Batch
    meta: Batch | None
    rows: int
    share: float


@final
class Trainer:
    """One run in progress: what it reads, what it changes, and where it stands."""

    def __init__(self, config: RunConfig, data: RunData, world: World = ONE) -> None:
        self.config, self.data, self.world = config, data, world
        self.training, self.place = config.training, config.place
        self.seed = self.training.seed
        self.device = choose_device(self.place.device)
        self.method = required_method(config, data)
        self.moments = data.moments() if self.method.features else None
        channels = data.stages.open(self.method.stages) if self.method.stages and data.stages is not None else []
        self.method.prepare(data.cell_counts("train"), data.cell_counts("meta"))
        if self.training.start_from is not None:
            runs.begin_from(config, data.fingerprint)  # refused before there is a folder
        resumes = (self.place.out / "checkpoint.json").exists()  # then the weights that it started from are not needed
        self.learner = make_learner(
            config.student,
            self.training,
            data,
            self.device,
            self.method,
            channels,
            part=config.part("student"),
            init=None if resumes else self.training.init,
        )
        self.initial = self.learner.model.student.started
        self.learner.ranks, self.worlds = world.ranks, [world.size]
        self.train_rows, meta, table = data.rows("train"), data.rows("meta"), data.table
        self.meta_rows = StratifiedRows(
            meta, table.labels[meta], table.groups[meta], per_cell=self.training.meta_per_cell, seed=self.training.seed
        )
        drawn = len(self.meta_rows.draw(0)) if self.method.meta else None
        refuse_ranks(world, config.method, self.method.one_process, self.training.batch_size, drawn)
        self.epoch = self.step = self.consumed = 0
        self.beside = 1
        self.seconds = 0.0
        self.clock = Clock(self.device, wait=self.place.profile)
        self.tracer = Tracer(self.place.out, self.clock) if self.place.profile and world.first else None
        self.sums: dict[str, float] = {}
        self.pending = Pending(world.ranks)
        self.curve: list[dict[str, Any]] = []
        self.trackers = Trackers(self.place.report_to if world.first else None, self.place.out, config.identity())
        self.teacher_logits: Tensor | None = None
        self.best: dict[str, Tensor] = {}
        """the student of the best epoch so far, where the run may stop early"""

    def run(self) -> None:
        """All epochs that are left."""
        self.restore()
        place, table = torch.tensor([self.epoch, self.step, self.consumed]), self.data.table
        rows = [torch.from_numpy(each) for each in (self.train_rows, table.labels, table.groups)]
        self.world.require_same_start([*self.learner.model.parameters(), place, *rows])
        self.clock.watch(self.learner)
        if self.method.logits and not self.ended:
            self.teacher_logits = teacher_logits(self.data, self.training, self.device)
        total = self.training.epochs * len(self.train_rows)
        done = self.epoch * len(self.train_rows) + self.consumed
        what = f"{self.config.method} -> {self.config.student}"
        with stop_requests() as stop, progress(what, "samples", total, done) as advance:
            while not self.ended:
                began = saved = time.monotonic()
                self.clock.start()
                self.method.begin_epoch(self.epoch)
                scale_rate(self.learner.optimizer, rate_factor(self.training, self.epoch))
                order = shuffled(self.train_rows, self.seed, self.epoch)
                self.clock.enter("data")
                with closing(self.materials(order)) as materials:
                    for material in materials:
                        self.one_step(material)
                        advance(material.rows, f"epoch {self.epoch + 1}/{self.training.epochs}")
                        now = time.monotonic()
                        stopped, late = self.world.decide(stop(), now - saved > self.place.checkpoint_seconds)
                        if stopped or late:
                            self.seconds, began, saved = self.seconds + now - began, now, now
                            self.save()
                        if stopped:
                            raise Interrupted
                        self.clock.enter("data")
                self.clock.enter("other")
                self.seconds += time.monotonic() - began
                self.end_epoch()
        if self.tracer is not None:
            self.tracer.close()

    @property
    def ended(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.training.epochs or stopped_early(self.training, self.curve, self.unsettled)

    @property
    def unsettled(self) -> int:
        """How many first epochs do not count for an early stop: those in which the method is not yet itself."""
        return self.training.warmup if self.method.gated else 0

    @property
    def warm(self) -> bool:
        """Whether the warmup is over."""
        return self.epoch >= self.training.warmup

    def materials(self, order: NDArray[np.int64]) -> Generator[Material]:
        """What is left of an epoch in that order, step by step; decoded and copied while the step before is computed. (On
        the CPU vectors are there sooner than a thread could be asked.)"""
        steps = enumerate(batches(order, self.training.batch_size, self.consumed), self.step)
        if self.data.images is None and self.device.type == "cpu":
            return (self.material(*each) for each in steps)
        return one_ahead(lambda each: self.material(*each), steps)

    def material(self, step: int, rows: NDArray[np.int64]) -> Material:
        """What the given step of this epoch needs for the given train rows: a function of these and the seed alone, of which
        each rank has its part."""
        count, meta = len(rows), None
        mine, share = self.world.deal(count)
        views = [
            None if each is None else each[mine] for each in (self.views(step, count), self.stored_views(step, count))
        ]
        if self.method.meta and self.warm:
            drawn = self.meta_rows.draw(step)
            meta = self.batch(drawn[self.world.deal(len(drawn))[0]])
        return Material(self.batch(rows[mine], *views), meta, count, share)

    def one_step(self, material: Material) -> None:
        """One update of the student."""
        clock = self.clock
        if self.tracer is not None:
            self.tracer.before_step(self.warm or self.training.warmup == self.training.epochs)
        self.learner.model.train()
        clock.enter("forward")
        self.method.number, self.learner.ranks.share = self.step, material.share
        losses = self.method.step(self.learner, material.batch, lambda: meta_of(material, clock), warm=self.warm)
        clock.enter("other")
        self.pending.add(losses, len(material.batch.labels) if material.share else 0, [self.sums])
        self.count(material.rows)

    def count(self, rows: int) -> None:
        """A step on `rows` rows is done."""
        self.step += 1
        self.consumed += rows

    def views(self, step: int, count: int) -> NDArray[np.int64] | None:
        """The random views of a step's images, or None where the student sees the deterministic one."""
        if self.data.images is None or not self.training.augment or self.data.boxes is not None:
            return None
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 2, step])))
        return draw_views(rng, count, self.data.image_size, self.data.flip)

    def stored_views(self, step: int, count: int) -> NDArray[np.int64] | None:
        """Which of the cache's random views a step's samples are seen in; None where it stores none, or none is wanted."""
        if self.data.boxes is None or not self.training.augment:
            return None
        random_views = self.data.boxes.shape[1] - 1
        return 1 + (raw(self.seed, 5, step, count=count) % np.uint64(random_views)).astype(np.int64)

    def batch(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64] | None = None,
        stored: NDArray[np.int64] | None = None,
    ) -> Batch:
        """The batch of the given rows, with what the method asks for."""
        return self.data.batch(
            rows,
            self.device,
            views=views,
            stored=stored,
            moments=self.moments,
            teacher_logits=self.teacher_logits,
            stages=self.method.stages is not None,
        )

    def end_epoch(self) -> None:
        """Close the epoch's line of the curve and save: the checkpoint last, so that no kill leaves a curve a line short."""
        self.pending.settle([self.sums])
        require_finite(self.learner.model, self.place.out, self.step)
        self.epoch += 1
        line: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "seconds": round(self.seconds, 3)}
        parts = ("loss", "ce", "distance", "bias", "meta_bias", "adversary")
        line |= {name: self.sums[name] / self.consumed if name in self.sums else None for name in parts}
        line["gate"] = line["offsets"] = None
        if isinstance(self.learner.gate, Offsets) and self.method.gated:
            line["offsets"] = [[round(value, 4) for value in row] for row in self.learner.gate.phi.tolist()]
            if self.learner.gate.trust is not None:
                line["alpha"] = round(self.learner.gate.trust.sigmoid().item(), 4)
        elif self.method.gated:
            line["gate"] = {"counts": gate_histogram(self.learner)}
        balanced = self.training.early_stop > 0
        line["meta"] = meta_score(self.learner.student, self.data, self.device, self.world, balanced=balanced)
        self.curve.append(line)
        if self.training.early_stop and best_epoch(self.curve, self.unsettled) == self.epoch:
            self.best = {name: value.clone() for name, value in self.learner.student.state_dict().items()}
        self.sums, self.consumed = {}, 0
        lines = "".join(json.dumps(each) + "\n" for each in self.curve)
        if self.world.first:
            replace(self.place.out / "curve.jsonl", lines.encode())
        self.save()
        self.trackers.epochs(self.curve)

    def save(self) -> None:
        """Everything that cannot be derived, in one checkpoint."""
        self.pending.settle([self.sums])
        require_finite(self.learner.model, self.place.out, self.step)
        if not self.world.first:
            return
        tensors = tensors_of(self.learner, self.best)
        state: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "consumed": self.consumed}
        state |= {"seconds": self.seconds, "parts": self.clock.seconds, "sums": self.sums, "curve": self.curve}
        state |= {"fingerprint": self.data.fingerprint, "initial": self.initial, "ranks": self.worlds}
        runs.save_checkpoint(self.place.out, self.step, tensors, state)

    def restore(self) -> None:
        """Go back to the last checkpoint; where there is none, begin where the run that it starts from ended."""
        loaded = runs.load_checkpoint(self.place.out)
        if loaded is not None:
            tensors, state = loaded
            take(self.learner, tensors, average=True)
            self.best = runs.under("best", tensors)
            self.epoch, self.step, self.consumed = state["epoch"], state["step"], state["consumed"]
            self.seconds, self.sums, self.curve = state["seconds"], state["sums"], state["curve"]
            before = state.get("ranks", [1])
            self.worlds = before if before[-1] == self.world.size else [*before, self.world.size]
            self.clock.seconds = dict.fromkeys(PARTS, 0.0) | state.get("parts", {})
            self.initial = state.get("initial")
        elif self.training.start_from is not None:
            take(self.learner, runs.begin_from(self.config, self.data.fingerprint))

    def take_best(self) -> None:
        """The student of the best epoch, where the run could stop early."""
        if self.best:
            self.learner.student.load_state_dict(self.best)

    def conclude(self) -> None:
        """Write the student and its metrics, and run.json last."""
        out, data, first = self.place.out, self.data, self.world.first
        self.take_best()
        student = self.learner.student
        white = data.images.white_level if data.images else None
        files = student_files(student, data.fingerprint, data.class_names, data.group_names, white)
        for name, content in files.items() if first else ():
            replace(out / name, content)
        scores = {}
        for split in self.config.scored():
            keep = out if split != "meta" and first else None
            metrics: Mapping[str, Any] = {"error": f"no sample in the {split} split"}
            if len(data.rows(split)):
                try:
                    metrics = score(student, data, split, self.device, keep, self.world)
                except EmptyCellError as error:
                    metrics = {"error": str(error)}
            if first:
                runs.write_json(out / f"metrics-{split}.json", metrics)
            scores[split] = metrics
        self.trackers.end(self.curve, scores)
        if first:
            runs.finish(out, summary_of(self))


def meta_of(material: Material, clock: Clock) -> Batch:
    """The meta batch, which a method asks for where its feedback begins."""
    assert material.meta is not None, "a method that takes meta batches without saying so (Method.meta)"
    clock.enter("meta")
    return material.meta
