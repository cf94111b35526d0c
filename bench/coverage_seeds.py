"""How often intervals over training seeds, and of paired differences of two methods, hold the true value: simulated runs.

    python bench/coverage_seeds.py [--what pairs|seeds|counts] [--samples 200] [--full] [--save NAME]

"seeds" are intervals over seeds from the runs' predictions, "counts" those from their counts alone.

Rows have a difficulty that all runs share (correlation --shared of what decides a row), seeds move the recall of each cell
(standard deviation --seed-spread), and the truth is the mean over seeds. A pair is two shapes of bench/coverage.py.
"""

import argparse
import itertools
import time
import zlib
from functools import partial
from multiprocessing import Pool
from statistics import NormalDist

import numpy as np
from coverage import true_recalls
from results import save

from bird.measuring.metrics import confusion
from bird.measuring.paired import Predicted, compare
from bird.measuring.seeds import two_level_intervals

PAIRS = (
    ("all 0", "all 0"),
    ("all 10", "all 10"),
    ("all 10", "all 0"),
    ("all 30", "all 10"),
    ("one class 30", "all 0"),
    ("one class 30", "one class 30"),
    ("graded 0 to 30", "all 10"),
    ("all 30, halves", "all 30"),
)
# Of intervals over seeds: sizes, rows a cell, seeds, shapes.
SEED_CELLS = (
    ((2, 2), 20, 3, ("all 0",)),
    ((2, 4), 200, 3, ("one class 30",)),
    ((10, 4), 200, 3, ("graded 0 to 30",)),
    ((10, 2), 1600, 3, ("all 10",)),
    ((2, 2), 200, 8, ("all 30",)),
    ((10, 2), 200, 8, ("all 0",)),
    ((2, 4), 1600, 8, ("all 10",)),
    ((10, 4), 20, 8, ("one class 30",)),
    ((10, 4), 200, 8, ("all 30",)),
)
SIZES = ((2, 2), (10, 2), (3, 4), (10, 7))
NAMES = ("accuracy", "mean_deo", "max_deo")
normal = np.vectorize(NormalDist().inv_cdf, otypes=[float])


def recalls_of_seeds(recalls, seeds, spread, rng):
    return np.clip(recalls + spread * rng.standard_normal((seeds, *recalls.shape)), 0.001, 0.999)


def truth(recalls, spread):
    """Means over seeds (x100) of accuracy (equal cells) and of both gaps."""
    drawn = recalls_of_seeds(recalls, 4000 if spread else 1, spread, np.random.default_rng(1))
    gaps = np.ptp(drawn, axis=2)
    return dict(zip(NAMES, 100 * np.array([drawn.mean(), gaps.mean(), gaps.max(1).mean()]), strict=True))


def runs_of(recalls, rows, seeds, shared, spread, difficulty, rng):
    """Runs by seed on one test set of `rows` a cell."""
    classes, groups = recalls.shape
    labels = np.repeat(np.arange(classes), groups * rows)
    group = np.tile(np.repeat(np.arange(groups), rows), classes)
    ids = np.arange(len(labels)).astype("S")
    runs = {}
    for seed, own in enumerate(recalls_of_seeds(recalls, seeds, spread, rng)):
        score = np.sqrt(shared) * difficulty + np.sqrt(1 - shared) * rng.standard_normal(len(labels))
        right = score < normal(own)[labels, group]
        runs[seed] = Predicted(ids, labels, group, np.where(right, labels, (labels + 1) % classes))
    return runs


def measure(cell, what, samples, seed, shared, spread):
    """One cell: rows by statistic."""
    (classes, groups), rows, seeds, shapes = cell
    drawn_as = "pairs" if what == "pairs" else "seeds"
    rng = np.random.default_rng([seed, zlib.crc32(repr((drawn_as, cell, shared, spread)).encode())])
    recalls = [true_recalls(shape, classes, groups, 0.7) for shape in shapes]
    # A single seed is its own truth: nothing is said about others.
    between = spread if seeds > 1 else 0.0
    true = [truth(each, between) for each in recalls]
    found, p_values, seconds = {name: [] for name in NAMES}, {name: [] for name in NAMES}, []
    for _ in range(samples):
        difficulty = rng.standard_normal(classes * groups * rows)
        runs = [runs_of(each, rows, seeds, shared, between, difficulty, rng) for each in recalls]
        began = time.process_time()
        if what == "pairs":
            for name, each in compare(*runs, classes, groups).items():
                if name in found:
                    found[name].append((*each.interval, each.effect, each.beyond_chance))
                    p_values[name].append(each.p)
        else:
            counts = [confusion(r.labels, r.groups, r.predictions, classes, groups) for r in runs[0].values()]
            known = [*runs[0].values()] if what == "seeds" else []
            for name, (mean, low, high, beyond) in two_level_intervals(counts, 500, predicted=known).items():
                if name in found:
                    found[name].append((low, high, mean, mean if beyond is None else beyond))
        seconds.append(time.process_time() - began)
    table = []
    for name, each in found.items():
        low, high, effect, beyond = np.array(each).T
        aim = true[0][name] - (true[1][name] if what == "pairs" else 0)
        row = {
            "classes": classes,
            "groups": groups,
            "rows": rows,
            "seeds": seeds,
            "gaps": " against ".join(shapes),
            "statistic": name,
        }
        row |= {"true": round(aim, 2), "observed": round(effect.mean(), 2), "beyond chance": round(beyond.mean(), 2)}
        row |= {
            "coverage": round(float(np.mean((low <= aim + 1e-6) & (aim <= high + 1e-6))), 4),
            "above": round(float(np.mean(low > aim + 1e-6)), 4),
            "below": round(float(np.mean(high < aim - 1e-6)), 4),
            "width": round(float((high - low).mean()), 3),
            "3.92 sd": round(float(3.92 * effect.std(ddof=1)), 3),
            "width / 3.92 sd": round(float((high - low).mean() / (3.92 * effect.std(ddof=1))), 2),
            "CPU ms": round(1000 * float(np.median(seconds)), 1),
        }
        given = [p for p in p_values[name] if p is not None]
        if given:
            row["p < .05"] = round(float(np.mean(np.array(given) < 0.05)), 4)
        table.append(row)
    return table


def describe(row):
    said = (
        f"{row['classes']} classes, {row['groups']} groups, {row['rows']} rows, {row['seeds']} seeds, {row['gaps']}, "
        f"{row['statistic']}: true {row['true']}, observed {row['observed']}, coverage {row['coverage']:.3f} "
        f"(above {row['above']:.3f}, below {row['below']:.3f}), "
        f"width {row['width']:.2f} ({row['width / 3.92 sd']} x 3.92 sd), "
        f"{row['CPU ms']} CPU ms"
    )
    return said + (f", p < .05 in {row['p < .05']:.3f}" if "p < .05" in row else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=["pairs", "seeds", "counts"], default="pairs")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--classes", type=int, nargs="*")
    parser.add_argument("--groups", type=int, nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument("--only", metavar="SHAPES", nargs="*", help="shapes, or pairs such as 'all 30 against all 0'")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=float, default=0.5)
    parser.add_argument("--seed-spread", type=float, default=0.02)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    sizes, rows = (SIZES, args.rows or (20, 200)) if args.full else (SIZES[:2], args.rows or (200,))
    if args.classes:
        sizes = tuple(itertools.product(args.classes, args.groups or (2,)))
    shapes = PAIRS if args.what == "pairs" else tuple((shape,) for shape in dict.fromkeys(sum(PAIRS, ())))
    cells = itertools.product(sizes, rows, args.seeds or ((1, 3, 8) if args.full else (8,)), shapes)
    cells = [cell for cell in cells if cell[0][1] > 2 or "halves" not in " ".join(cell[3])]
    cells = [cell for cell in cells if not args.only or " against ".join(cell[3]) in args.only]
    if args.what != "pairs" and not (args.full or args.classes or args.rows or args.seeds or args.only):
        cells = list(SEED_CELLS)
    one = partial(
        measure, what=args.what, samples=args.samples, seed=args.seed, shared=args.shared, spread=args.seed_spread
    )
    table = []
    with Pool(args.processes) as pool:
        for found in pool.imap(one, cells):
            table += found
            print("\n".join(describe(row) for row in found), flush=True)
    worst = sorted(table, key=lambda row: row["coverage"])
    lines = [f"{len(table)} rows, mean coverage {np.mean([row['coverage'] for row in table]):.3f}"]
    lines += [describe(row) for row in worst if row["coverage"] < 0.93]
    print("\n".join(lines))
    if args.save:
        title = f"Coverage of 95 % intervals ({args.what}), {args.samples} samples a cell"
        save(args.save, title, list(dict.fromkeys(name for row in table for name in row)), table, lines)


if __name__ == "__main__":
    main()
