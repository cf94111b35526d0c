"""Streaming: the same samples in the same order, whoever reads them and wherever they go on; each the one it should be."""

import multiprocessing
import resource

import numpy as np
import pytest
from helpers import cachekit
from helpers.cachekit import FAILED, ROWS, samples, vectors, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bird_cache.errors import CacheError, DamagedCacheError, StaleCacheError
from bird_cache.manifest import CellAudit, Layer
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.writer import open_part, open_writer

LAYER = "penultimate"
NARROW = 4608  # bytes: far less than the split needs


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "cache"
    write(folder, cachekit.plan(shard_rows=32, chunk_rows=16))
    return folder


def stream_of(cache, **given):
    return FeatureStream(open_cache(cache), "train", **{"batch_size": 16, "seed": 3, **given})


def check(batch):
    """Every sample is what its row says, by a way of its own."""
    table = samples()
    assert batch.ids.tolist() == [f"sample-{row}" for row in batch.rows.tolist()]
    assert np.array_equal(batch.labels, table.labels[batch.rows])
    assert np.array_equal(batch.groups, table.groups[batch.rows])
    expected = np.concatenate([vectors(row, row + 1)[:, 0] for row in batch.rows.tolist()])
    np.testing.assert_allclose(batch.features[LAYER], expected, atol=1e-3)


def test_an_epoch_delivers_every_usable_row_once(cache):
    stream = stream_of(cache)
    table = samples()
    usable = [row for row in range(ROWS) if table.splits[row] == "train" and row not in FAILED]
    batches = list(stream.epoch(0))
    for batch in batches:
        check(batch)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == usable
    assert sum(stream.failed.values()) == len([row for row in FAILED if table.splits[row] == "train"])


CASES = {
    "before": st.tuples(st.integers(2, 64), st.integers(1, 3), st.integers(1, 4)),
    "after": st.tuples(st.integers(2, 64), st.integers(1, 3), st.integers(1, 4)),
    "window": st.sampled_from([None, 1, 3]),
    "epoch": st.integers(0, 3),
    "stop": st.integers(0, 1000),
    "narrow": st.booleans(),
}


def global_sequence(cache, epoch, window, consumed=0, batch=16, world=1, workers=1, narrow=False, until=None):
    """Batches of all ranks and workers, put back together as a trainer and its loader would; and the place after them."""
    batch = max(batch, 2 * world)
    memory = NARROW if narrow and window else 1 << 30
    rows = []
    per_rank = []
    for rank in range(world):
        stream = stream_of(cache, batch_size=batch, window=window, rank=rank, world=world, memory_bytes=memory)
        shares = [list(stream.epoch(epoch, consumed, worker, workers)) for worker in range(workers)]
        count = sum(map(len, shares))
        per_rank.append([shares[number % workers][number // workers] for number in range(count)])
    assert len({len(batches) for batches in per_rank}) == 1, "every rank must make the same number of steps"
    for step in zip(*per_rank, strict=True):
        merged = np.empty(sum(len(part.rows) for part in step), np.int64)
        for rank, part in enumerate(step):
            assert len(part.rows) >= 2
            merged[rank::world] = part.rows
        rows += merged.tolist()
        consumed = step[0].consumed
        if until is not None and len(rows) >= until:
            break
    return rows, consumed


def resume_changes_nothing(cache, before, after, window, epoch, stop, narrow):
    whole, _ = global_sequence(cache, epoch, window)
    head, consumed = global_sequence(cache, epoch, window, 0, *before, narrow, until=stop % len(whole))
    batch, world, workers = after
    world = max(1, min(world, (len(whole) - consumed) // 2))  # more ranks than that are refused: see below
    tail = global_sequence(cache, epoch, window, consumed, batch, world, workers, not narrow)[0]
    assert head + tail == whole


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**CASES)
def test_resuming_with_other_batches_ranks_and_workers_changes_nothing(cache, **case):
    resume_changes_nothing(cache, **case)


@pytest.mark.torture
def test_resuming_in_full(cache, record_property):
    settings(max_examples=500, deadline=None)(given(**CASES)(lambda **case: resume_changes_nothing(cache, **case)))()
    record_property("18 order", 500)


def test_bounded_and_whole_give_the_same_batches(cache):
    wide, narrow = stream_of(cache, window=2), stream_of(cache, window=2, memory_bytes=NARROW)
    assert wide._held is not None
    assert narrow._held is None
    for a, b in zip(wide.epoch(1), narrow.epoch(1), strict=True):
        assert np.array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.features[LAYER], b.features[LAYER])
        check(b)


def test_vectors_as_stored_are_the_same_vectors(cache):
    for wide, stored in zip(stream_of(cache).epoch(0), stream_of(cache, widen=False).epoch(0), strict=True):
        assert stored.features[LAYER].dtype == np.float16
        np.testing.assert_array_equal(wide.features[LAYER], stored.features[LAYER].astype(np.float32))


def test_the_layout_of_the_store_changes_nothing(cache, tmp_path):
    tars = cachekit.plan(shard_rows=32, chunk_rows=16).model_copy(update={"store": "webdataset"})
    write(tmp_path / "tars", tars)
    for memory in (NARROW, 1 << 30):
        streams = [stream_of(folder, window=2, memory_bytes=memory) for folder in (cache, tmp_path / "tars")]
        for a, b in zip(*(stream.epoch(2, 48) for stream in streams), strict=True):
            assert a.ids.tolist() == b.ids.tolist()
            np.testing.assert_array_equal(a.features[LAYER], b.features[LAYER])


def test_a_bound_that_cannot_be_kept_is_refused_with_the_number(cache):
    with pytest.raises(CacheError, match="needs"):
        stream_of(cache, memory_bytes=100)
    with pytest.raises(CacheError, match="window"):
        stream_of(cache, memory_bytes=1000, window=10)


def test_a_swapped_vector_or_image_is_caught(cache):
    stream = stream_of(cache)
    stream._held.keys[[3, 4]] = stream._held.keys[[4, 3]]
    with pytest.raises(DamagedCacheError, match="another sample"):
        list(stream.epoch(0))
    store = open_cache(cache)
    digest = dict(zip(store.samples.ids.tolist(), store.samples.digests.tolist(), strict=True))

    def right(ids):
        return ids, [digest[id] for id in ids], [id.upper() for id in ids]

    def swapped(ids):
        return [ids[1], ids[0], *ids[2:]], [digest[id] for id in ids], ids

    def edited(ids):
        return ids, ["0" * 32, *(digest[id] for id in ids[1:])], ids

    batch = next(stream_of(cache, images=right).epoch(0))
    assert batch.images == [id.upper() for id in batch.ids]
    for wrong in (swapped, edited):
        with pytest.raises(StaleCacheError, match="sample-"):
            next(stream_of(cache, images=wrong).epoch(0))


@pytest.mark.parametrize("memory", [NARROW, 1 << 30])
def test_shards_that_changed_places_on_disk_are_caught(tmp_path, memory):
    write(tmp_path / "cache", cachekit.plan(shard_rows=32, chunk_rows=16))
    store = open_cache(tmp_path / "cache")
    one, other = (tmp_path / "cache" / store.receipts[shard].files[LAYER].path for shard in (2, 5))
    bytes_of_one = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(bytes_of_one)
    with pytest.raises(DamagedCacheError, match=r"shard [25]"):
        list(stream_of(tmp_path / "cache", window=2, memory_bytes=memory).epoch(0))


def test_the_ranks_are_given_never_guessed(cache):
    for rank, world in ((2, 2), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="rank"):
            stream_of(cache, rank=rank, world=world)


@pytest.mark.parametrize("left", [1, 2, 3, 5, 6, 7])
def test_a_rest_that_cannot_be_shared_is_refused_on_every_rank(cache, left):
    """Steps must be as many on every rank, of two samples or more: batch norm has no statistics of one."""
    start = len(stream_of(cache)) - left
    for rank in range(3):
        rest = stream_of(cache, rank=rank, world=3).epoch(0, start)
        if left < 6:
            with pytest.raises(ValueError, match="fewer ranks"):
                next(rest)
        else:
            assert [len(batch.rows) >= 2 for batch in rest] == [True]
    assert sum(len(batch.rows) for batch in stream_of(cache).epoch(0, start)) == left
    with pytest.raises(ValueError, match="left"):
        next(stream_of(cache).epoch(0, start + left + 1))


def test_rows_that_failed_in_an_added_layer_are_left_out_and_counted(tmp_path):
    write(tmp_path / "cache", cachekit.plan(shard_rows=32, chunk_rows=16))
    spec, gone = {"maps": Layer(shape=(2, 2), dtype="float32", kind="maps")}, 33
    with open_part(tmp_path / "cache", "maps", spec, {"teacher": "sha256:1"}) as writer:
        for shard in writer.pending():
            start, stop = writer.plan.bounds(shard)
            failed = {gone: "undecodable"} if start <= gone < stop else {}
            writer.write_shard(shard, {"maps": np.ones((stop - start, 1, 2, 2), np.float32)}, failed)
        writer.finish()
    alone, both = (stream_of(tmp_path / "cache", layers=names) for names in ([LAYER], [LAYER, "maps"]))
    assert np.setdiff1d(alone.rows, both.rows).tolist() == [gone]
    assert sum(both.failed.values()) == sum(alone.failed.values()) + 1
    for batch in both.epoch(0):
        assert batch.features["maps"].shape[1:] == (2, 2)
        assert all(np.isfinite(vectors).all() for vectors in batch.features.values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_none_is_never_delivered(tmp_path, value):
    """No writer of ours commits one: this shard was, with its hash, by another."""
    plan = cachekit.plan(shard_rows=32, chunk_rows=16)
    with open_writer(tmp_path / "cache", plan, samples()) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            stored, lost = vectors(start, stop).astype(np.float16), cachekit.lost(start, stop)
            stored[[row - start for row in lost]] = np.nan
            stored[6 if shard == 3 else slice(0), 0, 3] = value
            audit = {"0,0": CellAudit(rows=stop - start, failed=len(lost))}
            writer.write_stored(shard, {LAYER: stored}, lost, audit)
        writer.finish()
    for memory in (NARROW, 1 << 30):
        with pytest.raises(DamagedCacheError, match=r"sample-102.*row 102"):
            list(stream_of(tmp_path / "cache", window=2, memory_bytes=memory).epoch(0))


def test_the_bound_counts_every_group_that_a_batch_spans(cache):
    """Groups of one shard hold 8 to 11 samples: a batch of 64 covers several, and parts of two."""
    with pytest.raises(CacheError, match="all that a batch spans"):
        stream_of(cache, batch_size=64, window=1, memory_bytes=1500)
    needed = (2 * 11 + 62) * 2 * cachekit.DIM
    narrow = stream_of(cache, batch_size=64, window=1, memory_bytes=needed)
    whole = [batch.rows.tolist() for batch in stream_of(cache, batch_size=64, window=1).epoch(0)]
    assert [batch.rows.tolist() for batch in narrow.epoch(0)] == whole


def peak(folder, bound, queue):
    """Grown resident memory, in bytes, of streaming two epochs; in a process of its own."""
    store = open_cache(folder)
    stream = FeatureStream(store, "train", batch_size=256, memory_bytes=bound, window=4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(len(batch.rows) for epoch in range(2) for batch in stream.epoch(epoch))
    queue.put((count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))


@pytest.mark.slow
def test_a_cache_four_times_larger_than_the_bound_streams_within_it(tmp_path):
    """128 MiB of vectors, a bound of 32 MiB; 16 MiB of slack for the file being checked and a batch's float32 copy."""
    rows, dim, shard = 65_536, 1024, 2048
    table = samples(rows)
    table.splits[:] = "train"
    layer = Layer(shape=(dim,), dtype="float16", kind="penultimate")
    plan = cachekit.plan(rows, shard_rows=shard, chunk_rows=1024).model_copy(update={"layers": {LAYER: layer}})
    with open_writer(tmp_path / "large", plan, table) as writer:
        block = np.random.default_rng(0).standard_normal((shard, 1, dim)).astype(np.float32)
        for number in writer.pending():
            writer.write_shard(number, {LAYER: block}, {})
        writer.finish()
    bound, context = 32 << 20, multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak, args=(tmp_path / "large", bound, queue))
    process.start()
    count, grown = queue.get(timeout=120)
    process.join()
    assert count == 2 * rows
    assert grown < bound + (16 << 20), f"{grown >> 20} MiB"
