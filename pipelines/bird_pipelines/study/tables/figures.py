"""Figures 2 and 3: a table's numbers in one metric, ours beside the paper's, as PNG, SVG and an inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from bird_cache.files import replace
from bird_pipelines.marks import MARK
from bird_pipelines.reporting.look import MUTED, PALETTE, STYLE, WIDTH, inline_svg
from bird_pipelines.study.tables.recipes import Figure
from bird_pipelines.study.tables.table import COLUMNS

__all__ = ["draw"]


def draw(record: Mapping[str, Any], figure: Figure, out: Path) -> tuple[str, dict[str, str]]:
    """Write OUT/figureN.png and .svg; the SVG for inlining, and kind -> path. A demo says so in the title."""
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path"}):
        canvas = bars(record, figure)
        files = {}
        out.mkdir(parents=True, exist_ok=True)
        for kind, settings in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=kind, **settings)
            path = out / f"{figure.name}.{kind}"
            replace(path, buffer.getvalue())
            files[f"figure.{kind}"] = str(path)
    with matplotlib.rc_context(STYLE):
        return inline_svg(bars(record, figure), figure.name, f"{figure.title}: ours beside the paper's"), files


def bars(record: Mapping[str, Any], figure: Figure) -> Canvas:
    """One bar a row of the table: ours with its deviation, the paper's as an open mark with its own."""
    rows = [(block, row) for block in record["blocks"] for row in block["rows"]]
    canvas = Canvas(figsize=(WIDTH, 1.4 + 0.34 * len(rows)), layout="constrained")
    axes = canvas.subplots()
    places = np.arange(len(rows))
    methods = list(dict.fromkeys(row["label"] for _, row in rows))
    cells = [row["cells"][figure.metric] for _, row in rows]
    for place, (_, row), cell in zip(places, rows, cells, strict=True):
        colour = PALETTE[methods.index(row["label"]) % len(PALETTE)]
        if cell["mean"] is not None:
            style: Any = (
                {"facecolor": "none", "edgecolor": colour, "hatch": "///"} if cell["trivial"] else {"color": colour}
            )
            axes.barh(place, cell["mean"], 0.62, alpha=0.85, xerr=cell["std"] or 0, ecolor=MUTED, **style)
        if cell["paper"]:
            axes.errorbar(
                cell["paper"]["mean"], place, xerr=cell["paper"]["std"], fmt="D", mfc="white", color="#22262c", ms=5
            )
    floors = [(cell["floor"], place) for place, cell in zip(places, cells, strict=True) if cell["floor"] is not None]
    if floors:
        at, rows_of = zip(*floors, strict=True)
        ends = np.array(rows_of)[:, None] + [-0.45, 0.45]
        axes.vlines(at, ends[:, 0], ends[:, 1], color="#22262c", linestyle=(0, (2, 1)), label="floor of ours")
    axes.errorbar([], [], fmt="D", mfc="white", color="#22262c", ms=5, label="the paper")
    axes.set_yticks(places, [name_of(block, row) for block, row in rows])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    name, arrow = COLUMNS[figure.metric]
    axes.set_xlabel(f"{name} ×100 ({'lower' if arrow == '↓' else 'higher'} is better)")
    axes.set_title(figure.title + (" (demo: not the paper's data)" if record["demo"] else ""))
    axes.grid(axis="x")
    ours = Patch(color=MUTED, label="ours, ± standard deviation")
    hollow = [Patch(facecolor="none", edgecolor=MUTED, hatch="///", label=MARK)]
    marks = hollow if any(cell["trivial"] for cell in cells) else []
    canvas.legend(handles=[ours, *marks, *axes.get_legend_handles_labels()[0]], loc="outside lower left", ncols=4)
    return canvas


def name_of(block: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row's name in the figure: the teacher, where there is one, the student, the method."""
    arrow = f"{block['teacher']} → " if block["teacher"] else ""
    return f"{arrow}{block['student']} · {row['label']}"
