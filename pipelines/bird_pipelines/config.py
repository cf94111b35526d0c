"""One frozen record of everything a phase depends on, from flags (and for a training run a TOML file). Checked once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from bird.errors import UsageError, nearest, unknown_name

__all__ = [
    "PLACE",
    "PrecomputeConfig",
    "RunConfig",
    "refuse_compress",
    "resolve",
    "resolve_precompute",
    "usual_average",
]

# Where a paper gives values for one data set (Java et al. 2023, section 4 and Table 8; mfd_weight: Jung et al. 2021).
PRESETS: Mapping[str, Mapping[str, float]] = {
    "cifar10s": {"alpha": 0.5, "tau": 10.0, "lambda": 0.2},
    "celeba": {"mfd_weight": 7.0},
}
# Values that hold for every data set, by the name that `--preset` gives them.
NAMED_PRESETS: Mapping[str, Mapping[str, float]] = {"paper": {"at_beta": 1e6}}


def _numbers(value: object) -> object:
    """ "0.5, 0.5" as a list; what is none of text is left alone, for a list of TOML or Python."""
    return [each.strip() for each in value.split(",")] if isinstance(value, str) else value


Three = Annotated[tuple[float, float, float], BeforeValidator(_numbers)]


def refuse_compress(store: str, compress: str) -> None:
    """Raise UsageError for compressed WebDataset shards: their readers would find no arrays."""
    if store == "webdataset" and compress != "none":
        raise UsageError(
            where="--compress", found=f"{compress} with --store webdataset", wanted="--store zarr", fix="leave one out"
        )


class PrecomputeConfig(BaseModel):
    """Whose features of which data go into which cache, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    teacher: str
    dataset: str
    out: str | Path
    data_root: Path | None = None
    weights: Path | None = None
    dtype: Literal["float16", "float32", "bfloat16"] = "float16"
    precision: str = "fp32"
    image_size: int | None = Field(default=None, ge=8)
    batch_size: int = Field(default=64, ge=1)
    workers: int | None = Field(default=None, ge=1)
    device: str = "auto"
    limit: int | None = Field(default=None, ge=1)
    settings: Mapping[str, str | int | float | bool] = {}
    shard_rows: int | None = Field(default=None, ge=16)
    keep_conflicts: bool = False
    max_failed: float = Field(default=0.01, ge=0, le=1)
    on_error: Literal["skip", "fail"] = "skip"
    max_megapixels: float | None = Field(default=None, ge=0.01)
    update: str | None = None
    store: Literal["zarr", "webdataset"] = "zarr"
    compress: Literal["none", "zstd", "pcodec"] = "none"
    layers: str = Field(default="penultimate", description="names, by commas")
    views: int = Field(default=0, ge=0)
    kind: Literal["penultimate", "projection", "projection_l2", "logits"] | None = None
    output: str | None = Field(default=None, description="of a graph, as the next three")
    mean: Three | None = None
    std: Three | None = None
    range: Annotated[tuple[float, float], BeforeValidator(_numbers)] | None = None
    api_key_env: str | None = None
    requests_per_minute: float | None = Field(default=None, ge=0.1)
    price_per_1000: float | None = Field(default=None, ge=0)
    dry_run: bool = False
    slice: str = Field(default="1/1", description="I/N: every Nth shard, from the Ith")

    def asked(self) -> dict[str, Any]:
        """What is asked of the teacher beside its name; None: nothing."""
        precision = None if self.precision == "fp32" else self.precision
        names = ("weights", "image_size", "kind", "output", "mean", "std", "range")
        paid = ("api_key_env", "requests_per_minute", "price_per_1000")
        return {"precision": precision, **{name: getattr(self, name) for name in (*names, *paid)}}

    @property
    def part(self) -> tuple[int, int]:
        """The slice as (I, N). Raises UsageError."""
        first, slash, last = self.slice.partition("/")
        if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise UsageError(
                where="--slice", found=repr(self.slice), wanted="I/N with 1 <= I <= N, such as 2/4", fix="write it so"
            )
        return int(first), int(last)


class RunConfig(BaseModel):
    """A training run. Fields under `PLACE` say where and how fast it runs; all others decide what comes out."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    dataset: str
    student: str
    method: str
    seed: int = Field(default=0, ge=0)
    epochs: int = Field(default=10, ge=1)
    warmup: int = Field(default=-1, ge=-1, description="epochs before lambda and the gate act; -1: half of them")
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    lambda_: float = Field(default=0.03, ge=0, alias="lambda")
    alpha: float = Field(default=0.9, ge=0, le=1)
    tau: float = Field(default=4.0, gt=0)
    mu1: float = Field(default=1e-3, gt=0)
    mu2: float = Field(default=1e-3, gt=0)
    fitnet_weight: float = Field(default=0.1, ge=0)
    at_beta: float = Field(default=1e3, ge=0)
    mfd_weight: float = Field(default=3.0, ge=0)
    ad_weight: float = Field(default=1.0, ge=0)
    ad_lr: float = Field(default=1e-3, gt=0)
    ad_every: int = Field(
        default=0, ge=0, description="ad: the student moves every nth epoch; 0: 1 up to 20 epochs, else 3"
    )
    dro_step: float = Field(default=0.01, ge=0)
    average: float = Field(
        default=-1, ge=-1, lt=1, description="-1: .999 for bird-plus and bird-offsets, 0 for all others"
    )
    balance: float = Field(default=0.0, ge=0, le=1)
    offsets_from: Literal["prior", "zero"] = "prior"
    shrink: float = Field(default=0.0, ge=0, description="bird-offsets: n / shrink nats for a cell of n meta rows")
    soft_max: float = Field(default=0.0, ge=0, description="T of the soft maximum in L_o, in nats; 0: the maximum")
    feedback_every: int = Field(default=1, ge=1)
    feedback_through: Literal["all", "last"] = "all"
    meta_per_cell: int = Field(default=8, ge=1, description="meta samples of each (class, group) cell a step")
    groups_known: Literal["all", "meta"] = "all"
    head_epochs: int = Field(default=10, ge=1, description="bkd: epochs of the teacher's head")
    head: Literal["plain", "balanced"] = Field(
        default="plain", description="bkd: the teacher's head learns with CE, or with all (class, group) cells alike"
    )
    limit: int | None = Field(default=None, ge=1)
    choose: int | None = Field(
        default=None, ge=0, description="the seed by which half of meta is held out to choose on; no test split then"
    )
    augment: bool = True
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="how the student computes (bird.precision)")
    dataset_settings: dict[str, str | int | float | bool] = {}

    cache: str | None = None
    data_root: Path | None = None
    out: Path
    device: str = "auto"
    workers: int = Field(default=2, ge=1)
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    profile: bool = Field(default=False, description="write a trace of a few steps into the run's folder")
    recompute: bool = Field(default=False, description="BIRD: two more forward passes a step, for less memory")
    memory_gb: float = Field(
        default=4.0, ge=0, description="GiB of vectors to hold; larger caches are read as they are"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _as_text(cls, cache: object) -> object:
        return str(cache) if isinstance(cache, Path) else cache

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run folder to be resumed: everything that decides the result."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(PLACE))

    def scored(self) -> tuple[str, str]:
        """The splits that the finished student is scored on: a run that a setting is chosen by never sees test."""
        return ("meta", "test") if self.choose is None else ("meta", CHOOSE)


CHOOSE = "choose"
AD_SHORT = 20  # epochs up to which the student of AD moves in every one
PLACE = ("cache", "data_root", "out", "device", "workers", "checkpoint_seconds", "memory_gb", "profile", "recompute")


def resolve_precompute(flags: Mapping[str, Any], file: Path | None = None) -> PrecomputeConfig:
    """The order for a cache: defaults, then the TOML `file`, then `flags` that are not None. Raises UsageError naming every
    option that is unknown or out of range."""
    values = {} if file is None else _read(file, "bird precompute")
    values |= {name.removesuffix("_"): value for name, value in flags.items() if value is not None}
    try:
        return PrecomputeConfig.model_validate(values)
    except ValidationError as error:
        raise _wrong(error, "bird precompute", PrecomputeConfig, file) from None


def _wrong(error: ValidationError, command: str, model: type[BaseModel], file: Path | None = None) -> UsageError:
    """Every option that is unknown, missing or out of range, in one error, with what was probably meant."""
    places = [".".join(map(str, each["loc"])) for each in error.errors()]
    absent = {"missing": "nothing"}
    said = {"extra_forbidden": "an option that there is", "missing": "a value"}
    meant = [close for each in error.errors() for close in _meant(each, model)]
    return UsageError(
        where=", ".join(f"--{place.replace('_', '-')}" for place in places) + (f" (with {file})" if file else ""),
        found=", ".join(absent.get(each["type"], repr(each.get("input"))) for each in error.errors()),
        wanted="; ".join(said.get(each["type"], each["msg"]) for each in error.errors()),
        fix=f"did you mean {' and '.join(meant)}?" if meant else f"see `{command} --help`",
    )


def _meant(error: Any, model: type[BaseModel]) -> list[str]:
    """The option, or the value of one, that a wrong one resembles."""
    if error["type"] == "extra_forbidden":
        names = [field.alias or name for name, field in model.model_fields.items()]
        return nearest(str(error["loc"][0]), [*names, *(["preset"] if model is RunConfig else [])])
    if error["type"] == "literal_error":
        return nearest(str(error["input"]), re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return []


def resolve(flags: Mapping[str, Any], file: Path | None = None, defaults: Mapping[str, Any] | None = None) -> RunConfig:
    """A run's configuration: defaults, then the data set's preset, then the one that `preset` names, then the TOML `file`,
    then `flags` that are not None.

    Raises UsageError naming every field that is unknown or out of range, or the unknown preset, data set, student or
    method.
    """
    values = dict(defaults or {})
    for given in ({} if file is None else _read(file), flags):
        values |= {name.removesuffix("_"): value for name, value in given.items() if value is not None}
    named = NAMED_PRESETS[_known_preset(values.pop("preset"))] if "preset" in values else {}
    values = {**PRESETS.get(str(values.get("dataset")), {}), **named, **values}
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise _wrong(error, "bird distill", RunConfig, file) from None
    _require_known(config)
    if config.warmup < 0:
        config = config.model_copy(update={"warmup": config.epochs // 2})
    if config.average < 0:
        config = config.model_copy(update={"average": usual_average(config.method)})
    if config.ad_every == 0:
        config = config.model_copy(update={"ad_every": 1 if config.epochs <= AD_SHORT else 3})
    if config.warmup > config.epochs:
        raise UsageError(
            where="--warmup",
            found=str(config.warmup),
            wanted=f"at most --epochs ({config.epochs})",
            fix="lower it, or train longer",
        )
    return config


def usual_average(method: str) -> float:
    """The decay of the running mean of the weights where nobody says; 0: none."""
    from bird.methods import Hyperparameters, build_method

    return 0.999 if build_method(method, Hyperparameters(), 2).averages else 0.0


def _known_preset(name: object) -> str:
    if name not in NAMED_PRESETS:
        raise unknown_name("--preset", name, NAMED_PRESETS, "leave it out for the defaults")
    return str(name)


def _require_known(config: RunConfig) -> None:
    """Raise UsageError for a data set, student or method that there is not: before anything is read or written."""
    from bird.datasets import DATASETS
    from bird.methods import METHODS
    from bird.students import STUDENTS

    for what, name, known in (
        ("dataset", config.dataset, DATASETS),
        ("student", config.student, STUDENTS),
        ("method", config.method, METHODS),
    ):
        if name not in known:
            raise unknown_name(f"--{what}", name, known, f"see `bird list {what}s`")


def _read(file: Path, command: str = "bird distill") -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        found = error.strerror or str(error)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = str(error)
    raise UsageError(
        where=f"--config {file}",
        found=found,
        wanted="a TOML file of options",
        fix=f"one NAME = VALUE a line, names as in `{command} --help`",
    )
