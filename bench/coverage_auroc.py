"""How often AUROC's 95 % interval holds the true one: normal scores, of which the true class's is higher.

python bench/coverage_auroc.py [--samples 2000]
"""

import argparse
import itertools
from statistics import NormalDist

import numpy as np

from bird.measuring.metrics import auroc


def measure(classes, rows, apart, samples, rng):
    """Coverage and mean width, x100, of samples with so many rows a class."""
    true, labels = 100 * NormalDist().cdf(apart / np.sqrt(2)), np.repeat(np.arange(classes), rows)
    found = []
    for _ in range(samples):
        scores = rng.standard_normal((len(labels), classes))
        scores[np.arange(len(labels)), labels] += apart
        found.append(auroc(labels, scores))
    value, low, high = np.array(found).T
    held = float(np.mean((low <= true + 1e-9) & (true <= high + 1e-9)))
    return true, held, float((high - low).mean()), float(3.92 * value.std())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    args, rng = parser.parse_args(), np.random.default_rng(0)
    for classes, rows, apart in itertools.product((2, 10), (20, 200), (0.5, 1.5, 3.0)):
        true, held, width, spread = measure(classes, rows, apart, args.samples, rng)
        print(
            f"{classes} classes, {rows} rows each, true {true:.1f}: coverage {held:.3f}, width {width:.2f}, "
            f"3.92 standard deviations {spread:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
