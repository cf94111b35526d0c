"""The report's plots as SVG strings, drawn off-screen and the same to the byte for the same numbers.

Text stays text (the browser's own font draws it), ids carry a prefix so that many plots fit in one page, and nothing
in a plot points outside it. Colours: Okabe and Ito's palette and single-hue ramps, which the colour-blind can tell.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bird_pipelines.reporting.look import (
    INK,
    MUTED,
    PALETTE,
    STYLE,
    WIDTH,
    inline_svg,
    look_of,
)

__all__ = [
    "Point",
    "Stop",
    "front_plot",
    "path_plot",
    "scatter_plot",
]


@final
class Point(NamedTuple):
    """A run in the scatter plot; mean-DEO, AUROC and the floor of that mean-DEO are x100."""

    method: str
    configuration: str
    mean_deo: float
    auroc: float
    floor: float
    trivial: bool


def scatter_plot(points: Sequence[Point], methods: Sequence[str], name: str) -> str:
    """`scatter` as an inline SVG."""
    with matplotlib.rc_context(STYLE):
        return inline_svg(scatter(points, methods), name, "AUROC against mean-DEO, one mark a run, with its floor")


def scatter(points: Sequence[Point], methods: Sequence[str]) -> Figure:
    """AUROC against mean-DEO (both x100), with the floor of each mark as a tick at its height.

    Small marks are runs, a large one is the mean of a configuration's runs; one colour and mark a method,
    whatever else is drawn. The marks of trivial students are hollow.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    for method in methods:
        colour, marker = look_of(method)
        mine = [point for point in points if point.method == method]
        if not mine:
            continue
        for point in mine:
            face = "none" if point.trivial else colour
            style: dict[str, Any] = {"edgecolors": colour if point.trivial else "none", "linewidths": 0.8}
            style |= {"facecolors": face, "alpha": 0.45, "clip_on": False}  # a mark at 0 is drawn whole
            axes.scatter(point.mean_deo, point.auroc, s=22, marker=marker, **style)
            _floor_of(axes, point, colour, small=True)
        _means(axes, mine, colour, marker)
    axes.plot([], [], color=MUTED, marker="|", markersize=12, linewidth=0.9, linestyle=":", label="floor of the mark")
    if any(point.trivial for point in points):
        axes.scatter([], [], s=60, facecolors="none", edgecolors=MUTED, linewidths=1.2, label="trivial student")
    axes.set_xlim(left=0)
    axes.margins(0.08)
    axes.set_xlabel("mean-DEO ×100  (← lower is better)")
    axes.set_ylabel("AUROC ×100  (higher is better →)")
    axes.grid()
    figure.legend(loc="outside right upper", labelspacing=0.9)
    return figure


def _floor_of(axes: Axes, point: Point, colour: str, *, small: bool = False) -> None:
    """A tick at the floor of a mark, at its height, and a thin line that joins the two."""
    alpha, width = (0.35, 0.6) if small else (1.0, 0.9)
    ends = (point.floor, point.mean_deo)
    axes.plot(ends, [point.auroc] * 2, color=colour, alpha=0.6 * alpha, linewidth=width, linestyle=":", marker="")
    tick: dict[str, Any] = {"marker": "|", "markersize": 7 if small else 15, "markeredgewidth": width + 0.5}
    axes.plot(point.floor, point.auroc, color=colour, alpha=alpha, linestyle="", zorder=2, **tick)


@final
class Stop(NamedTuple):
    """A point of a path in the front: what it is called, and each with its 95 % interval (low, high), x100."""

    label: str
    mean_deo: float
    deo_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    floor: float
    trivial: bool


def path_plot(stops: Sequence[Stop], name: str) -> str:
    """Accuracy against mean-DEO (x100) along a path, with intervals and floors."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.subplots()
        across, up = [each.mean_deo for each in stops], [each.accuracy for each in stops]
        axes.plot(across, up, color=PALETTE[0], linewidth=1.2, alpha=0.5, zorder=2)
        for each in stops:
            bars: dict[str, Any] = {"color": PALETTE[0], "linewidth": 1.0, "alpha": 0.55, "zorder": 2}
            axes.plot(each.deo_interval, (each.accuracy, each.accuracy), **bars)
            axes.plot((each.mean_deo, each.mean_deo), each.accuracy_interval, **bars)
            face = "white" if each.trivial else PALETTE[0]
            axes.scatter(each.mean_deo, each.accuracy, s=64, facecolors=face, edgecolors=PALETTE[0], zorder=3)
            tick: dict[str, Any] = {"marker": "|", "markersize": 12, "linestyle": "", "zorder": 2}
            axes.plot(each.floor, each.accuracy, color=MUTED, **tick)
            style: dict[str, Any] = {"textcoords": "offset points", "color": INK, "fontsize": 8.5}
            axes.annotate(each.label, (each.mean_deo, each.accuracy), (7, 6), **style)
        axes.set_xlim(left=0)
        axes.margins(0.1)
        axes.set_xlabel("mean-DEO ×100  (← lower is better)")
        axes.set_ylabel("accuracy ×100  (higher is better →)")
        axes.grid()
        return inline_svg(figure, name, "accuracy against mean-DEO along the path, with intervals")


def front_plot(
    candidates: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    on: str,
    on_name: str,
    floor: float,
    name: str,
) -> str:
    """`on` against mean-DEO (x100) of candidate settings: the Pareto front as a line, the chosen one ringed, with its
    interval; the baseline's candidates as squares. `on_name` is what `on` is called, `floor` its floor."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.subplots()
        front = sorted((each["mean_deo"], each[on]) for each in candidates if each["front"])
        if front:
            line: dict[str, Any] = {"color": PALETTE[0], "marker": "o", "markersize": 7, "zorder": 3}
            axes.plot(*zip(*front, strict=True), label="Pareto front", **line)
        for other, colour, label in ((True, MUTED, "candidate"), (False, PALETTE[1], "below the floor")):
            points = [e for e in candidates if not e["front"] and not e["trivial"] and e["feasible"] is other]
            axes.scatter([e["mean_deo"] for e in points], [e[on] for e in points], s=26, color=colour, label=label)
        beside: dict[str, Any] = {"marker": "s", "color": PALETTE[4], "alpha": 0.8}
        axes.scatter([e["mean_deo"] for e in baseline], [e[on] for e in baseline], 22, label="baseline", **beside)
        both = [*candidates, *baseline]
        if hollow := [(each["mean_deo"], each[on]) for each in both if each["trivial"]]:
            face: dict[str, Any] = {"facecolors": "white", "edgecolors": PALETTE[1], "zorder": 3}
            axes.scatter(*zip(*hollow, strict=True), label="trivial student", **face)
        for each in both:
            axes.plot(each["deo_floor"], each[on], color=MUTED, marker="|", markersize=9, linestyle="", zorder=2)
        axes.plot([], [], color=MUTED, marker="|", markersize=9, linestyle="", label="floor of the mean-DEO")
        for found, label, colour in ((candidates, "chosen", INK), (baseline, "baseline's chosen", PALETTE[4])):
            chosen = next(each for each in found if each["chosen"])
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colour, "linewidths": 1.6, "zorder": 4}
            axes.scatter([chosen["mean_deo"]], [chosen[on]], s=190, label=label, **ring)
            axes.plot(chosen["deo_interval"], [chosen[on]] * 2, color=colour, linewidth=1.0, alpha=0.6)
        axes.axhline(floor, color=MUTED, linewidth=1.2, linestyle=(0, (3, 2)), label=f"floor of {on_name}")
        axes.margins(0.08)
        axes.set_xlabel("mean-DEO ×100  (← lower is better)")
        axes.set_ylabel(f"{on_name} ×100  (higher is better →)")
        axes.grid()
        figure.legend(loc="outside right upper", labelspacing=0.9)
        return inline_svg(figure, name, f"{on_name} against mean-DEO on the choosing half, one mark a candidate")


def _means(axes: Axes, runs: Sequence[Point], colour: str, marker: str) -> None:
    """A method's configurations, each the mean of its runs; where there are several, each with what tells it apart. One
    with a trivial student among its runs is hollow."""
    method, by_label = runs[0].method, defaultdict[str, list[Point]](list)
    for run in runs:
        by_label[run.configuration].append(run)
    axes.scatter(
        [], [], s=110, color=colour, marker=marker, edgecolors="white", linewidths=1.2, label=_short(method, 32)
    )
    common = set.intersection(*({*label.split(" · ")} for label in by_label))
    for label, mine in by_label.items():
        deo, auroc, floor = np.mean([(run.mean_deo, run.auroc, run.floor) for run in mine], axis=0).tolist()
        mean = Point(method, label, deo, auroc, floor, any(run.trivial for run in mine))
        face, edge = ("white", colour) if mean.trivial else (colour, "white")
        axes.scatter(
            deo, auroc, s=110, facecolors=face, edgecolors=edge, linewidths=1.4, marker=marker, zorder=3, clip_on=False
        )
        _floor_of(axes, mean, colour)
        if len(by_label) > 1:
            text = " · ".join(part for part in label.split(" · ") if part not in common)
            text = textwrap.fill(text, 34, max_lines=8, placeholder=" …")  # in one line it would leave the axes no room
            style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": MUTED, "fontsize": 8}
            axes.annotate(text, (deo, auroc), (8, 0), **style)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
