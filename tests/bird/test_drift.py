"""A copy beside its original: what it flips, which cell it takes from, and a collapse that looks fair."""

import numpy as np
import pytest

from bird.errors import DataError
from bird.measuring.drift import change_interval, drift

CLASSES, GROUPS = ("no", "yes"), ("a", "b")


def rows(count=400):
    rng = np.random.default_rng(0)
    labels, groups = np.arange(count) // 2 % 2, np.arange(count) % 2
    return labels, groups, np.where(rng.random(count) < 0.8, labels, 1 - labels)


def pairs(both, gained, lost, neither):
    before = np.repeat([True, False, True, False], [both, gained, lost, neither])
    return before, np.repeat([True, True, False, False], [both, gained, lost, neither])


def test_the_interval_is_newcombes():
    """Newcombe (1998), Statistics in Medicine 17, 2635-2650: method 10 on the table (36, 12, 2, 0)."""
    assert change_interval(*pairs(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_the_interval_holds_the_true_change_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    shares = [0.55, 0.02, 0.05, 0.38]
    for _ in range(2000):
        low, high = change_interval(*pairs(*rng.multinomial(200, shares)))
        held += low <= -0.03 <= high
    assert 0.93 < held / 2000 <= 0.985


def test_swapping_the_sides_turns_the_interval_round():
    before, after = pairs(40, 3, 9, 20)
    low, high = change_interval(before, after)
    assert change_interval(after, before) == pytest.approx((-high, -low))


def test_an_equal_copy_changes_nothing():
    labels, groups, told = rows()
    found = drift(labels, groups, told, told, CLASSES, GROUPS)
    assert found.flips == (0, 400)
    assert {each.change for each in found.cells} == {0.0}
    assert found.mean_deo[0] == found.mean_deo[1]


def test_one_cell_that_loses_is_found_though_accuracy_hardly_falls():
    labels, groups, told = rows()
    copy = told.copy()
    inside = np.flatnonzero((labels == 1) & (groups == 1) & (told == 1))[:8]
    copy[inside] = 0
    found = drift(labels, groups, told, copy, CLASSES, GROUPS)
    assert found.accuracy[0] - found.accuracy[1] == pytest.approx(2.0)
    worst = found.cells[0]
    assert (worst.cell, worst.rows, worst.change) == ("yes, b", 100, pytest.approx(-8.0))
    assert worst.interval[0] < -8 < worst.interval[1] < 0
    assert found.flips_by_group == {"a": (0, 200), "b": (8, 200)}


def test_a_collapse_has_a_gap_of_nought_and_the_largest_flips():
    labels, groups, told = rows()
    found = drift(labels, groups, told, np.zeros_like(told), CLASSES, GROUPS)
    assert found.mean_deo[1] == 0.0
    assert found.accuracy[1] == 50.0
    assert found.least_recall[1] == 0.0
    assert found.cells[0].change < -70
    assert [*found.as_json()][-1] == "mean_deo"


def test_a_cell_without_rows_is_left_out_and_has_no_gap():
    labels, groups, told = rows()
    kept = ~((labels == 1) & (groups == 1))
    found = drift(labels[kept], groups[kept], told[kept], told[kept], CLASSES, GROUPS)
    assert [each.cell for each in found.cells] == ["no, a", "no, b", "yes, a"]
    assert found.mean_deo is None


def test_a_prediction_that_is_no_class_is_refused():
    labels, groups, told = rows()
    with pytest.raises(DataError, match="predictions"):
        drift(labels, groups, told, told + 2, CLASSES, GROUPS)
