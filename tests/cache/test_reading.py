"""A cache as an array, as a data set for torch, and as one Parquet file."""

import multiprocessing
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import cachekit
from helpers.cachekit import DIM, FAILED, ROWS
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bird_cache import CacheDataset, open_cache, to_parquet
from bird_cache.dataset import batches
from bird_cache.errors import RequestError
from bird_cache.importers import read_vectors
from bird_cache.manifest import Layer
from bird_cache.numbers import from_storage
from bird_cache.stream import FeatureStream
from bird_cache.testing import VIEWS, example_plan, write_example
from bird_cache.writer import open_part

DTYPES = ["float16", "float32", "bfloat16"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    where = tmp_path_factory.mktemp("reading") / "cache"
    cachekit.write(where)
    return where


def whole(cache, layer="penultimate", view=0):
    """What is stored, as numbers."""
    store = open_cache(cache)
    return from_storage(store.read(layer, 0, len(store))[:, view], store.manifest.layers()[layer].dtype)


# ---- as an array ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "which",
    [
        slice(100, 200),
        slice(None),
        slice(-5, None),
        slice(500, 20, -7),
        slice(9, 9),
        0,
        -1,
        np.int64(127),
        [5, 3, 4, 5],
        [],
        np.arange(ROWS) % 7 == 0,
        np.array([-1, 599, 128, 127]),
    ],
    ids=str,
)
def test_a_layer_is_indexed_as_numpy_does(cache, which):
    vectors, expected = open_cache(cache)["penultimate"], whole(cache)
    if isinstance(which, list) and not which:
        which = np.array([], np.int64)
    found = vectors[which]
    np.testing.assert_array_equal(found, expected[which])
    assert found.dtype == np.float32
    assert found.flags.writeable


@pytest.mark.parametrize("dtype", [*DTYPES])
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_every_store_dtype_and_view(tmp_path, store, dtype):
    write_example(str(tmp_path / "c"), example_plan(store, dtype))
    opened = open_cache(tmp_path / "c")
    for view in range(VIEWS):
        np.testing.assert_array_equal(opened["penultimate", view][:], whole(tmp_path / "c", view=view))
        np.testing.assert_array_equal(opened["penultimate", view][[149, 3]], whole(tmp_path / "c", view=view)[[149, 3]])


def test_what_an_array_says_of_itself(cache):
    opened = open_cache(cache)
    vectors = opened["penultimate"]
    assert (len(opened), len(vectors), vectors.shape, vectors.ndim) == (ROWS, ROWS, (ROWS, DIM), 2)
    assert vectors.dtype == np.float32
    assert "penultimate" in opened
    assert "logits" not in opened
    np.testing.assert_array_equal(np.asarray(vectors), whole(cache))
    assert np.asarray(vectors, np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack([*vectors]), whole(cache))
    assert np.flatnonzero(np.isnan(vectors[:]).all(axis=1)).tolist() == sorted(FAILED)
    blocks = [*vectors.blocks(memory_bytes=100 * DIM * 4)]
    assert [start for start, _ in blocks] == [0, 100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("which", "error", "said"),
    [
        (ROWS, IndexError, "no row 600; there are 600"),
        (-ROWS - 1, IndexError, "no row -601"),
        ([1, 900], IndexError, "no row 900"),
        (np.ones(5, bool), IndexError, r"a mask of shape \(5,\)"),
        ((1, 2), IndexError, "2 indices"),
        (np.ones((2, 2), int), IndexError, "one axis"),
        ([0.5], IndexError, "wanted row numbers"),
        (1.5, TypeError, "float"),
        (True, IndexError, "a mask of shape"),
    ],
)
def test_what_is_no_row_is_refused(cache, which, error, said):
    with pytest.raises(error, match=said):
        open_cache(cache)["penultimate"][which]


def test_a_layer_that_is_not_there_is_named(cache):
    opened = open_cache(cache)
    with pytest.raises(KeyError, match="no layer 'logits'; there are penultimate"):
        opened["logits"]
    with pytest.raises(IndexError, match="no view 1 of penultimate; there are 1"):
        opened["penultimate", 1]
    with pytest.raises(TypeError, match="not iterable"):
        iter(opened)


# ---- for torch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_torch_loads_every_usable_row_of_a_split_once(cache, context):
    """Also in workers that share no memory with this process."""
    data = CacheDataset(cache, "train")
    loader = DataLoader(
        data, batch_size=50, shuffle=True, num_workers=2 if context else 0, multiprocessing_context=context
    )
    found = list(loader)
    rows = torch.cat([batch["row"] for batch in found])
    samples = open_cache(cache).samples
    expected = [row for row in range(ROWS) if samples.splits[row] == "train" and row not in FAILED]
    assert sorted(rows.tolist()) == expected == data.rows.tolist()
    features = torch.cat([batch["features"] for batch in found])
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features.numpy(), whole(cache)[rows.numpy()])
    assert torch.cat([batch["label"] for batch in found]).tolist() == samples.labels[rows.numpy()].tolist()
    assert torch.cat([batch["group"] for batch in found]).tolist() == samples.groups[rows.numpy()].tolist()
    assert [id for batch in found for id in batch["id"]] == samples.ids[rows.numpy()].tolist()


def test_one_row_is_as_in_a_batch(cache):
    data = CacheDataset(cache)
    assert len(data) == ROWS - len(FAILED)
    one, (other,) = data[10], data.__getitems__([10])
    np.testing.assert_array_equal(one.pop("features"), other.pop("features"))
    assert one == other
    assert pickle.loads(pickle.dumps(data))[10]["id"] == one["id"]  # noqa: S301  # our own bytes
    with pytest.raises(IndexError):
        data[len(data)]


def test_a_split_without_a_row_is_refused(cache):
    with pytest.raises(RequestError, match=r"no usable row of split 'validation'.*meta, test, train"):
        CacheDataset(cache, "validation")


class Train(IterableDataset):
    """As the page on the cache shows it."""

    def __init__(self, stream, epoch):
        self.stream, self.epoch = stream, epoch

    def __iter__(self):
        return batches(self.stream, self.epoch, worker=get_worker_info())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_data_set_gives_an_epoch_in_its_order(cache, workers):
    stream = FeatureStream(open_cache(cache), "train", batch_size=32, seed=3)
    context = multiprocessing.get_context("fork") if workers else None
    loader = DataLoader(Train(stream, 1), batch_size=None, num_workers=workers, multiprocessing_context=context)
    rows = [row for batch in loader for row in batch["row"].tolist()]
    assert rows == [row for batch in stream.epoch(1) for row in batch.rows.tolist()]
    assert rows != sorted(rows)
    batch = next(iter(batches(stream, 1)))
    np.testing.assert_array_equal(batch["penultimate"], whole(cache)[batch["row"]])


# ---- as one Parquet file -----------------------------------------------------------------------------------------------


def bits(values):
    return np.ascontiguousarray(values).view(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_parquet_holds_the_vectors_to_the_bit(tmp_path, store, dtype):
    where = tmp_path / "c"
    write_example(str(where), example_plan(store, dtype))
    with open_part(where, "maps", {"maps": Layer(shape=(2, 3), dtype="float32", kind="maps")}, {}) as writer:
        for shard in writer.pending():
            start, stop = writer.plan.bounds(shard)
            writer.write_shard(shard, {"maps": np.arange((stop - start) * 12.0).reshape(-1, VIEWS, 2, 3)}, {})
        writer.finish()
    said = to_parquet(where, tmp_path / "t.parquet", view=1)
    assert said["layers"] == ["penultimate", "maps"]
    table, cache = pq.read_table(tmp_path / "t.parquet"), open_cache(where)
    stored = cache.read("penultimate", 0, len(cache))[:, 1]
    found = table["penultimate"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(stored.shape)
    expected = from_storage(stored, dtype) if dtype == "bfloat16" else stored
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(bits(found), bits(expected))
    maps = table["maps"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(maps, cache.read("maps", 0, len(cache))[:, 1].ravel())
    samples, plan = cache.samples, cache.manifest.plan
    assert table["id"].to_pylist() == samples.ids.tolist()
    assert table["class_name"].to_pylist() == [plan.class_names[number] for number in samples.labels]
    assert table["group_name"].to_pylist() == [plan.group_names[number] for number in samples.groups]
    for name in ("label", "group", "split", "digest", "status"):
        column = getattr(samples, {"status": "status"}.get(name, f"{name}s"))
        assert table[name].to_pylist() == column.tolist()
    assert table.schema.metadata[b"bird_cache.fingerprint"].decode() == cache.fingerprint


def test_a_file_of_many_blocks_is_the_same(tmp_path, cache, monkeypatch):
    to_parquet(cache, tmp_path / "one.parquet")
    monkeypatch.setattr("bird_cache.parquet.BLOCK_BYTES", 4 * DIM * 90)
    to_parquet(cache, tmp_path / "many.parquet")
    assert pq.ParquetFile(tmp_path / "many.parquet").metadata.num_row_groups == 7
    one, many = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    assert many.drop_columns("penultimate").equals(one.drop_columns("penultimate"))
    of_one, of_many = (
        each["penultimate"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for each in (one, many)
    )
    np.testing.assert_array_equal(bits(of_many), bits(of_one))  # NaN is no equal of itself


def test_what_was_written_can_be_imported(tmp_path, cache):
    """Rows that failed are known by their status."""
    to_parquet(cache, tmp_path / "t.parquet")
    given = read_vectors(tmp_path / "t.parquet", vector_column="penultimate")
    assert given.ids.tolist() == open_cache(cache).samples.ids.tolist()
    np.testing.assert_array_equal(given.take(np.arange(ROWS)), whole(cache))


def test_pandas_reads_it_to_the_bit(tmp_path, cache):
    pandas = pytest.importorskip("pandas", reason="pandas comes with fairlearn, of the extra dev")
    to_parquet(cache, tmp_path / "t.parquet")
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    found, store = np.stack(frame["penultimate"]), open_cache(cache)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(bits(found), bits(store.read("penultimate", 0, ROWS)[:, 0]))
    assert frame["class_name"].tolist() == [("a", "b", "c")[number] for number in store.samples.labels]


def test_duckdb_reads_it_to_the_bit(tmp_path, cache):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is in the extra dev")
    to_parquet(cache, tmp_path / "t.parquet")
    table = str(tmp_path / "t.parquet")
    found = duckdb.sql(f"select penultimate, group_name from '{table}' order by row").fetchall()
    store = open_cache(cache)
    stored = store.read("penultimate", 0, ROWS)[:, 0]
    np.testing.assert_array_equal(bits(np.array([row[0] for row in found], np.float16)), bits(stored))
    assert [row[1] for row in found] == [("g", "h")[number] for number in store.samples.groups]
    # DuckDB believes the statistics of a file, and those of pyarrow leave NaN out
    failed = duckdb.sql(f"select row from '{table}' where isnan(penultimate[1]) order by row").fetchall()
    lost = np.flatnonzero(store.samples.status != "ok")
    assert [row[0] for row in failed] == lost.tolist()
    assert len(lost) > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layers": ["logits"]}, "no layer 'logits'; wanted some of penultimate"),
        ({"view": 3}, "view 3; wanted 0 to 0"),
    ],
)
def test_what_is_not_there_is_not_written(tmp_path, cache, more, said):
    with pytest.raises(RequestError, match=said):
        to_parquet(cache, tmp_path / "t.parquet", **more)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_there_stays(tmp_path, cache):
    (tmp_path / "t.parquet").write_text("mine")
    with pytest.raises(RequestError, match="something there already"):
        to_parquet(cache, tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("bird_cache.parquet._flat", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to_parquet(cache, tmp_path / "t.parquet")
    assert not [*tmp_path.iterdir()]
