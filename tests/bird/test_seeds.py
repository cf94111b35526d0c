"""Intervals over training seeds whose runs are known row by row: what rows do to all seeds alike is measured."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from bird.measuring.intervals import gap_intervals
from bird.measuring.metrics import confusion, recalls, statistics_of
from bird.measuring.seeds import two_level_intervals
from bird.measuring.shared_rows import Predicted, recall_errors

CLASSES, GROUPS = 3, 2
RECALLS = np.array([[0.8, 0.6], [0.7, 0.7], [0.6, 0.75]])


def runs_of(true, rows, seeds, shared, rng, spread=0.0):
    """Runs on one test set of `rows` a cell; `shared` of what decides a row is common to them."""
    labels = np.repeat(np.arange(CLASSES), GROUPS * rows)
    groups = np.tile(np.repeat(np.arange(GROUPS), rows), CLASSES)
    difficulty, runs = rng.standard_normal(len(labels)), []
    for _ in range(seeds):
        own = np.clip(true + spread * rng.standard_normal(true.shape), 0.01, 0.99)
        score = np.sqrt(shared) * difficulty + np.sqrt(1 - shared) * rng.standard_normal(len(labels))
        right = score < norm.ppf(own)[labels, groups]
        predictions = np.where(right, labels, (labels + 1) % CLASSES)
        runs.append(Predicted(np.arange(len(labels)).astype("S").tolist(), labels, groups, predictions))
    return runs


def counts_of(runs):
    return [confusion(run.labels, run.groups, run.predictions, CLASSES, GROUPS) for run in runs]


def width(interval):
    return interval.high - interval.low


def test_intervals_hold_the_mean_over_seeds():
    """Three seeds whose recalls differ: at 95 % at most 6 of 60 samples miss, with probability .96."""
    rng = np.random.default_rng(0)
    drawn = np.clip(RECALLS + 0.03 * rng.standard_normal((4000, *RECALLS.shape)), 0, 1)
    gaps = np.ptp(drawn, axis=2)
    expected = {"accuracy": RECALLS.mean(), "mean_deo": gaps.mean(), "max_deo": gaps.max(1).mean()}
    held = dict.fromkeys(expected, 0)
    for _ in range(60):
        runs = runs_of(RECALLS, 300, 3, 0.5, rng, spread=0.03)
        found = two_level_intervals(counts_of(runs), 200, predicted=runs)
        for name, value in expected.items():
            held[name] += found[name].low <= 100 * value <= found[name].high
    assert min(held.values()) >= 54


def test_intervals_are_narrower_than_those_of_counts():
    runs = runs_of(RECALLS, 300, 8, 0.5, np.random.default_rng(6))
    known, counted = two_level_intervals(counts_of(runs), predicted=runs), two_level_intervals(counts_of(runs))
    for name in ("accuracy", "f1_macro", "mean_deo", "max_deo"):
        assert width(known[name]) < 0.9 * width(counted[name])


def test_rows_of_chance_count_less_than_rows_that_are_hard_for_all():
    """No spread of seeds: with nothing in common the rows' error averages out, with all in common it does not."""
    rng = np.random.default_rng(1)
    apart, alike = (
        two_level_intervals(counts_of(runs), predicted=runs)
        for runs in (runs_of(RECALLS, 400, 8, shared, rng) for shared in (0.0, 1.0))
    )
    for name in ("accuracy", "f1_macro", "mean_deo"):
        assert width(apart[name]) < 0.7 * width(alike[name])


def test_seeds_that_agree_on_every_row_have_about_the_interval_of_one():
    runs = runs_of(RECALLS, 400, 1, 0.5, np.random.default_rng(2)) * 4
    found = two_level_intervals(counts_of(runs), predicted=runs)
    for name, one in gap_intervals(counts_of(runs)[0]).items():
        assert found[name].beyond_chance == pytest.approx(one.beyond_chance, abs=0.2)
        assert width(found[name]) == pytest.approx(one.high - one.low, rel=0.25)


def test_ends_lie_about_the_estimate():
    runs = runs_of(np.full((CLASSES, GROUPS), 0.7), 20, 4, 0.5, np.random.default_rng(3))
    values = statistics_of(np.stack(counts_of(runs)), np.stack([recalls(each) for each in counts_of(runs)]))
    for name, each in two_level_intervals(counts_of(runs), predicted=runs).items():
        assert each.mean == pytest.approx(values[name].mean())
        if each.beyond_chance is not None:
            assert 0 <= each.low <= each.beyond_chance <= each.high <= 100


def test_without_all_predictions_or_with_other_rows_the_counts_are_used():
    runs = runs_of(RECALLS, 50, 2, 0.5, np.random.default_rng(4))
    other = Predicted(runs[1].ids[::-1], runs[1].labels, runs[1].groups, runs[1].predictions)
    expected = two_level_intervals(counts_of(runs), 200)
    for known in ([runs[0], None], [runs[0], other], runs[:1]):
        assert two_level_intervals(counts_of(runs), 200, predicted=known) == expected
    alone = counts_of(runs)[:1]
    assert two_level_intervals(alone, 200, predicted=runs[:1]) == two_level_intervals(alone, 200)


def test_recalls_err_as_the_binomial_does_and_together_where_runs_agree():
    runs = runs_of(RECALLS, 100, 2, 0.6, np.random.default_rng(5))
    drawn = recall_errors(runs, CLASSES, GROUPS, replicates=4000)
    right = np.stack([run.predictions == run.labels for run in runs]).reshape(2, CLASSES, GROUPS, 100)
    shares = (right.sum(-1) + 0.5) / 101
    assert_allclose(drawn.var(2), np.moveaxis(shares * (1 - shares) / 100, 0, -1), rtol=0.12)
    common = [[np.cov(*right[:, c, g])[0, 1] / 100 for g in range(GROUPS)] for c in range(CLASSES)]
    found = (drawn[..., 0] * drawn[..., 1]).mean(-1)
    assert_allclose(found, common, atol=2.5e-4)
