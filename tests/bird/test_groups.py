"""Numbers by group: against fairlearn and by hand; what does not exist; zones against a baseline; calibration."""

import numpy as np
import pytest

from bird.errors import DataError
from bird.measuring.calibration import calibration_error
from bird.measuring.groups import by_group, metric_frame, parity_gap, share_over_seeds, shares
from bird.measuring.metrics import auroc, confusion
from bird.measuring.shared_rows import Predicted
from bird.measuring.zones import zones


def sample(rows=3000, classes=2, groups=3, seed=0):
    """Labels, groups, predictions and probabilities; group 0 is served worse."""
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(classes, size=rows), rng.integers(groups, size=rows)
    scores = rng.dirichlet(np.ones(classes), rows) + (0.9 + 0.4 * (group > 0))[:, None] * np.eye(classes)[labels]
    scores /= scores.sum(1, keepdims=True)
    return labels, group, scores.argmax(1), scores


def test_the_rates_are_those_of_fairlearn():
    metrics = pytest.importorskip("fairlearn.metrics")
    labels, groups, predictions, scores = sample()
    found = by_group(labels, groups, predictions, scores, 2, 3)
    names = {"selection_rate": metrics.selection_rate, "recall": metrics.true_positive_rate}
    frame = metrics.MetricFrame(metrics=names, y_true=labels, y_pred=predictions, sensitive_features=groups)
    own = metric_frame(labels, predictions, groups).by_group
    for m in range(3):
        assert found.selection_rate[1][m].value == pytest.approx(100 * frame.by_group["selection_rate"][m])
        assert found.recall[1][m].value == pytest.approx(100 * frame.by_group["recall"][m])
        assert found.accuracy[m].value == pytest.approx(100 * own["accuracy"][m])
        assert found.accuracy[m].rows == own["count"][m] == (groups == m).sum()
        assert found.base_rate[1][m].value == pytest.approx(100 * labels[groups == m].mean())
    difference = metrics.demographic_parity_difference(labels, predictions, sensitive_features=groups)
    assert found.parity_gap.value == pytest.approx(100 * difference)


def test_auroc_is_that_of_the_group_and_the_worst_cell_is_the_lowest_recall():
    labels, groups, predictions, scores = sample(classes=4)
    found = by_group(labels, groups, predictions, scores, 4, 3)
    for m in range(3):
        inside = groups == m
        alone = auroc(labels[inside], scores[inside])
        assert found.auroc[m][:3] == alone
        assert found.auroc[m].rows == inside.sum()
    c, m = found.worst_cell
    assert found.recall[c][m].value == min(each.value for line in found.recall for each in line)
    assert found.recall[c][m].low < found.recall[c][m].value < found.recall[c][m].high


def test_what_does_not_exist_says_why():
    labels, groups = np.array([0, 0, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 1, 1])
    scores = np.eye(2)[labels]
    found = by_group(labels, groups, labels, scores, 2, 2)
    assert found.recall[1][1] == (None, None, None, 0, "no rows", None)
    assert found.auroc[1].value is None
    assert "rows of class 1" in found.auroc[1].reason
    without = by_group(labels, groups, labels, None, 2, 2)
    assert without.auroc[0].reason == without.calibration[0].reason == "no scores are given"
    assert by_group(labels, groups, labels, 3 * scores, 2, 2).calibration[0].reason == "the scores are no probabilities"
    assert "one group" in parity_gap(confusion(labels, np.zeros(6, int), labels, 2, 1)).reason
    three = by_group(labels, groups, labels, np.eye(3)[labels], 3, 2)
    assert "3 classes" in three.calibration_binary[0].reason


def test_the_parity_gap_of_equal_rates_is_not_told_from_none():
    """And of rates that differ it is."""
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(2, size=2000), rng.integers(2, size=2000)
    assert parity_gap(confusion(labels, groups, rng.integers(2, size=2000), 2, 2)).low == 0
    apart = parity_gap(confusion(labels, groups, (rng.random(2000) < 0.3 + 0.3 * groups).astype(int), 2, 2))
    assert 15 < apart.low < 30 < apart.high < 45


def test_calibrated_probabilities_are_near_their_floor_and_others_above():
    rng = np.random.default_rng(0)
    told = rng.beta(4, 1.5, 4000)
    right = calibration_error(told, rng.random(4000) < told)
    assert right.low == pytest.approx(0, abs=0.05)
    assert right.value == pytest.approx(right.floor, rel=0.6)
    wrong = calibration_error(told, rng.random(4000) < told - 0.1)
    assert right.high < wrong.low < 10 < wrong.high < 13
    sure = calibration_error(np.ones(50), np.ones(50, bool))
    assert (sure.value, sure.low) == (0, 0)
    assert calibration_error(np.full(10, 0.9), np.zeros(10, bool)).value == pytest.approx(90)


def runs_of(change, seeds=1, rows=4000):
    """Predictions of a baseline, and of a method that is right in a share `change` more or fewer of group 1's rows."""
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(2, size=rows), rng.integers(2, size=rows)
    ids = [str(each) for each in range(rows)]
    pairs = []
    for _ in range(seeds):
        right = rng.random(rows) < 0.8
        other = np.where((groups == 1) & (rng.random(rows) < abs(change)), change > 0, right)
        pairs.append([Predicted(ids, labels, groups, np.where(each, labels, 1 - labels)) for each in (other, right)])
    return [each[0] for each in pairs], [each[1] for each in pairs]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_group_that_was_made_worse_is_seen(seeds):
    for change, zone in ((-0.2, "worse"), (0.3, "better")):
        found = zones(*runs_of(change, seeds), 2, 2)
        assert found.paired
        assert found.accuracy[0].zone == "within the interval"
        assert found.accuracy[0].effect == 0
        assert found.accuracy[1].zone == zone
        assert {line[1].zone for line in found.recall} == {zone}


def test_other_rows_are_compared_too_and_small_cells_keep_a_width():
    method, reference = runs_of(-0.2)
    cut = Predicted(*(getattr(method[0], name)[100:] for name in ("ids", "labels", "groups", "predictions")))
    found = zones([cut], reference, 2, 2)
    assert not found.paired
    assert found.accuracy[1].zone == "worse"
    few = Predicted(["a", "b"], *(np.array([0, 1]) for _ in range(3)))
    same = zones([few], [few], 2, 2).recall[0][0]
    assert same.low < 0 < same.high
    assert zones([few], [few], 2, 2).recall[0][1].zone is None
    with pytest.raises(DataError, match="2 and 1 runs"):
        zones([few, few], [few], 2, 2)


def test_a_share_over_seeds_is_that_of_the_one_seed_or_wider_than_the_seeds_apart():
    rows = 200
    one = share_over_seeds(np.array([150]), rows)
    wilson = shares(np.array([[150]]), np.array([[rows]]))[0][0]
    assert one[:4] == pytest.approx(wilson[:4])
    alike, apart = share_over_seeds(np.full(8, 150), rows), share_over_seeds(np.array([130, 170] * 4), rows)
    assert (alike.low, alike.high) == pytest.approx((one.low, one.high))
    assert apart.value == alike.value == 75
    assert apart.low < alike.low < alike.high < apart.high <= 100
    assert share_over_seeds(np.array([0, 0]), 0).reason == "no rows"


def test_the_parity_gap_of_several_seeds_is_their_mean_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(2, size=2000), rng.integers(2, size=2000)
    runs = [
        confusion(labels, groups, (rng.random(2000) < 0.3 + rise * groups).astype(int), 2, 2)
        for rise in (0.1, 0.2, 0.3)
    ]
    one, together = parity_gap(runs[1]), parity_gap(*runs)
    assert together.value == pytest.approx(np.mean([parity_gap(each).value for each in runs]))
    assert together.low < one.low < one.value < one.high < together.high
    assert together.low <= together.value <= together.high
