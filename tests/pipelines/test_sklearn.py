"""BirdClassifier: scikit-learn's own checks, and what its groups and options do."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from bird.errors import UsageError
from bird.measuring.metrics import confusion, mean_deo, recalls
from bird_pipelines.sklearn import BirdClassifier

# Checks of scikit-learn that are declared to fail, and why.
EXCEPTIONS: dict[str, str] = {}


@pytest.mark.slow
def test_scikit_learn_s_own_checks():
    found = check_estimator(BirdClassifier(), expected_failed_checks=EXCEPTIONS, on_skip=None)
    assert {each["check_name"] for each in found if each["status"] == "skipped"} <= {"check_array_api_input"}
    assert sum(each["status"] == "passed" for each in found) > 50


def shortcut(rows, seed):
    """Two classes; the first number tells the class with noise, the second the group, which goes with the class in 95 % of
    rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    groups = np.where(rng.random(rows) < 0.95, y, 1 - y)
    X = rng.normal(0, 1, (rows, 8))
    X[:, 0] += 1.5 * y
    X[:, 1] += 4 * groups
    return X, np.array(["no", "yes"])[y], np.array(["a", "b"])[groups]


def gap(model, seed=1):
    X, y, groups = shortcut(4000, seed)
    index = [np.unique(each, return_inverse=True)[1] for each in (y, groups, model.predict(X))]
    return mean_deo(recalls(confusion(*index, 2, 2)))


def test_groups_are_told_to_fit_and_decide():
    X, y, groups = shortcut(2000, 0)
    options = {"epochs": 10, "random_state": 0}
    plain = BirdClassifier("baseline", **options).fit(X, y, groups=groups)
    ours = BirdClassifier("bird-offsets", **options).fit(X, y, groups=groups)
    assert [*ours.classes_] == ["no", "yes"]
    assert [*ours.groups_] == ["a", "b"]
    assert gap(ours) < 0.6 * gap(plain)
    scores = ours.predict_proba(X)
    assert scores.shape == (2000, 2)
    assert scores.sum(1) == pytest.approx(1)
    assert (ours.classes_[scores.argmax(1)] == ours.predict(X)).all()


def test_the_seed_decides_and_nothing_is_printed(capsys):
    X, y, groups = shortcut(300, 0)
    one, two, other = (
        BirdClassifier(epochs=2, random_state=seed).fit(X, y, groups=groups).predict_proba(X) for seed in (0, 0, 1)
    )
    assert (one == two).all()
    assert (one != other).any()
    assert capsys.readouterr() == ("", "")
    BirdClassifier(epochs=1, random_state=0, verbose=True).fit(X, y)
    assert "samples/s" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["bkd", "mfd", "ad", "domain-independent", "group-dro"])
def test_every_method_of_vectors(method):
    X, y, groups = shortcut(300, 0)
    model = BirdClassifier(method, epochs=10, random_state=0).fit(X, y, groups=groups)
    assert model.score(X, y) > 0.6


def test_options_are_those_of_distill():
    X, y, groups = shortcut(300, 0)
    options = {"optimizer": "sgd", "lr_schedule": "cosine", "early_stop": 2}
    model = clone(BirdClassifier(epochs=20, options=options, lr=0.1, alpha=0.5, lambda_o=0.1, random_state=0)).fit(
        X, y, groups=groups
    )
    assert model.score(X, y) > 0.5
    for wrong in ({"options": {"alhpa": 1}}, {"method": "brid"}, {"method": "at"}, {"lambda_o": -1.0}):
        with pytest.raises(UsageError):
            BirdClassifier(epochs=1, **wrong).fit(X, y, groups=groups)
    with pytest.raises(ValueError, match="groups"):
        BirdClassifier(epochs=1).fit(X, y, groups=groups[:10])


def test_it_works_inside_a_pipeline_and_a_search():
    X, y, _ = shortcut(200, 0)
    model = make_pipeline(StandardScaler(), BirdClassifier(epochs=2, random_state=0))
    search = GridSearchCV(model, {"birdclassifier__alpha": [0.1, 0.9]}, cv=2).fit(X, y)
    assert search.best_params_["birdclassifier__alpha"] in (0.1, 0.9)
