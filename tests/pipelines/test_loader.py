"""torch's DataLoader hands out the same batches for any number of workers."""

import numpy as np
import pytest

from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_pipelines.loader import stream_loader


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(cache, workers):
    stream = FeatureStream(open_cache(cache), "train", batch_size=16, seed=1)
    expected = list(stream.epoch(2, 32))
    got = list(stream_loader(stream, 2, 32, workers=workers))
    assert [batch.rows.tolist() for batch in got] == [batch.rows.tolist() for batch in expected]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.features["penultimate"], b.features["penultimate"])
