"""How a run trained: losses, scores on the meta split and the gate by epoch, as small SVGs that stand side by side.

They are written by hand, as the chart of recalls is: a report has them for each seed, and a figure of matplotlib takes a
third of a second. They are as wide as a phone, so that none is cut there."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image

from bird_pipelines.reporting.look import GRID, INK, MUTED, PALETTE

__all__ = ["gate_chart", "loss_chart", "meta_chart"]

Curve = Sequence[Mapping[str, Any]]

SIZE, HEIGHT, LETTER = 11, 206, 6.5  # of letters, of a chart, and how wide a letter is, about
WIDTH, LEFT, RIGHT, BOTTOM = 340, 36, 334, 172
HEAT, LAST = 236, 256  # where the gate's image ends, and where its last epoch begins
SHADES, MOST_MARKS = 64, 40
SHADE = "#eceff3"
LOSSES = {
    "loss": ("total", INK),
    "ce": ("cross-entropy", PALETTE[0]),
    "distance": ("distance D", PALETTE[2]),
    "bias": ("bias, train batch", PALETTE[1]),
    "meta_bias": ("bias, meta batch", PALETTE[3]),
}
META = {"accuracy": ("accuracy ↑", PALETTE[0]), "mean_deo": ("mean-DEO ↓", PALETTE[1])}


class _Key(NamedTuple):
    """A line of the legend: what it says, and its sign, 14 wide and 8 high."""

    label: str
    sign: str


@final
@dataclass(frozen=True)
class _Axes:
    """Where epochs and values stand in a chart whose axes begin at `top`."""

    epochs: int
    low: float
    high: float
    top: float
    log: bool = False

    def x(self, epoch: float) -> float:
        return LEFT + (RIGHT - LEFT) * (epoch - 0.5) / self.epochs

    def y(self, value: float) -> float:
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return BOTTOM - (BOTTOM - self.top) * (at - low) / (high - low)


def loss_chart(curve: Curve, warmup: int | None) -> Markup:
    """The parts of the loss by epoch, on a log scale. `curve` holds one mapping an epoch; a part that is None there, or not
    above 0, leaves a gap. `warmup` epochs are shaded."""
    lines = [(label, colour, [_above(line.get(key)) for line in curve]) for key, (label, colour) in LOSSES.items()]
    shown = [value for _, _, values in lines for value in values if value is not None]
    low, high = (0.9 * min(shown), 1.1 * max(shown)) if shown else (0.1, 1.0)
    found = np.asarray(LogLocator(subs=(1, 2, 5)).tick_values(low, high)).tolist()
    ticks = [tick for tick in found if low <= tick <= high]
    while len(ticks) > 7:
        ticks = ticks[::2]
    return _chart("Loss and its parts (log scale)", curve, lines, (low, high, True), ticks, warmup)


def meta_chart(curve: Curve, warmup: int | None, ships: int | None) -> Markup:
    """Accuracy and mean-DEO (x100) on the meta split by epoch. `ships` is the epoch whose student was kept, if that is not
    the last. What a trivial student shows is ringed."""
    scores: list[Mapping[str, Any]] = [line.get("meta") or {} for line in curve]
    lines = [(label, colour, [_number(each.get(key)) for each in scores]) for key, (label, colour) in META.items()]
    hollow = [
        (line["epoch"], each["mean_deo"])
        for line, each in zip(curve, scores, strict=True)
        if each.get("trivial") and each.get("mean_deo") is not None
    ]
    kept = [] if ships is None else [ships]
    ring = f'r="3.5" fill="#fff" stroke="{PALETTE[1]}" stroke-width="1.2"'
    dashed = f'stroke="{INK}" stroke-width="1.2" stroke-dasharray="3 2"'
    keys = [_Key("of a trivial student", f'<circle cx="7" cy="4" {ring}/>')] if hollow else []
    keys += [_Key("epoch of the student", f'<path d="M7 -1v10" {dashed}/>') for _ in kept]

    def marks(at: _Axes) -> str:
        rings = [f'<circle cx="{at.x(x):.1f}" cy="{at.y(y):.1f}" {ring}/>' for x, y in hollow]
        return "".join([*rings, *(f'<path d="M{at.x(x):.1f} {at.top:.0f}V{BOTTOM}" {dashed}/>' for x in kept)])

    return _chart("Meta split ×100", curve, lines, (0, 100, False), [0, 25, 50, 75, 100], warmup, keys, marks)


def _chart(
    title: str,
    curve: Curve,
    lines: Sequence[tuple[str, str, Sequence[float | None]]],
    scale: tuple[float, float, bool],
    ticks: Sequence[float],
    warmup: int | None,
    more_keys: Sequence[_Key] = (),
    marks: Callable[[_Axes], str] = lambda _: "",
) -> Markup:
    """Lines by epoch, with a legend between the title and the axes."""
    lines = [each for each in lines if any(value is not None for value in each[2])]
    keys = [_Key(label, f'<path d="M0 4h14" stroke="{colour}" stroke-width="2"/>') for label, colour, _ in lines]
    keys += more_keys
    keys += [_Key("warmup", f'<path d="M0 -1h14v10H0z" fill="{SHADE}"/>')] if warmup and lines else []
    legend, top = _legend(keys)
    at = _Axes(curve[-1]["epoch"], scale[0], scale[1], top, scale[2])
    parts = [_text(0, 11, title, ' font-weight="bold"'), *legend]
    if warmup and lines:
        end = at.x(min(warmup, at.epochs) + 0.5)
        parts.append(f'<path d="M{LEFT} {top:.0f}H{end:.1f}V{BOTTOM}H{LEFT}z" fill="{SHADE}"/>')
    if lines:
        parts += [_level(at.y(tick), f"{tick:g}") for tick in ticks]
    else:
        parts.append(_text((LEFT + RIGHT) / 2, (top + BOTTOM) / 2, "not recorded", _middle(MUTED)))
    epochs = [line["epoch"] for line in curve]
    parts += [each for _, colour, values in lines for each in _line(at, epochs, values, colour)]
    return _svg([*parts, marks(at), *_epochs(at.epochs, at.x)], f"{title}, by epoch")


def _line(at: _Axes, epochs: Sequence[int], values: Sequence[float | None], colour: str) -> Iterator[str]:
    """The line of a series, broken where it has no value, and a mark at each value of a short one."""
    path: list[str] = []
    marks: list[str] = []
    joined = False
    for epoch, value in zip(epochs, values, strict=True):
        if value is not None:
            x, y = at.x(epoch), at.y(value)
            path.append(f"{'L' if joined else 'M'}{x:.1f} {y:.1f}")
            marks.append(f"M{x - 2:.1f} {y:.1f}a2 2 0 1 0 4 0a2 2 0 1 0-4 0")
        joined = value is not None
    yield f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>'
    if len(marks) <= MOST_MARKS:
        yield f'<path d="{"".join(marks)}" fill="{colour}"/>'


def gate_chart(curve: Curve) -> Markup | None:
    """The gate's histogram over [0, 1] by epoch as an image, and its last one as bars; None without a gate."""
    lines = [line for line in curve if line.get("gate")]
    if not lines:
        return None
    counts = np.array([line["gate"]["counts"] for line in lines], dtype=np.float64)
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    most, first, last, top = max(shares.max(), 1e-9), lines[0]["epoch"], lines[-1]["epoch"], 40
    png = _image((SHADES - 1) * shares.T[::-1] / most)
    high, longest = BOTTOM - top, max(shares[-1].max(), 1e-9)
    step = high / counts.shape[1]
    bars = "".join(
        f"M{LAST} {BOTTOM - step * at:.1f}h{(RIGHT - LAST) * share / longest:.1f}v{-step:.2f}H{LAST}z"
        for at, share in enumerate(shares[-1].tolist())
        if share
    )
    parts = [
        _text(0, 11, "Values of the gate", ' font-weight="bold"'),
        _text(LEFT, 32, f"darkest: {most:.0f} % of features", f' fill="{MUTED}"'),
        _text(LAST, 32, f"epoch {last}", f' fill="{MUTED}"'),
        *(_level(BOTTOM - high * value, f"{value:g}") for value in (0, 0.5, 1)),
        f'<image x="{LEFT}" y="{top}" width="{HEAT - LEFT}" height="{high}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{png}"/>',
        f'<path d="{bars}" fill="{PALETTE[0]}"/>',
        f'<path d="M{LAST} {top}V{BOTTOM}" stroke="{MUTED}" stroke-width=".8"/>',
        _text(RIGHT, BOTTOM + 14, f"{longest:.0f} %", f' text-anchor="end" fill="{MUTED}"'),
        *_epochs(last, lambda epoch: LEFT + (HEAT - LEFT) * (epoch - first + 0.5) / (last - first + 1), first),
    ]
    return _svg(parts, "share of teacher features by value of the gate, by epoch")


def _image(levels: np.ndarray) -> str:
    """Levels 0 to SHADES - 1 as a small PNG of blues, base64."""
    image = Image.frombytes("P", levels.shape[::-1], np.rint(levels).astype(np.uint8).tobytes())
    colours = matplotlib.colormaps["Blues"](np.linspace(0, 1, SHADES))[:, :3]
    image.putpalette(np.rint(255 * colours).astype(np.uint8).tobytes())
    found = io.BytesIO()
    image.save(found, "PNG", optimize=True)
    return base64.b64encode(found.getvalue()).decode()


def _legend(keys: Sequence[_Key]) -> tuple[list[str], float]:
    """The legend in as many rows as it needs, and where the axes begin below it."""
    parts: list[str] = []
    x, y = float(LEFT), 20
    for key in keys:
        wide = 14 + 4 + LETTER * len(key.label) + 10
        if x > LEFT and x + wide > WIDTH:
            x, y = LEFT, y + 14
        parts.append(f'<g transform="translate({x:.0f} {y})">{key.sign}{_text(18, 8, key.label)}</g>')
        x += wide
    return parts, y + 18


def _epochs(last: int, x: Callable[[float], float], first: int = 1) -> Iterator[str]:
    """The axis of epochs below a chart."""
    ticks = np.asarray(MaxNLocator(nbins=6, integer=True).tick_values(first, max(last, first + 1)))
    for tick in np.unique(ticks.astype(int)).tolist():
        if first <= tick <= last:
            yield _text(x(tick), BOTTOM + 14, f"{tick}", _middle(MUTED))
    yield _text((x(first) + x(last)) / 2, HEIGHT - 4, "epoch", _middle(MUTED))


def _level(y: float, text: str) -> str:
    """A line across the chart at a value, with its number."""
    line = f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="{GRID}"/>'
    return line + _text(LEFT - 5, y + 4, text, f' text-anchor="end" fill="{MUTED}"')


def _middle(colour: str) -> str:
    return f' text-anchor="middle" fill="{colour}"'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{more}>{escape(text)}</text>'


def _svg(parts: Sequence[str], says: str) -> Markup:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-size="{SIZE}" fill="{INK}"'
    return Markup("".join([f'<svg {size} role="img" aria-label="{escape(says)}">', *parts, "</svg>"]))


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _above(value: float | None) -> float | None:
    found = _number(value)
    return found if found is not None and found > 0 else None
