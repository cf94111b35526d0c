"""`bird audit`: a report from a file of predictions, and one clear message for what does not fit."""

import inspect
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from helpers.reports import text_of
from PIL import Image
from typer.testing import CliRunner

import bird_pipelines
from bird.errors import BirdError, DataError, UsageError
from bird.measuring.metrics import assess
from bird_pipelines.cli import app
from bird_pipelines.reporting.audit import audit
from bird_pipelines.reporting.predictions_file import read_predictions

COLUMNS = {"label": "truth", "group": ["sex", "age"], "prediction": "told", "scores": ["p_no", "p_yes"]}


def columns(rows=1200, seed=0, worse=0.0):
    """Rows as a user has them: words for classes and groups; young women are served worse."""
    rng = np.random.default_rng(seed)
    truth, sex, age = rng.integers(2, size=rows), rng.integers(2, size=rows), rng.integers(3, size=rows)
    score = np.clip(rng.normal(0.35 + 0.3 * truth - (0.1 + worse) * (sex == 0), 0.15), 0.01, 0.99)
    names = np.array(["no", "yes"])
    found = {"truth": names[truth], "sex": np.array(["f", "m"])[sex], "age": 20 * (age + 1)}
    return found | {"told": names[(score > 0.5).astype(int)], "p_no": 1 - score, "p_yes": score}


def written(path, values):
    table = pa.table({name: pa.array(each) for name, each in values.items()})
    (pa.parquet.write_table if path.suffix == ".parquet" else pa.csv.write_csv)(table, path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_gives_the_whole_report(tmp_path, kind):
    file = written(tmp_path / f"p.{kind}", columns())
    found = audit(file, tmp_path / "out" / "report.html", **COLUMNS)
    assert [*found["groups"]] == ["sex x age", "sex", "age"]
    assert found["groups"]["sex x age"]["group_names"][:3] == ["f 20", "f 40", "f 60"]
    read = read_predictions(file, **COLUMNS)
    scores = assess(read.labels, read.groups["sex"], read.predictions, read.scores, 2, 2)
    summary = found["groups"]["sex"]["summary"]
    for name in ("auroc", "accuracy", "f1_macro", "mean_deo", "max_deo"):
        assert summary[name]["value"] == pytest.approx(getattr(scores, name)), name
        assert (summary[name]["low"], summary[name]["high"]) == pytest.approx(scores.intervals[name], abs=0.3)
    page = (tmp_path / "out" / "report.html").read_text()
    for wanted in (
        "By sex x age",
        "By sex",
        "By age",
        "demographic-parity gap",
        "Worst cell",
        "calibration error",
        "f 20",
    ):
        assert wanted in page
    assert "http" not in page
    assert json.dumps(found)
    frame = read.metric_frame("sex")
    assert frame.by_group["accuracy"]["f"] == pytest.approx(
        found["groups"]["sex"]["by_group"]["accuracy"][0]["value"] / 100
    )


def test_against_a_baseline_each_group_has_its_zone(tmp_path):
    baseline = written(tmp_path / "before.csv", columns())
    file = written(tmp_path / "after.csv", columns(worse=0.2))
    found = audit(file, tmp_path / "report.html", baseline=baseline, **COLUMNS)["groups"]["sex"]
    assert [each["zone"] for each in found["zones"]["accuracy"]] == ["worse", "within the interval"]
    assert found["zones"]["paired"]
    low, high = found["effects"]["mean_deo"]["interval"]
    assert 0 < low < high
    assert "against the baseline" in (tmp_path / "report.html").read_text()


def test_predictions_alone_and_scores_alone_are_enough(tmp_path):
    values = columns()
    file = written(tmp_path / "p.csv", values)
    alone = audit(file, tmp_path / "a.html", label="truth", group=["sex"], prediction="told")["groups"]["sex"]
    assert alone["summary"]["auroc"]["reason"] == "no scores are given"
    one = audit(file, tmp_path / "b.html", label="truth", group=["sex"], scores=["p_yes"])["groups"]["sex"]
    both = audit(file, tmp_path / "c.html", label="truth", group=["sex"], scores=["p_yes", "p_no"])["groups"]["sex"]
    assert one["confusion"] == alone["confusion"] == both["confusion"]
    assert one["summary"]["auroc"] == both["summary"]["auroc"]


def test_an_empty_cell_has_no_recall_and_no_gap_is_shown(tmp_path):
    values = columns()
    keep = ~((values["truth"] == "yes") & (values["sex"] == "f") & (values["age"] == 20))
    file = written(tmp_path / "p.csv", {name: each[keep] for name, each in values.items()})
    found = audit(file, tmp_path / "r.html", **COLUMNS)["groups"]
    assert found["sex x age"]["summary"]["mean_deo"]["value"] is None
    assert found["sex x age"]["by_group"]["recall"][1][0]["reason"] == "no rows"
    assert found["sex"]["summary"]["mean_deo"]["value"] is not None
    assert "n/a" in (tmp_path / "r.html").read_text()


def test_who_names_one_class_is_marked(tmp_path):
    values = columns()
    file = written(tmp_path / "p.csv", values | {"told": np.full(1200, "no")})
    audit(file, tmp_path / "r.html", label="truth", group=["sex"], prediction="told")
    assert "Trivial classifier:" in (tmp_path / "r.html").read_text()


def spoilt(name, value, at=3):
    def spoil(values):
        changed = values[name].astype(object)
        changed[at] = value
        return values | {name: changed}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: {name: each for name, each in v.items() if name != "sex"}, "sex"),
        (lambda v: v | {"truth": np.arange(1200) % 1000}, "1,000 values in column 'truth'"),
        (lambda v: v | {"sex": np.full(1200, "f")}, "1 value (f) in column 'sex'"),
        (spoilt("p_yes", float("nan")), "1 empty or NaN values in column 'p_yes', the first in row 4"),
        (spoilt("truth", None), "1 empty or NaN values in column 'truth', the first in row 4"),
        (spoilt("told", "perhaps"), "perhaps in column 'told'"),
    ],
)
def test_what_does_not_fit_is_one_clear_message_and_nothing_is_written(tmp_path, spoil, said):
    file = written(tmp_path / "p.parquet", spoil(columns()))
    with pytest.raises(BirdError) as caught:
        audit(file, tmp_path / "r.html", **COLUMNS)
    assert said in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["p.parquet"]


@pytest.mark.parametrize("classes", [2, 12])
def test_many_groups_make_long_tables_and_no_wide_ones(tmp_path, classes):
    """Paper cuts more than eight columns of numbers. Of classes and groups, the fewer are columns."""
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(size, size=6000) for name, size in (("truth", classes), ("sex", 2), ("age", 4))}
    names = {name: np.array([f"{name}{each}" for each in range(12)])[code] for name, code in codes.items()}
    region = np.array(["east", "north", "west"])[rng.integers(3, size=6000)]
    file = written(tmp_path / "p.csv", names | {"region": region, "told": names["truth"]})
    found = audit(file, tmp_path / "r.html", label="truth", group=["sex", "age", "region"], prediction="told")
    heads = re.findall("<thead>.*?</thead>", (tmp_path / "r.html").read_text(), re.S)
    assert max(each.count("<th ") for each in heads) <= 9
    assert len(found["groups"]["sex x age x region"]["group_names"]) == 24
    text = text_of(tmp_path / "r.html")
    for name in found["groups"]["sex x age x region"]["group_names"]:
        assert name in text
    for at in range(classes):
        assert f"recall of truth{at} " in text
        counted = found["groups"]["sex x age x region"]["confusion"][at]
        assert f"{sum(counted[23]):,} rows" in text


def test_the_command_prints_the_worst_cell(tmp_path):
    file = written(tmp_path / "p.csv", columns())
    command = ["audit", str(file), "--label", "truth", "--group", "sex,age", "--prediction", "told"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    assert "by sex x age: worst cell" in done.stdout
    assert "bird 0." in CliRunner().invoke(app, ["--version"]).stdout


def test_predictions_as_whole_floats_are_the_classes_that_labels_name_as_integers(tmp_path):
    values = columns()
    truth = 1_000_000 + (values["truth"] == "yes")
    told = (1_000_000 + (values["told"] == "yes")).astype(float)
    file = written(tmp_path / "p.parquet", values | {"truth": truth, "told": told})
    read = read_predictions(file, label="truth", group=["sex"], prediction="told")
    assert read.class_names == ["1000000", "1000001"]
    assert (read.predictions == (values["told"] == "yes")).all()


def test_the_functions_of_the_package_stay_functions_once_their_modules_are_loaded(tmp_path):
    file = written(tmp_path / "p.csv", columns())
    found = bird_pipelines.audit(file, tmp_path / "r.html", label="truth", group="sex", prediction="told")
    assert [*found["groups"]] == ["sex"]
    with pytest.raises(BirdError, match="no such folder"):
        bird_pipelines.report(tmp_path / "none", tmp_path / "no.html")
    with pytest.raises(BirdError, match=r"no config\.json"):
        bird_pipelines.evaluate(tmp_path / "none")
    for name in bird_pipelines.__all__:
        assert inspect.isfunction(getattr(bird_pipelines, name)), name


def test_a_column_of_predictions_counts_and_scores_serve_auroc_only(tmp_path):
    values = columns()
    told = values.pop("told")
    for name in ("prediction", "predicted"):
        file = written(tmp_path / "p.csv", values | {name: told[::-1]})
        scored = audit(file, tmp_path / "r.html", label="truth", group=["sex"], scores=["p_no", "p_yes"])["groups"][
            "sex"
        ]
        named = audit(file, tmp_path / "r.html", label="truth", group=["sex"], prediction=name)["groups"]["sex"]
        assert scored["confusion"] == named["confusion"]
        assert scored["summary"]["auroc"]["value"] > 80
    file = written(tmp_path / "p.csv", spoilt("prediction", "perhaps")(values | {"prediction": told}))
    with pytest.raises(DataError, match="perhaps in column 'prediction'"):
        audit(file, tmp_path / "no.html", label="truth", group=["sex"], scores=["p_no", "p_yes"])
    both = written(tmp_path / "p.csv", values | {"prediction": told, "predicted": told[::-1]})
    read = read_predictions(both, label="truth", group=["sex"], prediction=None)
    assert (read.predictions == (told == "yes")).all()


@pytest.mark.parametrize(
    "roles",
    [
        {"label": "prediction", "group": ["sex"]},
        {"label": "truth", "group": ["sex"], "prediction": "truth"},
        {"label": "truth", "group": ["sex", "sex"]},
        {"label": "truth", "group": ["truth"]},
        {"label": "truth", "group": ["sex"], "scores": ["p_no", "p_no"]},
    ],
)
def test_a_column_has_one_role(tmp_path, roles):
    values = columns()
    file = written(tmp_path / "p.csv", values | {"prediction": values["told"]})
    with pytest.raises(UsageError, match="two roles"):
        audit(file, tmp_path / "no.html", **roles)
    assert not (tmp_path / "no.html").exists()


def test_what_is_no_table_is_one_clean_line(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "ragged.csv").write_text("label,group\n1,2,3\n")
    (tmp_path / "marks.csv").write_text("label;group;prediction\n1;2;1\n")
    (tmp_path / "twice.csv").write_text("label,group,label,prediction\n1,2,1,1\n")
    for name, said in (
        ("photo.jpg", "not a CSV or Parquet file"),
        ("text.parquet", "not a CSV or Parquet file"),
        ("ragged.csv", "Expected 2 columns, got 3"),
        ("marks.csv", "one column, 'label;group;prediction'"),
        ("twice.csv", "several columns 'label'"),
        ("none.csv", "no such file"),
        (".", "a folder"),
    ):
        with pytest.raises(DataError) as caught:
            audit(tmp_path / name, tmp_path / "no.html")
        assert said in caught.value.found
        assert str(caught.value).isprintable()
