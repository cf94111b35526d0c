"""How plots look: colours, one look for each method, text that stays readable, and figures as inline SVG."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from typing import Any

from matplotlib.figure import Figure

__all__ = [
    "GAP",
    "GRID",
    "INK",
    "MARKERS",
    "MOST_GROUPS",
    "MUTED",
    "PALETTE",
    "STYLE",
    "WIDTH",
    "inline_svg",
    "look_of",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, MUTED, GRID = "#22262c", "#68707c", "#e4e7ec"
GAP = "#D55E00"
MOST_GROUPS = 16  # of a chart of recalls: more have no room; the table beside it has them all
WIDTH = 9.2  # inches: the page's text column

# Any: matplotlib lists every known name in its type, another list each release.
STYLE: Any = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",  # the page's own sheet shows through
    "axes.facecolor": "none",
    "svg.hashsalt": "bird",
    "text.parse_math": False,  # a class may be called $5
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#b9c0ca",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
}

# A method has one look in every report: its place here.
METHODS = (
    "bird", "baseline", "fitnet", "bird-no-meta", "bkd", "mfd", "bird-offsets", "bird-plus", "at", "ad", "reweight",
    "group-dro", "domain-independent", "bird+at", "bird+mfd", "bird+fitnet", "bird-plus-no-meta", "bird-offsets-no-meta",
)  # fmt: skip


def look_of(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every plot. A method that is not ours has one by its name."""
    kinds = len(PALETTE) * len(MARKERS)
    place = (
        METHODS.index(method)
        if method in METHODS
        else len(METHODS) + zlib.crc32(method.encode()) % (kinds - len(METHODS))
    )
    return PALETTE[place % len(PALETTE)], MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for inlining: no prolog, no namespaces, no fixed size, ids that start with `name`."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib's font lacks the glyph; the browser's will not
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    head, _, body = svg[svg.index("<svg") :].partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    assert view is not None
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return f'<svg {view[0]} role="img" aria-label="{description}">{body}'
