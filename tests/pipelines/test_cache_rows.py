"""`bird cache drop`, `subset`, `append`, `search` and `to-parquet`, and what follows from a new generation."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.shell import bird, bird_json, distilled, panel

from bird.errors import RunError
from bird_cache import open_cache
from bird_cache.testing import files_of


@pytest.fixture(scope="module")
def less(cache, tmp_path_factory):
    """The cache without ten train rows of the large cells, and their ids."""
    samples, folder = open_cache(cache).samples, tmp_path_factory.mktemp("less")
    large = (samples.splits == "train") & (
        samples.labels % 2 == (samples.groups == 0)
    )  # odd digits in colour, and so on
    gone = samples.ids[np.flatnonzero(large)[::7][:10]].tolist()
    (folder / "gone.txt").write_text("\n".join(gone))
    before = files_of(cache)
    done = bird("cache", "drop", cache, folder / "cache", "--ids", folder / "gone.txt")
    assert files_of(cache) == before
    assert "390 rows, from 400" in done.stdout
    return folder / "cache", gone


def test_ten_rows_are_taken_down_and_a_student_learns_from_the_rest(cache, less, tmp_path):
    where, gone = less
    info = bird_json("cache", "info", where)
    assert info["accounted"]["listed"] == open_cache(cache).info()["accounted"]["listed"]
    dropped = [line for line in info["accounted"]["left_out"] if line["reason"] == "dropped"]
    assert (info["rows"], sum(line["rows"] for line in dropped)) == (390, 10)
    assert info["causes"]["generation"]["from"] == [open_cache(cache).fingerprint]
    assert "drop: 390 rows, of 400" in bird("cache", "info", where).stdout
    bird("cache", "verify", where)
    run = distilled(where, tmp_path / "run", epochs=1)  # bird, which wants a row in every cell
    assert run["fingerprint"] == open_cache(where).fingerprint != open_cache(cache).fingerprint
    assert not {*open_cache(where).samples.ids.tolist()} & {*gone}


def test_a_student_of_the_earlier_cache_does_not_go_on_with_the_new_one(cache, less, tmp_path):
    distilled(cache, tmp_path / "run", method="fitnet", epochs=1)
    with pytest.raises(RunError, match="found a run with fingerprint = "):
        distilled(less[0], tmp_path / "run", method="fitnet", epochs=1)


def test_precompute_refuses_to_go_on_with_it_but_reuses_its_vectors(flags, less, tmp_path):
    where, gone = less
    assert "dataset.identity" in panel(bird("precompute", *flags, "--out", where, code=3))
    done = bird("precompute", *flags, "--out", tmp_path / "new", "--update", where)
    assert f"{400 - len(gone)} of 400 rows are taken from" in done.stderr
    whole, old = open_cache(tmp_path / "new"), open_cache(where)
    sides = dict(zip(whole.samples.ids.tolist(), whole.samples.splits.tolist(), strict=True))
    assert [sides[id] for id in old.samples.ids.tolist()] == old.samples.splits.tolist()


def test_a_subset_and_what_was_left_out_are_appended_to_the_whole(cache, less, tmp_path):
    where, gone = less
    words = [word for id in gone for word in ("--id", id)]
    made = bird_json("cache", "subset", cache, tmp_path / "ten", *words)
    assert made["rows"] == 10
    assert made["emptied"]
    assert "no row is left of" in bird("cache", "subset", cache, tmp_path / "again", *words).stdout
    done = bird("cache", "append", where, tmp_path / "ten", tmp_path / "whole")
    assert "400 rows, from 390" in done.stdout
    bird("cache", "verify", tmp_path / "whole")
    whole, old = open_cache(tmp_path / "whole"), open_cache(cache)
    place = {id: row for row, id in enumerate(whole.samples.ids.tolist())}
    rows = [place[id] for id in old.samples.ids.tolist()]
    np.testing.assert_array_equal(whole["penultimate"][rows], old["penultimate"][:])


def test_what_cannot_be_asked_is_one_panel(cache, less, tmp_path):
    where, gone = less
    out = tmp_path / "x"
    for words, said in (
        (("drop", cache, out, "--id", "nobody"), "'nobody'"),
        (("drop", cache, out), "no id"),
        (("drop", cache, out, "--ids", tmp_path / "none.txt"), "no such file"),
        (("drop", cache, cache, "--id", gone[0]), "another place"),
        (("subset", cache, out, "--class", "cat"), "no class 'cat'"),
        (("append", where, cache, out), "has too"),
        (("search", cache), "neither --id nor --near-duplicates"),
        (("search", cache, "--id", "nobody"), "no vector of 'nobody'"),
        (("search", cache, "--near-duplicates", "--threshold", "98"), "a cosine from -1 to 1"),
        (("to-parquet", cache, out, "--layer", "logits"), "no layer 'logits'"),
    ):
        assert said in panel(bird("cache", *words, code=2))
    assert not out.exists()


def test_neighbours_and_near_duplicates(cache):
    id = open_cache(cache).samples.ids[5]
    found = bird_json("cache", "search", cache, "--id", id, "--neighbours", 4, "--split", "test")
    assert len(found["neighbours"][id]) == 4
    assert {each["split"] for each in found["neighbours"][id]} == {"test"}
    assert f"nearest to {id}" in bird("cache", "search", cache, "--id", id).stdout
    found = bird_json("cache", "search", cache, "--near-duplicates", "--threshold", ".999")
    assert [(each["of"], each["in"]) for each in found["splits"]] == [
        ("meta", "train"),
        ("test", "train"),
        ("test", "meta"),
    ]
    said = bird("cache", "search", cache, "--near-duplicates", "--threshold", ".9").stdout
    assert "test rows that have one in train" in said
    assert "quantiles" in said


def test_the_cache_as_a_table(cache, tmp_path):
    said = json.loads(bird("cache", "to-parquet", cache, tmp_path / "c.parquet", "--json").stdout)
    assert said["rows"] == 400
    table = pq.read_table(tmp_path / "c.parquet")
    assert {*table["group_name"].to_pylist()} == {*open_cache(cache).manifest.plan.group_names}
