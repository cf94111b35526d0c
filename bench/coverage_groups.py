"""How often the intervals by group hold the truth: python bench/coverage_groups.py [--samples 300]

Simulated classifiers. A row has a number of its own; a run predicts by the cell's probabilities, with that number in part,
so that runs agree more often than chance, as students of several seeds do. A seed's probabilities are off by noise of its
own. Prints, a line a case, the shares of samples in which the interval holds the truth (one seed: that of this run;
several: of the mean over all seeds): of the accuracy of a group and of the demographic-parity gap, and of the change of a
group's accuracy and of a cell's recall (zones).
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from scipy.special import ndtr, ndtri

from bird.measuring.groups import parity_gap, share_over_seeds
from bird.measuring.metrics import confusion
from bird.measuring.shared_rows import Predicted
from bird.measuring.zones import zones

COMMON = 0.6  # share of a run's noise that is the row's
SEED = 0.15  # of a seed, in standard deviations of the row's score


def right_of(recalls, cells, row, rng):
    """Whether each row is predicted right by one run, and the recalls that this run has in truth."""
    shifted = ndtri(recalls) + SEED * rng.standard_normal(recalls.shape)
    noise = COMMON**0.5 * row + (1 - COMMON) ** 0.5 * rng.standard_normal(len(row))
    return noise < shifted[cells], ndtr(shifted)


def predict(right, labels, classes, rng):
    """The label where it is right, another class where it is not."""
    return np.where(right, labels, (labels + rng.integers(1, classes, len(labels))) % classes)


def selection(recalls):
    """(classes, groups): the rates of a run with those recalls, where classes are of equal size and errors evenly spread."""
    classes = len(recalls)
    return (recalls + (1 - recalls).sum(0) / (classes - 1) - (1 - recalls) / (classes - 1)) / classes


def one_sample(recalls, better, rows, seeds, rng):
    """Which intervals hold the truth: of accuracy, parity, change of accuracy, change of recall."""
    classes, groups = recalls.shape
    label, group = (each.ravel() for each in np.indices((classes, groups)))
    labels, inside = np.repeat(label, rows), np.repeat(group, rows)
    cells, row = (labels, inside), rng.standard_normal(len(labels))
    runs, truths = [], []
    for truth in [recalls] * seeds + [better] * seeds:
        right, own = right_of(truth, cells, row, rng)
        runs.append(Predicted([*map(str, range(len(row)))], labels, inside, predict(right, labels, classes, rng)))
        truths.append(own)
    counts = [confusion(labels, inside, run.predictions, classes, groups) for run in runs[:seeds]]
    if seeds == 1:  # its interval speaks of this run, on other rows
        expected, expected_better = truths
        gap = 100 * np.ptp(selection(expected), axis=1).max()
    else:  # of the mean over all seeds
        expected, expected_better = (ndtr(ndtri(each) / (1 + SEED**2) ** 0.5) for each in (recalls, better))
        drawn = ndtr(ndtri(recalls) + SEED * rng.standard_normal((400, classes, groups)))
        gap = 100 * np.mean([np.ptp(selection(each), axis=1).max() for each in drawn])
    hits = np.array([[each[c, g, c] for c in range(classes) for g in [0]] for each in counts]).sum(1)
    changed = zones(runs[seeds:], runs[:seeds], classes, groups)
    return (
        holds(share_over_seeds(hits, rows * classes), 100 * expected[:, 0].mean()),
        holds(parity_gap(*counts), gap),
        holds(changed.accuracy[0], 100 * (expected_better - expected)[:, 0].mean()),
        holds(changed.recall[0][0], 100 * (expected_better - expected)[0, 0]),
    )


def holds(found, truth):
    """Whether the interval holds the truth."""
    return found.low - 1e-9 <= truth <= found.high + 1e-9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300)
    samples = parser.parse_args().samples
    print("classes groups seeds rows-a-cell gap: accuracy parity change-of-accuracy change-of-recall")
    for classes, groups, seeds, rows, apart in product((2, 10), (2, 4), (1, 8), (30, 300), (0.0, 0.2)):
        rng = np.random.default_rng(classes * 1000 + groups * 100 + seeds * 10 + rows)
        recalls = np.full((classes, groups), 0.75)
        recalls[0, 0] -= apart
        better = np.minimum(recalls + 0.03, 0.99)
        found = np.mean([one_sample(recalls, better, rows, seeds, rng) for _ in range(samples)], axis=0)
        print(classes, groups, seeds, rows, apart, *(f"{each:.3f}" for each in found), flush=True)


if __name__ == "__main__":
    main()
