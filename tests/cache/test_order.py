"""Orders are pure functions: nothing lost, doubled or reordered, wherever one starts."""

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from bird_cache.order import (
    EpochOrder,
    InverseFrequencyRows,
    StratifiedRows,
    batches,
    ranked,
    raw,
    shards_of,
    shuffle_score,
    shuffled,
)


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_permutation(count, seed, epoch):
    rows = np.arange(count) * 3
    order = shuffled(rows, seed, epoch)
    assert np.array_equal(np.sort(order), rows)
    assert np.array_equal(order, shuffled(rows, seed, epoch))


def test_orders_differ_by_seed_and_epoch():
    rows = np.arange(1000)
    orders = [shuffled(rows, seed, epoch).tolist() for seed in range(3) for epoch in range(3)]
    assert len({*map(tuple, orders)}) == 9


@given(st.integers(2, 300), st.integers(2, 64), st.data())
def test_batches_resume_where_they_stopped(count, size, data):
    order = shuffled(np.arange(count), 0, 0)
    whole = list(batches(order, size))
    assert np.array_equal(np.concatenate(whole), order)
    assert all(len(batch) >= 2 for batch in whole)
    done = data.draw(st.integers(0, len(whole)))
    consumed = sum(len(batch) for batch in whole[:done])
    rest = list(batches(order, size, consumed))
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[done:]]


@given(st.integers(1, 10), st.integers(0, 1000))
def test_stratified_rows_hold_every_cell(per_cell, step):
    rows = np.arange(40)
    labels, groups = rows % 4, (rows % 7 == 0).astype(np.int64)
    drawn = StratifiedRows(rows, labels, groups, per_cell=per_cell, seed=1).draw(step)
    cells, counts = np.unique(labels[drawn] * 2 + groups[drawn], return_counts=True)
    assert len(cells) == len({*zip(labels.tolist(), groups.tolist(), strict=True)})
    assert (counts == per_cell).all()


def test_random_words_are_pinned():
    """The stored orders of finished runs depend on these numbers: they must never change."""
    assert raw(0, 0, 0, count=2).tolist() == raw(0, 0, 0, count=3).tolist()[:2]
    assert [int(word) % 1000 for word in raw(7, 1, 2, count=4)] == PINNED


PINNED = [542, 596, 619, 947]


ORDERS = st.tuples(st.integers(2, 400), st.integers(1, 60), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))


def rows_of(count):
    """`count` rows with gaps, as failed samples and other splits leave them."""
    rows = np.arange(2 * count)
    return rows[raw(9, 9, count=2 * count) % 3 > 0][:count]


@given(ORDERS, st.data())
def test_a_windowed_epoch_is_a_permutation_that_can_be_entered_anywhere(case, data):
    count, shard_rows, window, seed, epoch = case
    rows = rows_of(count)
    order = EpochOrder(rows, shard_rows, seed=seed, epoch=epoch, window=window)
    whole = order.between(0, len(order))
    assert np.array_equal(np.sort(whole), rows)
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    fresh = EpochOrder(rows, shard_rows, seed=seed, epoch=epoch, window=window)
    assert np.array_equal(fresh.between(start, stop), whole[start:stop])
    for number in range(order.groups):
        assert len(np.unique(order.group(number) // shard_rows)) <= max(window, 1) or order.groups == 1


@given(st.integers(2, 300), st.integers(0, 3))
def test_without_a_window_an_epoch_is_the_full_shuffle(count, epoch):
    rows = rows_of(count)
    order = EpochOrder(rows, 16, seed=1, epoch=epoch, window=None)
    assert np.array_equal(order.between(0, len(order)), shuffled(rows, 1, epoch))


def test_the_shuffle_score_tells_a_shuffle_from_an_order():
    rows = np.arange(20_000)
    assert shuffle_score(rows) < 0.001
    assert 0.97 < shuffle_score(shuffled(rows, 0, 0)) < 1.03
    narrow = EpochOrder(rows, 100, seed=0, epoch=0, window=2)
    wide = EpochOrder(rows, 100, seed=0, epoch=0, window=100)
    assert shuffle_score(narrow.between(0, 20_000)) < shuffle_score(wide.between(0, 20_000))


def test_inverse_frequency_draws_every_cell_alike():
    rows = np.arange(1000)
    labels, groups = (rows % 50 == 0).astype(np.int64), np.zeros(1000, np.int64)
    sampler = InverseFrequencyRows(rows, labels, groups, batch_size=500, seed=0)
    drawn = np.concatenate([sampler.draw(step) for step in range(20)])
    assert 0.47 < labels[drawn].mean() < 0.53
    assert np.array_equal(sampler.draw(3), sampler.draw(3))


FINISHED = [
    (np.arange(5000) * 3, 700, 3, 2, None, "5077e19d64f7dda0"),
    (np.arange(5000) * 3, 700, 3, 2, 4, "af36140ee46282b3"),
    (np.flatnonzero(np.arange(20000) % 7 < 3), 512, 0, 1, 10, "550c2db0a2528b92"),
]


@pytest.mark.parametrize(("rows", "shard_rows", "seed", "epoch", "window", "expected"), FINISHED)
def test_orders_are_pinned(rows, shard_rows, seed, epoch, window, expected):
    """A run that was stopped goes on in the order it began with, whatever the version."""
    order = EpochOrder(rows, shard_rows, seed=seed, epoch=epoch, window=window)
    assert xxhash.xxh3_64_hexdigest(order.between(0, len(order)).astype("<i8").tobytes()) == expected
    members = np.concatenate([order.members(number) for number in range(order.groups)])
    assert np.array_equal(np.sort(members), rows)


@given(st.lists(st.integers(0, 3) | st.integers(0, 2**64 - 1)))
def test_equal_words_stay_in_their_places(words):
    drawn = np.array(words, np.uint64)
    assert np.array_equal(ranked(drawn), np.argsort(drawn, kind="stable"))


@given(st.sets(st.integers(0, 300)), st.integers(1, 40))
def test_shards_of_rows(rows, size):
    ascending = np.array(sorted(rows), np.int64)
    shards, bounds = shards_of(ascending, size)
    assert shards.tolist() == sorted({row // size for row in rows})
    for shard, (first, end) in zip(shards, bounds, strict=True):
        assert ascending[first:end].tolist() == [row for row in sorted(rows) if row // size == shard]
