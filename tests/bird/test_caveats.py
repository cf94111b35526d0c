"""Numbers that do not exist are not 0, and a classifier that knows nothing is not called even-handed."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bird.errors import DataError
from bird.measuring import metrics
from bird.measuring.caveats import trivial, undefined
from bird.measuring.metrics import assess, auroc, confusion, deo_floor, equalized_odds, gap_floors, max_deo, mean_deo
from bird.measuring.paired import Predicted, compare
from bird.measuring.seeds import two_level_interval, two_level_intervals

FEW = 50


def told(labels, predictions, classes, groups=2, **names):
    """Metrics of the given predictions, with one-hot scores and groups that take turns."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    group = np.arange(len(labels)) // classes % groups
    return assess(labels, group, predictions, np.eye(classes)[predictions], classes, groups, replicates=FEW, **names)


def counts_of(labels, predictions, classes, groups=2):
    labels = np.asarray(labels)
    return confusion(labels, np.arange(len(labels)) // classes % groups, predictions, classes, groups)


def test_one_class_leaves_nothing_to_measure():
    got = told([0] * 12, [0] * 12, 1)
    found = json.loads(json.dumps(got.as_json(), allow_nan=False))
    for name in ("auroc", "f1_macro", "f1_binary", "accuracy", "mean_deo", "max_deo"):
        assert found[name] is None
        assert "one class" in found["undefined"][name]
        assert found["intervals"].get(name) is None
    assert found["deo_floor"] == {"mean": None, "max": None}
    assert "one class" in found["undefined"]["deo_floor"]


def test_one_group_has_scores_but_no_gap():
    labels = np.arange(40) % 2
    got = told(labels, np.where(np.arange(40) < 30, labels, 1 - labels), 2, groups=1).as_json()
    assert (got["accuracy"], got["f1_binary"] is None) == (75.0, False)
    assert got["intervals"]["accuracy"] is not None
    for name in ("mean_deo", "max_deo"):
        assert got[name] is None
        assert got["intervals"][name] is None
        assert "one group" in got["undefined"][name]
    assert got["deo_floor"] == {"mean": None, "max": None}


def test_a_gap_of_one_group_or_one_class_is_refused_wherever_it_is_asked_for():
    for shape in ((3, 1), (1, 2)):
        with pytest.raises(DataError, match=r"found there is one (group|class)"):
            mean_deo(np.ones(shape))
        with pytest.raises(DataError, match=r"found there is one (group|class)"):
            max_deo(np.ones(shape))
    with pytest.raises(DataError, match="one group"):
        equalized_odds(["a", "b"], ["x", "x"], ["a", "a"])
    alone = counts_of([0, 1] * 10, [0, 1] * 10, 2, groups=1)
    assert two_level_intervals([alone] * 3, FEW).keys() == {"accuracy", "f1_macro"}
    with pytest.raises(DataError, match="one group"):
        two_level_interval([alone], "mean_deo", FEW)
    labels = np.arange(20) % 2
    runs = {0: Predicted([str(i) for i in range(20)], labels, np.zeros(20, np.int64), labels)}
    assert compare(runs, runs, 2, 1, replicates=FEW).keys() == {"accuracy", "f1_macro"}


@pytest.mark.parametrize(("labels", "names"), [([0, 0, 1, 1], "0 of 4 rows of class 2"), ([2, 2, 2], "3 of 3 rows")])
def test_the_auroc_of_an_absent_class_does_not_exist(labels, names):
    with pytest.raises(DataError, match=names):
        auroc(labels, np.random.default_rng(0).random((len(labels), 3)))


def test_why_a_number_is_missing_is_beside_it():
    got = told(np.arange(60) % 3, np.arange(60) % 3, 3)
    assert got.f1_binary is None
    assert "3 classes" in got.undefined["f1_binary"]
    labels = np.array([0] * 20 + [1])
    one = assess(labels, np.zeros(21, int), labels, np.eye(2)[labels], 2, 1, replicates=FEW, class_names=["no", "yes"])
    assert one.auroc == 100
    assert one.intervals["auroc"] is None
    assert one.undefined["intervals.auroc"].startswith("yes has one row")
    assert undefined(counts_of([0, 1] * 4, [0, 1] * 4, 2)) == {}


def test_a_draw_without_a_class_has_the_f1_of_the_others():
    """A class that a draw neither holds nor names has no F1; 0 would pull the interval down."""
    drawn = np.zeros((1, 3, 2, 3), np.int64)
    drawn[0, 0, :, 0], drawn[0, 1, :, 1], drawn[0, 1, 0, 0] = 5, 3, 2
    found = metrics.statistics_of(drawn, np.ones((3, 2)))["f1_macro"]
    labels = np.repeat([0, 1, 1], [10, 6, 2])
    assert found == pytest.approx([100 * f1_score(labels, np.repeat([0, 1, 0], [10, 6, 2]), average="macro")])
    rare = np.array([0] * 50 + [1] * 50 + [2] * 2)
    low, high = told(rare, rare, 3, groups=1).intervals["f1_macro"]
    assert (low, high) == (100, 100), "every row is right in every draw"


def test_the_floors_of_the_classes_average_to_that_of_mean_deo():
    counts = counts_of(np.repeat([0, 1, 2], [200, 40, 12]), np.repeat([0, 1, 0], [200, 40, 12]), 3)
    counts[1, :, 0] += 5
    floors = gap_floors(counts, replicates=500)
    assert floors.mean() == pytest.approx(deo_floor(counts, replicates=500)["mean"])
    assert floors[1] > floors[0] == 0


# ------------------------------------------------------------------------------------------------- trivial students

LABELS = np.arange(600) % 3
NAMES = ("cat", "dog", "owl")


def predictions_of(accuracy, seed=0, labels=LABELS, classes=3):
    rng = np.random.default_rng(seed)
    wrong = (labels + rng.integers(1, classes, size=len(labels))) % classes
    return np.where(rng.random(len(labels)) < accuracy, labels, wrong)


def test_a_classifier_that_names_one_class_is_trivial():
    got = told(LABELS, np.ones(600, int), 3, class_names=NAMES)
    assert got.mean_deo == got.deo_floor["mean"] == 0
    assert "names dog for every row" in got.trivial
    assert got.as_json()["trivial"] == got.trivial


@pytest.mark.parametrize("named", [0, 4])
def test_a_classifier_that_hardly_ever_names_a_class_is_trivial(named):
    """Its accuracy is far above the largest class's share: what it never names has no gap all the same."""
    predictions = np.where(LABELS == 2, 0, LABELS)
    predictions[np.flatnonzero(LABELS == 2)[:named]] = 2
    found = trivial(counts_of(LABELS, predictions, 3), NAMES)
    assert "it names 2 of 3 classes (never or hardly ever: owl)" in found
    assert "accuracy" not in found


@pytest.mark.parametrize("accuracy", [0.2, 1 / 3])
def test_a_classifier_no_better_than_the_largest_class_is_trivial(accuracy):
    assert "is not shown to be above 33.3, the share of cat" in trivial(
        counts_of(LABELS, predictions_of(accuracy), 3), NAMES
    )


def test_guessing_is_trivial_however_many_rows_and_classes():
    """Half of all guessers are right in more than a tenth of the rows; one in forty escapes the interval."""
    labels, rng = np.arange(5000) % 10, np.random.default_rng(0)
    found = [trivial(counts_of(labels, rng.integers(10, size=5000), 10)) for _ in range(200)]
    assert sum(each is not None for each in found) >= 190


def test_on_unequal_classes_the_largest_is_the_measure():
    labels = np.repeat([0, 1], [900, 100])
    better, as_good = labels.copy(), np.zeros(1000, int)
    better[:20] = 1
    as_good[:40], as_good[900:930] = 1, 1
    assert trivial(counts_of(labels, better, 2)) is None
    assert "above 90.0, the share of class 0" in trivial(counts_of(labels, as_good, 2))


@pytest.mark.parametrize("accuracy", [0.45, 0.7, 1.0])
def test_a_classifier_that_knows_something_is_not_trivial(accuracy):
    assert trivial(counts_of(LABELS, predictions_of(accuracy), 3)) is None
