"""How far `bird-offsets` went along where it began: python bench/strength.py RUN...

phi of the last epoch, measured along that of the first (both less their means over classes, which move no logit against
another): 1 is where it began. For runs with --pool that is all that they learn. phi is in curve.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def strength(run):
    """Of one run folder."""
    lines = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    first, last = (np.array(lines[place]["offsets"]) for place in (0, -1))
    along, moved = first - first.mean(0), last - last.mean(0)
    return float((along * moved).sum() / (along**2).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    found = [strength(run) for run in parser.parse_args().runs]
    print(f"{len(found)} runs: {np.mean(found):.2f}, {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
