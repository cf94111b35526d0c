"""The report: effects against a baseline, numbers by group, every seed, and how it looks on dark pages and in print."""

import base64
import io
import json
import re

import numpy as np
import pytest
from helpers.reports import browse, make_run, text_of
from PIL import Image

from bird.errors import UsageError
from bird.measuring.metrics import assess
from bird_pipelines.marks import difference
from bird_pipelines.reporting import curves, look, plots
from bird_pipelines.reporting.recall_chart import shade
from bird_pipelines.reporting.report import write_report
from bird_pipelines.reporting.settings import settings_that_matter


def with_predictions(run, seed, worse):
    """The run with predictions and metrics of rows that all runs share; group 1 loses a share `worse` of its recall."""
    rng = np.random.default_rng(7)
    labels, groups = rng.integers(2, size=1500), rng.integers(2, size=1500)
    own = np.random.default_rng(100 + seed)
    right = own.random(1500) < 0.85 - worse * groups
    predictions = np.where(right, labels, 1 - labels)
    scores = np.eye(2)[predictions] * 0.6 + 0.2
    found = assess(labels, groups, predictions, scores, 2, 2, replicates=100).as_json()
    (run / "metrics-test.json").write_text(json.dumps(found))
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"class_names": ["no", "yes"], "group_names": ["a", "b"]}))
    ids = np.array([str(each).encode() for each in range(1500)])
    codes = {"labels": labels, "groups": groups, "predictions": predictions}
    codes = {name: values.astype(np.int16) for name, values in codes.items()}
    np.savez_compressed(run / "predictions-test.npz", ids=ids, scores=scores.astype(np.float32), **codes)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """A folder of runs: two methods with eight seeds each on the same rows, of which `fitnet` serves group b worse."""
    root = tmp_path_factory.mktemp("paired")
    for method, worse in (("baseline", 0.05), ("fitnet", 0.2)):
        for seed in range(8):
            with_predictions(make_run(root / f"{method}-{seed}", method=method, seed=seed), seed, worse)
    return root


@pytest.fixture(scope="module")
def paired_page(paired, tmp_path_factory):
    """The report on them."""
    return write_report([paired], tmp_path_factory.mktemp("page") / "report.html")


def test_effects_stand_on_the_page_with_intervals_and_p(paired_page):
    """And a folder of run folders stands for its runs."""
    text = text_of(paired_page)
    assert "16 finished runs of 2 configurations" in text
    assert "Minus baseline, cifar10s" in text
    row = re.search(
        r"Minus baseline, cifar10s .*? fitnet 8 ([+-][\d.]+) ([+-][\d.]+) to ([+-][\d.]+) p (\S+ ?\S*)", text
    )
    assert float(row[1]) < 0
    assert float(row[2]) < float(row[1]) < float(row[3]) < 0
    assert "fitnet within the interval" in text
    assert re.search(r"fitnet within the interval \S+ \(\S+ to \S+\) worse -", text)
    assert "2 of 4" in text, "both cells of group b are worse"


def test_the_reference_can_be_chosen(paired, tmp_path):
    text = text_of(write_report([paired], tmp_path / "report.html", against="fitnet"))
    assert "Minus fitnet, cifar10s" in text
    with pytest.raises(UsageError, match=r"--against.*'nobody'.*baseline, fitnet"):
        write_report([paired], tmp_path / "no.html", against="nobody")
    assert not (tmp_path / "no.html").exists()


def test_runs_without_predictions_are_not_compared_and_it_says_why(page):
    assert "n/a: no predictions-test.npz" in text_of(page)


def test_every_seed_has_its_part_with_recalls_and_numbers_by_group(paired_page):
    page, text = paired_page, text_of(paired_page)
    assert page.read_text().count('<details class="seed"') == 16
    charts = re.findall(r'<svg[^>]*aria-label="recall per class and group.*?</svg>', page.read_text())
    assert len(charts) == 16
    assert len({*charts}) == 16, "each is that of its seed"
    assert max(map(len, charts)) < 4000, "many fit into one page"
    for seed in range(8):
        assert f"Seed {seed}" in text
    for wanted in ("worst cell: b", "selected as yes", "is yes", "calibration error", "demographic-parity gap"):
        assert wanted in text


def test_every_seed_of_a_gated_method_has_its_chart_of_the_gate(tmp_path):
    made = [make_run(tmp_path / str(seed), method="bird", seed=seed) for seed in range(3)]
    html = write_report([*made, make_run(tmp_path / "b", method="baseline")], tmp_path / "report.html").read_text()
    gates = re.findall(r'aria-label="share of teacher features.*?base64,([^"]*)"', html)
    assert len({*gates}) == 3, "each is that of its seed"
    assert max(map(len, gates)) < 2500, "many fit into one page"
    assert html.count('aria-label="Meta split') == 4


def test_the_image_of_the_gate_has_the_shares_of_each_epoch():
    counts = [[90, 10, 0, 0], [0, 0, 50, 50]]
    curve = [{"epoch": at + 1, "gate": {"counts": each}} for at, each in enumerate(counts)]
    png = re.search(r'base64,([^"]*)"', str(curves.gate_chart(curve)))
    with Image.open(io.BytesIO(base64.b64decode(png[1]))) as image:
        levels = np.asarray(image)
    assert levels.shape == (4, 2), "a row a value, 1 at the top; a column an epoch"
    assert (levels[::-1, 0] == [63, 7, 0, 0]).all()
    assert (levels[::-1, 1] == [0, 0, 35, 35]).all()
    assert "90 % of features" in curves.gate_chart(curve)
    assert curves.gate_chart([{"epoch": 1, "gate": None}]) is None


def test_a_curve_stands_where_its_values_are():
    """Accuracy 0, 50, 100 in three epochs: the line goes from the bottom of the axes to their top; a None breaks it."""
    meta = [{"epoch": at + 1, "meta": {"accuracy": value}} for at, value in enumerate((0, 50, 100, None, 100))]
    path = re.search(r'd="(M[^"]*)" fill="none"', curves.meta_chart(meta, None, None))[1]
    points = [[float(each) for each in point.split()] for point in re.split("[ML]", path)[1:]]
    assert path.count("M") == 2
    x, y = zip(*points, strict=True)
    assert np.allclose(np.diff(x), [59.6, 59.6, 119.2], atol=0.2)
    assert y[0] == curves.BOTTOM
    assert y[1] == pytest.approx((y[0] + y[2]) / 2)
    losses = curves.loss_chart([{"epoch": at + 1, "loss": 10.0**-at} for at in range(3)], None)
    path = re.search(r'd="(M[^"]*)" fill="none"', losses)[1]
    y = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
    assert y[1] - y[0] == pytest.approx(y[2] - y[1], abs=0.2), "a log scale"


def test_seeds_stand_in_one_table_with_intervals_and_floors(paired, paired_page):
    text = text_of(paired_page)
    found = json.loads((paired / "baseline-3" / "metrics-test.json").read_text())
    ends = " – ".join(f"{each:.1f}" for each in found["intervals"]["mean_deo"])
    assert f"{found['mean_deo']:.1f} {ends} floor {found['deo_floor']['mean']:.1f}" in text


def test_a_small_difference_keeps_its_side_of_0():
    told = {-0.04: "-0.04", 0.03: "+0.03", 1.04: "+1.0", -12.26: "-12.3", 0.0: "+0.0"}
    assert {value: difference(value) for value in told} == told


def test_a_single_run_has_no_plot_of_one_mark(tmp_path):
    run = make_run(tmp_path / "run")
    assert "AUROC against mean-DEO" not in text_of(write_report([run], tmp_path / "report.html"))


def test_a_setting_stands_only_where_the_method_reads_it():
    settings = {"method": "fitnet", "lambda": 0.1, "alpha": 0.9, "fitnet_weight": 0.1, "epochs": 5}
    assert {*settings_that_matter(settings)} == {"method", "fitnet_weight", "epochs"}
    assert {*settings_that_matter(settings | {"method": "bird"})} == {"method", "lambda", "alpha", "epochs"}
    assert settings_that_matter(settings | {"method": "of another"}) == settings | {"method": "of another"}


def test_a_method_looks_the_same_whatever_stands_beside_it():
    from bird.methods import METHODS

    assert {*look.METHODS} == {*METHODS}
    assert len({look.look_of(name) for name in METHODS}) == len(METHODS)
    point = plots.Point("fitnet", "fitnet", 3.0, 90.0, 2.0, False)
    other = plots.Point("at", "at", 4.0, 91.0, 2.0, False)
    alone, beside = (plots.scatter(each, [p.method for p in each]).axes[0] for each in ([point], [other, point]))
    faces = [
        {tuple(c.get_facecolor()[0][:3]) for c in axes.collections if len(c.get_facecolor())}
        for axes in (alone, beside)
    ]
    assert faces[0] < faces[1]


def contrast(one, other):
    """Of two sRGB colours, #rrggbb (WCAG 2.2)."""
    linear = [
        [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.array(hex_of(each)) / 255]
        for each in (one, other)
    ]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


def hex_of(colour):
    digits = colour.lstrip("#")
    digits = "".join(2 * each for each in digits) if len(digits) == 3 else digits
    return [int(digits[at : at + 2], 16) for at in (0, 2, 4)]


def test_text_has_a_contrast_of_4_5_to_1_light_dark_and_printed(page):
    palettes = re.findall(r":root \{([^}]*)\}", page.read_text())
    assert len(palettes) == 3
    for palette in palettes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", palette))
        for text in ("ink", "muted", "mark", "up", "down"):
            for ground in ("bg", "sheet"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
    sheet = dict(re.findall(r"--(\w+): (#\w+)", palettes[1]))["sheet"]
    for ink in (look.INK, look.MUTED):
        assert contrast(ink, "#fff") >= 4.5
        assert contrast(turned_over(ink), sheet) >= 4.5
    for share in np.linspace(0, 100, 101):
        ground = shade(share)
        assert contrast("#000", ground) >= 4.5
        assert contrast(turned_over("#000"), turned_over(ground)) >= 4.5, "as a dark page shows it"


def turned_over(colour):
    """What `filter: invert(1) hue-rotate(180deg)` makes of it (Filter Effects 1, matrices of feColorMatrix)."""
    red, green, blue = 1 - np.array(hex_of(colour)) / 255
    grey = 2 * (0.213 * red + 0.715 * green + 0.072 * blue)
    return "#" + "".join(f"{round(255 * min(max(grey - each, 0), 1)):02x}" for each in (red, green, blue))


@pytest.mark.slow
def test_a_dark_page_has_no_white_sheet(page, tmp_path):
    shot, unfolded = tmp_path / "dark.png", tmp_path / "unfolded.html"
    unfolded.write_text(page.read_text().replace("<details", "<details open"))
    browse(
        unfolded,
        tmp_path / "p",
        "--blink-settings=preferredColorScheme=0",
        "--window-size=1300,6000",
        f"--screenshot={shot}",
    )
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels > 200).mean() < 0.05


@pytest.mark.slow
def test_print_opens_what_is_closed_and_is_not_wider_than_the_sheet(paired_page, tmp_path):
    """The rules of print, at the width of a printed sheet: a closed part takes its whole height, no table is cut."""
    page = paired_page
    printed = tmp_path / "printed.html"
    probe = (
        "<script>document.title = [document.documentElement.scrollWidth, "
        "[...document.querySelectorAll('details:not([open])')]"
        ".filter(d => d.offsetHeight < d.children[0].offsetHeight + 12).length, "
        "document.querySelectorAll('details:not([open])').length].join(' ')</script></body>"
    )
    printed.write_text(page.read_text().replace("@media print {", "@media all {").replace("</body>", probe))
    dom = browse(printed, tmp_path / "p", "--window-size=1030,900", "--dump-dom")
    width, shut, parts = (int(each) for each in re.search(r"<title>(\d+) (\d+) (\d+)", dom).groups())
    assert width <= 1030
    assert parts > 10
    assert shut == 0


@pytest.mark.slow
def test_four_runs_print_on_few_pages(tmp_path):
    """They were 33 pages: charts one below the other, and three lines for each number of a table."""
    made = [make_run(tmp_path / name, method=name) for name in ("baseline", "fitnet", "bird", "bkd")]
    page, pdf = write_report(made, tmp_path / "report.html"), tmp_path / "report.pdf"
    browse(page, tmp_path / "p", f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) <= 11
