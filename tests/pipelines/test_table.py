"""The table report: its numbers against the definitions, its five files read back, its figures."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from bird.measuring.metrics import assess
from bird.measuring.paired import holm, sign_flip_p
from bird.measuring.seeds import two_level_intervals
from bird_pipelines.predictions import load_predictions
from bird_pipelines.study.tables.figures import draw
from bird_pipelines.study.tables.files import CSV_COLUMNS, write_table
from bird_pipelines.study.tables.recipes import load_profile, load_recipe
from bird_pipelines.study.tables.table import Outcome, tabulate

SEEDS = 8
ACCURACY = {"Baseline": (0.8, 0.3), "BIRD w/o Meta": (0.8, 0.2), "BIRD": (0.8, 0.1)}
BLOCK = "celeba/resnet18/resnet18"


def finished_run(folder, seed, accuracy, gap):
    """A synthetic run folder with predictions of two classes for two groups."""
    rows = 800
    fixed = np.random.default_rng(99)
    labels, groups = fixed.integers(2, size=rows), fixed.integers(2, size=rows)
    rng = np.random.default_rng([seed, int(100 * gap)])
    predictions = np.where(rng.random(rows) < accuracy - gap * groups, labels, 1 - labels)
    scores = np.eye(2)[predictions] * 0.5 + rng.random((rows, 2)) / 2
    folder.mkdir(parents=True)
    config = {"method": "m", "seed": seed, "dataset": "celeba", "student": "resnet18"}
    rows_a_split = {"train": 1, "meta": 1, "test": rows}
    names = {"class_names": ["no", "yes"], "group_names": ["a", "b"]}
    (folder / "run.json").write_text(json.dumps({"complete": True, "config": config, "rows": rows_a_split, **names}))
    metrics = assess(labels, groups, predictions, scores, 2, 2, replicates=100).as_json()
    (folder / "metrics-test.json").write_text(json.dumps(metrics))
    ids = np.array([f"image-{row}".encode() for row in range(rows)])
    codes = {"labels": labels.astype(np.int16), "groups": groups.astype(np.int16)}
    codes["predictions"] = predictions.astype(np.int16)
    np.savez_compressed(folder / "predictions-test.npz", ids=ids, scores=scores.astype(np.float32), **codes)
    return folder, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Table 7 of synthetic runs: what was made, by row and seed."""
    root = tmp_path_factory.mktemp("table-runs")
    recipe, _ = load_recipe("table7")
    return {
        row: {
            seed: finished_run(root / row.id.replace("/", "-") / str(seed), seed, *ACCURACY[row.label])
            for seed in range(SEEDS)
        }
        for row in recipe.rows
    }


def record_of(made, profile="paper", seeds=SEEDS, failed=()):
    recipe, _ = load_recipe("table7")
    outcomes = [
        Outcome(row, {}, ["RunError: it broke <here> & there_1"])
        if row.label in failed
        else Outcome(row, {seed: folder for seed, (folder, _) in runs.items() if seed < seeds})
        for row, runs in made.items()
    ]
    return tabulate(recipe, load_profile(profile, recipe), outcomes)


def test_means_deviations_and_differences(made):
    record = record_of(made)
    (block,) = record["blocks"]
    for row, (source, runs) in zip(block["rows"], made.items(), strict=True):
        for metric, key in (("auroc", "auroc"), ("f1", "f1_binary"), ("mean_deo", "mean_deo"), ("max_deo", "max_deo")):
            values = [metrics[key] for _, metrics in runs.values()]
            cell = row["cells"][metric]
            assert cell["mean"] == pytest.approx(np.mean(values))
            assert cell["std"] == pytest.approx(np.std(values, ddof=1))
            assert cell["difference"] == pytest.approx(np.mean(values) - cell["paper"]["mean"])
        floors = [metrics["deo_floor"]["mean"] for _, metrics in runs.values()]
        assert row["cells"]["mean_deo"]["floor"] == pytest.approx(np.mean(floors))
        over_seeds = two_level_intervals(
            [np.array(metrics["confusion"]) for _, metrics in runs.values()],
            predicted=[load_predictions(folder, "test") for folder, _ in runs.values()],
        )["mean_deo"]
        assert row["cells"]["mean_deo"]["beyond_chance"] == over_seeds.beyond_chance
        assert row["cells"]["mean_deo"]["interval"] == [over_seeds.low, over_seeds.high]
        assert over_seeds.low < row["cells"]["mean_deo"]["mean"] < over_seeds.high
        assert source.label == row["label"]
    assert block["rows"][2]["cells"]["mean_deo"]["paper"] == {"mean": 11.32, "std": 1.29}
    assert block["order"]["mean_deo"] == {"pairs": 3, "agree": 3, "tau": 1.0}


def test_comparisons_are_paired_and_corrected(made):
    rows = record_of(made)["blocks"][0]["rows"]
    assert rows[0]["cells"]["mean_deo"]["comparison"] is None
    base, bird = (list(made.values())[index] for index in (0, 2))
    expected = [bird[seed][1]["mean_deo"] - base[seed][1]["mean_deo"] for seed in range(SEEDS)]
    found = rows[2]["cells"]["mean_deo"]
    assert found["comparison"]["by_seed"] == pytest.approx(expected)
    assert found["comparison"]["effect"] == pytest.approx(np.mean(expected))
    assert found["comparison"]["interval"][1] < 0
    assert found["direction"] == "same"
    tested = [row["cells"]["mean_deo"]["comparison"] for row in rows[1:]]
    assert [each["p_holm"] for each in tested] == holm([each["p"] for each in tested])
    assert all((each["p"] < 0.05) == (each["interval"][1] < 0 or each["interval"][0] > 0) for each in tested)
    ranking = rows[2]["cells"]["auroc"]["comparison"]
    assert ranking["interval"] is None
    assert ranking["p"] == sign_flip_p(ranking["by_seed"])


def test_no_p_value_below_eight_seeds(made):
    record = record_of(made, seeds=5)
    cells = [cell for row in record["blocks"][0]["rows"] for cell in row["cells"].values() if cell["comparison"]]
    assert cells
    assert all(cell["comparison"]["p"] is None and cell["comparison"]["p_holm"] is None for cell in cells)


def test_a_failed_row_keeps_its_place_with_its_error(made, tmp_path):
    record = record_of(made, failed=("Baseline",))
    rows = record["blocks"][0]["rows"]
    assert [len(row["seeds"]) for row in rows] == [0, SEEDS, SEEDS]
    assert rows[2]["cells"]["mean_deo"]["comparison"] is None
    files = write_table(record, tmp_path, "table7")
    assert "it broke &lt;here&gt; &amp; there_1" in open_text(files["html"])
    assert "it broke <here> & there_1" in open_text(files["md"])
    lines = list(csv.DictReader(io.StringIO(open_text(files["csv"]))))
    assert {line["error"] for line in lines if line["label"] == "Baseline"} == {"RunError: it broke <here> & there_1"}


def open_text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def test_the_files_say_the_same(made, tmp_path):
    record = record_of(made)
    files = write_table(record, tmp_path / "deep" / "out", "table7")
    assert json.loads(open_text(files["json"])) == record
    lines = list(csv.DictReader(io.StringIO(open_text(files["csv"]))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == 3 * 4
    cells = {(row["label"], key): cell for row in record["blocks"][0]["rows"] for key, cell in row["cells"].items()}
    for line in lines:
        cell = cells[line["label"], "f1" if line["metric"].startswith("f1") else line["metric"]]
        assert float(line["mean"]) == cell["mean"]
        assert float(line["paper_mean"]) == cell["paper"]["mean"]
        assert line["effect"] == ("" if cell["comparison"] is None else str(cell["comparison"]["effect"]))
    shown = f"{cells['BIRD', 'mean_deo']['mean']:.1f} ± {cells['BIRD', 'mean_deo']['std']:.1f}"
    assert shown in open_text(files["md"])
    assert shown in open_text(files["html"])
    assert shown.replace("±", "$\\pm$") in open_text(files["tex"])
    table = open_text(files["tex"])
    assert table.count("\\begin{tabular}") == table.count("\\end{tabular}") == 1
    lines = [line for line in table.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    widths = {len(re.findall(r"(?<!\\)&", line)) for line in lines}
    assert widths == {4}


class Reader(HTMLParser):
    """Which tags there are, what they load, and that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_and_a_demo_says_so(made, tmp_path):
    recipe, figure = load_recipe("figure3")
    for profile in ("paper", "demo"):
        record = record_of(made, profile)
        svg, drawn = draw(record, figure, tmp_path / profile)
        files = write_table(record, tmp_path / profile, "table7", {figure.title: svg})
        page = open_text(files["html"])
        reader = Reader()
        reader.feed(page)
        assert reader.open == []
        assert all(link.startswith("#") for link in reader.links)
        assert not reader.tags & {"script", "link", "img", "iframe"}
        assert not re.search(r"https?:|@import", page)
        for kind in ("html", "md", "tex"):
            assert (re.search(r"(?i)demo, not the paper", open_text(files[kind])) is not None) == (profile == "demo")
        with open(drawn["figure.png"], "rb") as file:
            assert file.read(4) == b"\x89PNG"
        assert "</svg>" in open_text(drawn["figure.svg"])
    assert recipe.name == "table5"


def test_the_paper_speaks_for_itself(made):
    assert record_of(made)["headlines"] == []
    recipe, _ = load_recipe("table1")
    record = tabulate(recipe, load_profile("demo", recipe), [Outcome(row, {}) for row in recipe.rows])
    assert [each["stated"] for each in record["headlines"]] == [87.60, 81.67, 81.67]
    assert record["known_errors"]
    assert all(row["cells"]["mean_deo"]["paper"] for block in record["blocks"] for row in block["rows"])


# ------------------------------------------------------------------------------------- what says nothing, and what is not


@pytest.fixture(scope="module")
def spoiled(made, tmp_path_factory):
    """Table 7 whose BIRD names one class in every second seed, and whose "w/o Meta" was measured on one group."""
    from bird.measuring.metrics import assess as measured

    root = tmp_path_factory.mktemp("spoiled")
    rows = {row.label: row for row in made}
    changed = dict(made)
    bird = rows["BIRD"]
    changed[bird] = {s: finished_run(root / f"bird-{s}", s, *(ACCURACY["BIRD"])) for s in range(SEEDS)}
    for seed in range(0, SEEDS, 2):
        folder = changed[bird][seed][0]
        labels, groups = np.arange(800) % 2, np.arange(800) // 2 % 2
        found = measured(labels, groups, np.ones(800, int), np.eye(2)[labels], 2, 2, replicates=50).as_json()
        (folder / "metrics-test.json").write_text(json.dumps(found))
    single = rows["BIRD w/o Meta"]
    changed[single] = {}
    for seed in range(SEEDS):
        folder, _ = finished_run(root / f"one-{seed}", seed, 0.8, 0.1)
        labels = np.arange(800) % 2
        found = measured(labels, np.zeros(800, int), labels, np.eye(2)[labels], 2, 1, replicates=50).as_json()
        (folder / "metrics-test.json").write_text(json.dumps(found))
        (folder / "predictions-test.npz").unlink()
        changed[single][seed] = folder, found
    return changed


def test_a_trivial_row_is_marked_wherever_its_gap_stands(spoiled, tmp_path):
    record = record_of(spoiled)
    row = record["blocks"][0]["rows"][2]
    assert row["trivial"].startswith(
        "trivial student in 4 of 8 seeds, whose gap says nothing; seed 0: it names yes for"
    )
    for metric in ("mean_deo", "max_deo"):
        assert row["cells"][metric]["trivial"] == row["trivial"]
        assert row["cells"][metric]["direction"] == "trivial", "the difference of such a gap says nothing, too"
    assert row["cells"]["auroc"]["trivial"] is None
    assert record["blocks"][0]["order"]["mean_deo"]["pairs"] == 0, "of three rows one is trivial and one has no gap"
    texts = {kind: open_text(path) for kind, path in write_table(record, tmp_path, "table7").items()}
    for kind in ("html", "md", "json", "csv"):
        assert "trivial student" in texts[kind], kind
        assert "it names yes for every row" in texts[kind], kind
    assert texts["html"].count('class="mark">trivial student') == 2
    assert texts["tex"].count("$^\\dagger$") == 3
    lines = [line for line in csv.DictReader(io.StringIO(texts["csv"])) if line["label"] == "BIRD"]
    assert [bool(line["trivial"]) for line in lines] == [line["metric"].endswith("deo") for line in lines]


def test_a_number_that_does_not_exist_says_why_in_every_file(spoiled, tmp_path):
    record = record_of(spoiled, seeds=1)
    rows = record["blocks"][0]["rows"]
    gap = rows[1]["cells"]["mean_deo"]
    assert (gap["mean"], gap["std"], gap["interval"], gap["floor"], gap["comparison"]) == (None,) * 5
    assert {*gap["undefined"].values()} == {"there is one group: a gap is between two"}
    assert rows[0]["cells"]["mean_deo"]["undefined"] == {"std": "one seed has no standard deviation"}
    assert rows[1]["cells"]["auroc"]["mean"] == 100
    texts = {kind: open_text(path) for kind, path in write_table(record, tmp_path, "table7").items()}
    for kind, text in texts.items():
        assert "there is one group" in text, kind


def test_figures_have_a_floor_for_each_bar(spoiled):
    from bird_pipelines.study.tables.figures import bars

    _, figure = load_recipe("figure3")
    record = record_of(spoiled)
    axes = bars(record, figure).axes[0]
    (ticks,) = [each for each in axes.collections if each.get_label() == "floor of ours"]
    cells = [row["cells"][figure.metric] for row in record["blocks"][0]["rows"]]
    at = [float(segment[0][0]) for segment in ticks.get_segments()]
    assert at == pytest.approx([cell["floor"] for cell in cells if cell["floor"] is not None])
    assert len(at) == 2
    hatched = [patch.get_hatch() for patch in axes.patches]
    assert hatched == [None, "///"], "the trivial one is hollow"
