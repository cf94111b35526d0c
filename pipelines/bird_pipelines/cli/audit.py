"""`bird audit`, the command: it parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bird_pipelines.cli.options import Json, output

__all__ = ["audit"]


def audit(
    file: Annotated[Path, typer.Argument(help="CSV or Parquet file: a row a prediction.")],
    label: Annotated[str, typer.Option(help="Column of the true classes.")] = "label",
    group: Annotated[
        str, typer.Option(help="Columns of groups, separated by commas. Several are crossed, and shown one by one.")
    ] = "group",
    prediction: Annotated[
        str | None,
        typer.Option(help="Column of predicted classes. Default: prediction, else predicted, else the highest score."),
    ] = None,
    scores: Annotated[
        str | None, typer.Option(help="Columns of scores, one a class (names ending in _CLASS, or sorted by class).")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="The same columns of a baseline's predictions: better or worse, by group.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json_: Json = False,
) -> None:
    """Report on anybody's predictions, group by group. No training, no cache."""
    from bird_pipelines.reporting.audit import audit as run_audit

    found = run_audit(
        file, out, label=label, group=_names(group), prediction=prediction, scores=_names(scores), baseline=baseline
    )
    output(found, json_, _show)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _show(found: dict[str, Any]) -> None:
    for name, each in found["groups"].items():
        worst_class, worst_group = each["by_group"]["worst_cell"]
        worst = each["by_group"]["recall"][worst_class][worst_group]
        cell = f"{found['class_names'][worst_class]}, {each['group_names'][worst_group]}"
        typer.echo(
            f"by {name}: worst cell {cell}: recall {worst['value']:.1f} [{worst['low']:.1f}, {worst['high']:.1f}]"
        )
        for score in ("accuracy", "mean_deo"):
            number = each["summary"][score]
            text = f"n/a: {number['reason']}" if number["value"] is None else f"{number['value']:.1f}"
            ends = "" if number["value"] is None else f" [{number['low']:.1f}, {number['high']:.1f}]"
            typer.echo(f"  {score} {text}{ends}")
        if each["trivial"]:
            typer.echo(f"  trivial, its gap says nothing: {each['trivial']}")
    typer.echo(f"report: {found['report']}")
