"""The command line. A command parses, calls one function, prints; whatever is heavy is imported inside it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

import bird_pipelines
from bird_pipelines.cli import show
from bird_pipelines.cli.audit import audit
from bird_pipelines.cli.cache import cache_app
from bird_pipelines.cli.compare import compare
from bird_pipelines.cli.dial import dial
from bird_pipelines.cli.misuse import MISUSE, Commands, as_ours
from bird_pipelines.cli.options import (
    Config,
    Json,
    OwnDataset,
    OwnStudent,
    Setting,
    SlurmOptions,
    output,
    settings_of,
    takes,
)
from bird_pipelines.cli.ranks import exit_of, leave_word, listen_no_more, refuse_command, to_say
from bird_pipelines.cli.reproduce import reproduce
from bird_pipelines.cli.shipping import export, predict, push
from bird_pipelines.cli.tune import tune
from bird_pipelines.config.cache import options_of_a_cache
from bird_pipelines.config.run import Training, Weights, options_of_a_run

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")


def _version(asked: bool) -> None:
    if asked:
        from bird import __version__

        typer.echo(f"bird {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fair knowledge distillation in two phases: cache a frozen teacher once, then distil with student feedback."""
    refuse_command(context.invoked_subcommand)


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failure, 2 usage or input, 3 cache, 4 teacher, 130
    interrupted and resumable."""
    show.replace_what_the_terminal_lacks()
    debug = "--debug" in sys.argv
    args = [argument for argument in sys.argv[1:] if argument != "--debug"]
    # torch's own forward-mode rules still compile themselves with a function it deprecates
    warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)
    try:
        sys.exit(app(args=args, prog_name="bird", standalone_mode=False))  # None, or the code of typer.Exit
    except SystemExit as ended:
        if ended.code == 130:  # Ctrl-C where nothing looks out for it
            show.panel("Interrupted", {"what is done is kept": "run the same command again"} | exit_of(130), "yellow")
        raise
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help has been shown
            sys.exit(2)
        if isinstance(error, MISUSE):
            error = as_ours(error)
        listen_no_more()
        from bird.errors import BirdError, LostRankError
        from bird_cache.errors import CacheError
        from bird_pipelines.progress import Interrupted

        title, colour, code = type(error).__name__, "red", 1
        if isinstance(error, Interrupted | typer.Abort):
            lines = {"what is done is kept": "run the same command again to resume"}
            title, colour, code = "Interrupted", "yellow", 130
        elif debug:
            raise
        elif isinstance(error, BirdError | CacheError):
            lines = {"where": error.where, "found": error.found, "wanted": error.wanted, "what to do": error.fix}
            code = error.exit_code
        else:
            lines = show.surprise(error)
        follows = isinstance(error, LostRankError)
        if to_say(lines, follows=follows):
            show.panel(title, lines | exit_of(code), colour)
        if not follows:
            leave_word(title, lines)
        sys.exit(code)


@app.command()
@takes(options_of_a_cache(), need=("teacher", "dataset", "out"))
def precompute(
    flags: dict[str, Any],
    setting: Setting = None,
    set_: SlurmOptions = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Phase 1: run the frozen teacher once over a data set and cache its features."""
    settings = settings_of(setting) if setting else None
    slurm = settings_of(set_, "--set", "`sbatch --help`") if set_ else None
    info = bird_pipelines.precompute(**flags, settings=settings, set=slurm, config=config)
    output(info, json_, show.parts_of if flags.get("dry_run") else show.cache)


@app.command()
@takes([each for each in options_of_a_run() if each.field != "dataset"], need=("cache", "out"))
def distill(
    flags: dict[str, Any],
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper: use the paper's values where they differ from the defaults.", rich_help_panel=Weights.panel
        ),
    ] = None,
    dataset: OwnDataset = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Several seeds, such as 0-7 or 0,3,5: a run each in OUT/seed-N, and a summary with means and deviations.",
            rich_help_panel=Training.panel,
        ),
    ] = None,
    config: Config = None,
    json_: Json = False,
) -> None:
    """Phase 2: distil a student from a cache. The teacher is never loaded.

    Under torchrun (`torchrun --nproc-per-node 4 -m bird_pipelines distill ...`) all processes train one student, with the
    rows and the steps of one process; batch norm has the statistics of each process's own rows."""
    found = bird_pipelines.distill(**flags, dataset=dataset, preset=preset, seeds=seeds, config=config)
    output(found, json_, show.run if seeds is None else show.seeds)


TRAINED = (
    "dataset",
    "out",
    "student",
    "init",
    "image_size",
    "data_root",
    "limit",
    "seed",
    "epochs",
    "batch_size",
    "lr",
    "optimizer",
    "weight_decay",
    "lr_schedule",
    "lr_step_epochs",
    "lr_gamma",
    "early_stop",
    "augment",
    "workers",
    "device",
    "report_to",
)


@app.command()
@takes(options_of_a_run(), TRAINED, need=("dataset", "out"), usual={"student": "resnet18"})
def train(flags: dict[str, Any], setting: Setting = None, config: Config = None, json_: Json = False) -> None:
    """Train a student without a teacher (the baseline). Its run folder can serve as the teacher `run:DIR`."""
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.training import distill as run

    flags |= {"method": "baseline", "dataset_settings": settings_of(setting) if setting else None}
    output(run(resolve(flags, config, {"student": "resnet18"})), json_, show.run)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    split: Annotated[str, typer.Option(help="train, meta or test.")] = "test",
    data_root: Annotated[Path | None, typer.Option(help="Where its data set is now, if it moved.")] = None,
    cache: Annotated[str | None, typer.Option(help="Where the run's cache is now, if it moved.")] = None,
    student: OwnStudent = None,
    dataset: OwnDataset = None,
    json_: Json = False,
) -> None:
    """Compute the metrics of a finished run on one split, with intervals and floors."""
    from bird_pipelines.distilling.evaluate import evaluate as run_evaluate

    found = run_evaluate(run, split, data_root=data_root, cache=cache, student=student, dataset=dataset)
    output(found, json_, show.metrics_of)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold them (also those of --seeds).")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    against: Annotated[
        str | None,
        typer.Option(help="The method that the others are compared with. Default: baseline, else the first."),
    ] = None,
    json_: Json = False,
) -> None:
    """Write one self-contained HTML page about one or many runs."""
    from bird_pipelines.reporting.report import write_report

    output(
        {"report": str(write_report(runs, out, against=against))},
        json_,
        lambda info: typer.echo(f"report: {info['report']}"),
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("out/demo"),
    json_: Json = False,
) -> None:
    """Run the whole pipeline on the embedded data set, offline, in a few minutes."""
    from bird_pipelines.cli.demo import demo as run_demo

    output({"report": str(run_demo(out))}, json_, lambda info: typer.echo(f"report: {info['report']}"))


app.command()(audit)
app.command()(compare)
app.command()(dial)
app.command()(tune)
app.command()(reproduce)
app.command()(export)
app.command()(push)
app.command()(predict)


@app.command()
def doctor(json_: Json = False) -> None:
    """Check the installation by using it."""
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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1 for the second GPU.")] = "auto",
    json_: Json = False,
) -> None:
    """List teachers, students, methods and data sets. With a teacher's name: show which vector it gives."""
    from bird_pipelines.cli.catalogue import catalogue, one_teacher

    if what == "teachers" and name is not None:
        output(one_teacher(name, weights, image_size, device), json_, show.parts_of)
    else:
        output(catalogue(what, name), json_, lambda info: show.table(what, info))
