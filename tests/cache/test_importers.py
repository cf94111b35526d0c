"""Files of vectors from elsewhere: what fits is taken bit by bit, what does not is refused by name, nothing executes."""

import csv as csv_module
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bird_cache.errors import ImportedVectorsError, StorageError
from bird_cache.importers import read_vectors

N, DIM = 40, 6
IDS = [f"folder/picture.{number}" for number in range(N)]
VECTORS = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


def npy(folder, vectors=VECTORS, ids=IDS):
    np.save(folder / "v.npy", vectors)
    (folder / "ids.txt").write_text("\n".join(ids), encoding="utf-8")
    return folder / "v.npy", folder / "ids.txt"


def csv(folder):
    np.save(folder / "v.npy", VECTORS)
    (folder / "ids.csv").write_text("label,id\n" + "\n".join(f"1,{id}" for id in IDS))
    return folder / "v.npy", folder / "ids.csv"


def lists(folder):
    pq.write_table(pa.table({"id": IDS, "vector": list(VECTORS)}), folder / "v.parquet")
    return folder / "v.parquet", None


def columns(folder):
    pq.write_table(pa.table({"id": IDS, **{f"f{i}": VECTORS[:, i] for i in range(DIM)}}), folder / "v.parquet")
    return folder / "v.parquet", None


def clip_retrieval(folder):
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    for number, start in enumerate(range(0, N, 4)):  # ten files and more: 10 comes after 9
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", VECTORS[start : start + 4])
        table = pa.table({"image_path": IDS[start : start + 4], "caption": ["x"] * 4})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder, None


@pytest.mark.parametrize("form", [npy, csv, lists, columns, clip_retrieval])
def test_every_form_gives_the_same_vectors(tmp_path, form):
    found = read_vectors(*form(tmp_path))
    assert found.ids.tolist() == IDS
    rows = np.random.default_rng(1).permutation(N)
    np.testing.assert_array_equal(found.take(rows), VECTORS[rows])
    assert found.content == read_vectors(*form_again(tmp_path, form)).content


def form_again(folder, form):
    return (folder, None) if form is clip_retrieval else form(folder)


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (["a", "a", *IDS[2:]], "more than once: 'a'"),
        (["e\u0301", "\u00e9", *IDS[2:]], "after unicode normalisation"),
        (["", *IDS[1:]], "no id at rows \\[0\\]"),
        (IDS[1:], "40 vectors for 39 ids"),
        (["x\0y", *IDS[1:]], "NUL"),
    ],
)
def test_unusable_ids_are_refused_by_name(tmp_path, ids, named, record_property):
    record_property("13 ids", 1)
    with pytest.raises(ImportedVectorsError, match=named):
        read_vectors(*npy(tmp_path, ids=ids))


def test_long_ids_and_slashes_and_dots_are_ids(tmp_path, record_property):
    record_property("13 ids", 5)
    ids = ["x" * 1000, "../up", "/absolute", "a.b.c", "7", *IDS[5:]]
    assert read_vectors(*npy(tmp_path, ids=ids)).ids.tolist() == ids


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), min_size=1, max_size=12)


@settings(max_examples=60)
@given(
    ids=st.lists(TEXT, min_size=1, max_size=8, unique_by=lambda id: unicodedata.normalize("NFC", id)), data=st.data()
)
def test_any_ids_and_vectors_come_back_from_every_form(ids, data):
    dtype = data.draw(st.sampled_from(["float16", "float32", ">f4"]))
    vectors = np.random.default_rng(len(ids)).standard_normal((len(ids), 3)).astype(dtype)
    native = vectors.astype(vectors.dtype.newbyteorder("="))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "v.npy", vectors)
        (folder / "ids.txt").write_text("\n".join(ids), encoding="utf-8")
        with open(folder / "ids.csv", "w", encoding="utf-8", newline="") as file:
            csv_module.writer(file).writerows([["id"], *([id] for id in ids)])
        pq.write_table(pa.table({"id": ids, "vector": list(native)}), folder / "v.parquet", row_group_size=2)
        forms = [("v.npy", folder / "ids.txt"), ("v.npy", folder / "ids.csv"), ("v.parquet", None)]
        for found in [read_vectors(folder / file, beside) for file, beside in forms]:
            assert found.ids.tolist() == ids
            np.testing.assert_array_equal(found.take(np.arange(len(ids))), vectors.astype(np.float32))


def parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "v.parquet")
    return folder / "v.parquet"


def test_numbered_columns_are_in_the_order_of_their_numbers_and_others_left_out(tmp_path):
    order = [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
    file = parquet(tmp_path, id=["a", "b"], score=[7.0, 8.0], **{f"f{i}": [float(i), -float(i)] for i in order})
    np.testing.assert_array_equal(read_vectors(file).take(np.array([1])), -np.arange(11.0)[None])


def test_columns_are_chosen_by_name(tmp_path):
    file = parquet(tmp_path, name=["a", "b"], x=[[1.0], [2.0]], y=[[3.0], [4.0]], z0=[5.0, 6.0])
    for column, value in (("x", 1.0), ("y", 3.0), ("z", 5.0)):
        found = read_vectors(file, id_column="name", vector_column=column)
        assert (found.ids.tolist(), found.take(np.array([0])).tolist()) == (["a", "b"], [[value]])
    assert len({read_vectors(file, id_column="name", vector_column=name).content for name in "xyz"}) == 3
    with pytest.raises(ImportedVectorsError, match=r"2 could hold the vectors.*--vector-column"):
        read_vectors(file, id_column="name")
    with pytest.raises(ImportedVectorsError, match="--id-column"):
        read_vectors(file, vector_column="x")


def test_what_a_status_column_calls_failed_is_marked(tmp_path):
    for name in ("img_emb", "metadata"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", VECTORS[:4])
    status = ["ok", "success", "failed_to_download", None]
    table = pa.table({"key": IDS[:4], "status": status})
    pq.write_table(table, tmp_path / "metadata" / "metadata_0.parquet")
    assert read_vectors(tmp_path).absent.tolist() == [False, False, True, True]


WIDTHS = [[1.0] * 4] * 3000
CONTRADICTORY = {
    "widths, late": ({"v": [*WIDTHS[:1500], [2.0] * 5, [3.0] * 3, *WIDTHS[1502:]]}, r"rows 1500 \(5\), 1501 \(3\)"),
    "widths, uneven": ({"v": [*WIDTHS[:-1], [2.0]]}, "several widths"),
    "no list": ({"v": [*WIDTHS[:-1], None]}, "several widths"),
    "empty lists": ({"v": pa.array([[]] * 3000, pa.list_(pa.float32()))}, "several widths"),
    "integers": ({"v": [[1, 2]] * 3000}, "vectors of int64"),
    "no vectors": ({"caption": ["x"] * 3000}, "0 could hold the vectors"),
    "a number missing": ({"f0": [0.0] * 3000, "f2": [0.0] * 3000}, "no number missing"),
    "no id": ({"id": ["a", None, *map(str, range(2998))], "v": WIDTHS}, r"no id at rows \[1\]"),
    "twice": ({"id": ["x"] * 3000, "v": WIDTHS}, "more than once: 'x'"),
    "ids of real numbers": ({"id": [float(i) for i in range(3000)], "v": WIDTHS}, "ids of type double"),
    "ids of bytes": ({"id": [b"\xff%d" % i for i in range(3000)], "v": WIDTHS}, "ids of type binary"),
}


@pytest.mark.parametrize(("columns", "said"), CONTRADICTORY.values(), ids=CONTRADICTORY)
def test_tables_that_contradict_themselves_are_refused(tmp_path, columns, said):
    with pytest.raises(ImportedVectorsError, match=said):
        read_vectors(parquet(tmp_path, **{"id": [*map(str, range(3000))]} | columns))


def test_integers_as_ids_are_text_and_the_source_says_so(tmp_path, record_property):
    record_property("13 ids", 1)
    found = read_vectors(parquet(tmp_path, id=[7, 8], v=[[1.0], [2.0]]))
    assert found.ids.tolist() == ["7", "8"]
    assert "id (int64, taken as text)" in found.source


def test_nothing_a_table_promises_is_allocated(tmp_path):
    """Two million vectors and ids of nothing in a file of under a MB; memory is that of a process of its own."""
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2_000_000 * 64, np.float32)), 64)
    for name, ids in (("equal", pa.array(["a"] * 2_000_000)), ("null", pa.nulls(2_000_000, pa.string()))):
        pq.write_table(pa.table({"id": ids, "v": zeros}), tmp_path / f"{name}.parquet")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1 << 20
        program = (
            "import pyarrow.parquet, resource, sys; from pathlib import Path; from bird_cache import importers, errors\n"
            "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = rss()\n"
            "try: importers.read_vectors(Path(sys.argv[1]))\n"
            "except errors.ImportedVectorsError: print(rss() - before)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / f"{name}.parquet"], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 100 << 10  # kilobytes; the vectors alone would be 500,000


def test_a_temporary_file_that_does_not_fit_is_refused_before_it_is_begun(tmp_path, monkeypatch):
    rows = 1000
    file = parquet(tmp_path, id=[*map(str, range(rows))], v=[[1.0, 2.0]] * rows)
    free = shutil.disk_usage(tmp_path)._replace(free=rows * 16 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(StorageError, match="TMPDIR"):
        read_vectors(file)


HOSTILE_TABLES = {
    "cut": lambda data: data[: len(data) // 2],
    "cut by one": lambda data: data[:-1],
    "no pages": lambda data: data[:4] + data[-2000:],
    "zeroed pages": lambda data: data[:4] + bytes(len(data) - 2000) + data[-1996:],
    "absurd footer": lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:],
    "only a footer's mark": lambda data: b"PAR1" * 3,
}


@pytest.mark.parametrize("damage", HOSTILE_TABLES.values(), ids=HOSTILE_TABLES)
def test_damaged_tables_are_refused(tmp_path, damage, record_property):
    record_property("12 hostile files", 1)
    file = parquet(tmp_path, id=[*map(str, range(3000))], v=[*np.random.default_rng(0).random((3000, 4))])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ImportedVectorsError):
        read_vectors(file)


HOSTILE_IDS = {
    "pickle": pickle.dumps(["a"] * N),
    "not UTF-8": b"\xff\xfe" * N,
    "NUL": b"id\n" + b"a\0\n" * N,
    "a field of a MB": b"id\n" + b"x" * (1 << 20),
    "an open quote": b'id\n"a\n' + b"b\n" * N,
    "no header": "\n".join(IDS).encode(),
    "two columns of ids": b"id,id\n" + b"a,b\n" * N,
    "rows too short": b"label,id\n" + b"1\n" * N,
    "empty": b"",
    "a formula": b"id\n" + b"=cmd|'/c calc'!A1\n" * N,
}


@pytest.mark.parametrize("data", HOSTILE_IDS.values(), ids=HOSTILE_IDS)
@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_hostile_ids_are_refused(tmp_path, data, suffix, record_property):
    record_property("12 hostile files", 1)
    if suffix == ".txt" and data == HOSTILE_IDS["no header"]:
        pytest.skip("a good list of ids")
    np.save(tmp_path / "v.npy", VECTORS)
    (tmp_path / f"ids{suffix}").write_bytes(data)
    with pytest.raises(ImportedVectorsError):
        read_vectors(tmp_path / "v.npy", tmp_path / f"ids{suffix}")


def test_a_mark_of_byte_order_is_no_part_of_the_first_id(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    for name, head in (("ids.txt", ""), ("ids.csv", "id\n")):
        (tmp_path / name).write_text(head + "\n".join(IDS), encoding="utf-8-sig")
        assert read_vectors(tmp_path / "v.npy", tmp_path / name).ids.tolist() == IDS


def header(shape, descr="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return (open, ("executed", "w"))


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archive():
    buffer = io.BytesIO()
    np.savez(buffer, np.array([Bomb()], dtype=object))
    return buffer.getvalue()


HOSTILE = {
    "pickle": lambda: pickle.dumps(Bomb()),
    "object array": object_array,
    "absurd rows": lambda: header((10**12, 512)) + b"\0" * 64,
    "absurd width": lambda: header((2, 10**15)) + b"\0" * 64,
    "negative": lambda: header((-1, 4)),
    "code in the header": lambda: header((2, 2)).replace(b"'<f4'", b"exit("),
    "cut": lambda: header((N, DIM)) + VECTORS.tobytes()[:-1],
    "empty": lambda: b"",
    "integers": lambda: header((N, DIM), "<i4") + b"\0" * (N * DIM * 4),
    "overflowing": lambda: header((2**32, 2**32)) + b"\0" * 64,
    "an archive": lambda: archive(),
    "a header of 4 GB": lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "a structure": lambda: header((N, DIM), [("a", "<f4")]) + b"\0" * (N * DIM * 4),
    "one axis": lambda: header((N,)) + b"\0" * (N * 4),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".pkl"])
def test_hostile_files_are_refused_and_nothing_executes(tmp_path, monkeypatch, make, suffix, record_property):
    record_property("12 hostile files", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"v{suffix}").write_bytes(make())
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    with pytest.raises(ImportedVectorsError):
        read_vectors(tmp_path / f"v{suffix}", tmp_path / "ids.txt")
    assert not (tmp_path / "executed").exists()


def test_a_folder_whose_files_do_not_belong_together_is_refused(tmp_path):
    folder, _ = clip_retrieval(tmp_path)
    with pytest.raises(ImportedVectorsError, match="leave --ids out"):
        read_vectors(folder, folder / "ids.txt")
    table = pq.read_table(folder / "metadata" / "metadata_3.parquet")
    pq.write_table(table.slice(0, 3), folder / "metadata" / "metadata_3.parquet")
    with pytest.raises(ImportedVectorsError, match=r"3 rows beside vectors of shape \(4, 6\)"):
        read_vectors(folder)
    pq.write_table(table, folder / "metadata" / "metadata_3.parquet")
    np.save(folder / "img_emb" / "img_emb_3.npy", VECTORS[:4, :5])
    with pytest.raises(ImportedVectorsError, match="one width for all"):
        read_vectors(folder)
    np.save(folder / "img_emb" / "img_emb_03.npy", VECTORS[:4])
    with pytest.raises(ImportedVectorsError, match="one of each number"):
        read_vectors(folder)
    (folder / "img_emb" / "img_emb_03.npy").unlink()
    (folder / "metadata" / "metadata_3.parquet").unlink()
    with pytest.raises(ImportedVectorsError, match="10 files img_emb"):
        read_vectors(folder)
    with pytest.raises(ImportedVectorsError, match="give --ids"):
        read_vectors(folder / "img_emb" / "img_emb_0.npy")


@pytest.mark.parametrize("row", [0, 3000])
def test_one_vector_of_another_width_shifts_no_row(tmp_path, row):
    vectors = [[1.0, 2.0]] * 4000
    vectors[row], vectors[row + 1] = [1.0], [1.0, 2.0, 3.0]
    pq.write_table(pa.table({"id": [str(i) for i in range(4000)], "vector": vectors}), tmp_path / "v.parquet")
    with pytest.raises(ImportedVectorsError, match="several widths"):
        read_vectors(tmp_path / "v.parquet")


def test_a_missing_id_is_refused(tmp_path):
    pq.write_table(pa.table({"id": [None, *IDS[1:]], "vector": list(VECTORS)}), tmp_path / "v.parquet")
    with pytest.raises(ImportedVectorsError, match="no id"):
        read_vectors(tmp_path / "v.parquet")
