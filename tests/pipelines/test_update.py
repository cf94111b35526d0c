"""A cache of a data set that grew."""

import numpy as np
from helpers.shell import bird
from PIL import Image

from bird_cache.store import open_cache


def folder_of_pictures(folder):
    """60 JPEGs of two classes and two groups, and their table."""
    lines = ["path,label,group"]
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg,{number % 2},{number // 2 % 2}")
    (folder / "samples.csv").write_text("\n".join(lines))


def test_an_update_keeps_every_row_on_its_side_and_says_what_it_reused(teacher, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    folder_of_pictures(folder)
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", folder, "--workers", 2)
    bird("precompute", *flags, "--out", tmp_path / "old")
    rows = (folder / "samples.csv").read_text().splitlines()
    for number in range(40):
        pixels = np.random.default_rng(100 + number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"new{number}.png")
        rows.append(f"new{number}.png,{number % 2},{number // 2 % 2}")
    (folder / "samples.csv").write_text("\n".join(rows))
    done = bird("precompute", *flags, "--out", tmp_path / "new", "--update", tmp_path / "old")
    assert "60 of 100 rows are taken from" in done.stderr
    old, new = (open_cache(tmp_path / name).samples for name in ("old", "new"))
    there = dict(zip(old.ids.tolist(), old.splits.tolist(), strict=True))
    here = dict(zip(new.ids.tolist(), new.splits.tolist(), strict=True))
    assert {id: here[id] for id in there} == there
    assert "rows kept in the split of the earlier cache" in done.stdout
    assert open_cache(tmp_path / "new").manifest.plan.notes["reused"] == "60 of 100 rows"
    done = bird(
        "precompute", *flags, "--setting", "test_fraction=0.5", "--out", tmp_path / "x", "--update", tmp_path / "old"
    )
    assert "may change their split" in done.stderr
