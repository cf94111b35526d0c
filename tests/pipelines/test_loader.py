"""torch's DataLoader hands out the same batches for any number of workers, wherever one goes on."""

import numpy as np
import pytest
import torch
from helpers import cachekit

from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_pipelines.distilling.loader import StreamLoader


def rows_of(batches):
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(cache, workers):
    stream = FeatureStream(open_cache(cache), "train", batch_size=16, seed=1)
    loader = StreamLoader(stream, workers=workers)
    for epoch, consumed in ((0, 0), (2, 32)):  # the same processes serve every epoch
        expected, got = list(stream.epoch(epoch, consumed)), list(loader.epoch(epoch, consumed))
        assert rows_of(got) == rows_of(expected)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a.features["penultimate"], b.features["penultimate"])
            assert (a.ids == b.ids).all()


def test_another_number_of_workers_goes_on_where_the_first_stopped(cache):
    """The first loader is left in the middle of an epoch, and of what its workers had ready."""
    store = open_cache(cache)

    def stream(batch):
        return FeatureStream(store, "train", batch_size=batch, seed=1)

    whole = np.concatenate([batch.rows for batch in stream(16).epoch(1)]).tolist()
    first = StreamLoader(stream(16), workers=2)
    begun = first.epoch(1)
    head = [next(begun) for _ in range(3)]
    tail = StreamLoader(stream(10), workers=1).epoch(1, head[-1].consumed)
    assert [row for batch in [*head, *tail] for row in batch.rows.tolist()] == whole
    again = first.epoch(1)  # an epoch that was left starts anew
    assert [row for batch in again for row in batch.rows.tolist()] == whole


def test_workers_stream_within_their_bound(tmp_path):
    cachekit.write(tmp_path / "cache", cachekit.plan(shard_rows=32, chunk_rows=16))
    store = open_cache(tmp_path / "cache")
    stream = FeatureStream(store, "train", batch_size=16, seed=1, window=1, memory_bytes=1500)
    assert rows_of(StreamLoader(stream, workers=2).epoch(0)) == rows_of(stream.epoch(0))


def test_the_callers_torch_threads_are_left_alone(cache):
    before = torch.get_num_threads()
    stream = FeatureStream(open_cache(cache), "train", batch_size=16)
    assert len(list(StreamLoader(stream, workers=1).epoch(0))) > 0
    assert torch.get_num_threads() == before
