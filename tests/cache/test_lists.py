"""Vectors in Arrow's many kinds of lists, ids in its kinds of text."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bird_cache.errors import ImportedVectorsError
from bird_cache.importers import read_vectors

N, DIM = 40, 6
IDS = [f"folder/picture.{number}" for number in range(N)]
VECTORS = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
FLAT = pa.array(VECTORS.ravel())
KINDS = {
    "fixed_size_list": pa.FixedSizeListArray.from_arrays(FLAT, DIM),
    "large_list": pa.array(VECTORS.tolist(), pa.large_list(pa.float32())),
    "list_view": pa.array(VECTORS.tolist(), pa.list_view(pa.float32())),
    "large_list_view": pa.array(VECTORS.tolist(), pa.large_list_view(pa.float32())),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS),
    "tensor of two axes": pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS.reshape(N, 2, 3)),
    "fixed in fixed": pa.array(VECTORS.reshape(N, 1, DIM).tolist(), pa.list_(pa.list_(pa.float32(), DIM), 1)),
    "fixed in list": pa.array(VECTORS.reshape(N, 2, 3).tolist(), pa.list_(pa.list_(pa.float32(), 3))),
    "list in list": pa.array(VECTORS.reshape(N, 3, 2).tolist(), pa.list_(pa.list_(pa.float32()))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_list_gives_the_same_vectors(tmp_path, kind):
    pq.write_table(pa.table({"id": IDS, "v": KINDS[kind]}), tmp_path / "v.parquet", row_group_size=7)
    found = read_vectors(tmp_path / "v.parquet")
    np.testing.assert_array_equal(found.take(np.arange(N)), VECTORS)
    assert ("laid out as 6 numbers" in found.source) == (" in " in kind or "axes" in kind)


@pytest.mark.parametrize("kind", ["string_view", "large_string", "dictionary"])
def test_every_kind_of_text_gives_the_same_ids(tmp_path, kind):
    ids = pa.array(IDS)
    ids = ids.dictionary_encode() if kind == "dictionary" else ids.cast(getattr(pa, kind)())
    pq.write_table(pa.table({"id": ids, "v": list(VECTORS)}), tmp_path / "v.parquet")
    assert read_vectors(tmp_path / "v.parquet").ids.tolist() == IDS


NESTED = VECTORS.reshape(N, 2, 3).tolist()


@pytest.mark.parametrize(
    ("wrong", "rows"),
    [
        ([*NESTED[:-1], [[1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]], r"rows 39 \(2\), 39 \(4\)"),
        ([*NESTED[:-1], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]], r"rows 39 \(1\)"),
        ([*NESTED[:-1], [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]]], "several widths in v"),
    ],
)
def test_nested_lists_of_several_shapes_are_refused_by_row(tmp_path, wrong, rows):
    table = pa.table({"id": IDS, "v": pa.array(wrong, pa.list_(pa.list_(pa.float32())))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(ImportedVectorsError, match=rows):
        read_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ({"id": [b"x%d" % i for i in range(N)], "v": list(VECTORS)}, "save id as text"),
        ({"id": IDS, "v": [[1, 2]] * N}, "save them as float32"),
        ({"id": IDS, "v": [b"1234"] * N}, r"v \(binary\).*save the vectors as lists of float32"),
    ],
)
def test_the_advice_fits(tmp_path, columns, advice):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(ImportedVectorsError, match=advice):
        read_vectors(tmp_path / "v.parquet")
