"""Metrics against scikit-learn and fairlearn, intervals against resampling rows, and the laws both obey."""

import json
import time

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, equalized_odds_difference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from bird.errors import DataError, EmptyCellError
from bird.measuring import metrics
from bird.measuring.intervals import gap_intervals
from bird.measuring.metrics import assess, auroc, confusion, deo_floor, equalized_odds, max_deo, mean_deo, recalls
from bird.measuring.seeds import two_level_interval, two_level_intervals

FEW = 20


def draw(seed, classes, groups, rows, accuracy=0.6):
    """Labels, groups, predictions, scores with ties; every cell holds a row."""
    rng = np.random.default_rng(seed)
    cell = np.concatenate([np.arange(classes * groups), rng.integers(classes * groups, size=rows)])
    labels, group = cell // groups, cell % groups
    right = rng.random(len(cell)) < accuracy - 0.2 * group / groups
    predictions = np.where(right, labels, rng.integers(classes, size=len(cell)))
    scores = rng.random((len(cell), classes))
    scores[np.arange(len(cell)), predictions] += 1
    scores = (scores / scores.sum(1, keepdims=True)).round(2)
    return labels, group, predictions, scores


samples = st.builds(
    lambda seed, classes, groups, rows: (*draw(seed, classes, groups, rows), classes, groups),
    st.integers(0, 2**32),
    st.integers(2, 6),
    st.integers(2, 4),  # one group has no gap: fairlearn's is 0, ours does not exist
    st.integers(0, 120),
)


@given(samples)
@settings(max_examples=40, deadline=None)
def test_recalls_and_f1_are_sklearns(sample):
    labels, groups, predictions, _, classes, groups_count = sample
    got = assess(*sample, replicates=FEW)
    names = list(range(classes))
    for group in range(groups_count):
        rows = groups == group
        expected = recall_score(labels[rows], predictions[rows], labels=names, average=None, zero_division=np.nan)
        assert_allclose(got.recalls[:, group], expected, atol=1e-12)
    expected = f1_score(labels, predictions, labels=names, average="macro", zero_division=0)
    assert_allclose(got.f1_macro, 100 * expected, atol=1e-9)
    if classes == 2:
        assert_allclose(got.f1_binary, 100 * f1_score(labels, predictions, zero_division=0), atol=1e-9)
    else:
        assert got.f1_binary is None
    assert_allclose(got.accuracy, 100 * (labels == predictions).mean())
    assert got.n == got.counts.sum() == len(labels)


@given(samples)
@settings(max_examples=40, deadline=None)
def test_auroc_is_sklearns_with_ties(sample):
    labels, _, _, scores, classes, _ = sample
    one_vs_rest = [roc_auc_score(labels == c, scores[:, c]) for c in ([1] if classes == 2 else range(classes))]
    found = auroc(labels, scores)
    assert found.value == pytest.approx(100 * np.mean(one_vs_rest))
    assert 0 <= found.low <= found.value <= found.high <= 100


def test_aurocs_variance_is_delongs():
    """Pair by pair, as DeLong et al. (1988) write it, on the logit scale."""
    labels, _, _, scores = draw(0, 2, 2, 60)
    positive, negative = scores[labels == 1, 1], scores[labels == 0, 1]
    kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = kernel.mean(1).var(ddof=1) / len(positive) + kernel.mean(0).var(ddof=1) / len(negative)
    area = kernel.mean()
    half = norm.ppf(0.975) * np.sqrt(variance) / (area * (1 - area))
    assert_allclose(auroc(labels, scores), 100 * expit(logit(area) + np.array([0, -half, half])))


@pytest.mark.parametrize(("classes", "apart"), [(2, 1.0), (4, 0.5), (4, 2.5)])
def test_aurocs_interval_holds_the_true_one(classes, apart):
    """200 samples of 40 rows a class: at 95 % at most 17 miss it, with probability .99."""
    rng, held = np.random.default_rng(0), 0
    true = 100 * norm.cdf(apart / np.sqrt(2))
    labels = np.repeat(np.arange(classes), 40)
    for _ in range(200):
        scores = rng.standard_normal((len(labels), classes))
        scores[np.arange(len(labels)), labels] += apart
        _, low, high = auroc(labels, scores)
        held += low <= true <= high
    assert held >= 183


def test_rows_in_perfect_order_leave_no_interval():
    labels = np.repeat([0, 1, 2], 5)
    assert auroc(labels, np.eye(3)[labels]) == (100, 100, 100)
    assert auroc(labels, -np.eye(3)[labels]) == (0, 0, 0)


def test_auroc_is_sklearns_multiclass_average():
    labels, _, _, scores = draw(0, 4, 2, 300)
    scores = scores / scores.sum(1, keepdims=True)
    expected = 100 * roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert auroc(labels, scores).value == pytest.approx(expected)


@given(samples.filter(lambda sample: sample[4] == 2))
@settings(max_examples=40, deadline=None)
def test_deo_is_fairlearns(sample):
    labels, groups, predictions = sample[:3]
    got = assess(*sample, replicates=FEW)
    for name, agg in (("mean_deo", "mean"), ("max_deo", "worst_case")):
        expected = equalized_odds_difference(labels, predictions, sensitive_features=groups, agg=agg)
        assert_allclose(getattr(got, name), 100 * expected, atol=1e-9)
    frame = MetricFrame(metrics=recall_score, y_true=labels, y_pred=predictions, sensitive_features=groups)
    assert_allclose(got.recalls[1], frame.by_group)
    assert equalized_odds(labels, groups, predictions)[:2] == (got.mean_deo, got.max_deo)


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_and_the_names_of_groups_change_nothing(sample, random):
    labels, groups, predictions, scores, classes, groups_count = sample
    order, names = list(range(len(labels))), list(range(groups_count))
    random.shuffle(order)
    random.shuffle(names)
    before = assess(*sample, replicates=FEW)
    renamed = np.array(names)[groups]
    after = assess(
        labels[order],
        renamed[order],
        predictions[order],
        scores[order],
        classes,
        groups_count,
        replicates=FEW,
    )
    assert_allclose(after.recalls[:, names], before.recalls)
    for name in ("auroc", "f1_macro", "accuracy", "mean_deo", "max_deo"):
        assert_allclose(getattr(after, name), getattr(before, name))


def test_json_is_plain_and_repeatable():
    sample = (*draw(1, 3, 2, 200), 3, 2)
    got = assess(*sample, replicates=200).as_json()
    assert json.loads(json.dumps(got, allow_nan=False)) == got == assess(*sample, replicates=200).as_json()
    assert got["intervals"].keys() == {"auroc", "accuracy", "f1_macro", "mean_deo", "max_deo"}
    assert np.shape(got["confusion"]) == (3, 2, 3)
    for name in ("auroc", "accuracy", "f1_macro"):
        low, high = got["intervals"][name]
        assert 0 < low < got[name] < high < 100


def test_every_empty_cell_is_named():
    counts = confusion([0, 1, 1, 2], [0, 0, 1, 1], [0, 1, 1, 2], 3, 2)
    with pytest.raises(EmptyCellError, match=r"class 0 x group 1, class 2 x group 0"):
        recalls(counts)
    with pytest.raises(EmptyCellError, match=r"class cat x group gray, class owl x group colour"):
        recalls(counts, ["cat", "dog", "owl"], ["colour", "gray"])
    with pytest.raises(EmptyCellError):
        assess([0, 1, 1], [0, 0, 1], [0, 1, 1], np.eye(2)[[0, 1, 1]], 2, 2)
    with pytest.raises(EmptyCellError, match=r"class b x group y"):
        equalized_odds(["a", "a", "b"], ["x", "y", "x"], ["a", "b", "b"])


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (([0, 2], [0, 1], [0, 1]), "labels: found 2"),
        (([0, 1], [0, -1], [0, 1]), "groups: found -1"),
        (([0, 1], [0, 1], [0, 9]), "predictions: found 9"),
        (([0, 1], [0, 1], [0]), "lengths"),
        (([0.5, 1], [0, 1], [0, 1]), "labels: found float64"),
    ],
)
def test_what_is_no_class_is_refused(columns, what):
    with pytest.raises(DataError, match=what):
        confusion(*columns, 2, 2)


@pytest.mark.parametrize("broken", [np.full((4, 2), np.nan), np.zeros((4, 3)), np.zeros((3, 2))])
def test_scores_that_rank_nothing_are_refused(broken):
    with pytest.raises(DataError, match="scores"):
        assess([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], broken, 2, 2)


def test_intervals_are_those_of_resampling_rows():
    """Quantiles of the statistics over rows drawn with replacement, one replicate at a time, with sklearn."""
    classes, groups_count = 3, 2
    labels, groups, predictions, scores = draw(2, classes, groups_count, 300)
    got = assess(labels, groups, predictions, scores, classes, groups_count)
    rng = np.random.default_rng(1)
    replicates = {"accuracy": [], "f1_macro": [], "auroc": []}
    for _ in range(800):
        rows = rng.integers(len(labels), size=len(labels))
        y, p = labels[rows], predictions[rows]
        replicates["accuracy"].append(100 * (y == p).mean())
        replicates["f1_macro"].append(100 * f1_score(y, p, average="macro"))
        one_vs_rest = [roc_auc_score(y == c, scores[rows, c]) for c in range(classes)]
        replicates["auroc"].append(100 * np.mean(one_vs_rest))
    for name, values in replicates.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert_allclose(got.intervals[name], (low, high), atol=0.2 * (high - low), err_msg=name)


def test_gaps_have_intervals_and_estimates_by_test_inversion():
    """Six rows a cell, equal recalls: what is observed is chance, and the numbers say so."""
    labels, groups = np.repeat([0, 0, 1, 1], 6), np.tile(np.repeat([0, 1], 6), 2)
    predictions = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).ravel()
    got = assess(labels, groups, predictions, np.eye(2)[predictions], 2, 2, replicates=FEW)
    expected = gap_intervals(got.confusion)
    for name, gap in expected.items():
        assert got.intervals[name] == (gap.low, gap.high)
        assert got.beyond_chance[name.removesuffix("_deo")] == gap.beyond_chance
    assert got.mean_deo == pytest.approx(100 / 6)
    assert got.intervals["mean_deo"][0] == got.beyond_chance["mean"] == 0
    assert got.as_json()["beyond_chance"] == dict(got.beyond_chance)


def test_a_rare_class_leaves_the_auroc_defined():
    labels = np.array([0] * 300 + [1] * 2)
    groups = np.arange(302) % 2
    scores = np.random.default_rng(0).random((302, 2))
    low, high = assess(labels, groups, labels, scores, 2, 2, replicates=FEW).intervals["auroc"]
    assert 0 <= low <= high <= 100


def test_equal_recalls_show_the_floor_on_average():
    """The floor is what a classifier without any difference between groups shows at this sample size."""
    classes, per_cell, recall = 4, 25, np.array([0.9, 0.7, 0.5, 0.3])
    rng = np.random.default_rng(0)
    seen, floors = [], []
    for _ in range(300):
        hits = rng.binomial(per_cell, recall[:, None], size=(classes, 2))
        counts = np.zeros((classes, 2, classes), np.int64)
        for c in range(classes):
            counts[c, :, c], counts[c, :, (c + 1) % classes] = hits[c], per_cell - hits[c]
        shares = recalls(counts)
        seen.append((mean_deo(shares), max_deo(shares)))
        floors.append(tuple(deo_floor(counts, replicates=500).values()))
    assert_allclose(np.mean(seen, axis=0), np.mean(floors, axis=0), rtol=0.05)
    assert np.mean(seen, axis=0)[0] > 5


def test_the_floor_vanishes_with_many_rows():
    counts = np.array([[[1, 1], [1, 1]], [[1, 1], [1, 1]]], np.int64)
    small, large = (deo_floor(counts * n)["mean"] for n in (10, 100_000))
    assert small > 10
    assert large < 0.5


def seeds(count, spread, rows=400):
    """Confusions of runs whose accuracy differs by seed."""
    rng = np.random.default_rng(3)
    means = 0.6 + spread * rng.standard_normal(count)
    return [confusion(*draw(seed, 3, 2, rows, mean)[:3], 3, 2) for seed, mean in enumerate(means)]


def test_two_level_interval_of_one_seed_is_the_row_bootstrap():
    labels, groups, predictions, scores = draw(0, 3, 2, 400)
    got = assess(labels, groups, predictions, scores, 3, 2)
    for name in metrics.STATISTICS:
        mean, low, high, _ = two_level_interval([got.confusion], name, seed=5)
        assert mean == pytest.approx(getattr(got, name))
        assert_allclose((low, high), got.intervals[name], atol=0.1 * (high - low))


def test_two_level_intervals_hold_the_mean_over_seeds():
    """Three seeds, whose recalls differ, on one test set: the seeds' error by Student's t, that of the rows in full."""
    rng = np.random.default_rng(0)
    classes, groups_count, rows, truth = 3, 2, 300, np.array([[0.8, 0.6], [0.7, 0.7], [0.6, 0.75]])
    drawn = np.clip(truth + 0.03 * rng.standard_normal((4000, *truth.shape)), 0, 1)
    expected = {
        "accuracy": 100 * truth.mean(),
        "mean_deo": 100 * np.ptp(drawn, axis=2).mean(),
        "max_deo": 100 * np.ptp(drawn, axis=2).max(1).mean(),
    }
    held = dict.fromkeys(expected, 0)
    difficulty = rng.standard_normal((60, classes, groups_count, rows))
    for shared in difficulty:
        confusions = []
        for _ in range(3):
            recall = np.clip(truth + 0.03 * rng.standard_normal(truth.shape), 0, 1)
            scores = np.sqrt(0.5) * shared + np.sqrt(0.5) * rng.standard_normal(shared.shape)
            right = (scores < norm.ppf(recall)[:, :, None]).sum(2)
            counts = np.zeros((classes, groups_count, classes), np.int64)
            for c in range(classes):
                counts[c, :, c], counts[c, :, (c + 1) % classes] = right[c], rows - right[c]
            confusions.append(counts)
        for name, value in expected.items():
            _, low, high, _ = two_level_intervals(confusions, 200)[name]
            held[name] += low <= value <= high
    assert min(held.values()) >= 54


def test_two_level_intervals_repeat_themselves():
    again, found = (two_level_intervals(seeds(5, 0.1), 300) for _ in range(2))
    assert again == found
    mean, low, high, _ = found["accuracy"]
    assert low < mean < high
    assert two_level_interval(seeds(5, 0.1), "accuracy", 300) == found["accuracy"]


def test_seeds_that_differ_widen_the_two_level_interval():
    (_, low, high, _), (_, wide_low, wide_high, _) = (
        two_level_interval(seeds(6, spread), "accuracy") for spread in (0.0, 0.15)
    )
    assert wide_high - wide_low > 2 * (high - low)
    with pytest.raises(DataError, match="no runs"):
        two_level_interval([])


def test_a_large_test_set_takes_about_a_second():
    """20,000 rows, 10 classes, 10,000 replicates: half a second on one core of a small machine."""
    sample = (*draw(0, 10, 2, 20_000), 10, 2)
    began = time.perf_counter()
    assess(*sample)
    assert time.perf_counter() - began < 5
