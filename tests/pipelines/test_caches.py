"""The verbs of `bird cache`, and caches in other stores and places, as a person uses them."""

import json
import os

import numpy as np
import pytest
from helpers import shell
from helpers.s3 import bucket, server  # noqa: F401  (fixtures)
from helpers.shell import bird, bird_json, distilled, panel, stopped

from bird_cache.folders import open_folder
from bird_cache.store import open_cache
from bird_cache.verify import verify


def stored(where):
    cache = open_cache(where)
    return cache.read("penultimate", 0, cache.manifest.plan.rows).view(np.uint16)


@pytest.fixture(scope="module")
def tars(flags, tmp_path_factory):
    """The cache fixture's twin in WebDataset shards."""
    folder = tmp_path_factory.mktemp("tars") / "cache"
    bird("precompute", *flags, "--store", "webdataset", "--out", folder)
    return folder


def test_both_stores_hold_the_same(cache, tars, tmp_path):
    np.testing.assert_array_equal(stored(tars), stored(cache))
    assert open_cache(tars).fingerprint == open_cache(cache).fingerprint
    assert verify(tars).findings == []
    bird("cache", "convert", cache, tmp_path / "converted")
    assert verify(tmp_path / "converted").findings == []
    for file in sorted(tars.glob("*.tar")):
        assert (tmp_path / "converted" / file.name).read_bytes() == file.read_bytes()
    bird("cache", "convert", tars, tmp_path / "back")  # the other store, as its help says
    assert open_cache(tmp_path / "back").manifest.plan.store == "zarr"
    np.testing.assert_array_equal(stored(tmp_path / "back"), stored(cache))


def test_a_student_learns_the_same_from_either_store(cache, tars, tmp_path):
    runs = [distilled(where, tmp_path / name, epochs=1) for name, where in (("a", cache), ("b", tars))]
    assert runs[0]["fingerprint"] == runs[1]["fingerprint"]
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_live_teacher_agrees_with_the_cache(cache, teacher):
    live = bird_json("cache", "verify", cache, "--teacher", f"run:{teacher}", "--sample", 20)["live"]
    assert live["compared"] >= 20
    assert len(live["cells"]) == 20
    assert all(cell["cosine_min"] >= 0.999 for cell in live["cells"].values())


def test_another_teacher_is_refused(cache, tmp_path):
    flags = ("--dataset", "digits-s", "--student", "shufflenetv2", "--epochs", 1, "--limit", 100, "--seed", 5)
    bird("train", *flags, "--out", tmp_path / "other")
    done = bird("cache", "verify", cache, "--teacher", f"run:{tmp_path / 'other'}", code=3)
    assert "teacher.weights" in panel(done)


def test_damage_is_found_repaired_and_computed_again(flags, tmp_path):
    where = tmp_path / "cache"
    bird("precompute", *flags, "--out", where)
    before = stored(where)
    path = where / "penultimate" / "c" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = bird_json("cache", "verify", where, code=3)["findings"]
    assert len(found) == 1
    assert "shard 1 (rows 64..127)" in found[0]
    assert "shard 1" in bird("cache", "repair", where).stdout
    bird("cache", "verify", where, code=3)
    bird("precompute", *flags, "--out", where)
    bird("cache", "verify", where)
    np.testing.assert_array_equal(stored(where), before)
    assert "nothing to repair" in bird("cache", "repair", where).stdout


def test_slices_merge(cache, flags, tmp_path):
    for number in (1, 2):
        bird("precompute", *flags, "--out", tmp_path / f"{number}", "--slice", f"{number}/2")
    bird("cache", "merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "whole")
    np.testing.assert_array_equal(stored(tmp_path / "whole"), stored(cache))
    assert verify(tmp_path / "whole").findings == []
    listed = bird_json("cache", "ls", tmp_path)
    assert {path.rsplit("/", 1)[1]: line["state"] for path, line in listed.items()} == {
        "1": "unfinished",
        "2": "unfinished",
        "whole": "complete",
    }
    assert "--slice" in panel(bird("precompute", *flags, "--out", tmp_path / "3", "--slice", "3/2", code=2))


def test_logits_of_a_fitted_head_are_a_layer_that_bkd_uses(tars, tmp_path):
    where = tmp_path / "cache"
    bird("cache", "convert", tars, where, "--store", "zarr")
    fingerprint = open_cache(where).fingerprint
    info = bird_json("cache", "fit-head", where, "--epochs", 3)
    assert info["fingerprint"] == fingerprint, "the cache's own fingerprint stays"
    assert info["layers"]["logits"]["shape"] == [400, 1, 10]
    assert verify(where).findings == []
    run = distilled(where, tmp_path / "run", method="bkd", epochs=1)
    assert run["logits_fingerprint"] == info["parts"]["head"]["fingerprint"]
    bird("cache", "fit-head", where, "--epochs", 3)
    assert "another origin" in panel(bird("cache", "fit-head", where, "--epochs", 4, code=3))


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_object_storage_survives_a_kill(cache, flags, bucket, tmp_path, store):  # noqa: F811  # a fixture
    where = f"{bucket}/{store}"
    shell.ENVIRONMENT.update({name: value for name, value in os.environ.items() if name.startswith("AWS_")})

    def committed():
        return any(path.startswith("commits/") for path in open_folder(where).files())

    code, _ = stopped("precompute", *flags, "--store", store, "--out", where, when=committed)
    assert code in (-9, 0)
    bird("precompute", *flags, "--store", store, "--out", where)
    assert verify(where).findings == []
    np.testing.assert_array_equal(stored(where), stored(cache))
    run = json.loads(bird("distill", "--cache", where, "--out", tmp_path / "run", "--epochs", 1, "--json").stdout)
    assert run["fingerprint"] == open_cache(cache).fingerprint
    assert list(bird_json("cache", "ls", bucket)) == [where]


def test_a_bucket_that_does_not_answer_is_one_clear_message(flags):
    shell.ENVIRONMENT.update({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "x"})
    shell.ENVIRONMENT.update({"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "hush-hush"})
    done = bird("cache", "info", "s3://nowhere/cache", code=1)
    assert "a bucket that answers" in panel(done)
    assert "hush-hush" not in done.stderr
