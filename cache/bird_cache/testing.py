"""What every store must do, as a suite that any layout and any folder can be put through with pytest.

class TestMine(FeatureStoreContract):
    store = "zarr"

    @pytest.fixture
    def where(self, tmp_path):
        return str(tmp_path / "cache")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bird_cache.errors import (
    CacheError,
    FeatureError,
    IncompleteCacheError,
    NotACacheError,
    StaleCacheError,
)
from bird_cache.folders import open_folder
from bird_cache.manifest import Layer, Plan, Store
from bird_cache.numbers import Dtype
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.verify import repair, verify
from bird_cache.writer import open_part, open_writer

__all__ = ["FeatureStoreContract", "example_plan", "example_samples", "example_vectors", "write_example"]

ROWS, DIM, SHARD, CHUNK, VIEWS = 150, 6, 64, 32, 2
FAILED = {7: "undecodable", 70: "undecodable", 149: "no such file"}
LAYER = "penultimate"


def example_samples() -> Samples:
    """150 samples: ids that no file name could be, three classes, two groups, all splits."""
    number = np.arange(ROWS)

    def text(values: list[str]) -> NDArray[np.object_]:
        return np.array(values, dtype=object)

    return Samples(
        text([f"é/sample.{i}" for i in range(ROWS)]),
        number % 3,
        number % 2,
        text([("train", "meta", "test")[i % 3] for i in range(ROWS)]),
        text([f"{i:032x}" for i in range(ROWS)]),
        text([PENDING] * ROWS),
    )


def example_plan(store: Store, dtype: Dtype = "float16", **causes: Any) -> Plan:
    """Three shards of two views, with images where the store holds them."""
    return Plan(
        causes={"teacher": {"weights": "sha256:1"}, "dtype": dtype, **causes},
        layers={LAYER: Layer(shape=(DIM,), dtype=dtype, kind="penultimate")},
        rows=ROWS,
        views=VIEWS,
        shard_rows=SHARD,
        chunk_rows=CHUNK,
        store=store,
        images=store == "webdataset",
        class_names=("a", "b", "c"),
        group_names=("g", "h"),
    )


def example_vectors(start: int, stop: int, shape: tuple[int, ...] = (DIM,)) -> NDArray[np.float32]:
    """What the teacher says of rows start..stop, (rows, views, *shape): a pure function of row, view and place."""
    size = int(np.prod(shape))
    row, view, place = np.ogrid[start:stop, :VIEWS, :size]
    return np.sin(row * 1.7 + view + place * 0.3).astype(np.float32).reshape(stop - start, VIEWS, *shape)


def example_image(row: int) -> bytes | None:
    """The "image" of a row; none where it failed for want of a file."""
    return None if FAILED.get(row) == "no such file" else b"\xff\xd8\xff" + f"image {row}".encode() * (1 + row % 5)


def write_example(where: str, plan: Plan, before_shard: Callable[[int], None] = lambda shard: None) -> list[int]:
    """Write or resume the example; returns the shards that were computed."""
    with open_writer(where, plan, example_samples()) as writer:
        computed = writer.pending()
        for shard in computed:
            before_shard(shard)
            start, stop = plan.bounds(shard)
            lost = {row: reason for row, reason in FAILED.items() if start <= row < stop}
            writer.write_shard(shard, {LAYER: example_vectors(start, stop)}, lost, example_image)
        writer.finish()
    return computed


class FeatureStoreContract:
    """Subclass it, say which `store`, and give a fixture `where`: an address at which nothing is yet."""

    store: Store

    @pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
    def test_rows_come_back_in_any_order(self, where: str, dtype: Dtype) -> None:
        write_example(where, example_plan(self.store, dtype))
        cache = open_cache(where)
        cache.require_complete()
        rows = np.random.default_rng(0).permutation(ROWS)
        expected, good = example_vectors(0, ROWS)[rows], ~np.isin(rows, list(FAILED))
        for view in range(VIEWS):
            got = cache.vectors(LAYER, rows, view)
            np.testing.assert_allclose(got[good], expected[good, view], rtol=2**-7, atol=1e-6)
            assert np.isnan(got[~good]).all()
        stored = cache.read(LAYER, 0, ROWS)
        np.testing.assert_array_equal(cache.take(LAYER, rows).view(np.uint8), stored[rows].view(np.uint8))
        np.testing.assert_array_equal(cache.read(LAYER, 50, 70).view(np.uint8), stored[50:70].view(np.uint8))

    def test_every_row_is_accounted_for(self, where: str) -> None:
        write_example(where, example_plan(self.store))
        info = open_cache(where).info()
        assert (info["rows"], info["written"], info["failed"]) == (ROWS, ROWS - len(FAILED), len(FAILED))
        assert sum(cell["failed"] for cell in info["groups"].values()) == len(FAILED)
        assert verify(where).findings == []

    def test_resume_computes_what_is_missing_and_ends_with_the_same_bytes(self, where: str) -> None:
        def cut(shard: int) -> None:
            if shard == 1:
                raise RuntimeError("power cut")

        plan = example_plan(self.store)
        with pytest.raises(RuntimeError, match="power cut"):
            write_example(where, plan, cut)
        with pytest.raises(IncompleteCacheError):
            open_cache(where).require_complete()
        before = files_of(where)
        assert write_example(where, plan) == [1, 2]
        assert write_example(where, plan) == []
        after = files_of(where)
        shards = [path for path in before if path.startswith("commits/") or path.endswith((".tar", "/0/0"))]
        assert {path: after[path] for path in shards} == {path: before[path] for path in shards}

    def test_other_causes_are_refused(self, where: str) -> None:
        write_example(where, example_plan(self.store))
        with pytest.raises(StaleCacheError, match=r"teacher\.weights"):
            write_example(where, example_plan(self.store, teacher={"weights": "sha256:2"}))

    def test_unusable_vectors_are_refused(self, where: str) -> None:
        bad = example_vectors(0, SHARD)
        bad[5, 1, 3] = np.nan
        with (
            open_writer(where, example_plan(self.store), example_samples()) as writer,
            pytest.raises(FeatureError, match=r"sample\.5"),
        ):
            writer.write_shard(0, {LAYER: bad}, {}, example_image)

    def test_layers_can_be_added_to_a_finished_cache(self, where: str) -> None:
        write_example(where, example_plan(self.store))
        before = open_cache(where).read(LAYER, 0, ROWS)
        spec = {"attention.layer1": Layer(shape=(2, 3), dtype="float32", kind="attention")}
        for _ in range(2):  # the second time there is nothing to do
            with open_part(where, "attention", spec, {"teacher": "sha256:1"}) as writer:
                for shard in writer.pending():
                    start, stop = writer.plan.bounds(shard)
                    writer.write_shard(shard, {"attention.layer1": example_vectors(start, stop, (2, 3))}, {})
                writer.finish()
        cache = open_cache(where)
        np.testing.assert_array_equal(cache.read("attention.layer1", 0, ROWS), example_vectors(0, ROWS, (2, 3)))
        np.testing.assert_array_equal(cache.read(LAYER, 0, ROWS).view(np.uint16), before.view(np.uint16))
        assert verify(where).findings == []
        with pytest.raises(StaleCacheError), open_part(where, "attention", spec, {"teacher": "sha256:2"}):
            pass

    def test_no_damage_is_silent_and_repair_computes_it_again(self, where: str) -> None:
        plan, folder = example_plan(self.store), open_folder(where)
        write_example(where, plan)
        clean, rng = files_of(where), np.random.default_rng(0)
        for path, data in clean.items():
            position = int(rng.integers(len(data)))
            flipped = data[:position] + bytes([data[position] ^ (1 << int(rng.integers(8)))]) + data[position + 1 :]
            for wrong in (flipped, data[:-1], data[: len(data) // 2], b""):
                folder.replace(path, wrong)
                assert noticed(where), f"{path}, {len(wrong)} bytes"
            folder.remove(path)
            assert noticed(where), f"{path} missing"
            folder.replace(path, data)
        assert verify(where).findings == []
        shards = [path for path in clean if path.endswith((".tar", "/0/0"))]
        folder.replace(shards[0], clean[shards[1]])
        assert noticed(where)
        assert len(repair(where)) == 1
        assert len(write_example(where, plan)) == 1
        assert verify(where).findings == []
        assert files_of(where) == clean

    def test_what_is_not_a_cache_is_said_to_be_none(self, where: str) -> None:
        with pytest.raises(NotACacheError):
            open_cache(where)
        open_folder(where).replace("thesis.tex", b"precious")
        with pytest.raises(NotACacheError):
            write_example(where, example_plan(self.store))
        assert files_of(where) == {"thesis.tex": b"precious"}


def files_of(where: str) -> Mapping[str, bytes]:
    """Every file of a cache and its bytes."""
    folder = open_folder(where)
    return {path: folder.read(path) for path in folder.files()}


def noticed(where: str) -> bool:
    """Whether `verify` says that something is wrong."""
    try:
        return bool(verify(where).findings)
    except CacheError:
        return True
