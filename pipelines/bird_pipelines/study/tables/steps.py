"""From a recipe and a profile to a graph of steps: teacher -> cache -> (layers, head) -> runs.

Every folder is named by what decides its content, so that work which two rows, two tables or two calls share is one
step, and a step whose folder is finished has nothing to do. Nothing is run here, and no image is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

from bird.methods import METHODS
from bird_cache.errors import CacheError
from bird_cache.store import open_cache
from bird_pipelines import runs
from bird_pipelines.config import RunConfig, resolve
from bird_pipelines.study.tables import costs
from bird_pipelines.study.tables.recipes import Block, Profile, Row

__all__ = ["CacheJob", "Plan", "Step", "build_plan", "finished", "is_done", "needed"]

FOUNDATION = ("flava", "clip-vit-b32", "clip-rn50")
TEACHER_SEED = 1000  # the paper's CNN teachers: the student's architecture, another seed than any student's
LAYERS_OF: Mapping[str, str] = {"at": "attention", "bird+at": "maps"}
Kind = Literal["teacher", "cache", "layers", "head", "runs"]


@final
@dataclass(frozen=True)
class CacheJob:
    """A cache to write: whose features, of which data, which layers."""

    teacher: str
    weights: Path | None
    dataset: str
    data_root: Path | None
    settings: Mapping[str, Any]
    out: Path
    layers: tuple[str, ...]


@final
@dataclass(frozen=True)
class Step:
    """One node: what it does, which steps come first, and a rough cost of what is left of it."""

    key: str
    kind: Kind
    after: tuple[str, ...] = ()
    configs: tuple[RunConfig, ...] = ()
    cache: CacheJob | None = None
    head_epochs: int = 10
    seconds: float = 0.0
    bytes: int = 0


@final
@dataclass
class Plan:
    """Steps in an order that respects what comes first; the runs of each row by seed; rows that cannot be trained, why."""

    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, dict[int, RunConfig]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    stand_ins: dict[str, str] = field(default_factory=dict)

    def step_of(self, folder: Path) -> Step:
        """The step that trains the run in `folder`."""
        return next(
            s for s in self.steps.values() if s.kind == "runs" and any(c.place.out == folder for c in s.configs)
        )


@final
@dataclass(frozen=True)
class Builder:
    """What all rows of a plan share."""

    profile: Profile
    out: Path
    data_root: Path | None
    split_methods: bool
    plan: Plan

    def row(self, row: Row, seeds: Sequence[int]) -> None:
        """Add what a row needs."""
        if row.method not in METHODS:
            self.plan.errors[row.id] = f"no method {row.method!r}; there are {', '.join(METHODS)}"
            return
        block = row.block
        dataset = self.profile.dataset or block.dataset
        trains = self.profile.stand_ins.get(block.trains, block.trains)
        after, cache = self.features(block, dataset, row.method)
        chosen: Mapping[str, Any] = self.profile.run if trains == "adapter" else self.profile.image_run
        settings: dict[str, Any] = {"lambda": block.lambda_, "warmup": block.warmup, "epochs": block.epochs}
        settings |= {"lr_schedule": block.lr_schedule, **chosen}
        source = Path(cache).name if cache else dataset
        mine = {}
        for seed in seeds:
            flags: dict[str, Any] = {
                "dataset": dataset,
                "student": trains,
                "method": row.method,
                "seed": seed,
                **settings,
            }
            flags |= {"cache": cache, "limit": self.profile.limit, "out": Path("unnamed")}
            if trains != "adapter":
                flags["data_root"] = self.root(dataset)
            if cache is None:
                flags["dataset_settings"] = self.settings(dataset)
            config = resolve(flags)
            name = f"{row.method}-{seed}-{digest(config.identity())}"
            mine[seed] = config.but(out=self.out / "runs" / f"{source}--{trains}" / name)
        self.plan.rows[row.id] = mine
        self.runs(f"{source} -> {trains}", row.method, after, list(mine.values()))
        if self.profile.stand_ins or self.profile.dataset:
            self.plan.stand_ins[row.id] = self.in_words(block, dataset, trains)

    def runs(self, name: str, method: str, after: tuple[str, ...], configs: Sequence[RunConfig]) -> None:
        """Put the runs into the group of their cache, student and needs."""
        group = f"{name}{f' ({method})' if self.split_methods else ''}, after {' + '.join(after) or 'nothing'}"
        key = f"runs {group}"
        known = self.plan.steps.get(key, Step(key, "runs", after))
        taken = {config.place.out for step in self.plan.steps.values() for config in step.configs}
        new = tuple(config for config in configs if config.place.out not in taken)
        seconds, size = map(sum, zip(*(costs.of_run(config) for config in new), strict=True)) if new else (0.0, 0)
        if known.configs or new:
            total = replace(known, configs=known.configs + new, seconds=known.seconds + seconds)
            self.plan.steps[key] = replace(total, bytes=known.bytes + int(size))

    def features(self, block: Block, dataset: str, method: str) -> tuple[tuple[str, ...], str | None]:
        """The steps that give the row's features, and their cache; none for a student on its own images."""
        model = block.features_of
        if model is None:
            return (), None
        after: tuple[str, ...] = ()
        spec, weights, cause = model, None, model
        arch = self.profile.stand_ins.get(model, model)
        own = arch not in FOUNDATION
        if own:
            step = self.teacher(block, dataset, arch)
            folder = step.configs[0].place.out
            spec, cause, after = f"run:{folder}", folder.name, (step.key,)
        else:
            weights = self.weights(model)
        # A foundation model has no logits for these classes: its stand-in gives none either, so that the head is fitted.
        layers = ("penultimate",) if model in FOUNDATION else ("penultimate", "logits")
        name = f"{arch}-{dataset}-{digest([cause, self.settings(dataset), layers])}"
        out = self.out / "caches" / name
        where = self.root(dataset), self.settings(dataset)
        job = CacheJob(spec, weights, dataset, *where, out, layers)
        key = self.add(Step(f"cache {name}", "cache", after, cache=job), arch, layers)
        if method == "bkd" and "logits" not in layers:
            epochs = int(self.profile.run.get("epochs", block.epochs))
            step = Step(f"head {name}", "head", (key,), cache=job, head_epochs=epochs)
            return (self.add(step, arch, ()),), str(out)
        if extra := LAYERS_OF.get(method):
            step = Step(f"layers {extra} {name}", "layers", (key,), cache=replace(job, layers=(*layers, extra)))
            return (self.add(step, arch, (extra,)),), str(out)
        return (key,), str(out)

    def teacher(self, block: Block, dataset: str, arch: str) -> Step:
        """The step that trains a teacher."""
        settings = {"epochs": block.epochs, "lr_schedule": block.lr_schedule, **self.profile.teacher_run}
        flags: dict[str, Any] = {
            "dataset": dataset,
            "student": arch,
            "method": "baseline",
            "seed": TEACHER_SEED,
            **settings,
        }
        flags |= {"dataset_settings": self.settings(dataset), "limit": self.profile.limit}
        config = resolve({**flags, "data_root": self.root(dataset), "out": Path("unnamed")})
        name = f"{arch}-{dataset}-{digest(config.identity())}"
        config = config.but(out=self.out / "teachers" / name)
        seconds, size = costs.of_run(config)
        step = Step(f"teacher {name}", "teacher", configs=(config,), seconds=seconds, bytes=size)
        return self.plan.steps.setdefault(step.key, step)

    def add(self, step: Step, arch: str, layers: Sequence[str]) -> str:
        """Add a step on a cache; its key."""
        assert step.cache is not None
        seconds, size = costs.of_cache(step.cache.dataset, arch, layers)
        self.plan.steps.setdefault(step.key, replace(step, seconds=seconds, bytes=size))
        return step.key

    def root(self, dataset: str) -> Path | None:
        """Where a data set is: DATA_ROOT/NAME if that is there, else DATA_ROOT itself."""
        if self.data_root is None or dataset == "digits-s":
            return None
        return self.data_root / dataset if (self.data_root / dataset).is_dir() else self.data_root

    def settings(self, dataset: str) -> dict[str, Any]:
        """The data set's settings in this profile."""
        return dict(self.profile.dataset_settings.get(dataset, {}))

    def weights(self, model: str) -> Path | None:
        """Local weights of a foundation model: DATA_ROOT/weights/NAME, a folder or file; None: they are downloaded."""
        return next((path for path in weight_places(model, self.data_root) if path.exists()), None)

    def in_words(self, block: Block, dataset: str, trains: str) -> str:
        """What stands for what in a row."""
        parts = [f"data set {dataset}" + (f" for {block.dataset}" if dataset != block.dataset else "")]
        if block.features_of:
            parts.append(
                f"features of {self.profile.stand_ins.get(block.features_of, block.features_of)}, trained here"
            )
        return f"Trained here: {', '.join(parts)}, student {trains}."


def build_plan(
    rows: Sequence[Row],
    profile: Profile,
    seeds: Sequence[int],
    out: Path,
    data_root: Path | None = None,
    *,
    split_methods: bool = False,
) -> Plan:
    """The graph of the given rows. Runs that share a cache and a student are one step; `split_methods` makes it one a
    method, for several processes."""
    builder = Builder(profile, out.resolve(), data_root and data_root.resolve(), split_methods, Plan())
    for row in rows:
        builder.row(row, seeds)
    return builder.plan


def weight_places(model: str, data_root: Path | None) -> list[Path]:
    """Where the weights of a foundation model are looked for."""
    if data_root is None:
        return []
    return [data_root / "weights" / f"{model}{suffix}" for suffix in ("", ".safetensors", ".pt")]


def digest(cause: Any) -> str:
    """Eight hex digits of anything JSON can say."""
    return hashlib.sha256(json.dumps(cause, sort_keys=True).encode()).hexdigest()[:8]


def needed(plan: Plan) -> set[str]:
    """The steps that have work to do: unfinished runs, and what is missing before them."""
    wanted: set[str] = set()
    for step in reversed(plan.steps.values()):
        asked = step.kind == "runs" or any(step.key in plan.steps[key].after for key in wanted)
        if asked and not is_done(step):
            wanted.add(step.key)
    return wanted


def is_done(step: Step) -> bool:
    """Whether a step's folders are finished."""
    if step.kind in ("teacher", "runs"):
        return all(finished(config) for config in step.configs)
    assert step.cache is not None
    wanted = ("logits",) if step.kind == "head" else step.cache.layers
    try:
        store = open_cache(str(step.cache.out))
        store.require_complete()
        there = {name.split(".")[0] for name in store.manifest.layers()}
    except CacheError:
        return False
    return there >= {*wanted}


def finished(config: RunConfig) -> bool:
    """Whether the folder holds this very run, finished."""
    if not (config.place.out / "run.json").exists() or not (config.place.out / "config.json").exists():
        return False
    return bool(runs.read_json(config.place.out / "config.json").get("identity") == config.identity())
