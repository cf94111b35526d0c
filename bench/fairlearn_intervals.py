"""fairlearn's bootstrap interval of a gap beside ours, where the true gap is known: how often each holds it.

    python bench/fairlearn_intervals.py [--samples 20] [--save NAME]

Two classes, two groups, 200 rows a cell; recall .7 on average, the same gap in both classes. fairlearn: the difference of
the true positive rate between groups, `MetricFrame(..., n_boot=100, ci_quantiles=[.025, .975]).difference_ci()`, whose
truth is the gap; ours: mean-DEO, whose truth is the gap as well.
"""

import argparse

import fairlearn
import numpy as np
from fairlearn.metrics import MetricFrame, true_positive_rate
from results import save

from bird.measuring.intervals import gap_intervals
from bird.measuring.metrics import confusion

ROWS = 200


def sample_of(gap, rng):
    labels, groups = (each.ravel() for each in np.indices((2, 2, ROWS))[:2])
    right = rng.random(len(labels)) < np.where(groups == 0, 0.7 + gap / 2, 0.7 - gap / 2)
    return labels, groups, np.where(right, labels, 1 - labels)


def fairlearns(labels, groups, predictions, seed):
    frame = MetricFrame(
        metrics=true_positive_rate,
        y_true=labels,
        y_pred=predictions,
        sensitive_features=groups,
        n_boot=100,
        ci_quantiles=[0.025, 0.975],
        random_state=seed,
    )
    return tuple(100 * float(end) for end in frame.difference_ci())


def measure(gap, samples):
    rng = np.random.default_rng(round(1000 * gap))
    ends = {"fairlearn": [], "ours": []}
    for seed in range(samples):
        labels, groups, predictions = sample_of(gap, rng)
        ends["fairlearn"].append(fairlearns(labels, groups, predictions, seed))
        found = gap_intervals(confusion(labels, groups, predictions, 2, 2))["mean_deo"]
        ends["ours"].append((found.low, found.high))
    row = {"true gap": 100 * gap}
    for name, each in ends.items():
        low, high = np.array(each).T
        held = int(((low <= 100 * gap + 1e-6) & (100 * gap - 1e-6 <= high)).sum())
        row |= {
            f"{name} holds it": f"{held} of {samples}",
            f"{name}, mean interval": f"{low.mean():.1f} to {high.mean():.1f}",
        }
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json")
    args = parser.parse_args()
    table = []
    for gap in (0.0, 0.02, 0.1, 0.3):
        table.append(measure(gap, args.samples))
        print(table[-1], flush=True)
    if args.save:
        save(args.save, f"A gap's 95 % interval: fairlearn {fairlearn.__version__} and ours", list(table[0]), table)


if __name__ == "__main__":
    main()
