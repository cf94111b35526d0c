"""How often the interval of the calibration error holds the true one: python bench/coverage_calibration.py

Probabilities are Beta(4, 1.5); what they foretell happens with a probability that is lower by a fixed shift. Prints, for
each number of rows and shift, how often the true error lay below and above the interval, and the mean error, ends and floor.
"""

from __future__ import annotations

import numpy as np

from bird.measuring.calibration import BINS, calibration_error

SAMPLES = 300


def true_error(rng: np.random.Generator, shift: float) -> float:
    """By bins, as the rows grow without end, x100."""
    probability = rng.beta(4, 1.5, 2_000_000)
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, probability - np.clip(probability - shift, 0, 1), BINS)
    return float(100 * np.abs(gap).sum() / len(probability))


def main() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.03, 0.1):
        truth = true_error(rng, shift)
        for rows in (100, 1000, 10_000):
            found = []
            for seed in range(SAMPLES):
                probability = rng.beta(4, 1.5, rows)
                happened = rng.random(rows) < np.clip(probability - shift, 0, 1)
                found.append(calibration_error(probability, happened, seed=seed))
            below = sum(truth < each.low - 1e-9 for each in found)
            above = sum(truth > each.high + 1e-9 for each in found)
            value, low, high, floor = np.mean(found, axis=0)
            print(
                f"{rows:6} rows, true {truth:5.2f}: below {below}, above {above} of {SAMPLES};"
                f" mean {value:.2f} ({low:.2f} - {high:.2f}), floor {floor:.2f}"
            )


if __name__ == "__main__":
    main()
