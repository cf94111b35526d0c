"""Two group columns from a table to the report: crossed, and each by itself."""

import numpy as np
import pytest
from helpers.shell import bird, panel
from PIL import Image

import bird_pipelines
from bird_cache.store import open_cache
from bird_pipelines.cli.options import settings_of
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.reporting.report import write_report


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small network, trained for an epoch on 60 digits."""
    folder = tmp_path_factory.mktemp("small") / "run"
    flags = {"dataset": "digits-s", "student": "tiny-convnet", "method": "baseline", "limit": 60}
    distill(resolve({**flags, "epochs": 1, "batch_size": 32, "out": folder}))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """160 pictures of two classes, two sexes, two ages; the class shows."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["photo,smile,sex,age"]
    for n in range(160):
        noise = np.random.default_rng(n).integers(0, 100, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(120 * (n % 2))).save(folder / f"{n:03d}.png")
        lines.append(f"{n:03d}.png,{('no', 'yes')[n % 2]},{'FM'[n // 2 % 2]},{('old', 'young')[n // 4 % 2]}")
    (folder / "samples.csv").write_text("\n".join(lines))
    return folder


COLUMNS = ("--setting", "path=photo", "--setting", "label=smile", "--setting", "test_fraction=0.4")


@pytest.fixture(scope="module")
def crossed(photos, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("crossed") / "cache"
    flags = {"teacher": f"run:{teacher}", "dataset": "table", "data_root": photos, "workers": 1}
    bird_pipelines.precompute(**flags, settings=settings_of([*COLUMNS[1::2], "group=sex,age"]), out=out)
    return out


def test_a_cache_of_crossed_groups_says_what_they_are_crossed_from(crossed, photos, teacher, tmp_path):
    plan = open_cache(crossed).manifest.plan
    assert plan.group_names == ("F × old", "F × young", "M × old", "M × young")
    assert [each.name for each in plan.factors] == ["sex", "age"]
    assert plan.factors[1].names == ("old", "young")
    assert plan.factors[1].codes == (0, 1, 0, 1)
    assert plan.causes["dataset"]["settings"]["group"] == "sex,age"
    one = tmp_path / "one"
    flags = {"teacher": f"run:{teacher}", "dataset": "table", "data_root": photos, "workers": 1}
    bird_pipelines.precompute(**flags, settings=settings_of([*COLUMNS[1::2], "group=sex"]), out=one)
    assert open_cache(one).manifest.plan.factors == ()
    plain = open_cache(one).manifest.plan.model_dump(mode="json")
    assert "factors" not in plain  # a cache of one group column is written as it always was


def test_metrics_and_report_have_each_column_by_itself(crossed, tmp_path):
    for seed in (0, 1):
        out = tmp_path / f"run{seed}"
        found = bird_pipelines.distill(cache=crossed, epochs=2, seed=seed, out=out)["metrics"]["test"]
    assert np.shape(found["recalls"]) == (2, 4)
    marginals = found["marginals"]
    assert [each["group_names"] for each in marginals.values()] == [["F", "M"], ["old", "young"]]
    counts = np.asarray(found["confusion"])
    assert np.array_equal(np.asarray(marginals["sex"]["confusion"])[:, 0], counts[:, 0] + counts[:, 1])
    assert np.array_equal(np.asarray(marginals["age"]["confusion"])[:, 1], counts[:, 1] + counts[:, 3])
    assert marginals["age"]["accuracy"] == found["accuracy"]
    again = bird_pipelines.evaluate(tmp_path / "run1")
    assert again["marginals"] == marginals
    told = bird("evaluate", tmp_path / "run1", "--split", "meta").stdout
    assert "by sex alone (F, M): mean_deo" in told
    page = write_report([tmp_path / "run0", tmp_path / "run1"], tmp_path / "report.html").read_text()
    for words in ("Test split, by sex alone", "Test split, by age alone", "By age alone", "F × old", "group sex,age"):
        assert words in page


@pytest.mark.parametrize(
    ("setting", "told"),
    [("label=many", "1,000 values in 1,000 rows"), ("group=one", "found: one value, 'x'")],
)
def test_a_column_that_is_no_class_or_no_group_is_one_panel_and_no_folder(photos, tmp_path, setting, told):
    folder = tmp_path / "images"
    folder.mkdir()
    header, *lines = (photos / "samples.csv").read_text().splitlines()
    lines += [f"x{n}.png,no,F,old" for n in range(1000 - len(lines))]
    many = [f"{line},c{n},x" for n, line in enumerate(lines)]
    (folder / "samples.csv").write_text("\n".join([f"{header},many,one", *many]))
    flags = ("--teacher", f"run:{tmp_path}", "--dataset", "table", "--data-root", folder, "--out", tmp_path / "cache")
    done = bird("precompute", *flags, *COLUMNS, "--setting", "group=sex", "--setting", setting, code=2)
    assert told in panel(done)
    assert not (tmp_path / "cache").exists()
