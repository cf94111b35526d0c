"""Vectors out of a cache and back in: the same bits; gaps counted per class and group; wrong claims refused."""

import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.shell import bird, bird_json, distilled, panel

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.errors import DataError, UsageError
from bird_cache.errors import CacheError, FeatureError, ImportedVectorsError, StaleCacheError
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.precomputing import imports
from bird_pipelines.precomputing.imports import MATCHES, export, import_vectors
from bird_pipelines.progress import Interrupted

N, DIM = 400, 12


@pytest.fixture(scope="module")
def table():
    return prepare(open_dataset("digits-s", None), limit=N)


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


def take_in(given, out, **options):
    defaults = {"kind": "penultimate", "provenance": "a test", "limit": N, "dtype": "float32"}
    return import_vectors(given, "digits-s", str(out), **defaults | options)


def npy(folder, vectors, ids):
    np.save(folder / "v.npy", vectors)
    (folder / "ids.txt").write_text("\n".join(ids))
    return {"given": folder / "v.npy", "ids": folder / "ids.txt"}


def csv(folder, vectors, ids):
    np.save(folder / "v.npy", vectors)
    (folder / "ids.csv").write_text("label,name\n" + "\n".join(f"1,{id}" for id in ids))
    return {"given": folder / "v.npy", "ids": folder / "ids.csv", "id_column": "name"}


def lists(folder, vectors, ids):
    pq.write_table(
        pa.table({"id": [*ids], "label": pa.nulls(len(ids)), "a": [*vectors], "b": [*vectors[:, :3]]}),
        folder / "v.parquet",
    )
    return {"given": folder / "v.parquet", "vector_column": "a"}


def columns(folder, vectors, ids):
    named = {f"f{place}": vectors[:, place] for place in range(vectors.shape[1])}
    pq.write_table(pa.table({"id": [*ids], "score": vectors[:, 0], **named}), folder / "v.parquet")
    return {"given": folder / "v.parquet"}


def stored(where, layer="penultimate"):
    cache = open_cache(where)
    return cache.read(layer, 0, cache.manifest.plan.rows)


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("form", [npy, csv, lists, columns])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_every_form_goes_in_and_an_export_comes_back_bit_by_bit(tmp_path, table, vectors, form, dtype):
    order = np.random.default_rng(1).permutation(N)
    info = take_in(**form(tmp_path, vectors[order], table.ids[order]), out=tmp_path / "a", dtype=dtype)
    assert (info["written"], info["failed"], info["prepared"]["matched"]) == (N, 0, N)
    if dtype == "float32":
        np.testing.assert_array_equal(stored(tmp_path / "a")[:, 0], vectors)
    export(str(tmp_path / "a"), tmp_path / "out")
    take_in(tmp_path / "out", tmp_path / "b", dtype=dtype)
    np.testing.assert_array_equal(bits(stored(tmp_path / "b")), bits(stored(tmp_path / "a")))
    assert verify(tmp_path / "b").findings == []
    assert [*tmp_path.glob("*.partial-*")] == []


def test_failed_rows_come_back_as_failed(tmp_path, table, vectors, monkeypatch):
    monkeypatch.setattr(imports, "EXPORT_ROWS", 37)  # eleven pieces: 10 comes after 9
    take_in(**npy(tmp_path, vectors[3:], table.ids[3:]), out=tmp_path / "a")
    export(str(tmp_path / "a"), tmp_path / "out")
    pieces = sorted((tmp_path / "out" / "img_emb").iterdir())  # as clip-retrieval's readers do
    assert [piece.name for piece in pieces] == [f"img_emb_{number:02d}.npy" for number in range(11)]
    np.testing.assert_array_equal(np.concatenate([np.load(piece) for piece in pieces]), stored(tmp_path / "a")[:, 0])
    names = pq.read_table(tmp_path / "out" / "metadata" / "metadata_00.parquet").column_names
    assert names == ["image_path", "label", "group", "split", "status"]
    info = take_in(tmp_path / "out", tmp_path / "b")
    assert (info["failed"], info["prepared"]["failed at their source"]) == (3, 3)
    np.testing.assert_array_equal(bits(stored(tmp_path / "b")), bits(stored(tmp_path / "a")))


def test_logits_come_along_and_webdataset_too(tmp_path, table, vectors):
    np.save(tmp_path / "z.npy", vectors[:, :10])
    given = npy(tmp_path, vectors, table.ids)
    take_in(**given, out=tmp_path / "c", logits=tmp_path / "z.npy", store="webdataset", teacher_name="theirs")
    found = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(found.vectors("logits", np.arange(N)), vectors[:, :10])
    assert found.manifest.plan.notes["teacher"] == "theirs"
    assert verify(tmp_path / "c").findings == []
    assert all(image is not None for image in found.sources(0))
    pq.write_table(pa.table({"id": [*table.ids[::-1]], "z": [*vectors[:, :10]]}), tmp_path / "z.parquet")
    with pytest.raises(ImportedVectorsError, match="same order"):
        take_in(**given, out=tmp_path / "d", logits=tmp_path / "z.parquet")


def test_an_interrupted_import_goes_on_with_the_same_command_only(tmp_path, table, vectors, monkeypatch):
    monkeypatch.setattr(imports, "shard_and_chunk_rows", lambda *_: (64, 64))
    given = npy(tmp_path, vectors, table.ids)
    take_in(**given, out=tmp_path / "whole")
    reader = imports.Imported.take

    def stop_in_the_third(self, rows):
        if len(rows) == 64 and len([*(tmp_path / "c").glob("commits/*.json")]) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return reader(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(imports.Imported, "take", stop_in_the_third)
        with pytest.raises(Interrupted):
            take_in(**given, out=tmp_path / "c")
    assert len(open_cache(tmp_path / "c").receipts) == 3
    with pytest.raises(StaleCacheError, match="provenance"):
        take_in(**given, out=tmp_path / "c", provenance="another")
    take_in(**given, out=tmp_path / "c")
    np.testing.assert_array_equal(bits(stored(tmp_path / "c")), bits(stored(tmp_path / "whole")))
    assert open_cache(tmp_path / "c").fingerprint == open_cache(tmp_path / "whole").fingerprint


def with_value(row, value):
    def change(vectors, ids):
        vectors[row] = value
        return vectors, ids

    return change


def unit(vectors, ids):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), ids


def unit_with_a_stranger(vectors, ids):
    vectors, ids = unit(vectors, ids)
    vectors[0], ids[0] = np.nan, "nobody's"
    return vectors, ids


REFUSED = {
    "NaN": (with_value(5, np.nan), {}, FeatureError, "NaN or infinite vectors for 1 samples: train-"),
    "infinite": (with_value(5, np.inf), {}, FeatureError, "NaN or infinite vectors for 1"),
    "overflow": (with_value((5, 0), 1e6), {"dtype": "float16"}, FeatureError, "too large for float16"),
    "zero": (with_value(5, 0), {}, FeatureError, "zero or constant for 1 samples: train-"),
    "constant": (with_value(slice(5, 7), 3), {}, FeatureError, "zero or constant for 2"),
    "all the same": (with_value(slice(None), np.arange(DIM)), {}, FeatureError, "one and the same vector for 400"),
    "normalised": (unit, {}, FeatureError, "--kind projection_l2"),
    "normalised, in part": (unit_with_a_stranger, {}, FeatureError, "--kind projection_l2"),
    "not normalised": (lambda v, ids: (v, ids), {"kind": "projection_l2"}, FeatureError, "found lengths from"),
    "gaps": (lambda v, ids: (v[:350], ids[:350]), {}, DataError, r"50 of 400 samples \(test 0, colour: \d+ of"),
    "other ids": (lambda v, ids: (v, [f"{id}x" for id in ids]), {}, ImportedVectorsError, "none of them a sample's"),
    "match": (lambda v, ids: (v, ids), {"match": "nothing"}, UsageError, "one of exact, stem, path-suffix"),
    "kind": (lambda v, ids: (v, ids), {"kind": "hidden"}, UsageError, "--kind"),
    "provenance": (lambda v, ids: (v, ids), {"provenance": " "}, UsageError, "--provenance"),
}


@pytest.mark.parametrize(("change", "options", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_must_not_be_stored_is_refused(tmp_path, table, vectors, change, options, error, said):
    given = npy(tmp_path, *change(vectors.copy(), table.ids.tolist()))
    with pytest.raises(error, match=said):
        take_in(**given, out=tmp_path / "c", **options)
    if not (tmp_path / "c").exists():
        return
    with pytest.raises(CacheError):  # the dtype's range is met while writing: what is there is unfinished
        open_cache(tmp_path / "c").require_complete()


def test_normalised_vectors_that_say_so_are_taken(tmp_path, table, vectors):
    given = npy(tmp_path, *unit(vectors, table.ids))
    info = take_in(**given, out=tmp_path / "c", kind="projection_l2", dtype="float16")
    assert info["layers"]["penultimate"]["kind"] == "projection_l2"


def test_gaps_that_are_allowed_are_counted_per_cell_but_no_cell_may_be_emptied(tmp_path, table, vectors):
    some = np.ones(N, bool)
    some[np.flatnonzero(table.splits == "test")[::9][:20]] = False  # other cells may be one sample
    info = take_in(**npy(tmp_path, vectors[some], table.ids[some]), out=tmp_path / "c", max_failed=0.1)
    assert (info["written"], info["failed"]) == (380, 20)
    missing = {name: cell["failed"] for name, cell in info["groups"].items()}
    cells = table.take(~some).cells(10, 2)
    assert missing == {name: int(count) for name, count in zip(missing, cells.ravel(), strict=True)}
    without = ~((table.labels == 3) & (table.groups == 0) & (table.splits == "test"))
    with pytest.raises(DataError, match="does not allow empty cells"):
        take_in(**npy(tmp_path, vectors[without], table.ids[without]), out=tmp_path / "d", max_failed=0.5)


@pytest.mark.parametrize(
    ("match", "wanted", "given", "rows"),
    [
        ("exact", ["a/1.png", "2.png"], ["2.png", "1.png"], [[], [0]]),
        ("exact", ["\u00e9"], ["e\u0301"], [[]]),
        ("stem", ["a/1.png", "2"], ["2.jpg", "/b/1.jpg"], [[1], [0]]),
        ("stem", ["1.png"], ["a/1.png", "b/1.png"], [[0, 1]]),
        ("path-suffix", ["a/1.png", "data/b/1.png"], ["/x/a/1.png", "b/1.png"], [[0], [1]]),
        ("path-suffix", ["1.png", "11.png"], ["x/1.png"], [[0], []]),
        ("path-suffix", ["1.png"], ["a/1.png", "b/1.png"], [[0, 1]]),
    ],
)
def test_what_fits_what(match, wanted, given, rows):
    assert MATCHES[match](wanted, given) == rows


@pytest.mark.parametrize("match", ["stem", "path-suffix"])
def test_tolerant_matches_are_explicit_and_ambiguous_ones_refused(tmp_path, table, vectors, match):
    ids = [f"images/{id}" for id in table.ids]
    given = npy(tmp_path, vectors, ids)
    with pytest.raises(ImportedVectorsError, match="--match stem"):
        take_in(**given, out=tmp_path / "c")
    take_in(**given, out=tmp_path / "c", match=match)
    np.testing.assert_array_equal(stored(tmp_path / "c")[:, 0], vectors)
    given = npy(tmp_path, vectors, [*ids[:-1], f"copies/{table.ids[0]}"])
    with pytest.raises(ImportedVectorsError, match=f"1 samples that share vectors or fit several: '{table.ids[0]}'"):
        take_in(**given, out=tmp_path / "d", match=match)


def test_an_export_appears_whole_or_not_at_all(tmp_path, table, vectors, monkeypatch):
    take_in(**npy(tmp_path, vectors, table.ids), out=tmp_path / "c")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="already"):
        export(str(tmp_path / "c"), tmp_path / "there")
    with pytest.raises(UsageError, match="one of penultimate"):
        export(str(tmp_path / "c"), tmp_path / "out", "nothing")
    (shard,) = [
        file for file in (tmp_path / "c" / "penultimate").rglob("*") if file.is_file() and file.suffix != ".json"
    ]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CacheError):
        export(str(tmp_path / "c"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_the_command_line(cache, tmp_path):
    bird("cache", "export", cache, tmp_path / "v")
    given = ("cache", "import", tmp_path / "v", "--dataset", "digits-s", "--limit", N, "--out", tmp_path / "c")
    info = bird_json(*given, "--provenance", "a test", "--kind", "penultimate")
    np.testing.assert_array_equal(bits(stored(tmp_path / "c")), bits(stored(cache)))
    assert info["fingerprint"] != open_cache(cache).fingerprint
    assert distilled(tmp_path / "c", tmp_path / "run", epochs=1)["fingerprint"] == info["fingerprint"]
    wrong = bird(*given, "--provenance", "a test", "--kind", "projection_l2", code=4)
    assert "length" in panel(wrong)
