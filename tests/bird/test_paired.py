"""Paired comparisons: against the definitions, row by row and sign by sign."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bird.errors import DataError
from bird.metrics import confusion, max_deo, mean_deo, recalls
from bird.paired import Predicted, compare, holm, sign_flip_p

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


def test_effects_and_intervals_are_those_of_resampling_seeds_and_rows():
    method = {seed: predicted(seed, 0.8, unfair=0.1) for seed in range(4)}
    reference = {seed: predicted(100 + seed, 0.8, unfair=0.3) for seed in range(4)}
    found = compare(method, reference, CLASSES, GROUPS, replicates=4000)
    by_seed = [np.subtract(deo(method[seed]), deo(reference[seed])) for seed in range(4)]
    for index, name in enumerate(("mean_deo", "max_deo")):
        assert found[name].effect == pytest.approx(np.mean(by_seed, axis=0)[index])
        assert found[name].by_seed == pytest.approx([each[index] for each in by_seed])
        assert found[name].p is None
    rng, replicates = np.random.default_rng(5), []
    for _ in range(1500):
        values = []
        for seed in rng.integers(4, size=4):
            rows = rng.integers(600, size=600)
            values.append(deo(method[seed], rows)[0] - deo(reference[seed], rows)[0])
        replicates.append(np.mean(values))
    low, high = np.percentile(replicates, [2.5, 97.5])
    effect = found["mean_deo"].effect
    assert found["mean_deo"].interval == pytest.approx((2 * effect - high, 2 * effect - low), abs=0.8)


def test_a_method_against_itself_shows_nothing():
    runs = {seed: predicted(seed, 0.7) for seed in range(8)}
    found = compare(runs, runs, CLASSES, GROUPS, replicates=200)
    assert all(each.effect == 0 and each.interval == (0, 0) and each.p == 1 for each in found.values())


def test_only_shared_seeds_count_and_the_rows_must_be_the_same():
    method, reference = {0: predicted(0, 0.7), 1: predicted(1, 0.7)}, {1: predicted(2, 0.7), 2: predicted(3, 0.7)}
    assert len(compare(method, reference, CLASSES, GROUPS, replicates=50)["mean_deo"].by_seed) == 1
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
