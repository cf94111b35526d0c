"""Compressed caches: the same vectors to the bit, in fewer bytes, with the same fingerprint; nothing is silent there."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bird_cache.convert import convert, merge
from bird_cache.errors import CacheError, MissingCodecError, StaleCacheError
from bird_cache.folders import open_folder
from bird_cache.manifest import Compress, Layer, Plan
from bird_cache.numbers import Dtype
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.testing import (
    FAILED,
    LAYER,
    ROWS,
    FeatureStoreContract,
    example_plan,
    example_samples,
    example_vectors,
    files_of,
    write_example,
)
from bird_cache.verify import verify
from bird_cache.writer import open_writer


def needs(compress: Compress) -> None:
    if compress == "pcodec":
        pytest.importorskip("pcodec", reason="pcodec is an extra: pip install 'bird-cache[pcodec]'")


@pytest.fixture(params=["zstd", "pcodec"])
def compress(request: pytest.FixtureRequest) -> Compress:
    needs(request.param)
    return request.param


def compressed(compress: Compress, dtype: Dtype = "float16") -> Plan:
    return example_plan("zarr", dtype).model_copy(update={"compress": compress})


class TestZstd(FeatureStoreContract):
    store = "zarr"

    @pytest.fixture(autouse=True)
    def every_plan_is_compressed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from bird_cache import testing

        def plan(store: Any, dtype: Dtype = "float16", **causes: Any) -> Plan:
            return example_plan(store, dtype, **causes).model_copy(update={"compress": "zstd"})

        monkeypatch.setattr(testing, "example_plan", plan)

    @pytest.fixture
    def where(self, tmp_path: Path) -> str:
        return str(tmp_path / "cache")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_vectors_are_those_of_a_plain_cache(tmp_path: Path, compress: Compress, dtype: Dtype) -> None:
    write_example(str(tmp_path / "plain"), example_plan("zarr", dtype))
    write_example(str(tmp_path / "small"), compressed(compress, dtype))
    plain, small = open_cache(tmp_path / "plain"), open_cache(tmp_path / "small")
    assert small.fingerprint == plain.fingerprint
    rows = np.random.default_rng(0).permutation(ROWS)
    for found, right in (
        (small.read(LAYER, 10, 140), plain.read(LAYER, 10, 140)),
        (small.take(LAYER, rows), plain.take(LAYER, rows)),
    ):
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))
    assert verify(tmp_path / "small").findings == []
    assert small.info()["compress"] == compress


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
def test_plain_zarr_reads_it_and_a_stream_does(tmp_path: Path, compress: Compress) -> None:
    write_example(str(tmp_path), compressed(compress))
    array = zarr.open_group(tmp_path, mode="r")[LAYER]
    np.testing.assert_allclose(array[20:60], example_vectors(20, 60), atol=1e-3)
    assert np.isnan(array[7]).all()
    stream = FeatureStream(open_cache(tmp_path), "train", batch_size=16)
    plain = FeatureStream(open_cache(write_plain(tmp_path / "plain")), "train", batch_size=16)
    for one, other in zip(stream.epoch(0), plain.epoch(0), strict=True):
        np.testing.assert_array_equal(one.features[LAYER], other.features[LAYER])


def test_zeros_cost_little(tmp_path: Path, compress: Compress) -> None:
    """Features after a ReLU."""
    rows, width = 4096, 64
    plan = Plan(
        causes={"teacher": "made up"},
        layers={LAYER: Layer(shape=(width,), dtype="float16", kind="penultimate")},
        rows=rows,
        shard_rows=2048,
        chunk_rows=1024,
        class_names=("a",),
        group_names=("g",),
    )
    ids = np.array([f"s{row}" for row in range(rows)], object)
    none = np.zeros(rows, np.int64)
    text = np.full(rows, "x", object)
    table = type(example_samples())(
        ids, none, none, np.full(rows, "train", object), text, np.full(rows, "pending", object)
    )
    vectors = np.maximum(np.random.default_rng(0).standard_normal((rows, 1, width)), 0).astype(np.float32)
    sizes = {}
    for how in ("none", compress):
        with open_writer(tmp_path / how, plan.model_copy(update={"compress": how}), table) as writer:
            for shard in writer.pending():
                start, stop = plan.bounds(shard)
                writer.write_shard(shard, {LAYER: vectors[start:stop]}, {})
            writer.finish()
        sizes[how] = open_cache(tmp_path / how).info()["bytes"]
    assert sizes[compress] < 0.75 * sizes["none"]


def test_a_cache_is_not_half_compressed(tmp_path: Path, compress: Compress) -> None:
    write_example(str(tmp_path), compressed(compress))
    with pytest.raises(StaleCacheError, match="compress = "):
        write_example(str(tmp_path), example_plan("zarr"))
    with pytest.raises(StaleCacheError, match="compress = "):
        merge([tmp_path, write_plain(tmp_path / "plain")], tmp_path / "both")


def write_plain(where: Path) -> Path:
    write_example(str(where), example_plan("zarr"))
    return where


def test_converting_compresses_and_undoes_it(tmp_path: Path, compress: Compress) -> None:
    write_example(str(tmp_path / "a"), example_plan("zarr"))
    convert(tmp_path / "a", tmp_path / "b", "zarr", compress=compress)
    convert(tmp_path / "b", tmp_path / "c", "zarr", compress="none")
    convert(tmp_path / "b", tmp_path / "d", "webdataset")
    assert verify(tmp_path / "b").findings == []
    assert verify(tmp_path / "d").findings == []
    assert files_of(str(tmp_path / "c")) == files_of(str(tmp_path / "a"))
    assert open_cache(tmp_path / "b").manifest.plan.compress == compress


def test_hostile_chunks_are_refused(tmp_path: Path, compress: Compress, record_property: Any) -> None:
    """Behind a receipt that was made to fit: neither more is allocated nor anything silent."""
    from bird_cache.zarr_layout import ZarrLayout

    write_example(str(tmp_path), compressed(compress))
    plan, layout = compressed(compress), ZarrLayout()
    good = bytearray(open_folder(tmp_path).read(f"{LAYER}/c/0/0/0"))
    right = layout.decode(memoryview(good), plan, LAYER, 0, slice(None))
    index = len(good) - 4 - 2 * 16
    tried = 0
    for place, value in ((index, 2**40), (index + 8, 2**40), (index, 2**64 - 1), (index + 8, 0), (index + 8, 9)):
        wrong = bytearray(good)
        wrong[place : place + 8] = int(value).to_bytes(8, "little")
        with pytest.raises(ValueError):
            layout.decode(memoryview(wrong), plan, LAYER, 0, slice(None))
        tried += 1
    longer = plan.model_copy(update={"views": 1})  # a frame that holds more than is planned
    with pytest.raises(ValueError):
        layout.decode(memoryview(good), longer, LAYER, 0, slice(None))
    np.testing.assert_array_equal(layout.decode(memoryview(good), plan, LAYER, 0, slice(None)), right)
    record_property("12 hostile files", tried + 1)


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "pcodec":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingCodecError, match="pip install"):
        write_example(str(tmp_path / "c"), compressed("pcodec"))
    assert open_folder(tmp_path / "c").files() == []


def test_a_plain_manifest_is_written_as_before(tmp_path: Path) -> None:
    write_example(str(tmp_path), example_plan("zarr"))
    assert b"compress" not in (tmp_path / "zarr.json").read_bytes().replace(b'"compressors"', b"")
    assert set(FAILED) == {row for each in open_cache(tmp_path).receipts.values() for row in each.failed}
    with pytest.raises(CacheError):
        open_cache(tmp_path / "nothing")
