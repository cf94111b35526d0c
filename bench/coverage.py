"""How often 95 % intervals of mean-DEO and max-DEO hold the true gap, and how wide they are: simulated runs, known truth.

    python bench/coverage.py                                     # a few cells, a minute
    python bench/coverage.py --full --samples 500                # every cell of decision 0012, hours
    python bench/coverage.py --full --samples 500 --ends 10      # minutes: most samples only tell whether it holds
    python bench/coverage.py --full --samples 60 --rejected 60   # with the ways that were rejected
    python bench/coverage.py --again coverage --lowest 12 --samples 500 --seed 1    # cells of a saved grid that look worst

A cell of the grid is a number of classes, groups and rows a cell, and a shape of the true gaps. Each cell draws samples
of its own from --seed, so that a part of the grid repeats those of the whole. --save writes bench/results/NAME.json.
"""

import argparse
import itertools
import json
import math
import time
import zlib
from functools import partial
from multiprocessing import Pool

import numpy as np
from results import FOLDER, save
from scipy.optimize import brentq

from bird.measuring.cells import cells_of
from bird.measuring.intervals import Inversion, gap_intervals

SHAPES = ("all 0", "all 10", "all 30", "one class 30", "one group 10", "one group 4", "graded 0 to 30")
# Not asked for, and harder: half of the groups at each end, where chance adds most to a gap.
HALVES = ("all 10, halves", "all 30, halves", "one class 30, halves")
ROWS = ("20", "200", "1600", "unequal")
OVER = {"mean_deo": np.mean, "max_deo": np.max}
Z = 1.959964
CHECKED = 10  # samples a cell whose intervals are also asked as the others are, without their ends


def true_recalls(shape, classes, groups, base):
    """Recalls (C, M) about `base`: groups evenly spaced over the gap, unless the shape says otherwise."""
    apart = np.linspace(-0.5, 0.5, groups)
    if "halves" in shape:
        apart = np.where(np.arange(groups) < groups / 2, -0.5, 0.5)
    recalls = np.full((classes, groups), base)
    size = [int(word) / 100 for word in shape.replace(",", "").split() if word.isdigit()]
    if shape.startswith("all"):
        recalls += apart * size[0]
    elif shape.startswith("one class"):
        recalls[0] += apart * size[0]
    elif shape.startswith("one group"):
        recalls[:, 0] -= size[0]
    else:
        recalls += apart * np.linspace(*size, classes)[:, None]
    return np.clip(recalls, 0, 1)


def rows_of(rows, classes, groups):
    """Rows a cell (C, M); "unequal": 20, 200 and 1600 in turn."""
    if rows == "unequal":
        return np.array([20, 200, 1600])[np.add.outer(np.arange(classes), np.arange(groups)) % 3]
    return np.full((classes, groups), int(rows))


def confusion_of(hits, rows):
    """Counts (C, M, C): what is wrong is taken for the next class."""
    classes = len(hits)
    counts = np.zeros((classes, hits.shape[1], max(classes, 2)), np.int64)
    for label in range(classes):
        counts[label, :, label] = hits[label]
        counts[label, :, (label + 1) % classes] += rows[label] - hits[label]
    return counts


def ours(hits, rows, rng):
    return {name: {"ours": gap} for name, gap in gap_intervals(confusion_of(hits, rows)).items()}


def holds(hits, rows, recalls):
    """By statistic: whether the interval lies above the true gap, and whether below. The tests at that gap alone tell,
    in a sixth of the time that the ends take: an end is where its test changes its answer."""
    found, cells = {}, cells_of(confusion_of(hits, rows))
    for name, over in OVER.items():
        tests, true = Inversion([cells], name), over(np.ptp(recalls, axis=1))

        def at(side, tests=tests, true=true):
            """The family's own number of the true gap (1,), to .001 points, and whether its gaps reach it."""
            if true == 0 or (short := tests.gap(side, np.ones(1)) - true) <= 0:
                return np.array([float(true > 0)]), true == 0 or short >= -1e-9
            return np.array([brentq(lambda gap: tests.gap(side, np.array([gap])) - true, 0, 1, xtol=1e-5)]), True

        def less(at=at, tests=tests):
            """Whether the gap beyond chance, which lies between the ends, is larger than the true one."""
            return bool(tests.below_average(at("nearest")[0]).all())

        def within(side, at=at, tests=tests, true=true):
            near = np.array([1.01 * true])  # what holds for a larger gap holds for the true one
            if tests.gap(side, near) >= true and tests.within(side, near).all():
                return True
            gap, reached = at(side)
            return reached and bool(tests.within(side, gap).all())

        def too_small(at=at, tests=tests, true=true):
            near = np.array([0.99 * true])
            if tests.gap("lower", near) <= true and not tests.too_small(near).all():
                return False
            gap, reached = at("lower")
            return reached and bool(tests.too_small(gap).all())

        above = too_small() and less()
        if true == 0:
            below = False
        elif name == "mean_deo":
            below = not within("upper") and not within("nearest") and not less()
        else:
            below = not tests.within_by_class(cells, np.full(len(hits), true)).any() and not less()
        found[name] = above, below
    return found


def rejected(hits, rows, rng, draws=1000):
    """The ways that were tried and left: plain bootstraps of the gap, and simultaneous Wilson intervals of the recalls."""
    shares = hits / rows
    found = {}
    drawn = np.ptp(rng.binomial(rows, shares, size=(draws, *rows.shape)) / rows, axis=2)
    fewer = np.maximum(1, np.rint(rows ** (2 / 3))).astype(int)
    small = np.ptp(rng.binomial(fewer, shares, size=(draws, *rows.shape)) / fewer, axis=2)
    root = np.sqrt(fewer.mean() / rows.mean())
    sure = wilson(shares, rows)
    for name, over in OVER.items():
        gap = 100 * over(np.ptp(shares, axis=1))
        values, few = 100 * over(drawn, axis=1), 100 * over(small, axis=1)
        low, high = np.percentile(values, [2.5, 97.5])
        centre, spread = 2 * gap - values.mean(), Z * values.std()
        far_low, far_high = np.percentile(root * (few - gap), [2.5, 97.5])
        found[name] = {
            "percentile": (low, high),
            "reverse percentile (0005)": (min(gap, 2 * gap - high), max(gap, 2 * gap - low)),
            "normal, bias-corrected": (centre - spread, centre + spread),
            "m out of n": (gap - far_high, gap - far_low),
            "simultaneous Wilson": tuple(100 * over(each) for each in sure),
        }
        found[name] = {way: (max(0, a), min(100, max(b, 0))) for way, (a, b) in found[name].items()}
    return found


def wilson(shares, rows):
    """Lowest and highest gap of each class, in 0..1, that simultaneous Wilson intervals of all recalls leave."""
    z = math.sqrt(2) * _inverse_erf(0.95 ** (1 / rows.size))
    middle = (shares + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(shares * (1 - shares) / rows + z * z / (4 * rows * rows))
    highest, lowest = middle + half, middle - half
    return np.maximum(0, lowest.max(1) - highest.min(1)), highest.max(1) - lowest.min(1)


def _inverse_erf(share):
    low, high = 0.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle) < share else (low, middle)
    return low


def measure(cell, samples, ends, others, seed, base):
    """One cell of the grid: rows by statistic and way. The first `ends` samples have our intervals, the first `others` the
    rejected ones; the rest tell only whether ours hold the truth (`holds`)."""
    classes, groups, rows_name, shape = cell
    rng = np.random.default_rng([seed, zlib.crc32(repr((cell, base)).encode())])
    recalls, rows = true_recalls(shape, classes, groups, base), rows_of(rows_name, classes, groups)
    true = {name: 100 * over(np.ptp(recalls, axis=1)) for name, over in OVER.items()}
    found, seconds, missed = {}, [], {name: [] for name in OVER}
    for sample in range(samples):
        hits = rng.binomial(rows, recalls)
        if sample >= ends or sample < CHECKED:
            for name, each in holds(hits, rows, recalls).items():
                missed[name].append(each)
        observed = {name: 100 * over(np.ptp(hits / rows, axis=1)) for name, over in OVER.items()}
        for way in [ours] * (sample < ends) + [rejected] * (sample < others):
            began = time.process_time()
            intervals = way(hits, rows, np.random.default_rng([seed, sample]))
            if way is ours:
                seconds.append(time.process_time() - began)
            for name, each in intervals.items():
                for label, interval in each.items():
                    found.setdefault((name, label), []).append((*interval, observed[name]))
    table = []
    for (name, label), each in found.items():
        values = np.array(each)
        low, high = values[:, 0], values[:, 1]
        misses = np.stack([low > true[name] + 1e-6, high < true[name] - 1e-6], axis=1)
        row = {"classes": classes, "groups": groups, "rows": rows_name, "gaps": shape, "gap": name, "way": label}
        row |= {"true": round(true[name], 2), "observed": round(values[:, -1].mean(), 2)}
        if label == "ours":
            row["beyond chance"] = round(values[:, 2].mean(), 2)
            twice = min(CHECKED, ends)
            row["not as its ends"] = int((misses[:twice] != np.array(missed[name][:twice])).any(1).sum())
            misses = np.concatenate([misses, np.array(missed[name][twice:]).reshape(-1, 2)])
        row |= {
            "samples": len(misses),
            "coverage": round(float(1 - misses.any(1).mean()), 4),
            "above": round(float(misses[:, 0].mean()), 4),
            "below": round(float(misses[:, 1].mean()), 4),
            "width": round(float((high - low).mean()), 3),
            "CPU ms": round(1000 * float(np.median(seconds)), 1),
        }
        table.append(row)
    for row in table:
        rivals = [each for each in table if each["gap"] == row["gap"] and each["coverage"] >= 0.93]
        narrowest = min(rivals, key=lambda each: each["width"], default=row)
        row["width / narrowest"] = round(row["width"] / narrowest["width"], 3) if narrowest["width"] else None
        row["narrowest"] = narrowest["way"]
    return table


def wilsons_width(row, samples=100):
    """Mean width (x100) that simultaneous Wilson intervals of the recalls leave in the row's cell of the grid."""
    rng, rows = np.random.default_rng(0), rows_of(row["rows"], row["classes"], row["groups"])
    recalls, over = true_recalls(row["gaps"], row["classes"], row["groups"], 0.7), OVER[row["gap"]]
    ends = [wilson(rng.binomial(rows, recalls) / rows, rows) for _ in range(samples)]
    return float(np.mean([100 * (over(high) - over(low)) for low, high in ends]))


def beside(name, table):
    """Our widths beside those of the narrowest way that covers in the same cell of a saved grid with the rejected ways."""
    keys = ("classes", "groups", "rows", "gaps", "gap")
    saved = json.loads((FOLDER / f"{name}.json").read_text())["rows"]
    narrowest = {tuple(row[key] for key in keys): row["width"] / row["width / narrowest"] for row in saved}
    for row in table:
        row["width / narrowest"] = round(
            row["width"] / min(row["width"], narrowest[tuple(row[key] for key in keys)]), 3
        )
        row["width / Wilson"] = round(row["width"] / wilsons_width(row), 3)


def summary(table):
    """Lines: the lowest coverage and the largest relative width of our intervals by statistic, and the cells that fail."""
    lines = []
    for name in OVER:
        rows = [row for row in table if row["gap"] == name and row["way"] == "ours"]
        worst = min(rows, key=lambda row: row["coverage"])
        lines.append(
            f"{name}: {len(rows)} cells, coverage {worst['coverage']:.3f} to {max(r['coverage'] for r in rows):.3f}"
        )
        lines.append(
            f"  mean coverage {np.mean([row['coverage'] for row in rows]):.3f}, "
            f"slowest {max(r['CPU ms'] for r in rows)} CPU ms"
        )
        for row in sorted(rows, key=lambda row: row["coverage"]):
            if row["coverage"] < 0.93:
                lines.append(f"  below .93: {describe(row)}")
        wide = [row for row in rows if (row["width / narrowest"] or 0) > 1.5]
        lines.append(f"  more than 1.5 times as wide as the narrowest way that covers: {len(wide)} cells")
        lines += [f"  widest: {describe(row)}" for row in sorted(wide, key=lambda row: -row["width / narrowest"])[:5]]
        if "width / Wilson" in rows[0]:
            ratios = [row["width / Wilson"] for row in rows]
            lines.append(
                f"  beside simultaneous Wilson intervals: {np.median(ratios):.2f} in the middle, {max(ratios)} at most"
            )
        for way in dict.fromkeys(row["way"] for row in table if row["gap"] == name):
            each = [row for row in table if row["gap"] == name and row["way"] == way]
            covered = np.array([row["coverage"] for row in each])
            beside_it = max(mine["width"] / max(its["width"], 1e-9) for mine, its in zip(rows, each, strict=True))
            lines.append(
                f"  {way}: coverage {covered.min():.3f} to {covered.max():.3f}, mean {covered.mean():.3f}, below .93 in "
                f"{(covered < 0.93).sum()} of {len(each)} cells, mean width {np.mean([row['width'] for row in each]):.1f}, "
                f"ours at most {beside_it:.2f} times as wide"
            )
    return lines


def describe(row):
    return (
        f"{row['classes']} classes, {row['groups']} groups, {row['rows']} rows, {row['gaps']}: "
        f"coverage {row['coverage']:.3f}, "
        f"width {row['width']:.2f} ({row['width / narrowest']} x narrowest)"
    )


def grid(args):
    if args.again:
        table = [row for row in json.loads((FOLDER / f"{args.again}.json").read_text())["rows"] if row["way"] == "ours"]
        table.sort(key=lambda row: row["coverage"])
        cells = [tuple(row[name] for name in ("classes", "groups", "rows", "gaps")) for row in table]
        return list(dict.fromkeys(cells))[: args.lowest]
    shapes = args.shapes or (SHAPES + HALVES if args.full else ("all 0", "all 10", "one class 30"))
    classes = args.classes or ([2, 3, 10] if args.full else [2, 10])
    groups = args.groups or ([2, 4, 7] if args.full else [2, 4])
    rows = args.rows or (ROWS if args.full else ("20", "200"))
    cells = itertools.product(classes, groups, rows, shapes)
    return [cell for cell in cells if cell[1] > 2 or "halves" not in cell[3]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every cell of decision 0012")
    parser.add_argument("--classes", type=int, nargs="*")
    parser.add_argument("--groups", type=int, nargs="*")
    parser.add_argument("--rows", nargs="*", help="rows a cell, or unequal")
    parser.add_argument("--shapes", nargs="*", help="such as 'all 10' or 'one class 30'")
    parser.add_argument("--again", metavar="NAME", help="the cells of bench/results/NAME.json with the lowest coverage")
    parser.add_argument("--lowest", type=int, default=12, help="how many of them")
    parser.add_argument("--base", type=float, default=0.7, help="the recall about which gaps lie")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--ends", type=int, help="samples of each cell with the intervals' ends; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rejected", type=int, default=0, help="samples of each cell with the rejected ways as well")
    parser.add_argument(
        "--narrowest", metavar="NAME", help="widths beside those of the saved grid NAME with the rejected ways"
    )
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    ends = min(args.samples, args.ends or args.samples)
    one = partial(
        measure,
        samples=args.samples,
        ends=ends,
        others=min(args.samples, args.rejected),
        seed=args.seed,
        base=args.base,
    )
    part = FOLDER / f"{args.save}.part.jsonl"  # so that a run that is cut goes on from there
    done = [json.loads(line) for line in part.read_text().splitlines()] if args.save and part.exists() else []
    table = [row for rows in done for row in rows]
    known = {tuple(row[name] for name in ("classes", "groups", "rows", "gaps")) for row in table}
    with Pool(args.processes) as pool:
        for found in pool.imap_unordered(one, [cell for cell in grid(args) if cell not in known]):
            table += found
            if args.save:
                with part.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            for row in found:
                if row["way"] == "ours":
                    print(
                        f"{row['gap']:8s} missed above {row['above']:.3f}, below {row['below']:.3f}; {describe(row)}",
                        flush=True,
                    )
    order = {cell: place for place, cell in enumerate(grid(args))}
    table.sort(key=lambda row: order[tuple(row[name] for name in ("classes", "groups", "rows", "gaps"))])
    if args.narrowest:
        beside(args.narrowest, table)
    lines = summary(table)
    print("\n".join(lines))
    if args.save:
        kept = [row for row in table if row["way"] == "ours"]  # of the rejected ways the summary is enough
        save(args.save, f"Coverage of 95 % intervals, {args.samples} samples a cell", list(kept[0]), kept, lines)
        part.unlink()


if __name__ == "__main__":
    main()
