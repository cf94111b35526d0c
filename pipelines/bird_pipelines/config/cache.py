"""A cache: whose features of which rows, what is stored of them, and how the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

from bird.errors import UsageError
from bird.own import Part
from bird_pipelines.config.engine import Engine
from bird_pipelines.config.option import Declared, Option, Record, declared

__all__ = [
    "PARTS",
    "Asked",
    "Engine",
    "PrecomputeConfig",
    "Rows",
    "Service",
    "Stored",
    "Work",
    "options_of_a_cache",
    "refuse_compress",
]

STRICT = {"extra": "forbid", "allow_inf_nan": False}
Three = tuple[float, float, float]


@final
@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which images, and which of them may be unusable."""

    panel: ClassVar[str | None] = "Images"
    __pydantic_config__: ClassVar[Any] = STRICT

    dataset: Annotated[
        str,
        Option(
            "digits-s, cifar10s, celeba, utkface, table, imagefolder, hf:FOLDER, or your own: file.py:NAME"
            " (`bird list datasets`)."
        ),
    ]
    data_root: Annotated[Path | None, Option("Folder of the data set. `bird list datasets` shows its layout.")] = None
    settings: Annotated[Mapping[str, str | int | float | bool], Option("The data set's, by name.", hidden=True)] = (
        field(default_factory=dict)
    )
    limit: Annotated[
        int | None, Option("Use a fixed subset of N samples. It keeps the proportions of split, class and group.", ge=1)
    ] = None
    keep_conflicts: Annotated[bool, Option("Keep identical images with different labels.", flag="--keep-conflicts")] = (
        False
    )
    max_failed: Annotated[float, Option("Largest share of unusable samples before the command fails.", ge=0, le=1)] = (
        0.01
    )
    on_error: Annotated[
        Literal["skip", "fail"],
        Option("skip: count and leave out unusable images, up to --max-failed. fail: stop at the first one."),
    ] = "skip"
    max_megapixels: Annotated[float | None, Option("Refuse larger images.", default="64", ge=0.01)] = None


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the teacher beside its name."""

    panel: ClassVar[str | None] = "What the teacher takes and gives"
    __pydantic_config__: ClassVar[Any] = STRICT

    weights: Annotated[Path | None, Option("Local weights of the teacher.")] = None
    precision: Annotated[str, Option("How the teacher computes: fp32, bf16 or fp16.")] = "fp32"
    image_size: Annotated[
        int | None, Option("Side of the input in pixels, for a teacher that accepts several.", ge=8)
    ] = None
    kind: Annotated[
        Literal["penultimate", "projection", "projection_l2", "logits"] | None,
        Option(
            "Kind of its vectors: penultimate, projection, projection_l2 or logits. For onnx it selects the output."
        ),
    ] = None
    output: Annotated[str | None, Option("onnx, http+kserve: name of the output that holds the vector.")] = None
    range: Annotated[
        tuple[float, float] | None, Option("onnx: range of the input pixels, LOW,HIGH.", default="0,1")
    ] = None
    mean: Annotated[
        Three | None, Option("onnx: subtracted from each channel, R,G,B, in units of --range.", default="0,0,0")
    ] = None
    std: Annotated[Three | None, Option("onnx: each channel is divided by it, R,G,B.", default="1,1,1")] = None

    def named(self) -> dict[str, Any]:
        """By name; None: nothing is asked."""
        precision = None if self.precision == "fp32" else self.precision
        names = ("weights", "image_size", "kind", "output", "mean", "std", "range")
        return {"precision": precision, **{name: getattr(self, name) for name in names}}


@final
@dataclass(frozen=True, kw_only=True)
class Service:
    """What a teacher that answers over the network needs."""

    panel: ClassVar[str | None] = "If the teacher is a service"
    __pydantic_config__: ClassVar[Any] = STRICT

    api_key_env: Annotated[str | None, Option("Name of the environment variable that holds the API key.")] = None
    requests_per_minute: Annotated[float | None, Option("Upper limit of requests per minute.", ge=0.1)] = None
    price_per_1000: Annotated[float | None, Option("Price of 1,000 requests, for the estimate of --dry-run.", ge=0)] = (
        None
    )


@final
@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is stored of each row, and in which files."""

    panel: ClassVar[str | None] = "What is stored"
    __pydantic_config__: ClassVar[Any] = STRICT

    dtype: Annotated[
        Literal["float16", "float32", "bfloat16"],
        Option("How features are stored: float16, float32 or bfloat16."),
    ] = "float16"
    layers: Annotated[
        str,
        Option("Layers to store, separated by commas: penultimate, projection, attention, maps, cls, pooled, logits."),
    ] = "penultimate"
    views: Annotated[
        int, Option("Number of random views to store beside the deterministic one, with their crops and flips.", ge=0)
    ] = 0
    store: Annotated[
        Literal["zarr", "webdataset"],
        Option("zarr (vectors beside the data set) or webdataset (tars of images and vectors)."),
    ] = "zarr"
    compress: Annotated[
        Literal["none", "zstd", "pcodec"],
        Option("none, zstd or pcodec. Lossless, for Zarr only; useful for vectors with many zeros."),
    ] = "none"
    shard_rows: Annotated[
        int | None,
        Option("Rows per shard. A killed run loses at most one shard.", default="by the size of the data set", ge=16),
    ] = None
    update: Annotated[
        str | None,
        Option("A finished cache of the same teacher. Only images that are new since then are computed."),
    ] = None


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """How the work is done, and which part of it."""

    panel: ClassVar[str | None] = "Speed and memory"
    __pydantic_config__: ClassVar[Any] = STRICT

    batch_size: Annotated[int, Option("Images per forward pass.", ge=1)] = 64
    workers: Annotated[
        int | None,
        Option("Threads that decode images and run a teacher on the CPU.", default="one per core, from 2 to 16", ge=1),
    ] = None
    device: Annotated[str, Option("auto, cpu, cuda, or cuda:1 for the second GPU.")] = "auto"
    slice: Annotated[
        str, Option("I/N: compute every Nth shard, starting with the Ith. Join the parts with `bird cache merge`.")
    ] = "1/1"

    @property
    def part(self) -> tuple[int, int]:
        """The slice as (I, N). Raises UsageError."""
        first, slash, last = self.slice.partition("/")
        if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            raise UsageError(
                where="--slice", found=repr(self.slice), wanted="I/N with 1 <= I <= N, such as 2/4", fix="write it so"
            )
        return int(first), int(last)


PARTS: Mapping[str, type[Record]] = {
    "rows": Rows,
    "asked": Asked,
    "service": Service,
    "stored": Stored,
    "work": Work,
    "workers": Engine,
}


@final
@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig:
    """An order for a cache. `dry_run` only says what would be asked of the teacher. `own` are the parts of the user's own,
    by kind: the option of that kind then holds a part's label."""

    teacher: str
    out: str
    dry_run: bool
    rows: Rows
    asked: Asked
    service: Service
    stored: Stored
    work: Work
    workers: Engine
    own: Mapping[str, Part] = field(default_factory=dict)


NAMES = (
    Declared(
        "teacher",
        "teacher",
        str,
        MISSING,
        Option(
            "clip-vit-b32, onnx:FILE, run:DIR ... (`bird list teachers`); or package.module:attribute, file.py:attribute."
        ),
        None,
    ),
    Declared(
        "out",
        "out",
        str,
        MISSING,
        Option("Folder or s3://, gs://, az:// URL to write; the same command resumes what is there."),
        None,
    ),
    Declared(
        "dry_run",
        "dry_run",
        bool,
        False,
        Option(
            "Load the teacher, show its vector, the number of images and a service's cost, then stop.",
            flag="--dry-run",
        ),
        None,
    ),
)


@cache
def options_of_a_cache() -> tuple[Declared, ...]:
    """All options of a cache."""
    return (*NAMES, *(each for part in PARTS.values() for each in declared(part)))


def refuse_compress(store: str, compress: str) -> None:
    """Raise UsageError for compressed WebDataset shards: their readers would find no arrays."""
    if store == "webdataset" and compress != "none":
        raise UsageError(
            where="--compress", found=f"{compress} with --store webdataset", wanted="--store zarr", fix="leave one out"
        )
