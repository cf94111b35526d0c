"""The report: what it says, what it refuses, that it loads nothing, and that a real browser draws it."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.reports import browse, curve, make_run, metrics, read, text_of

from bird.errors import RunError
from bird.measuring.metrics import assess
from bird.measuring.seeds import two_level_interval
from bird_cache.errors import StorageError
from bird_pipelines.marks import with_caveats
from bird_pipelines.reporting import plots
from bird_pipelines.reporting.loading import folders_of_runs
from bird_pipelines.reporting.recall_chart import recall_chart
from bird_pipelines.reporting.report import write_report

HEADINGS = ("How to read this", "What ran", "Results", "AUROC against mean-DEO", "Configurations in detail")


def test_is_well_formed_and_loads_nothing(page):
    reader = read(page)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in reader.links)
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    html = re.sub(r'"data:image/png;base64,[\w+/=]*"', '""', page.read_text())  # base64 has // by chance
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert len(reader.ids) == len({*reader.ids})
    references = {link[1:] for link in reader.links if link.startswith("#")} | {*re.findall(r"url\(#([^)]+)\)", html)}
    assert references <= {*reader.ids}


def test_says_what_ran_and_what_came_out(page, runs):
    text = text_of(page)
    for wanted in (
        *HEADINGS,
        "Ours & <theirs>",
        "13 finished runs of 5 configurations",
        "3f1c9a7be2d04c55",
        "45,000",
    ):
        assert wanted in text
    for wanted in (
        "plane x colour: 3",
        "torch",
        "2.14.1",
        "clip-vit-b32",
        "bird · lambda 0.01",
        "gray & 50 %",
        "日本",
    ):
        assert wanted in text
    assert "runs0/<script>: unfinished after 15 epochs" in text
    assert "not evaluated: no metrics-test.json" in text
    assert "not evaluated: no rows of class 3 x group 1" in text
    assert "Fewer than 8 seeds: effect and interval only; no significance claim is made." in text
    assert "baseline: 3; fitnet: 3; bird · lambda 0.01: 3" in text
    baseline = [json.loads((run / "metrics-test.json").read_text()) for run in runs[:3]]
    for name in ("auroc", "f1_macro", "accuracy", "mean_deo", "max_deo"):
        values = [each[name] for each in baseline]
        assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert f"{np.mean([each['deo_floor']['mean'] for each in baseline]):.1f}" in text
    over_seeds = two_level_interval([np.array(each["confusion"]) for each in baseline], "mean_deo", 200)
    assert f"beyond chance {over_seeds.beyond_chance:.1f}" in text
    assert "If it begins at 0, these rows do not show that there is a gap" in text
    assert "F1 of class 1" not in text


def test_promises_nothing(page):
    assert not re.search(r"\b(fair|debias\w*|unbiased|solved)\b", text_of(page), re.I)


def test_escapes_what_it_is_given(page):
    html = page.read_text()
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_same_runs_same_bytes(page, runs, tmp_path):
    again = write_report(runs, tmp_path / "again.html", title="Ours & <theirs>")
    assert again.read_bytes() == page.read_bytes()
    write_report(runs[:1], again)
    assert again.read_bytes() != page.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["again.html"]


def test_a_run_of_before_gets_the_intervals_of_today(runs):
    found = json.loads((runs[0] / "metrics-test.json").read_text())
    old = {name: value for name, value in found.items() if name != "beyond_chance"}
    old["intervals"] = found["intervals"] | {"mean_deo": [1.0, 2.0], "max_deo": [1.0, 2.0]}
    again = with_caveats(old)
    assert again["beyond_chance"] == found["beyond_chance"]
    assert again["intervals"] == found["intervals"]


def test_one_seed_has_its_own_interval_and_two_classes_their_f1(tmp_path):
    run = make_run(tmp_path / "one")
    got = metrics(0, 0.8, 0.1, classes=2)
    info = json.loads((run / "run.json").read_text()) | {"class_names": ["no", "yes"]}
    (run / "run.json").write_text(json.dumps(info))
    (run / "metrics-test.json").write_text(json.dumps(got))
    text = text_of(write_report([run], tmp_path / "report.html"))
    assert "F1 of class 1 ↑" in text
    assert f"{got['auroc']:.1f} {got['intervals']['auroc'][0]:.1f} – {got['intervals']['auroc'][1]:.1f}" in text
    assert not re.search(r"\d ± \d", text)
    assert "1 finished run of 1 configuration," in text


def test_eight_seeds_need_no_warning_and_a_repeated_one_is_left_out(tmp_path):
    made = [make_run(tmp_path / f"r{seed}", method="fitnet", seed=seed) for seed in range(8)]
    copy = make_run(tmp_path / "copy", method="fitnet", seed=3)
    text = text_of(write_report([*made, copy, made[0]], tmp_path / "report.html"))
    assert "Fewer than" not in text
    assert "8 finished runs of 1 configuration," in text
    assert re.search(r"/copy: the same configuration and seed as \S+/r3, left out", text)


def test_a_run_with_nothing_but_run_json_and_one_without_it(tmp_path):
    bare, begun = make_run(tmp_path / "bare", test=False), tmp_path / "begun"
    for name in ("curve.jsonl", "metrics-meta.json"):
        (bare / name).unlink()
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    text = text_of(write_report([bare, begun], tmp_path / "report.html"))
    assert "No curve recorded." in text
    assert "no run has metrics on the test split" in text
    assert "begun: unfinished after 0 epochs" in text


def test_a_curve_of_nulls_and_one_epoch(tmp_path):
    run = make_run(tmp_path / "run")
    parts = dict.fromkeys(("loss", "ce", "distance", "bias", "meta_bias", "gate", "meta"))
    (run / "curve.jsonl").write_text(json.dumps({"epoch": 1, "step": 1, "seconds": 0.1, **parts, "loss": float("nan")}))
    assert "not recorded" in text_of(write_report([run], tmp_path / "report.html"))


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: (run / "run.json").unlink(), "no run.json"),
        (lambda run: (run / "run.json").write_text("{"), "run.json"),
        (lambda run: (run / "run.json").write_text("[]"), "a list"),
        (
            lambda run: (run / "run.json").write_text('{"complete": true, "config": {}}'),
            "without class_names",
        ),
        (lambda run: (run / "curve.jsonl").write_text('{"epoch": 1}\nhalf'), "curve.jsonl"),
        (lambda run: (run / "metrics-test.json").write_text('{"auroc": 1}'), "no f1_macro"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, spoil, found):
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(RunError, match=found):
        write_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_no_finished_run_is_an_error(tmp_path):
    run = make_run(tmp_path / "run", complete=False)
    with pytest.raises(RunError, match=r"none that is finished .*unfinished after 15 epochs"):
        write_report([run], tmp_path / "report.html")
    with pytest.raises(RunError, match="none given"):
        write_report([], tmp_path / "report.html")


def test_a_folder_of_runs_has_those_of_its_folders_of_seeds_too(tmp_path):
    make_run(tmp_path / "r" / "one")
    for seed in (0, 1):
        make_run(tmp_path / "r" / "many" / f"seed-{seed}", seed=seed)
    (tmp_path / "r" / "one" / "seed-9").mkdir()  # no run
    found = folders_of_runs([tmp_path / "r"])
    assert [each.relative_to(tmp_path / "r").as_posix() for each in found] == ["many/seed-0", "many/seed-1", "one"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(StorageError, match=r"run\.json"):
        write_report([run], run / "run.json" / "report.html")


# ------------------------------------------------------------------------ floors, trivial students, what does not exist


def rewritten(run, labels, groups, predictions, names=("no", "yes"), group_names=("a", "b")):
    """The run with other test metrics."""
    scores = np.random.default_rng(0).random((len(labels), len(names))) + np.eye(len(names))[labels]
    found = assess(labels, groups, predictions, scores, len(names), len(group_names), replicates=100).as_json()
    (run / "metrics-test.json").write_text(json.dumps(found))
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"class_names": names, "group_names": group_names}))
    return found


def test_each_mark_has_its_own_floor():
    """Of two configurations one was tested on few rows: the mean of both floors is that of neither."""
    points = [plots.Point("a", "a", 3.0, 90.0, 2.0, False), plots.Point("a", "a", 4.0, 91.0, 2.4, False)]
    points.append(plots.Point("b", "b", 9.0, 80.0, 12.0, False))
    axes = plots.scatter(points, ["a", "b"]).axes[0]
    ticks = [line for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata())]
    drawn = {(round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6)) for line in ticks}
    assert drawn == {(2.0, 90.0), (2.4, 91.0), (2.2, 90.5), (12.0, 80.0)}
    upright = [
        line for line in axes.lines if len({*np.atleast_1d(line.get_xdata()).tolist()}) == 1 and line not in ticks
    ]
    assert not [line for line in upright if len(np.atleast_1d(line.get_ydata())) > 1], "no line for all of them"


def test_the_marks_of_trivial_students_are_hollow():
    points = [plots.Point("a", "a", 3.0, 90.0, 2.0, False), plots.Point("b", "b", 0.0, 95.0, 0.0, True)]
    axes = plots.scatter(points, ["a", "b"]).axes[0]
    faces = [
        each.get_facecolor()[0][:3].tolist()
        for each in axes.collections
        if len(each.get_offsets()) and len(each.get_facecolor())
    ]
    assert [1.0, 1.0, 1.0] in faces
    labels = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert "trivial student" in labels
    assert "floor of the mark" in labels


def test_each_gap_has_its_own_floor(tmp_path):
    """A class with few rows has a higher floor than the others."""
    run = make_run(tmp_path / "run", method="fitnet")
    labels = np.repeat([0, 1], [800, 12])
    groups = np.arange(812) % 2
    rewritten(run, labels, groups, np.where(np.arange(812) % 4 < 3, labels, 1 - labels))
    page = write_report([run], tmp_path / "report.html").read_text()
    assert "floor of each gap" in page
    assert "its floor" in page


def test_a_trivial_student_is_marked_in_the_table_and_in_its_detail(tmp_path):
    labels, groups = np.arange(800) % 2, np.arange(800) // 2 % 2
    made = [make_run(tmp_path / str(seed), method="ad", seed=seed) for seed in range(3)]
    for run in made[:2]:
        rewritten(run, labels, groups, np.ones(800, int))
    rewritten(made[2], labels, groups, np.where(np.arange(800) % 5 == 0, 1 - labels, labels))
    other = make_run(tmp_path / "other", method="fitnet")
    rewritten(other, labels, groups, np.where(np.arange(800) % 5 == 0, 1 - labels, labels))
    page = write_report([*made, other], tmp_path / "report.html")
    text = text_of(page)
    assert "ad: trivial student in 2 of 3 seeds, whose gap says nothing; seed 0: it names yes for every row" in text
    assert "Trivial student: it names yes for every row" in text
    assert page.read_text().count('class="mark">trivial student') == 2, "mean-DEO and max-DEO of one row"
    assert "A student is marked trivial if it names one class for every row" in text


def test_what_does_not_exist_is_not_available_with_its_reason(tmp_path):
    labels = np.arange(300) % 2
    one = make_run(tmp_path / "one", method="fitnet")
    rewritten(
        one, labels, np.zeros(300, int), np.where(np.arange(300) % 5 == 0, 1 - labels, labels), group_names=("all",)
    )
    text = text_of(write_report([one], tmp_path / "report.html"))
    assert text.count("n/a there is one group: a gap is between two") == 3
    assert "n/a: there is one group: a gap is between two" in text, "in place of the recalls' gaps"
    assert "no run has metrics on the test split that hold both" in text, "no place in the plot"
    many = make_run(tmp_path / "many")
    text = text_of(write_report([one, many], tmp_path / "report.html"))
    assert "n/a there are 10 classes: the F1 of class 1 is for two" in text


def test_the_curve_rings_what_trivial_students_showed(tmp_path):
    run = make_run(tmp_path / "run")
    lines = list(curve(True))
    for line in lines[:3]:
        line["meta"]["trivial"] = "it names cat for every row"
    (run / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "of a trivial student" in write_report([run], tmp_path / "report.html").read_text()


def test_a_run_that_stopped_early_says_which_epoch_it_kept_and_where_it_stopped(tmp_path):
    made = []
    for seed, stop in enumerate([(9, 15, 40), (15, 15, 15), (None, 15, 15)]):
        run = make_run(tmp_path / str(seed), method="fitnet", seed=seed, epochs=stop[2])
        info = json.loads((run / "run.json").read_text())
        said = {"score": "balanced accuracy on meta", "best_epoch": stop[0], "epochs_trained": stop[1]}
        info["early_stop"] = {**said, "note": "The meta split chose the epoch of this student."}
        (run / "run.json").write_text(json.dumps(info))
        made.append(run)
    page = write_report(made, tmp_path / "report.html")
    text = text_of(page)
    assert "The student is that of epoch 9 , the best of 15 by balanced accuracy on meta." in text
    assert "Training stopped early, after epoch 15 of at most 40. The meta split chose the epoch" in text
    assert "Training ran to its last epoch." in text
    assert "no epoch counted: the student is that of the last epoch, 15" in text
    assert page.read_text().count("epoch of the student") == 2


@pytest.mark.parametrize("groups", [1, 2, 5, 16])
def test_the_chart_of_recalls_escapes_names_and_has_room_for_groups(groups):
    names = [f"<group {number}>" for number in range(groups)]
    recalls = np.linspace(0, 1, 3 * groups).reshape(3, groups).tolist()
    chart = recall_chart(recalls, ["a", "b & c", "x" * 90], names, 2.0, [1.0, 2.0, 3.0])
    assert "<group" not in chart
    assert "b &amp; c" in chart
    assert "100.0" in chart
    width = float(re.search(r'viewBox="0 0 (\d+)', chart)[1])
    assert max(float(each) for each in re.findall(r'<text x="(\d+)', chart)) < width
    assert chart.count("<text") == 2 + 2 + 3 + groups + 3 * groups + 3


@pytest.mark.slow
def test_a_browser_draws_it(page, tmp_path):
    from PIL import Image

    shot, unfolded = tmp_path / "report.png", tmp_path / "unfolded.html"
    unfolded.write_text(page.read_text().replace("<details>", "<details open>"))
    browse(unfolded, tmp_path / "profile", "--window-size=1200,6400", f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (6400, 1200, 3)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 200
    assert counts.max() < 0.97 * counts.sum()
    for part in np.array_split(pixels, 8):  # something is drawn all the way down
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 50
    dom = browse(page, tmp_path / "profile2", "--dump-dom")
    assert dom.count("</svg>") == page.read_text().count("</svg>") > 8
    for heading in HEADINGS:
        assert f"<h2>{heading}</h2>" in dom


def test_long_names_leave_the_axes_room():
    """Matplotlib warns where they do not, and warnings are errors here."""
    names = [" · ".join(f"setting-{place} {value}" for place in range(20)) for value in (1, 2)]
    points = [plots.Point("method" * 20, name, 3.0, 90.0, 1.0, trivial=False) for name in names]
    assert "setting-0 1" in plots.scatter_plot(points, ["method" * 20], "long")
