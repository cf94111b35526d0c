"""A short table of what the stages found: python bench/gpu/summary.py OUT"""

import json
import sys
from pathlib import Path

from results import cell

SHOWN = 8  # columns


def main():
    """Every stage with its seconds and how it ended; then the rows of its file."""
    out = Path(sys.argv[1])
    for line in (out / "stages.tsv").read_text().splitlines():
        name, seconds, code = line.split("\t")
        ended = "done" if code == "0" else f"FAILED ({code})"
        sys.stdout.write(f"\n{name}: {ended}, {seconds} s\n")
        path = out / f"gpu-{name}.json"
        if not path.exists():
            sys.stdout.write("  no result\n")
            continue
        found = json.loads(path.read_text())
        sys.stdout.write(f"  {found['title']}\n")
        rows = [row for row in found["rows"] if not row.get("outcome", "").startswith(("passed", "skipped"))]
        for row in rows:
            shown = [f"{key} {cell(row[key])}" for key in found["columns"][:SHOWN] if row.get(key) not in (None, "")]
            sys.stdout.write(f"  {'; '.join(shown)}\n")
    sys.stdout.write(f"\nAll of it: {out}\n")


if __name__ == "__main__":
    main()
