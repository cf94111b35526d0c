"""What the benchmarks found: one JSON a benchmark in bench/results, shown as tables in docs/measurements.

    python bench/results.py            # writes the tables between the markers of those pages anew

A benchmark calls `save`; a page holds `<!-- result: NAME -->` and `<!-- end -->` where its table goes.
"""

import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

FOLDER = Path(os.environ.get("BIRD_RESULTS", Path(__file__).parent / "results"))
PAGES = Path(__file__).parents[1] / "docs" / "measurements"


def save(name, title, columns, rows, notes=()):
    """Keep one table: `rows` are dicts by column, numbers or text; a ratio is what `paired` gives."""
    found = {
        "title": title,
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "columns": list(columns),
        "rows": list(rows),
        "notes": list(notes),
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table(found)))


def commit():
    """The checkout's, where it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no checkout"


def machine():
    """What it is, and how busy."""
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{card}{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"


def paired(first, second):
    """The ratio first / second of runs paired by their order: median and quartiles."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": middle, "quartiles": [low, high], "pairs": len(ratios)}


def cell(value):
    """A number, a ratio with its quartiles, or text."""
    if isinstance(value, dict):
        low, high = value["quartiles"]
        return f"{value['median']:.2f} ({low:.2f} to {high:.2f})"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value or ""


def table(found):
    """Lines of Markdown."""
    lines = [f"{found['title']}", "", "| " + " | ".join(found["columns"]) + " |", "|" + "---|" * len(found["columns"])]
    lines += ["| " + " | ".join(cell(row.get(name, "")) for name in found["columns"]) + " |" for row in found["rows"]]
    lines += [
        "",
        f"`{found['command']}`, {found['date']}, {found['commit']}, {found['machine']}, torch {found['torch']}.",
    ]
    return lines + [f"- {note}" for note in found["notes"]]


def main():
    """Fill in the pages."""

    def filled(match):
        path = FOLDER / f"{match[1]}.json"
        lines = table(json.loads(path.read_text())) if path.exists() else ["not measured yet"]
        return "\n".join([f"<!-- result: {match[1]} -->", *lines, "<!-- end -->"])

    pattern = re.compile(r"<!-- result: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(pattern.sub(filled, page.read_text()))


if __name__ == "__main__":
    main()
