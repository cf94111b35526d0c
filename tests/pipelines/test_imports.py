"""Vectors out of a cache and back in: the same bits; gaps counted per class and group; wrong claims refused."""

import numpy as np
import pytest
from helpers.shell import bird, bird_json, distilled, panel

from bird_cache.store import open_cache
from bird_cache.verify import verify


def stored(where, layer="penultimate"):
    cache = open_cache(where)
    return cache.read(layer, 0, cache.manifest.plan.rows).view(np.uint16)


def arguments(out, *more):
    return ("--dataset", "digits-s", "--limit", 400, "--out", out, "--provenance", "a test", *more)


@pytest.fixture(scope="module")
def exported(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "vectors"
    bird("cache", "export", cache, folder)
    return folder


def test_an_export_comes_back_bit_by_bit(cache, exported, tmp_path):
    info = bird_json("cache", "import", exported, *arguments(tmp_path / "c"), "--kind", "penultimate")
    assert info["prepared"] == {"vectors given": 400, "of no sample": 0}
    np.testing.assert_array_equal(stored(tmp_path / "c"), stored(cache))
    assert verify(tmp_path / "c").findings == []
    assert open_cache(tmp_path / "c").fingerprint != open_cache(cache).fingerprint
    bird("cache", "import", exported, *arguments(tmp_path / "c"), "--kind", "penultimate")
    run = distilled(tmp_path / "c", tmp_path / "run", epochs=1)
    assert run["fingerprint"] == info["fingerprint"]
    assert "--layer" in panel(bird("cache", "export", cache, tmp_path / "no", "--layer", "nothing", code=2))
    assert "already" in panel(bird("cache", "export", cache, exported, code=2))


def test_logits_come_along_and_webdataset_too(exported, cache, tmp_path):
    vectors = np.load(exported / "img_emb" / "img_emb_0.npy")
    ids = "\n".join(open_cache(cache).samples.ids.tolist())
    np.save(tmp_path / "v.npy", vectors)
    np.save(tmp_path / "z.npy", vectors[:, :10].astype(np.float32))
    (tmp_path / "ids.txt").write_text(ids)
    more = ("--kind", "penultimate", "--ids", tmp_path / "ids.txt", "--logits", tmp_path / "z.npy")
    bird("cache", "import", tmp_path / "v.npy", *arguments(tmp_path / "c", *more), "--store", "webdataset")
    found = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(found.vectors("logits", np.arange(400)), vectors[:, :10].astype(np.float32))
    assert verify(tmp_path / "c").findings == []
    assert all(image is not None for image in found.sources(0))


def changed(exported, tmp_path, change):
    vectors = np.load(exported / "img_emb" / "img_emb_0.npy").astype(np.float32)
    import pyarrow.parquet as pq

    ids = pq.read_table(exported / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    vectors, ids = change(vectors, ids)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    return (tmp_path / "v.npy", "--ids", tmp_path / "ids.txt")


def with_value(row, value):
    def change(vectors, ids):
        vectors[row] = value
        return vectors, ids

    return change


REFUSED = {
    "NaN": (with_value(5, np.nan), 4, "NaN or infinite"),
    "infinite": (with_value(5, np.inf), 4, "NaN or infinite"),
    "overflow": (with_value(5, 1e6), 4, "too large for float16"),
    "normalised": (lambda v, ids: (v / np.linalg.norm(v, axis=1, keepdims=True), ids), 4, "projection_l2"),
    "gaps": (lambda v, ids: (v[:350], ids[:350]), 2, "no vector for 50 of 400"),
    "other ids": (lambda v, ids: (v, [f"{id}x" for id in ids]), 2, "none of them a sample's"),
}


@pytest.mark.parametrize(("change", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_stored_is_refused(exported, tmp_path, change, code, said):
    given = changed(exported, tmp_path, change)
    done = bird("cache", "import", *given, *arguments(tmp_path / "c"), "--kind", "penultimate", code=code)
    assert said in panel(done)


def test_gaps_that_are_allowed_are_counted_per_cell(exported, tmp_path):
    given = changed(exported, tmp_path, lambda v, ids: (v[:380], ids[:380]))
    more = ("--kind", "penultimate", "--max-failed", 0.1)
    info = bird_json("cache", "import", *given, *arguments(tmp_path / "c", *more))
    assert (info["written"], info["failed"]) == (380, 20)
    assert sum(cell["failed"] for cell in info["groups"].values()) == 20
