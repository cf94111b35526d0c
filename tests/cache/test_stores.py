"""Both stores, on disk and in object storage, keep the same contract; others' libraries read what they wrote."""

import io
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.s3 import bucket, server  # noqa: F401  (fixtures)

from bird_cache.convert import convert, merge
from bird_cache.errors import NotACacheError, StaleCacheError
from bird_cache.folders import open_folder
from bird_cache.store import open_cache
from bird_cache.testing import (
    FAILED,
    ROWS,
    FeatureStoreContract,
    example_image,
    example_plan,
    example_samples,
    example_vectors,
    files_of,
    write_example,
)
from bird_cache.verify import verify
from bird_cache.writer import open_writer

STORES = ("zarr", "webdataset")


class TestZarr(FeatureStoreContract):
    store = "zarr"

    @pytest.fixture
    def where(self, tmp_path):
        return str(tmp_path / "cache")


class TestWebDataset(FeatureStoreContract):
    store = "webdataset"

    @pytest.fixture
    def where(self, tmp_path):
        return f"file://{tmp_path}/cache"


class TestZarrInObjectStorage(FeatureStoreContract):
    store = "zarr"

    @pytest.fixture
    def where(self, bucket):  # noqa: F811  # a fixture
        return f"{bucket}/cache"


class TestWebDatasetInObjectStorage(FeatureStoreContract):
    store = "webdataset"

    @pytest.fixture
    def where(self, bucket):  # noqa: F811  # a fixture
        return f"{bucket}/cache"


def test_plain_zarr_reads_it(tmp_path):
    import zarr

    write_example(str(tmp_path / "c"), example_plan("zarr"))
    array = zarr.open(tmp_path / "c", mode="r")["penultimate"]
    np.testing.assert_allclose(array[20:60], example_vectors(20, 60), atol=1e-3)
    assert np.isnan(array[7]).all()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its files open
def test_plain_webdataset_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    write_example(str(tmp_path / "c"), example_plan("webdataset"))
    shards = sorted(str(path) for path in (tmp_path / "c").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    good = [row for row in range(ROWS) if row not in FAILED]
    assert [sample["json"]["id"] for sample in samples] == example_samples().ids[good].tolist()
    for row, sample in zip(good, samples, strict=True):
        assert sample["__key__"] == f"{row:09d}"
        assert sample["json"]["status"] == "ok"
        np.testing.assert_allclose(sample["penultimate.npy"], example_vectors(row, row + 1)[0], atol=1e-3)
    tuples = webdataset.WebDataset(shards, shardshuffle=False).to_tuple("jpg", "penultimate.npy", "json").batched(16)
    assert sum(len(images) for images, _, _ in tuples) == ROWS - len(FAILED)


def test_a_tar_with_its_failed_rows_still_opens(tmp_path):
    """As tars were until failed rows left them: NaN arrays, and a json that says why."""
    plan = example_plan("webdataset")
    write_older(str(tmp_path / "old"), plan)
    write_example(str(tmp_path / "new"), plan)
    assert verify(tmp_path / "old").findings == []
    old, new = open_cache(tmp_path / "old"), open_cache(tmp_path / "new")
    np.testing.assert_array_equal(old.read("penultimate", 0, ROWS), new.read("penultimate", 0, ROWS))
    assert [image for shard in range(3) for image in old.sources(shard)] == [example_image(row) for row in range(ROWS)]
    convert(tmp_path / "old", tmp_path / "converted", "webdataset")
    assert files_of(str(tmp_path / "converted")) == files_of(str(tmp_path / "new"))


def write_older(where, plan):
    """The example, by the layout of then."""
    from bird_cache.files import canonical_json
    from bird_cache.wds_layout import BLOCK, WebDatasetLayout, _add, _described, _npy_header, extension

    def encode(self, plan, shard, stored, samples, failed, source):
        start, stop = plan.bounds(shard)
        buffer = io.BytesIO()
        for row, described in enumerate(_described(samples, start, stop, failed), start):
            if (image := source(row)) is not None:
                _add(buffer, f"{row:09d}.{extension(image)}", image)
            for name, spec in plan.layers.items():
                _add(buffer, f"{row:09d}.{name}.npy", _npy_header(plan, spec) + stored[name][row - start].tobytes())
            _add(buffer, f"{row:09d}.json", canonical_json(described))
        return {"tar": buffer.getvalue() + bytes(2 * BLOCK)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WebDatasetLayout, "encode", encode)
        write_example(where, plan)


def test_a_tar_holds_the_images(tmp_path):
    write_example(str(tmp_path / "c"), example_plan("webdataset"))
    cache = open_cache(tmp_path / "c")
    images = [image for shard in range(3) for image in cache.sources(shard)]
    assert images == [None if row in FAILED else example_image(row) for row in range(ROWS)]


def test_converting_there_and_back_changes_no_byte(tmp_path):
    ids = example_samples().ids.tolist()
    image = {id: example_image(row) for row, id in enumerate(ids)}.get
    zarr_, tar, back, again = (str(tmp_path / name) for name in ("zarr", "tar", "back", "again"))
    write_example(zarr_, example_plan("zarr"))
    convert(zarr_, tar, "webdataset", image)
    convert(tar, back, "zarr")
    convert(back, again, "webdataset", image)
    assert open_cache(tar).fingerprint == open_cache(zarr_).fingerprint
    assert verify(tar).findings == []
    assert files_of(back) == files_of(zarr_)
    assert files_of(again) == files_of(tar)
    direct = str(tmp_path / "direct")
    write_example(direct, example_plan("webdataset"))
    assert files_of(direct) == files_of(tar)


@pytest.mark.parametrize("store", STORES)
def test_slices_merge_to_what_one_writer_makes(tmp_path, store):
    plan, whole = example_plan(store), str(tmp_path / "whole")
    write_example(whole, plan)
    parts = [str(tmp_path / name) for name in "ab"]
    for number, part in enumerate(parts):
        with open_writer(part, plan, example_samples()) as writer:
            for shard in writer.pending()[number::2]:
                start, stop = plan.bounds(shard)
                lost = {row: reason for row, reason in FAILED.items() if start <= row < stop}
                writer.write_shard(shard, {"penultimate": example_vectors(start, stop)}, lost, example_image)
    assert merge(parts[:1], tmp_path / "half") == (2, 3)
    assert merge(parts, tmp_path / "merged") == (3, 3)
    assert files_of(str(tmp_path / "merged")) == files_of(whole)
    write_example(str(tmp_path / "other"), example_plan(store, teacher={"weights": "sha256:2"}))
    with pytest.raises(StaleCacheError, match=r"teacher\.weights"):
        merge([whole, tmp_path / "other"], tmp_path / "no")


def test_another_teacher_is_named_beside_the_field_that_differs():
    one, other = (
        example_plan("zarr").model_copy(
            update={"notes": {"teacher": name}, "causes": {"preprocessing": {"size": size}}}
        )
        for name, size in (("clip", 224), ("flava", 196))
    )
    with pytest.raises(
        StaleCacheError, match=r"vectors of clip with preprocessing\.size = 224; wanted vectors of flava"
    ):
        one.require(other, "cache")


def test_a_stranger_reads_it_with_numpy_and_the_page_of_the_format(tmp_path):
    """The reader of cache/README.md: nothing of ours."""
    write_example(str(tmp_path / "c"), example_plan("zarr"))
    table, vectors = stranger(tmp_path / "c")
    cache = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(
        vectors, np.stack([cache.vectors("penultimate", np.arange(ROWS), v) for v in (0, 1)], 1)
    )
    assert table["id"].to_pylist() == cache.samples.ids.tolist()
    path = tmp_path / "c" / "penultimate" / "c" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(AssertionError):
        stranger(tmp_path / "c")


def stranger(root):
    """samples.parquet and one layer, checked against the receipts."""
    import xxhash

    def sealed(record):
        body = {name: value for name, value in record.items() if name != "checksum"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert record["checksum"] == xxhash.xxh3_128_hexdigest(text.encode())
        return body

    manifest = sealed(json.loads((root / "zarr.json").read_bytes())["attributes"]["bird_cache"])
    plan = manifest["plan"]
    spec = plan["layers"]["penultimate"]
    assert manifest["complete"]
    assert spec["dtype"] == "float16"
    table, pieces = pq.read_table(root / "samples.parquet"), []
    per_shard = plan["shard_rows"] // plan["chunk_rows"]
    shape = (plan["chunk_rows"], plan["views"], *spec["shape"])
    for shard in range(-(-plan["rows"] // plan["shard_rows"])):
        receipt = sealed(json.loads((root / "commits" / f"{shard:06d}.json").read_bytes()))
        data = (root / receipt["files"]["penultimate"]["path"]).read_bytes()
        assert xxhash.xxh3_128_hexdigest(data) == receipt["files"]["penultimate"]["xxh3"]
        index = np.frombuffer(data, "<u8", 2 * per_shard, len(data) - 4 - 16 * per_shard).reshape(-1, 2)
        rows = receipt["stop"] - receipt["start"]
        chunks = [
            np.full(shape, np.nan, np.float16) if offset == 2**64 - 1 else np.ndarray(shape, "<f2", data, int(offset))
            for offset in index[:, 0]
        ]
        pieces.append(np.concatenate(chunks)[:rows])
    return table, np.concatenate(pieces).astype(np.float32)


def test_urls_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(NotACacheError, match="ftp"):
        open_folder("ftp://host/cache")


def test_a_second_writer_in_object_storage_shares_the_work(bucket):  # noqa: F811  # a fixture
    plan, where = example_plan("webdataset"), f"{bucket}/shared"
    with open_writer(where, plan, example_samples()) as first:
        lost = {row: reason for row, reason in FAILED.items() if row < 64}
        first.write_shard(0, {"penultimate": example_vectors(0, 64)}, lost, example_image)
        assert write_example(where, plan) == [1, 2]
        first.write_shard(1, {"penultimate": example_vectors(64, 128)}, {70: FAILED[70]}, example_image)
    assert verify(where).findings == []


def test_hostile_tars_are_refused(tmp_path, record_property):
    """A tar whose receipt was made to fit: still nothing but planned members is taken, and nothing is executed."""
    record_property("12 hostile files", 1)
    import tarfile

    from bird_cache.wds_layout import WebDatasetLayout

    def tar(name, body=b"", kind=tarfile.REGTYPE, link=""):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(body)
            file.addfile(member, io.BytesIO(body))
        return memoryview(buffer.getvalue())

    pickled = io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)
    layout, plan = WebDatasetLayout(), example_plan("webdataset")
    hostile = [
        tar("000000000.penultimate.npy", b"x")[:1024],
        tar("../../etc/cron.d/x", b"x"),
        tar("/etc/passwd", b"x"),
        tar("000000000.penultimate.npy", pickled.getvalue()),
        tar("000000000.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        tar("000000000.jpg", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        tar("000000000.pyd", b"x"),
        tar("000000000.jpg", kind=tarfile.FIFOTYPE),
        memoryview(b"\xff" * 2048),
        memoryview(b""),
    ]
    for data in hostile:
        with pytest.raises(ValueError):
            layout.decode(data, plan, "penultimate", 0, slice(None))
    assert not os.path.exists("etc")
