"""`bird reproduce` for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bird_pipelines.cli.options import Address, Engine, Json, output

__all__ = ["reproduce"]


def reproduce(
    recipe: Annotated[str, typer.Argument(help="table1 ... table7, figure2 or figure3.")],
    out: Annotated[Path, typer.Option(help="Folder for the report and, in work/, all that it takes; resumes.")],
    profile: Annotated[
        str, typer.Option(help="paper (real data and weights), demo (Digits-S, nothing needed) or cifar10s-local.")
    ] = "paper",
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set, or of celeba/, utkface/, cifar10s/ and weights/ side by side."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds 0..N-1 of each row.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="A row (data set/teacher/student/method), a part of one, or a pattern.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    engine: Engine = "local",
    address: Address = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan with a rough estimate of time and disk.")] = False,
    json_: Json = False,
) -> None:
    """A table or figure of the paper: train what it needs, and put ours beside the printed numbers."""
    from bird_pipelines.study.tables.reproduce import reproduce as run

    done = run(
        recipe,
        out,
        profile=profile,
        data_root=data_root,
        seeds=seeds,
        only=only or (),
        jobs=jobs,
        engine=engine,
        address=address,
        dry_run=dry_run,
    )
    output(done, json_, show_plan if dry_run else show_files)
    if done.get("failed"):
        raise typer.Exit(1)


def show_files(done: dict[str, Any]) -> None:
    """What was written, and what failed."""
    typer.echo("\n".join(f"{kind}: {path}" for kind, path in done["files"].items()))
    for line in done["failed"]:
        typer.echo(f"failed: {line}", err=True)


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as lines."""
    for each in plan["steps"]:
        what = f"{each['left']} of {each['runs']} runs" if each["kind"] == "runs" else "to do"
        cost = f"{duration(each['seconds'])}, {each['bytes'] / 1e6:,.0f} MB"
        typer.echo(f"{each['step']}: {what + ', ' + cost if each['left'] else 'nothing to do'}")
    total = plan["total"]
    typer.echo(
        f"in all about {duration(total['seconds'])} on CPU cores, {total['bytes'] / 1e9:,.1f} GB of disk (rough)"
    )
    for line in plan["missing"]:
        typer.echo(f"missing: {line}")
    for line in plan["cannot"]:
        typer.echo(f"cannot be trained: {line}")


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
