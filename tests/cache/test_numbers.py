"""Stored bits and float32."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bird_cache.numbers import BLOCK_VALUES, from_storage

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype == np.float32 and (a.view(np.uint32) == b.view(np.uint32)).all()


def test_every_float16_becomes_the_same_float32_as_by_casting():
    assert same_bits(from_storage(EVERY, "float16"), EVERY.astype(np.float32))
    finite = EVERY[np.isfinite(EVERY)]
    for known in (False, True):
        assert same_bits(from_storage(finite, "float16", finite=known), finite.astype(np.float32))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_float16_of_any_shape_and_layout(shape, step):
    stored = np.resize(EVERY[:: 1 + 7 * step], shape)
    for view in (stored, stored.T, stored[..., ::2]):
        assert same_bits(from_storage(view, "float16"), view.astype(np.float32))


def test_a_nan_in_one_block_of_a_large_array():
    stored = np.resize(EVERY[:0x7C00], 3 * BLOCK_VALUES + 5).reshape(-1, 1)
    stored[BLOCK_VALUES + 3] = np.nan
    assert same_bits(from_storage(stored, "float16"), stored.astype(np.float32))
