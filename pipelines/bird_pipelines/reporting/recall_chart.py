"""Recalls of all cells and the gaps of all classes as one small SVG.

It is written by hand: a report has one for each seed, and a figure of matplotlib takes a third of a second and seven
times the bytes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.colors import to_hex

from bird_pipelines.reporting.look import GAP, INK, MUTED

__all__ = ["recall_chart", "shade"]

NAMES, BARS, ROW, TOP = 118, 230, 20, 48  # the column of class names, that of the bars, a class, what stands above them
CELL, NARROW = 80, 60  # of one group, where there are two; below that width a group's name is tilted
SIZE, LETTER = 11, 6.0  # of letters, and how wide one is, about
DEEPEST = (
    0.57  # of the ramp: black has a contrast of 4.5:1 on all of it, and so have both when a dark page turns them over
)


def recall_chart(
    recalls: Sequence[Sequence[float]],
    class_names: Sequence[str],
    group_names: Sequence[str],
    floor: float,
    floors: Sequence[float],
) -> Markup:
    """Recall per cell, (C, M) shares in 0..1, as an annotated map, beside each class's gap (x100) as a bar.

    `floor` is the mean-DEO (x100) that equal recalls would show with so few samples, `floors` each class's gap.
    """
    shares = 100 * np.asarray(recalls, dtype=np.float64)
    classes, groups = shares.shape
    cell = max(2 * CELL / groups, 32)
    left, bottom = NAMES + groups * cell + 16, TOP + classes * ROW
    width, height = left + BARS, bottom + (18 if cell > NARROW else 62)
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height}" role="img" font-size="{SIZE}" fill="{INK}" '
        'aria-label="recall per class and group, and the gap between groups per class">',
        '<text y="11" font-weight="bold">Recall ×100 per class and group</text>',
        *_map(shares, class_names, cell),
        *(_group(NAMES + (at + 0.5) * cell, bottom, name, cell) for at, name in enumerate(group_names)),
        *_bars(np.ptp(shares, axis=1), floor, floors, left),
        "</svg>",
    ]
    return Markup("".join(parts))


def shade(share: float) -> str:
    """The colour of a recall, x100."""
    return to_hex(matplotlib.colormaps["Blues"](DEEPEST * share / 100))


def _map(shares: np.ndarray, class_names: Sequence[str], cell: float) -> list[str]:
    size = SIZE if cell > 34 else 9.5
    found = []
    for c, name in enumerate(class_names):
        middle = TOP + (c + 0.5) * ROW + 4
        found.append(_text(NAMES - 6, middle, _short(name, NAMES), anchor="end"))
        for m, share in enumerate(shares[c].tolist()):
            left = NAMES + m * cell
            found.append(
                f'<path fill="{shade(share)}" d="M{left:.0f} {TOP + c * ROW}h{cell - 1.5:.1f}v{ROW - 1.5}H{left:.0f}z"/>'
                f'<text x="{left + cell / 2:.0f}" y="{middle:g}" text-anchor="middle" fill="#000" font-size="{size}">'
                f"{share:.1f}</text>"
            )
    return found


def _bars(gaps: np.ndarray, floor: float, floors: Sequence[float], left: float) -> list[str]:
    """A bar a class with its gap in numbers, a dashed tick at the gap's floor, and a line at their mean."""
    scale = (BARS - 38) / max(float(gaps.max()), *floors, 1.0)
    mean, bottom = left + scale * float(gaps.mean()), TOP + len(gaps) * ROW
    bars = "".join(f"M{left:.0f} {TOP + c * ROW + 4}h{scale * gap:.1f}v12H{left:.0f}z" for c, gap in enumerate(gaps))
    ticks = "".join(f"M{left + scale * each:.1f} {TOP + c * ROW + 1}v{ROW - 3}" for c, each in enumerate(floors))
    # A white edge keeps a number readable where it lies on a line.
    edge = ' stroke="#fff" stroke-width="4" paint-order="stroke"'
    numbers = (
        _text(left + scale * max(gap, each) + 4, TOP + (c + 0.5) * ROW + 4, f"{gap:.1f}", more=edge)
        for c, (gap, each) in enumerate(zip(gaps.tolist(), floors, strict=True))
    )
    return [
        f'<text x="{left:.0f}" y="11" font-weight="bold">Gap between groups ×100 ↓</text>',
        f'<path d="M{left:.0f} 23h14" stroke="{INK}" stroke-width="1.2"/>',
        _text(left + 18, 27, f"mean-DEO {gaps.mean():.1f} (its floor {floor:.1f})"),
        f'<path d="M{left:.0f} 37h14" stroke="{INK}" stroke-width="1.4" stroke-dasharray="3 2"/>',
        _text(left + 18, 41, "floor of each gap"),
        f'<path fill="{GAP}" fill-opacity=".85" d="{bars}"/>',
        f'<path d="M{left:.0f} {TOP}V{bottom}" stroke="{MUTED}" stroke-width=".8"/>',
        f'<path d="M{mean:.1f} {TOP}V{bottom}" stroke="{INK}" stroke-width="1.2"/>',
        f'<path d="{ticks}" stroke="{INK}" stroke-width="1.4" stroke-dasharray="3 2"/>',
        *numbers,
    ]


def _group(middle: float, bottom: float, name: str, cell: float) -> str:
    """A group's name below its column, tilted where the column is narrow."""
    if cell > NARROW:
        return _text(middle, bottom + 13, _short(name, cell), anchor="middle")
    tilt = f' transform="rotate(-40 {middle:.0f} {bottom + 10})"'
    return _text(middle, bottom + 10, _short(name, 80), anchor="end", more=tilt)


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.0f}" y="{y:g}"{where}{more}>{escape(text)}</text>'


def _short(name: str, width: float) -> str:
    most = max(2, int(width / LETTER))
    return name if len(name) <= most else name[: most - 1] + "…"
