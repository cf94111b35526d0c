"""How long `bird audit` takes: python bench/audit.py [rows]

Writes a CSV file of 100,000 rows (two classes, two group columns of 2 and 3 values, two columns of scores) and one of a
baseline, then runs the command on it, alone and against the baseline, each in a process of its own, three times.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

AUDIT = "import sys; from bird_pipelines.cli import main; sys.argv[0] = 'bird'; main()"


def write(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, sex, age = rng.integers(2, size=rows), rng.integers(2, size=rows), rng.integers(3, size=rows)
    score = np.clip(rng.normal(0.35 + 0.3 * label - 0.1 * (sex == 0), 0.2), 0.01, 0.99)
    names = np.array(["no", "yes"])
    columns = {
        "label": names[label],
        "sex": np.array(["f", "m"])[sex],
        "age": np.array(["young", "middle", "old"])[age],
    }
    columns |= {"prediction": names[(score > 0.5).astype(int)], "p_no": 1 - score, "p_yes": score}
    csv.write_csv(pa.table(columns), path)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        file, baseline, out = (Path(folder) / name for name in ("new.csv", "old.csv", "report.html"))
        write(file, rows, 0)
        write(baseline, rows, 1)
        command = [sys.executable, "-c", AUDIT, "audit", str(file), "--group", "sex,age", "--scores", "p_no,p_yes"]
        for name, more in (("alone", []), ("against a baseline", ["--baseline", str(baseline)])):
            for _ in range(3):
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run([*command, *more, "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
                after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                print(f"{rows:,} rows, {name}: {wall:.1f} s, {used:.1f} s of a processor, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
