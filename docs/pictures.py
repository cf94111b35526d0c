"""The two pictures of README and of the site: the data flow, and the plot of a real report.

bird demo --out out/demo && python docs/pictures.py out/demo/report.html
"""

import re
import sys
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
FONT = "system-ui, 'DejaVu Sans', sans-serif"
INK, MUTED, LINE, BLUE, ORANGE = "#22262c", "#68707c", "#b9c0ca", "#0072B2", "#D55E00"
BOX = (140, 64)
# title, what it holds, left edge, top edge, colour of the frame
BOXES = [
    ("data set", "image, class, group", 20, 40, LINE),
    ("frozen teacher", "runs once", 20, 170, LINE),
    ("cache", "one vector per image", 310, 105, BLUE),
    ("student", "and its gate", 570, 105, ORANGE),
    ("report", "gaps, floors, intervals", 800, 105, LINE),
]
# the points of a line, and the words beside it with their place
ARROWS = [
    ("M160 72 H188 V124 H306", "bird precompute", 252, 114),
    ("M160 202 H188 V150 H306", "", 0, 0),
    ("M450 137 H566", "bird distill", 508, 127),
    ("M160 56 H640 V101", "images, where the student reads them", 400, 46),
    ("M710 137 H796", "bird report", 753, 127),
    ("M610 173 V214 H670 V177", "feedback, one step ahead", 640, 232),
]


def flow():
    """The data flow as an SVG."""
    parts = []
    for title, holds, x, y, colour in BOXES:
        middle = x + BOX[0] / 2
        parts += [
            f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="8" '
            f'fill="#fff" stroke="{colour}" stroke-width="2"/>',
            text(title, middle, y + 28, INK, 15, "600"),
            text(holds, middle, y + 48, MUTED, 12),
        ]
    for path, words, x, y in ARROWS:
        parts.append(f'<path d="{path}" fill="none" stroke="{MUTED}" stroke-width="1.5" marker-end="url(#tip)"/>')
        parts.append(text(words, x, y, INK if words.startswith("bird") else MUTED, 12))
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    tip += f'<path d="M0 0 L8 4 L0 8 z" fill="{MUTED}"/></marker>'
    return picture("0 0 960 260", f"<defs>{tip}</defs>" + "\n".join(parts))


def text(words, x, y, colour, size, weight="400"):
    """One centred line."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" font-weight="{weight}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def scatter(report):
    """The first plot of a report, as a picture of its own."""
    (view, body) = re.search(r'<svg viewBox="([^"]*)"[^>]*>(.*?)</svg>', report, re.DOTALL).groups()
    width, height = (float(side) for side in view.split()[2:])
    return picture(f"-12 -12 {width + 24:g} {height + 24:g}", body)


def picture(view, body):
    """A whole SVG file on white, so that it can be read on a dark page too."""
    x, y, width, height = view.split()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}" '
        f'width="{width}" height="{height}" font-family="{FONT}">\n'
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="#fff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "flow.svg").write_text(flow())
    for report in sys.argv[1:]:
        (FOLDER / "report.svg").write_text(scatter(Path(report).read_text()))
