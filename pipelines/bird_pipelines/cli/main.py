"""The command line. A command parses, calls one function, prints; whatever is heavy is imported inside it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import bird_pipelines
from bird_pipelines.cli import show
from bird_pipelines.cli.cache import cache_app
from bird_pipelines.cli.compare import compare
from bird_pipelines.cli.options import (
    DataRoot,
    Device,
    ImageSize,
    Json,
    Kind,
    Limit,
    Mean,
    MemoryGb,
    OnError,
    Out,
    Output,
    OutUrl,
    Range,
    Setting,
    Slice,
    Std,
    TeacherWorkers,
    TrainLimit,
    given,
    machine,
    output,
    service,
    settings_of,
    stored,
    training,
    unusable,
    weight,
)
from bird_pipelines.cli.reproduce import reproduce
from bird_pipelines.cli.tune import tune

app = typer.Typer(
    help="Fair knowledge distillation in two phases: cache a frozen teacher once, then distil with student feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failure, 2 usage or input, 3 cache, 4 teacher, 130
    interrupted and resumable."""
    show.replace_what_the_terminal_lacks()
    debug = "--debug" in sys.argv
    args = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # torch's own forward-mode rules still compile themselves with a function it deprecates
    warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)
    try:
        app(args=args, prog_name="bird")
    except Exception as error:
        from bird.errors import BirdError
        from bird_cache.errors import CacheError
        from bird_pipelines.progress import Interrupted

        if isinstance(error, Interrupted):
            show.panel("Interrupted", {"what is done is kept": "run the same command again to resume"}, "yellow")
            sys.exit(130)
        if debug:
            raise
        if isinstance(error, BirdError | CacheError):
            lines = {"where": error.where, "found": error.found, "wanted": error.wanted, "what to do": error.fix}
            show.panel(type(error).__name__, lines, "red")
            sys.exit(error.exit_code)
        show.panel(type(error).__name__, show.surprise(error), "red")
        sys.exit(1)


@app.command()
def precompute(
    context: typer.Context,
    teacher: Annotated[str, typer.Option(help="clip-vit-b32, onnx:FILE, run:DIR ... (`bird list teachers`).")],
    dataset: Annotated[str, typer.Option(help="digits-s, cifar10s, celeba, utkface or table (`bird list datasets`).")],
    out: OutUrl,
    data_root: DataRoot = None,
    weights: Annotated[Path | None, typer.Option(help="Local weights of the teacher.")] = None,
    dtype: Annotated[str, stored(help="How features are stored: float16, float32 or bfloat16.")] = "float16",
    precision: Annotated[str, machine(help="How the teacher computes: fp32, bf16 or fp16.")] = "fp32",
    image_size: ImageSize = None,
    kind: Kind = None,
    output_: Output = None,
    range_: Range = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: Annotated[int, machine(min=1, help="Images per forward pass.")] = 64,
    workers: TeacherWorkers = None,
    device: Device = "auto",
    limit: Limit = None,
    setting: Setting = None,
    shard_rows: Annotated[
        int | None, stored(min=16, help="Rows per shard: what a kill may lose. Default by size.")
    ] = None,
    keep_conflicts: Annotated[bool, unusable(help="Keep identical images with different labels.")] = False,
    max_failed: Annotated[float, unusable(min=0, max=1, help="Share of samples that may be unusable.")] = 0.01,
    on_error: OnError = "skip",
    max_megapixels: Annotated[float | None, unusable(min=0.01, help="Refuse larger images. Default 64.")] = None,
    update: Annotated[
        str | None,
        stored(help="A finished cache of the same teacher: only what the data set has new since is computed."),
    ] = None,
    store: Annotated[
        str, stored(help="zarr (vectors beside the data set) or webdataset (tars of images and vectors).")
    ] = "zarr",
    compress: Annotated[
        str, stored(help="none, zstd or pcodec: for vectors with many zeros; without loss, Zarr only.")
    ] = "none",
    layers: Annotated[
        str, stored(help="What to store, by commas: penultimate, projection, attention, maps, cls, pooled, logits.")
    ] = "penultimate",
    views: Annotated[
        int, stored(min=0, help="Random views to store beside the deterministic one, with their crops and flips.")
    ] = 0,
    api_key_env: Annotated[str | None, service(help="The environment variable with its key.")] = None,
    requests_per_minute: Annotated[float | None, service(min=0.1, help="At most so many.")] = None,
    price_per_1000: Annotated[float | None, service(min=0, help="For the estimate of --dry-run.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be asked of the teacher, and stop.")] = False,
    slice_: Slice = "1/1",
    config: Annotated[Path | None, typer.Option(help="TOML file of these options; flags win.")] = None,
    json_: Json = False,
) -> None:
    """Phase 1: run the frozen teacher once over a data set and cache its features."""
    flags = {name: value for name, value in given(context, locals()).items() if name not in ("setting", "json_")}
    flags |= {"teacher": teacher, "dataset": dataset, "out": out}
    info = bird_pipelines.precompute(**flags, settings=settings_of(setting) if setting else None)
    output(info, json_, show.parts_of if dry_run else show.cache)


@app.command()
def distill(
    cache: Annotated[str, typer.Option(help="The cache that `bird precompute` wrote: a folder or URL.")],
    out: Out,
    student: Annotated[
        str | None, typer.Option(help="resnet18, resnet34, shufflenetv2 or adapter (the default).")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="bird (the default), fitnet, mfd, ...: `bird list methods`.")
    ] = None,
    data_root: DataRoot = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first weights and the order of the samples. Default 0.")
    ] = None,
    epochs: Annotated[int | None, training(min=1, help="Default 10.")] = None,
    warmup: Annotated[int | None, training(min=0, help="Epochs before lambda and the gate act. Default half.")] = None,
    lambda_: Annotated[
        float | None, weight("--lambda", help="Weight of L_o in the distillation step. Default .03 (CIFAR-10S .2).")
    ] = None,
    alpha: Annotated[float | None, weight(help="Weight of the distance against CE. Default .9 (CIFAR-10S .5).")] = None,
    tau: Annotated[float | None, weight(help="Temperature of bkd. Default 4 (CIFAR-10S 10).")] = None,
    mu1: Annotated[float | None, weight(help="Step of the look-ahead. Default 1e-3.")] = None,
    mu2: Annotated[float | None, weight(help="Adam's learning rate of the gate. Default 1e-3.")] = None,
    fitnet_weight: Annotated[float | None, weight(help="fitnet: weight of the MSE. Default .1.")] = None,
    at_beta: Annotated[
        float | None, weight(help="at, bird+at: weight of the attention loss. Default 1e3 (--preset paper: 1e6).")
    ] = None,
    mfd_weight: Annotated[
        float | None, weight(help="mfd, bird+mfd: lambda of MMD, halved. Default 3 (CelebA 7).")
    ] = None,
    ad_weight: Annotated[float | None, weight(help="ad: weight of - g_adv. Default 1.")] = None,
    ad_lr: Annotated[float | None, weight(help="ad: the adversary's learning rate. Default 1e-3.")] = None,
    ad_every: Annotated[
        int | None, weight(help="ad: the student moves every nth epoch. Default 1 up to 20 epochs, else 3.")
    ] = None,
    dro_step: Annotated[float | None, weight(help="group-dro: step of its cell weights. Default .01.")] = None,
    average: Annotated[
        float | None,
        weight(
            help="Decay of the running mean of the weights, which ships; 0: none. Default .999 for bird-plus and "
            "bird-offsets, else 0."
        ),
    ] = None,
    balance: Annotated[
        float | None,
        weight(help="bird-offsets: weight of the balanced CE in the feedback, the rest is L_o's. Default 0."),
    ] = None,
    offsets_from: Annotated[
        str | None, weight(help="bird-offsets: phi starts at log p(class given group) (prior, default) or at 0 (zero).")
    ] = None,
    shrink: Annotated[
        float | None,
        weight(
            help="bird-offsets: hold phi back where meta rows are few: at most n / SHRINK nats from its start for n rows. "
            "Default 0: freely."
        ),
    ] = None,
    soft_max: Annotated[
        float | None, weight(help="T of a soft maximum over the groups in L_o, in nats. Default 0: the maximum.")
    ] = None,
    feedback_every: Annotated[
        int | None, weight(help="bird and its kin: one step of so many has feedback. Default 1.")
    ] = None,
    feedback_through: Annotated[
        str | None,
        weight(help="last: the look-ahead moves the student from its last stage on, no more: cheaper. Default all."),
    ] = None,
    groups_known: Annotated[
        str | None,
        weight(help="meta: no group of train is looked at; a probe reads them off the features. Default all."),
    ] = None,
    head: Annotated[
        str | None,
        weight(help="bkd: balanced has the teacher's head learn with all (class, group) cells alike. Default plain."),
    ] = None,
    preset: Annotated[str | None, weight(help="paper: values of the paper that are not the defaults.")] = None,
    batch_size: Annotated[int | None, training(min=2, help="Default 128.")] = None,
    meta_per_cell: Annotated[int | None, training(min=1, help="Meta samples of each cell a step. Default 8.")] = None,
    lr: Annotated[float | None, training(help="Adam's learning rate. Default 1e-3.")] = None,
    augment: Annotated[bool | None, training(help="Crop and flip the student's images at random. Default yes.")] = None,
    limit: TrainLimit = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of these options; flags win.")] = None,
    precision: Annotated[str | None, machine(help="fp32 (default), or bf16 for the student's answer.")] = None,
    profile: Annotated[
        bool | None, machine("--profile", help="Write a trace of a few steps into the run's folder.")
    ] = None,
    recompute: Annotated[bool | None, machine("--recompute", help="BIRD: less memory for more time.")] = None,
    memory_gb: MemoryGb = None,
    workers: Annotated[int | None, machine(min=1, help="Threads that decode images. Default 2.")] = None,
    device: Annotated[str | None, machine(help="auto (default), cpu or cuda.")] = None,
    json_: Json = False,
) -> None:
    """Phase 2: distil a student from a cache. The teacher is never loaded."""
    flags = {name: value for name, value in locals().items() if name != "json_"}
    output(bird_pipelines.distill(**flags), json_, show.run)


@app.command()
def train(
    dataset: Annotated[str, typer.Option(help="digits-s, cifar10s, celeba, utkface or table.")],
    out: Out,
    student: Annotated[str | None, typer.Option(help="resnet18 (default), resnet34 or shufflenetv2.")] = None,
    data_root: DataRoot = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the first weights and the order of the samples. Default 0.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default 10.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Default 128.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's learning rate. Default 1e-3.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Random crop and flip of the images.")] = None,
    limit: Limit = None,
    setting: Setting = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of these options; flags win.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode images.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    json_: Json = False,
) -> None:
    """The Baseline: a student without a teacher. Its run folder can be the teacher `run:DIR`."""
    flags = {name: value for name, value in locals().items() if name not in ("config", "json_", "setting")}
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.training import distill as run

    flags |= {"method": "baseline", "dataset_settings": settings_of(setting) if setting else None}
    output(run(resolve(flags, config, {"student": "resnet18"})), json_, show.run)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    split: Annotated[str, typer.Option(help="train, meta or test.")] = "test",
    data_root: DataRoot = None,
    cache: Annotated[str | None, typer.Option(help="Where the run's cache is now, if it moved.")] = None,
    json_: Json = False,
) -> None:
    """Metrics of a finished run on one split, with intervals and floors."""
    from bird_pipelines.distilling.evaluate import evaluate as run_evaluate

    output(run_evaluate(run, split, data_root=data_root, cache=cache), json_, show.metrics_of)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """One self-contained HTML page about one or many runs."""
    from bird_pipelines.reporting.report import write_report

    output({"report": str(write_report(runs, out))}, json_, lambda info: typer.echo(f"report: {info['report']}"))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("out/demo"),
    json_: Json = False,
) -> None:
    """The whole pipeline on the embedded data set, offline, in a few minutes."""
    from bird_pipelines.cli.demo import demo as run_demo

    output({"report": str(run_demo(out))}, json_, lambda info: typer.echo(f"report: {info['report']}"))


app.command()(compare)
app.command()(tune)
app.command()(reproduce)


@app.command()
def doctor(json_: Json = False) -> None:
    """What this installation can do, found out by doing it."""
    from bird_pipelines.cli.doctor import diagnose

    found = diagnose()
    output(found, json_, show.parts)
    if any(value != "ok" for value in found["checks"].values()):
        raise typer.Exit(1)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="teachers, students, methods or datasets.")],
    name: Annotated[str | None, typer.Argument(help="One teacher: which vector it gives. It is loaded.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Local weights of that teacher.")] = None,
    image_size: Annotated[int | None, typer.Option(min=8, help="As in the precompute command.")] = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """What there is to choose from; of one teacher, which vector it gives."""
    from bird_pipelines.cli.catalogue import catalogue, one_teacher

    if what == "teachers" and name is not None:
        output(one_teacher(name, weights, image_size, device), json_, show.parts_of)
    else:
        output(catalogue(what, name), json_, lambda info: show.table(what, info))
