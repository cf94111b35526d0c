"""A training run: what it learns from, what weighs its losses, how it is trained, and where.

`RunConfig` is what the command line, TOML and Python make; whoever trains splits it at the door and passes the parts on. All
fields but those that say where and how fast (`Option.place`) decide what comes out: they are the run's identity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

from bird.own import Part
from bird_pipelines.config.option import Declared, Option, Record, as_json, declared

__all__ = ["CHOOSE", "PARTS", "Place", "RunConfig", "Source", "Training", "Weights", "options_of_a_run"]

CHOOSE = "choose"
STRICT = {"extra": "forbid", "allow_inf_nan": False}


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """What to learn from."""

    panel: ClassVar[str | None] = None
    __pydantic_config__: ClassVar[Any] = STRICT

    dataset: Annotated[
        str, Option("digits-s, cifar10s, celeba, utkface, table, imagefolder, hf:FOLDER, or your own: file.py:NAME.")
    ]
    cache: Annotated[str | None, Option("The cache that `bird precompute` wrote: a folder or URL.", place=True)] = None
    data_root: Annotated[
        Path | None, Option("Folder of the data set. `bird list datasets` shows its layout.", place=True)
    ] = None
    dataset_settings: Annotated[
        Mapping[str, str | int | float | bool], Option("The data set's, by name.", hidden=True)
    ] = field(default_factory=dict)
    limit: Annotated[
        int | None,
        Option("Use a fixed subset of N rows. It keeps all proportions; the test split of a cache stays whole.", ge=1),
    ] = None
    image_size: Annotated[
        int | None,
        Option("Side of the student's images, in pixels.", default="the data set's", ge=8, later=True),
    ] = None
    choose: Annotated[
        int | None,
        Option("The seed by which half of meta is held out to choose on; no test split then.", ge=0, hidden=True),
    ] = None
    groups_known: Annotated[
        Literal["all", "meta"],
        Option("meta: do not use the groups of train; a probe estimates them from the features."),
    ] = "all"
    memory_gb: Annotated[
        float,
        Option(
            "Hold the vectors in memory if they take at most this many GiB; otherwise map them from disk.",
            ge=0,
            place=True,
        ),
    ] = 4.0


@final
@dataclass(frozen=True, kw_only=True)
class Weights:
    """What weighs the losses: `bird.methods.Hyperparameters`, with their ranges."""

    panel: ClassVar[str | None] = "The method's weights"
    __pydantic_config__: ClassVar[Any] = STRICT

    lambda_: Annotated[float, Option("Weight of L_o in the distillation step.", default=".03 (CIFAR-10S .2)", ge=0)] = (
        0.03
    )
    alpha: Annotated[float, Option("Weight of the distance against CE.", default=".9 (CIFAR-10S .5)", ge=0, le=1)] = 0.9
    tau: Annotated[float, Option("Temperature of bkd.", default="4 (CIFAR-10S 10)", gt=0)] = 4.0
    mu1: Annotated[float, Option("Step of the look-ahead.", gt=0)] = 1e-3
    mu2: Annotated[float, Option("Adam's learning rate of phi.", gt=0)] = 1e-3
    fitnet_weight: Annotated[float, Option("fitnet: weight of the MSE.", ge=0)] = 0.1
    at_beta: Annotated[
        float, Option("at, bird+at: weight of the attention loss.", default="1e3 (--preset paper: 1e6)", ge=0)
    ] = 1e3
    mfd_weight: Annotated[
        float, Option("mfd, bird+mfd: weight lambda of MMD^2 (the loss uses lambda / 2).", default="3 (CelebA 7)", ge=0)
    ] = 3.0
    ad_weight: Annotated[float, Option("ad: weight of the adversary's gradient.", ge=0)] = 1.0
    ad_lr: Annotated[float, Option("ad: the adversary's learning rate.", gt=0)] = 1e-3
    ad_every: Annotated[
        int, Option("ad: the student is trained only in every Nth epoch.", default="1 up to 20 epochs, else 3", ge=0)
    ] = 0
    dro_step: Annotated[float, Option("group-dro: step of its cell weights.", ge=0)] = 0.01
    average: Annotated[
        float,
        Option(
            "Decay of the running mean of the weights. The saved student has this mean. 0: no mean.",
            default=".999 for bird-plus and bird-offsets, else 0",
            ge=-1,
            lt=1,
        ),
    ] = -1
    balance: Annotated[
        float,
        Option("bird-offsets: share of the balanced CE in the feedback; L_o has the other share.", ge=0, le=1),
    ] = 0.0
    offsets_from: Annotated[
        Literal["prior", "zero"],
        Option("bird-offsets: phi starts at log p(class given group) (prior) or at 0 (zero)."),
    ] = "prior"
    shrink: Annotated[
        float,
        Option(
            "bird-offsets: keep phi near its start in small meta cells. n rows move it by n / SHRINK nats or less.",
            default="0: freely",
            ge=0,
        ),
    ] = 0.0
    pool: Annotated[
        bool,
        Option(
            "bird-offsets: move all offsets together, along log p(class given group). For few meta rows.",
            flag="--pool",
            later=True,
        ),
    ] = False
    learn_alpha: Annotated[
        bool,
        Option(
            "bird-offsets: the feedback moves alpha, too. It starts at --alpha, between .001 and .999.",
            flag="--learn-alpha",
            later=True,
        ),
    ] = False
    soft_max: Annotated[
        float,
        Option("L_o: temperature of a soft maximum over the groups, in nats.", default="0: the maximum", ge=0),
    ] = 0.0
    feedback_every: Annotated[int, Option("Methods with feedback: compute it in every Nth step.", ge=1)] = 1
    feedback_through: Annotated[
        Literal["all", "last"],
        Option(
            "last: the look-ahead moves only the student's last stage and head. It is cheaper, and an approximation."
        ),
    ] = "all"


@final
@dataclass(frozen=True, kw_only=True)
class Training:
    """How the student is trained."""

    panel: ClassVar[str | None] = "Training"
    __pydantic_config__: ClassVar[Any] = STRICT

    seed: Annotated[int, Option("Seed of the initial weights and of the order of the samples.", ge=0)] = 0
    epochs: Annotated[int, Option("Passes over the train split.", ge=1)] = 10
    warmup: Annotated[
        int, Option("Number of first epochs in which lambda is 0 and phi stays.", default="half of them", ge=-1)
    ] = -1
    batch_size: Annotated[int, Option("Samples per step, of all processes together under torchrun.", ge=2)] = 128
    lr: Annotated[float, Option("The student's learning rate.", gt=0)] = 1e-3
    optimizer: Annotated[
        Literal["adam", "adamw", "sgd"],
        Option("The student's optimiser: adam, adamw, or sgd with momentum .9.", later=True),
    ] = "adam"
    weight_decay: Annotated[
        float,
        Option("Weight decay of the student. adamw decouples it; else it is added to the gradient.", ge=0, later=True),
    ] = 0.0
    lr_schedule: Annotated[
        Literal["constant", "step", "cosine"],
        Option(
            "How --lr changes from epoch to epoch: constant, step (times --lr-gamma every --lr-step-epochs) or cosine.",
            later=True,
        ),
    ] = "constant"
    lr_step_epochs: Annotated[
        int | None, Option("With --lr-schedule step: epochs between two steps.", default="10", ge=1, later=True)
    ] = None
    lr_gamma: Annotated[
        float | None, Option("With --lr-schedule step: factor of each step.", default=".1", gt=0, le=1, later=True)
    ] = None
    early_stop: Annotated[
        int,
        Option(
            "Stop after N epochs without a better balanced accuracy on meta, and keep the best student. Epochs of the "
            "warmup do not count.",
            default="0: never",
            ge=0,
            later=True,
        ),
    ] = 0
    meta_per_cell: Annotated[
        int, Option("Samples drawn from each (class, group) cell of the meta split per step.", ge=1)
    ] = 8
    head_epochs: Annotated[int, Option("bkd: epochs of the teacher's head.", ge=1, hidden=True)] = 10
    head: Annotated[
        Literal["plain", "balanced"],
        Option(
            "bkd: how the teacher's head is trained where the cache has no logits. balanced: all cells weigh the same."
        ),
    ] = "plain"
    augment: Annotated[bool, Option("Crop and flip the student's images at random.")] = True
    precision: Annotated[Literal["fp32", "bf16"], Option("Precision of the student's forward pass: fp32 or bf16.")] = (
        "fp32"
    )
    start_from: Annotated[
        Path | None,
        Option("A finished run of the same kind to continue from, with its student, phi and optimisers.", place=True),
    ] = None
    started: Annotated[
        str | None, Option("Of that run: its configuration without the seed, as a digest.", hidden=True)
    ] = None
    init: Annotated[
        str | None,
        Option(
            "Weights that an image student starts from: a file (.safetensors or .pth), or pretrained.",
            default="from scratch",
            place=True,
        ),
    ] = None
    initial: Annotated[
        str | None, Option("Of these weights: the file's sha256, or pretrained.", hidden=True, later=True)
    ] = None


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run is made, and how fast."""

    panel: ClassVar[str | None] = "Speed and memory"
    __pydantic_config__: ClassVar[Any] = STRICT

    out: Annotated[Path, Option("Folder to write; the same command resumes what is there.", place=True)]
    device: Annotated[str, Option("auto, cpu, cuda, or cuda:1 for the second GPU.", place=True)] = "auto"
    workers: Annotated[int, Option("Threads that decode images.", ge=1, place=True)] = 2
    checkpoint_seconds: Annotated[float, Option("Between two checkpoints.", gt=0, hidden=True, place=True)] = 60.0
    report_to: Annotated[
        str | None,
        Option(
            "Also record the curve in tensorboard, trackio, wandb or mlflow, separated by commas. Nothing leaves the "
            "machine unless your environment says so: wandb is offline, mlflow a file beside OUT.",
            place=True,
        ),
    ] = None
    rank_seconds: Annotated[
        float, Option("Under torchrun: how long a process waits for the others.", gt=0, hidden=True, place=True)
    ] = 600.0
    profile: Annotated[
        bool, Option("Write a trace of a few steps into the run's folder.", flag="--profile", place=True)
    ] = False
    recompute: Annotated[
        bool,
        Option(
            "BIRD: use less memory, at the price of two more forward passes per step.", flag="--recompute", place=True
        ),
    ] = False


PARTS: Mapping[str, type[Record]] = {"source": Source, "weights": Weights, "training": Training, "place": Place}


@final
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run. `own` are the parts of the user's own, by kind: the option of that kind then holds a part's label."""

    student: str
    method: str
    source: Source
    weights: Weights
    training: Training
    place: Place
    own: Mapping[str, Part] = field(default_factory=dict)

    def part(self, kind: str) -> Part | None:
        """The part of the user's own that this run uses as its student, method or data set, if it does."""
        found = self.own.get(kind)
        named = self.source.dataset if kind == "dataset" else getattr(self, kind)
        return found if found is not None and found.label == named else None

    def flat(self) -> dict[str, Any]:
        """Every option by its name outside."""
        found: dict[str, Any] = {"student": self.student, "method": self.method}
        for part in PARTS:
            record = getattr(self, part)
            found |= {each.name: getattr(record, each.field) for each in declared(PARTS[part])}
        return found

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run folder to be resumed, as JSON: everything that decides the result."""
        options, values = {each.name: each for each in options_of_a_run()}, self.flat()
        found = {
            name: as_json(values[name])
            for name, each in options.items()
            if not each.option.place and not (each.option.later and values[name] == each.default)
        }
        # A data set's label says enough: a run on a cache need not be given the code.
        kinds = [kind for kind in self.own if kind != "dataset"]
        own = {kind: part.identity() for kind in kinds if (part := self.part(kind)) is not None}
        return {**found, "own": own} if own else found

    def but(self, **changes: Any) -> RunConfig:
        """The same with other values of some options, by their names inside. They are not checked."""
        names: dict[str, Any] = {name: changes.pop(name) for name in ("student", "method") if name in changes}
        for part, record in PARTS.items():
            mine = {each.field: changes.pop(each.field) for each in declared(record) if each.field in changes}
            if mine:
                names[part] = dataclasses.replace(getattr(self, part), **mine)
        if changes:
            raise TypeError(f"no option {', '.join(changes)}")
        return dataclasses.replace(self, **names)

    def scored(self) -> tuple[str, str]:
        """The splits that the finished student is scored on: a run that a setting is chosen by never sees test."""
        return ("meta", "test") if self.source.choose is None else ("meta", CHOOSE)


NAMES = (
    Declared(
        "student",
        "student",
        str,
        dataclasses.MISSING,
        Option(
            "resnet18, resnet34, shufflenetv2, timm:NAME, package.module:attribute, file.py:attribute; or adapter, which "
            "needs the teacher's vector of every new image.",
            default="adapter",
        ),
        None,
    ),
    Declared(
        "method",
        "method",
        str,
        dataclasses.MISSING,
        Option(
            "`bird list methods` names them; or package.module:attribute, file.py:attribute, bird+file.py:loss.",
            default="bird",
        ),
        None,
    ),
)


@cache
def options_of_a_run() -> tuple[Declared, ...]:
    """All options of a run."""
    return (*NAMES, *(each for part in PARTS.values() for each in declared(part)))
