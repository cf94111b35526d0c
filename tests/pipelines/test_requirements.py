"""What a run needs is looked at before its folder is touched: names, values, samples in the cells that a method needs."""

import json
import re

import numpy as np
import pytest
from helpers import cachekit
from helpers.shell import bird, bird_json, distilled, panel

import bird_pipelines
from bird.datasets import open_dataset
from bird.errors import EmptyCellError, UsageError, WrongRunError
from bird.methods import METHODS, Hyperparameters, build_method
from bird.students import load_student, student_files
from bird.teachers import load_teacher
from bird_pipelines.cli.catalogue import catalogue
from bird_pipelines.config import resolve, resolve_precompute
from bird_pipelines.distilling.evaluate import evaluate
from bird_pipelines.distilling.side_by_side import distill_many
from bird_pipelines.precomputing.caches import convert_command
from bird_pipelines.precomputing.imports import export, import_vectors
from bird_pipelines.reporting.report import write_report
from bird_pipelines.study.tables.recipes import load_profile, load_recipe, select

SHORT = {"epochs": 1, "warmup": 0, "batch_size": 32}
DIM = 6


def made(where, labels, groups, splits, classes=("no", "yes"), names=("a", "b")):
    """A cache of vectors that tell the class, and less clearly the group."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(len(classes) + len(names), DIM))
    vectors = centres[labels] + 0.3 * centres[len(classes) + np.asarray(groups)] + rng.normal(size=(len(labels), DIM))
    return cachekit.made_up(where, labels, groups, splits, vectors, classes, names)


def lacking(where, split, rows=400):
    """A cache in which a split has no sample of class yes x group b."""
    number = np.arange(rows)
    labels, groups = number % 2, number // 2 % 2
    splits = np.array(["train", "train", "meta", "test"])[number // 4 % 4]
    groups = np.where((splits == split) & (labels == 1), 0, groups)
    return made(where, labels, groups, splits.tolist())


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Caches without class yes x group b in train, and in meta."""
    root = tmp_path_factory.mktemp("without")
    return {split: lacking(root / split, split) for split in ("train", "meta")}


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("wrong", "right", "meant"),
    [
        ({"method": "brid"}, {"method": "bird"}, "did you mean bird?"),
        ({"student": "adaptor"}, {}, "did you mean adapter?"),
        ({"method": "at"}, {}, "an image student"),
        ({"precision": "bf61"}, {}, "did you mean bf16?"),
        ({"device": "cpo"}, {}, "did you mean cpu?"),
        ({"preset": "papre"}, {"preset": "paper"}, "did you mean paper?"),
        ({"lambda": -1}, {}, "--lambda"),
        ({"lamda": 0.2}, {"lambda": 0.2}, "did you mean lambda?"),
        ({"warmup": 9}, {}, "--warmup"),
        ({"average": -0.5}, {}, "--average"),
        ({"method": "bird", "epochs": 2, "warmup": 1, "feedback_every": 99}, {"method": "bird"}, "feedback in none"),
    ],
)
def test_a_slip_leaves_no_folder_that_refuses_the_right_word(cache, tmp_path, wrong, right, meant):
    with pytest.raises(UsageError) as told:
        distilled(cache, tmp_path / "run", **{**SHORT, **wrong})
    if meant != "an image student":
        assert meant in str(told.value)
    assert not (tmp_path / "run").exists()
    assert distilled(cache, tmp_path / "run", **{**SHORT, **right})["complete"]


def test_many_runs_claim_no_folder_before_they_are_known_to_work(without, tmp_path):
    flags = {"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": str(without["train"]), **SHORT}
    configs = [resolve({**flags, "seed": seed, "out": tmp_path / str(seed)}) for seed in range(2)]
    with pytest.raises(EmptyCellError, match="class yes x group b"):
        distill_many(configs)
    assert not [*tmp_path.iterdir()]
    assert len(distill_many([config.but(method="fitnet") for config in configs])) == 2


def test_methods_are_compared_and_chosen_only_where_all_can_be_trained(without, tmp_path):
    """Before the first is trained: what the second lacks, and whether its folder is that of another run."""
    compared = {"cache": without["meta"], "methods": ["fitnet", "bird"], "out": tmp_path / "out", "seeds": 1, **SHORT}
    with pytest.raises(EmptyCellError, match="class yes x group b"):
        bird_pipelines.compare(**compared)
    with pytest.raises(EmptyCellError, match="no train sample of class yes x group b"):
        bird_pipelines.tune(cache=without["train"], out=tmp_path / "out", method="bird", trials=1, seeds=1, **SHORT)
    assert not (tmp_path / "out").exists()
    distilled(without["meta"], tmp_path / "out" / "ad-0", method="ad", **{**SHORT, "lr": 0.01})
    with pytest.raises(WrongRunError, match=r"lr = 0\.01"):
        bird_pipelines.compare(**{**compared, "methods": ["fitnet", "ad"]})
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["ad-0"]


def test_the_command_says_what_was_meant_and_writes_nothing(cache, tmp_path):
    done = bird("distill", "--cache", cache, "--method", "brid", "--out", tmp_path / "run", code=2)
    assert "did you mean bird?" in panel(done)
    done = bird("train", "--dataset", "digit-s", "--out", tmp_path / "run", code=2)
    assert "did you mean digits-s?" in panel(done)
    (tmp_path / "run.toml").write_text('methd = "bird"\nprecision = "fp23"\n')
    done = bird("distill", "--cache", cache, "--config", tmp_path / "run.toml", "--out", tmp_path / "run", code=2)
    assert "did you mean" in panel(done)
    assert "method" in panel(done)
    assert "fp32" in panel(done)
    assert not (tmp_path / "run").exists()


SLIPS = {
    "precompute's data set": (lambda: open_dataset("celebA", None), "celeba"),
    "a data set's setting": (lambda: open_dataset("digits-s", None, skwe=0.9), "skew"),
    "a teacher": (lambda: load_teacher("clip-vit-b-32"), "clip-vit-b32"),
    "a teacher's kind": (lambda: load_teacher("onxx:model.onnx"), "onnx:"),
    "a method": (lambda: build_method("Bird-Plus", Hyperparameters(), 2), "bird-plus"),
    "what precompute stores": (lambda: stored(dtype="flaot16"), "float16"),
    "a store": (lambda: stored(store="webdatset"), "webdataset"),
    "what happens on an error": (lambda: stored(on_error="skp"), "skip"),
    "the kind of a service's vectors": (lambda: stored(kind="projction"), "projection"),
    "an option from Python": (lambda: stored(batchsize=3), "batch_size"),
    "a store to convert to": (lambda: convert_command("a", "b", "zar", None, True), "zarr"),
    "a recipe": (lambda: load_recipe("tabel1"), "table1"),
    "a profile": (lambda: load_profile("dmeo", load_recipe("table1")[0]), "demo"),
    "a row": (lambda: select(load_recipe("table1")[0], ["fitnett"]), "fitnet"),
    "a list": (lambda: catalogue("student"), "students"),
    "how ids are matched": (lambda: imported(match="exct"), "exact"),
    "the kind of imported vectors": (lambda: imported(kind="logit"), "logits"),
}


def stored(**flags):
    return resolve_precompute({"teacher": "onnx:x", "dataset": "digits-s", "out": "x", **flags})


def imported(**flags):
    return import_vectors("v", "digits-s", "x", **{"kind": "penultimate", "provenance": "p", **flags})


@pytest.mark.parametrize(("ask", "meant"), SLIPS.values(), ids=SLIPS)
def test_every_slip_is_told_what_was_meant(ask, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        ask()


def test_what_resembles_nothing_is_told_where_to_look():
    with pytest.raises(UsageError, match="see `bird list methods`"):
        build_method("xyzzy", Hyperparameters(), 2)


def test_a_split_and_a_layer_by_a_wrong_name(cache, tmp_path):
    distilled(cache, tmp_path / "run", **SHORT)
    with pytest.raises(UsageError, match="did you mean test"):
        evaluate(tmp_path / "run", "tset")
    with pytest.raises(UsageError, match="did you mean penultimate"):
        export(str(cache), tmp_path / "out", "penultimat")


# -------------------------------------------------------------------------------------------------------- empty cells

TRAIN = {"reweight", "group-dro", "domain-independent", "mfd", "bird+mfd", "bird-plus", "bird-plus-no-meta"}
TRAIN |= {"bird", "bird+fitnet", "bird+at", "bird-no-meta"}  # lambda L_o of the train batch
TRAIN |= {"bird-offsets", "bird-offsets-no-meta"}  # where phi starts
META = {"bird", "bird+fitnet", "bird+at", "bird+mfd", "bird-plus", "bird-offsets"}


def test_what_each_method_needs_is_written_on_it():
    for name in METHODS:
        needs = build_method(name, Hyperparameters(), 2).cells
        assert {split for split, names in (("train", TRAIN), ("meta", META)) if name in names} == needs.keys(), name
        assert all(len(why) > 20 for why in needs.values())
    assert build_method("bird-no-meta", Hyperparameters(lambda_=0.0), 2).cells == {}
    assert build_method("bird", Hyperparameters(lambda_=0.0), 2).cells.keys() == {"meta"}


@pytest.mark.parametrize("split", ["train", "meta"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("at", "bird+at")])
def test_a_method_that_needs_an_empty_cell_refuses_and_others_record_it(without, tmp_path, split, method, capfd):
    needed = method in (TRAIN if split == "train" else META)
    if needed:
        with pytest.raises(
            EmptyCellError, match=f"no {split} sample of class yes x group b; wanted a {split} sample of every"
        ) as told:
            distilled(without[split], tmp_path / "run", method=method, **SHORT)
        assert "baseline, bkd, fitnet, at, ad" in told.value.fix
        assert ("--offsets-from zero" in str(told.value)) == (split == "train" and method.startswith("bird-offsets"))
        assert not (tmp_path / "run").exists()
        return
    info = distilled(without[split], tmp_path / "run", method=method, **SHORT)
    assert info["empty_cells"] == {split: ["class yes x group b"]}
    assert f"warning: no {split} sample of class yes x group b" in capfd.readouterr().err


def test_the_report_names_the_empty_cells(without, tmp_path):
    distilled(without["meta"], tmp_path / "run", method="baseline", **SHORT)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "cells without a sample" in page
    assert "meta: class yes x group b" in page
    line = json.loads((tmp_path / "run" / "curve.jsonl").read_text().splitlines()[0])
    assert line["meta"]["mean_deo"] is None
    assert line["meta"]["accuracy"] > 0, "what is there is measured"


def test_a_limit_that_empties_a_cell_is_named(cache, tmp_path):
    with pytest.raises(EmptyCellError, match=r"no \w+ sample of .*--limit 25.*raise --limit"):
        distilled(cache, tmp_path / "run", method="bird", limit=25, **SHORT)


def pictures(folder, rows=80):
    """32-pixel images; class yes x group b only in test; splits of one's own."""
    from PIL import Image

    lines = ["path,label,group,split"]
    for number in range(rows):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        label, group, split = number % 2, number // 2 % 2, ("train", "train", "meta", "test")[number // 4 % 4]
        if label and group and split != "test":
            group = 0
        lines.append(f"{number}.png,{('no', 'yes')[label]},{'ab'[group]},{split}")
    (folder / "samples.csv").write_text("\n".join(lines))


def test_precompute_counts_the_cells_by_split_and_warns_by_name(teacher, tmp_path):
    pictures(tmp_path)
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--out", tmp_path / "cache")
    done = bird("precompute", *flags)
    for split in ("train", "meta"):
        assert f"warning: no {split} sample of class yes x group b" in done.stderr
    line = next(line for line in done.stdout.splitlines() if "yes, b" in line)
    assert " ".join(line.split()).startswith("yes, b train NONE meta NONE test 5")
    info = bird_json("cache", "info", tmp_path / "cache")
    assert info["cells"]["train"] == {"no, a": 10, "no, b": 10, "yes, a": 20, "yes, b": 0}
    assert info["cells"]["meta"]["yes, b"] == 0
    assert {split: sum(cells.values()) for split, cells in info["cells"].items()} == info["splits"]


def test_a_cell_whose_images_all_failed_is_named_at_the_end(teacher, tmp_path):
    """It was there when the work was planned."""
    pictures(tmp_path)
    text = (tmp_path / "samples.csv").read_text()
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "samples.csv").write_text(text + "\nbroken.png,yes,b,meta")
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--out", tmp_path / "cache")
    done = bird("precompute", *flags, "--max-failed", 0.1)
    assert "warning: no train sample of class yes x group b; methods" in done.stderr
    assert "warning: no meta sample of class yes x group b: all its images failed" in done.stderr


@pytest.mark.parametrize(("column", "value"), [("label", "yes"), ("group", "female")])
def test_a_table_of_one_class_or_group_is_refused_before_the_teacher_is_loaded(tmp_path, column, value):
    (tmp_path / "samples.csv").write_text(
        "path,label,group\n" + "".join(f"{n}.jpg,{'yes' if column == 'label' else n % 2},female\n" for n in range(4))
    )
    flags = (
        "--teacher",
        "onnx:absent.onnx",
        "--dataset",
        "table",
        "--data-root",
        tmp_path,
        "--out",
        tmp_path / "cache",
    )
    text = panel(bird("precompute", *flags, code=2))
    assert f"samples.csv, column {column}" in text
    assert f"one value, '{value}', in all 4 rows" in text
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------- numbers that do not exist


def one_sided(where, classes, groups, rows=240):
    number = np.arange(rows)
    splits = np.array(["train", "train", "meta", "test"])[number // 4 % 4].tolist()
    labels, group = number % len(classes), number // 2 % len(groups)
    return made(where, labels, group, splits, classes, groups)


@pytest.mark.parametrize(
    ("classes", "groups", "missing"),
    [
        (("no", "yes"), ("female",), {"mean_deo", "max_deo"}),
        (("yes",), ("a", "b"), {"auroc", "f1_macro", "f1_binary", "accuracy", "mean_deo", "max_deo"}),
        (("x", "y", "z"), ("a", "b"), {"f1_binary"}),
    ],
)
def test_what_an_old_cache_cannot_show_is_not_available_and_says_why(tmp_path, capsys, classes, groups, missing):
    """Made before such data sets were refused: in JSON, in the terminal, in the report."""
    from bird_pipelines.cli import show

    cache = one_sided(tmp_path / "cache", classes, groups)
    info = distilled(cache, tmp_path / "run", method="fitnet", epochs=5, batch_size=32, lr=0.01)
    test = info["metrics"]["test"]
    found = {
        name for name in ("auroc", "f1_macro", "f1_binary", "accuracy", "mean_deo", "max_deo") if test[name] is None
    }
    assert found == missing <= test["undefined"].keys()
    assert test == json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    show.metrics_of(test)
    lines = {
        line.split()[0]: " ".join(line.split()[2:])
        for line in capsys.readouterr().out.splitlines()
        if " ↑" in line or " ↓" in line
    }
    assert {name for name, line in lines.items() if line.startswith("n/a: there")} == missing
    page = " ".join(write_report([tmp_path / "run"], tmp_path / "report.html").read_text().split())
    for name in missing - {"f1_binary"}:
        assert test["undefined"][name] in page
    assert page.count(">n/a<") >= len(missing - {"f1_binary"})


def test_one_group_gives_no_feedback_and_nothing_to_choose_by(tmp_path):
    cache = one_sided(tmp_path / "cache", ("no", "yes"), ("female",))
    with pytest.raises(UsageError, match=r"one group .female."):
        distilled(cache, tmp_path / "run", method="bird-offsets", pool=True, **SHORT)
    asked = {"cache": cache, "out": tmp_path / "run", "student": "adapter", "method": "bird", **SHORT}
    with pytest.raises(UsageError, match=r"one group .female."):
        bird_pipelines.distill(seeds="0-1", **asked)
    with pytest.raises(UsageError, match="two classes and two groups"):
        bird_pipelines.tune(cache=cache, out=tmp_path / "run", method="bkd", trials=1, seeds=1, **SHORT)
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_shows_no_zero_that_was_not_measured(tmp_path):
    """metrics-test.json as an earlier version wrote it: a gap of 0 within one group."""
    cache = one_sided(tmp_path / "cache", ("no", "yes"), ("female",))
    distilled(cache, tmp_path / "run", method="fitnet", **SHORT)
    path = tmp_path / "run" / "metrics-test.json"
    old = json.loads(path.read_text())
    old |= {"mean_deo": 0.0, "max_deo": 0.0, "deo_floor": {"mean": 0.0, "max": 0.0}}
    old["intervals"] |= {"mean_deo": [0.0, 0.0], "max_deo": [0.0, 0.0]}
    path.write_text(json.dumps({name: value for name, value in old.items() if name not in ("undefined", "trivial")}))
    again = bird_pipelines.distill(cache=cache, out=tmp_path / "run", method="fitnet", **SHORT)["metrics"]["test"]
    assert (again["mean_deo"], again["deo_floor"]["mean"], again["intervals"]["mean_deo"]) == (None, None, None)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "there is one group: a gap is between two" in page


def test_a_student_that_names_one_class_is_marked(cache, tmp_path):
    distilled(cache, tmp_path / "run", **SHORT)
    student = load_student(tmp_path / "run")
    student.head.bias.data[3] += 1e4
    for name, content in student_files(
        student, json.loads((tmp_path / "run" / "student.json").read_text())["cache_fingerprint"]
    ).items():
        (tmp_path / "run" / name).write_bytes(content)
    metrics = evaluate(tmp_path / "run")
    assert metrics["mean_deo"] == 0
    assert "it names 3 for every row" in metrics["trivial"]
    printed = " ".join(bird("evaluate", tmp_path / "run").stdout.split())
    assert re.search(r"mean_deo ↓ 0.00 \[0.0, [\d.]+\] floor 0.0 beyond chance 0.0 TRIVIAL, see below", printed)
    assert "trivial student, whose gap says nothing: it names 3 for every row" in printed
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "trivial student" in page
    assert "it names 3 for every row" in page
