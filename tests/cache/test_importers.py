"""Files of vectors from elsewhere: what fits is taken bit by bit, what does not is refused by name, nothing executes."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bird_cache.errors import ImportedVectorsError
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
def test_unusable_ids_are_refused_by_name(tmp_path, ids, named):
    with pytest.raises(ImportedVectorsError, match=named):
        read_vectors(*npy(tmp_path, ids=ids))


def test_long_ids_and_slashes_and_dots_are_ids(tmp_path):
    ids = ["x" * 1000, "../up", "/absolute", "a.b.c", "7", *IDS[5:]]
    assert read_vectors(*npy(tmp_path, ids=ids)).ids.tolist() == ids


def test_numbers_as_ids_become_text(tmp_path):
    pq.write_table(pa.table({"id": list(range(N)), "vector": list(VECTORS)}), tmp_path / "v.parquet")
    assert read_vectors(tmp_path / "v.parquet").ids.tolist()[:2] == ["0", "1"]


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
    "one axis": lambda: header((N,)) + b"\0" * (N * 4),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".pkl"])
def test_hostile_files_are_refused_and_nothing_executes(tmp_path, monkeypatch, make, suffix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"v{suffix}").write_bytes(make())
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    with pytest.raises(ImportedVectorsError):
        read_vectors(tmp_path / f"v{suffix}", tmp_path / "ids.txt")
    assert not (tmp_path / "executed").exists()


def test_a_folder_whose_files_do_not_belong_together_is_refused(tmp_path):
    folder, _ = clip_retrieval(tmp_path)
    (folder / "metadata" / "metadata_3.parquet").unlink()
    with pytest.raises(ImportedVectorsError, match="10 files img_emb"):
        read_vectors(folder)
    with pytest.raises(ImportedVectorsError, match="ids"):
        read_vectors(folder / "img_emb" / "img_emb_0.npy")
