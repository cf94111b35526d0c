"""The Zarr store keeps the cache's contract: every row accounted for, nothing wrong read in silence."""

import json
import threading

import numpy as np
import pytest
import zarr
from helpers import cachekit
from helpers.cachekit import DIM, FAILED, ROWS, SHARD, plan, samples, strings, vectors, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bird_cache.errors import (
    BusyCacheError,
    CacheError,
    DamagedCacheError,
    FeatureError,
    IncompleteCacheError,
    NotACacheError,
    StaleCacheError,
)
from bird_cache.files import canonical_json, digest
from bird_cache.numbers import DTYPES, from_storage, to_storage
from bird_cache.samples import Samples
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_cache.writer import open_writer


@pytest.fixture
def cache(tmp_path):
    write(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_back_what_was_written(tmp_path, dtype):
    write(tmp_path / "c", plan(dtype=dtype))
    store = open_cache(tmp_path / "c")
    rows = np.random.default_rng(0).permutation(ROWS)
    got = store.vectors("penultimate", rows)
    expected = vectors(0, ROWS)[rows, 0]
    good = ~np.isin(rows, list(FAILED))
    np.testing.assert_allclose(got[good], expected[good], rtol=2**-7 if dtype == "bfloat16" else 2**-10, atol=1e-6)
    assert np.isnan(got[~good]).all()


def test_every_row_is_accounted_for_per_cell(cache):
    info = open_cache(cache).info()
    assert info["complete"]
    assert (info["rows"], info["written"], info["failed"]) == (ROWS, ROWS - len(FAILED), len(FAILED))
    assert sum(cell["rows"] for cell in info["groups"].values()) == ROWS
    assert sum(cell["failed"] for cell in info["groups"].values()) == len(FAILED)
    assert info["layers"]["penultimate"] == {
        "shape": [ROWS, 1, DIM],
        "dtype": "float16",
        "kind": "penultimate",
    }
    json.dumps(info)
    assert {row: reason for row, reason in enumerate(open_cache(cache).samples.status) if reason != "ok"} == FAILED


def test_plain_zarr_reads_it(cache):
    array = zarr.open(cache, mode="r")["penultimate"]
    assert array.shape == (ROWS, 1, DIM)
    np.testing.assert_allclose(array[20:30], vectors(20, 30), atol=1e-3)
    assert np.isnan(array[7]).all()


def test_resume_computes_only_what_is_missing(tmp_path):
    def fail_at_third(shard):
        if shard == 2:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write(tmp_path / "c", before_shard=fail_at_third)
    with pytest.raises(IncompleteCacheError):
        open_cache(tmp_path / "c").require_complete()
    assert "unfinished: 2 of 5 shards committed" in verify(tmp_path / "c").findings
    assert write(tmp_path / "c") == [2, 3, 4]
    assert write(tmp_path / "c") == []
    assert verify(tmp_path / "c").findings == []


MUTATIONS = {
    "teacher weights": ({"teacher": {"weights": "sha256:2"}}, "teacher.weights"),
    "image size": ({"preprocessing": {"size": 33, "mean": [0.5]}}, "preprocessing.size"),
    "mean": ({"preprocessing": {"size": 32, "mean": [0.4]}}, "preprocessing.mean"),
    "a new cause": ({"precision": "bf16"}, "precision"),
}


@pytest.mark.parametrize(("causes", "field"), MUTATIONS.values(), ids=MUTATIONS)
def test_another_cause_is_refused_with_the_field_and_both_values(cache, causes, field):
    with pytest.raises(StaleCacheError) as caught:
        write(cache, plan(**causes))
    assert caught.value.found.startswith(f"{field} = ")
    assert caught.value.wanted.startswith(f"{field} = ")
    assert verify(cache).findings == []


def test_another_data_set_is_refused(cache):
    other = samples()
    other.labels[3] = 2
    with pytest.raises(StaleCacheError), open_writer(cache, plan(), other):
        pass


def test_second_writer_is_refused(tmp_path):
    with open_writer(tmp_path / "c", plan(), samples()):
        failed = []

        def second():
            try:
                with open_writer(tmp_path / "c", plan(), samples()):
                    pass
            except BusyCacheError as error:
                failed.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(failed) == 1


UNUSABLE = {
    "NaN": (3, np.nan),
    "infinite": (3, np.inf),
    "minus infinite": (3, -np.inf),
    "float16 overflow": (3, 1e6),
    "zero": (slice(None), 0.0),
    "constant": (slice(None), 2.5),
}


@pytest.mark.parametrize(("where", "value"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_vectors_are_refused_naming_the_ids(tmp_path, where, value, record_property):
    bad = vectors(0, SHARD)
    bad[5, 0, where] = value
    record_property("17 features", 1)
    with (
        open_writer(tmp_path / "c", plan(), samples()) as writer,
        pytest.raises(FeatureError, match="sample-5"),
    ):
        writer.write_shard(0, {"penultimate": bad}, {})
    assert list((tmp_path / "c" / "penultimate").rglob("c/*/*/*")) == []


def test_not_a_cache(tmp_path):
    with pytest.raises(NotACacheError):
        open_cache(tmp_path / "absent")
    with pytest.raises(NotACacheError):
        open_cache(tmp_path)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(NotACacheError):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def found_by(path):
    """Whether a reader of everything, or `verify`, notices."""
    noticed = bool(verify(path).findings)
    try:
        open_cache(path).vectors("penultimate", np.arange(ROWS))
    except CacheError:
        return noticed, True
    return noticed, False


def files_of(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def test_every_bit_flip_is_found(cache):
    rng = np.random.default_rng(1)
    targets = files_of(cache)
    silent = []
    for number in range(60):
        path = targets[number % len(targets)]
        clean = path.read_bytes()
        position, bit = int(rng.integers(len(clean))), int(rng.integers(8))
        path.write_bytes(clean[:position] + bytes([clean[position] ^ (1 << bit)]) + clean[position + 1 :])
        noticed, refused = found_by(cache)
        if not noticed or (path.parent.name == "0" and not refused):
            silent.append((path.name, position, bit))
        path.write_bytes(clean)
    assert silent == []
    assert found_by(cache) == (False, False)


@pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.75, 0.99, "all but one byte"])
def test_truncation_is_found_at_open(cache, share):
    path = cache / "penultimate" / "c" / "1" / "0" / "0"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 1 if isinstance(share, str) else int(share * len(data))])
    with pytest.raises(DamagedCacheError, match="shard 1"):
        open_cache(cache)
    assert verify(cache).findings


def test_missing_and_swapped_shards_are_found(cache):
    first, second = (cache / "penultimate" / "c" / n / "0" / "0" for n in "12")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    assert found_by(cache) == (True, True)
    first.unlink()
    second.write_bytes(b)
    assert found_by(cache) == (True, True)
    first.write_bytes(a)
    assert found_by(cache) == (False, False)


def test_edited_tables_and_receipts_are_found(cache):
    table = samples()
    table.status[:] = "ok"
    table.ids[[0, 1]] = table.ids[[1, 0]]
    (cache / "samples.parquet").write_bytes(table.to_parquet())
    assert found_by(cache)[0]
    write_receipt = cache / "commits" / "000000.json"
    write_receipt.write_text(write_receipt.read_text().replace('"start":0', '"start":1'))
    assert found_by(cache)[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_storage_round_trip_of_representable_values(values):
    array = np.array(values, np.float32)[:, None]
    names, skip = [str(i) for i in range(len(values))], np.zeros(len(values), bool)
    for dtype in ("float16", "float32"):
        assert np.array_equal(from_storage(to_storage(array, dtype, names, skip), dtype), array)
    rounded = from_storage(to_storage(array, "bfloat16", names, skip), "bfloat16")
    np.testing.assert_allclose(rounded, array, rtol=2**-8)


def test_ids_are_never_positions():
    table = samples()
    assert len({*table.ids}) == ROWS
    moved = samples()
    moved.ids[:] = strings(list(table.ids[::-1]))
    assert moved.identity() != table.identity()
    assert cachekit.plan(rows=10).shards == 1


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=5, unique=True))
@example(["a", "b"])
@example(['say "x"', "b"])
@example(["back\\slash", "tab\t"])
@example(["ünï", "文"])
@example(["\x7f", "\u2028", "\x00"])
@example(['a","b', ""])
def test_identity_is_the_digest_of_canonical_json_whatever_the_names(names):
    """The quick ways of joining names, of Python's and of Arrow's strings, must not be another spelling."""
    column, numbers = np.array(names, dtype=object), np.arange(len(names))
    made = Samples(column, numbers, numbers, column, column, column)
    columns = (column, numbers, numbers, column, column)
    for table in (made, Samples.from_parquet(made.to_parquet())):
        assert table.identity() == digest(canonical_json([values.tolist() for values in columns]))
        assert table.ids_digest(1, 3) == digest(canonical_json(names[1:3]))
    assert Samples.from_parquet(made.to_parquet()).ids.tolist() == names
