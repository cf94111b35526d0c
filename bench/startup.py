"""How long the command line takes to answer: wall and processor time of whole processes.

    python bench/startup.py [--rows 70000] [--rounds 10]

`bird --help`, `bird cache info` of a cache of so many random vectors, and `import bird_cache`, in turn; each round
starts all anew.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import save
from verify import write

BIRD = [sys.executable, "-c", "from bird_pipelines.cli import main; main()"]
WANTED = {"bird --help": 0.5, "bird cache info": 1.0, "import bird_cache": 0.2}


def seconds(command):
    """Wall and processor seconds of a process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=70_000)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        write(cache, options.rows, 512)
        commands = {"bird --help": [*BIRD, "--help"], "bird cache info": [*BIRD, "cache", "info", str(cache)]}
        commands["import bird_cache"] = [sys.executable, "-c", "import bird_cache"]
        for command in commands.values():  # compiled files and pages are there from now on
            seconds(command)
        found = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                found[name].append(seconds(command))
    rows = []
    for name, pairs in found.items():
        walls, cpus = zip(*pairs, strict=True)
        rows.append(
            {
                "command": name,
                "wall, s": f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})",
                "processor, s": f"{statistics.median(cpus):.2f} ({min(cpus):.2f} to {max(cpus):.2f})",
                "wanted, s": WANTED[name],
            }
        )
    notes = [f"{options.rounds} runs each, in turn: median, least and most; a cache of {options.rows:,} x 512 float16."]
    save(
        "startup",
        "Whole processes, from start to exit.",
        ("command", "wall, s", "processor, s", "wanted, s"),
        rows,
        notes,
    )


if __name__ == "__main__":
    main()
