"""Paired comparisons: against the definitions, row by row and sign by sign."""

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from bird.errors import DataError
from bird.measuring.intervals import TAIL, student
from bird.measuring.metrics import confusion, max_deo, mean_deo, recalls
from bird.measuring.paired import Predicted, compare, holm, sign_flip_p

CLASSES, GROUPS = 3, 2


def predicted(seed, accuracy, rows=600, unfair=0.0):
    """A classifier on test rows that are the same for every seed."""
    fixed = np.random.default_rng(99)
    labels, groups = fixed.integers(CLASSES, size=rows), fixed.integers(GROUPS, size=rows)
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < accuracy - unfair * groups
    predictions = np.where(right, labels, (labels + rng.integers(1, CLASSES, size=rows)) % CLASSES)
    return Predicted([f"row-{row}" for row in range(rows)], labels, groups, predictions)


def deo(one, rows=slice(None)):
    shares = recalls(confusion(one.labels[rows], one.groups[rows], one.predictions[rows], CLASSES, GROUPS))
    return mean_deo(shares), max_deo(shares)


def test_effects_are_the_means_of_the_seeds_differences():
    method = {seed: predicted(seed, 0.8, unfair=0.1) for seed in range(4)}
    reference = {seed: predicted(100 + seed, 0.8, unfair=0.3) for seed in range(4)}
    found = compare(method, reference, CLASSES, GROUPS)
    by_seed = [np.subtract(deo(method[seed]), deo(reference[seed])) for seed in range(4)]
    for index, name in enumerate(("mean_deo", "max_deo")):
        assert found[name].effect == pytest.approx(np.mean(by_seed, axis=0)[index])
        assert found[name].by_seed == pytest.approx([each[index] for each in by_seed])
        assert found[name].p is None
        low, high = found[name].interval
        assert low < found[name].beyond_chance < high < 0


@pytest.mark.parametrize(("seeds", "unfair"), [(1, (0.1, 0.0)), (8, (0.1, 0.0)), (8, (0.0, 0.0))])
def test_intervals_hold_the_true_difference(seeds, unfair):
    """Predictions drawn anew in each trial; group 1 is served worse by `unfair` in every class."""
    held, trials = {"accuracy": 0, "mean_deo": 0, "max_deo": 0}, 60 if seeds == 1 else 20
    for trial in range(trials):
        pair = [
            {seed: predicted(1000 * trial + 100 * which + seed, 0.8, unfair=gap, rows=900) for seed in range(seeds)}
            for which, gap in enumerate(unfair)
        ]
        found = compare(*pair, CLASSES, GROUPS, replicates=200)
        expected = {"accuracy": -100 * (unfair[0] - unfair[1]) * pair[0][0].groups.mean()}
        expected |= dict.fromkeys(("mean_deo", "max_deo"), 100 * (unfair[0] - unfair[1]))
        for name, value in expected.items():
            low, high = found[name].interval
            held[name] += low <= value <= high
    assert min(held.values()) >= 0.85 * trials


@pytest.mark.parametrize("scale", [0.0, 0.01, 0.02, 0.03, 0.05])
def test_p_and_interval_say_the_same(scale):
    """p is below .05 if, and only if, the 95 % interval leaves 0 out."""
    method = {seed: predicted(seed, 0.8, unfair=0.1 + scale) for seed in range(8)}
    reference = {seed: predicted(100 + seed, 0.8 - scale, unfair=0.1) for seed in range(8)}
    for each in compare(method, reference, CLASSES, GROUPS).values():
        low, high = each.interval
        assert (each.p < 0.05) == (low > 0 or high < 0)


def test_rows_of_their_own_for_each_seed_leave_the_seeds_error_only():
    method, reference = ({seed: predicted(100 * run + seed, 0.8) for seed in range(8)} for run in range(2))
    for runs in (method, reference):
        for seed, run in runs.items():
            runs[seed] = Predicted([f"{seed}-{row}" for row in run.ids], run.labels, run.groups, run.predictions)
    found = compare(method, reference, CLASSES, GROUPS)["accuracy"]
    half = student(1 - TAIL * 0.025, 7) * np.std(found.by_seed, ddof=1) / np.sqrt(8)
    assert found.interval == pytest.approx((found.effect - half, found.effect + half), rel=0.02)


def test_the_linear_forms_of_accuracy_and_f1_are_those_of_resampling_rows():
    pair = [{0: predicted(0, 0.8)}, {0: predicted(1, 0.75)}]
    found = compare(*pair, CLASSES, GROUPS)
    rng, differences = np.random.default_rng(0), []
    one, other = pair[0][0], pair[1][0]
    for _ in range(1500):
        rows = rng.integers(600, size=600)
        values = [
            (
                100 * (each.labels == each.predictions)[rows].mean(),
                100 * f1_score(each.labels[rows], each.predictions[rows], average="macro"),
            )
            for each in (one, other)
        ]
        differences.append(np.subtract(*values))
    for name, deviation in zip(("accuracy", "f1_macro"), np.std(differences, axis=0), strict=True):
        low, high = found[name].interval
        half = NormalDist().inv_cdf(1 - TAIL * 0.025) * deviation
        assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_a_method_against_itself_shows_nothing():
    runs = {seed: predicted(seed, 0.7) for seed in range(8)}
    found = compare(runs, runs, CLASSES, GROUPS)
    assert all(each.effect == 0 and each.interval == (0, 0) and each.p == 1 for each in found.values())


def test_only_shared_seeds_count_and_the_rows_must_be_the_same():
    method, reference = {0: predicted(0, 0.7), 1: predicted(1, 0.7)}, {1: predicted(2, 0.7), 2: predicted(3, 0.7)}
    assert len(compare(method, reference, CLASSES, GROUPS)["mean_deo"].by_seed) == 1
    with pytest.raises(DataError, match="no seed in common"):
        compare({0: method[0]}, {2: reference[2]}, CLASSES, GROUPS)
    other = method[1]
    moved = Predicted(other.ids[::-1], other.labels, other.groups, other.predictions)
    regrouped = Predicted(other.ids, other.labels, 1 - other.groups, other.predictions)
    for wrong in (moved, regrouped):
        with pytest.raises(DataError, match="two sets of test rows"):
            compare({1: wrong}, reference, CLASSES, GROUPS)


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=9))
def test_the_p_value_counts_all_sign_patterns(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    assert sign_flip_p(differences) == pytest.approx(np.mean([each >= observed - 1e-9 for each in sums]), abs=2e-2)


def test_p_values_need_eight_seeds():
    assert sign_flip_p([1.0] * 7) is None
    assert sign_flip_p([1.0] * 8) == pytest.approx(2 / 256)
    assert sign_flip_p([1.0] * 20) < 1e-3


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
