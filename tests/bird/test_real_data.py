"""What real data sets bring with them: faces in several folders, links, other names, images in tables.

One long file: the layouts share the writers of small real files.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bird.datasets import open_dataset
from bird.datasets.base import SampleTable, prepare
from bird.errors import DataError, ImageError
from bird.images import carries_little, decode_image


def jpeg(seed: int, quality: int = 75, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return buffer.getvalue()


def faces(folder: Path, per_cell: int = 101, first: int = 0, quality: int = 75) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(12 * per_cell):
        age, race = (10, 30, 50)[row % 12 // 4], row % 4
        (folder / f"{age}_{row % 2}_{race}_{20170000 + first + row}.jpg").write_bytes(jpeg(first + row, quality))


def table(root: Path, rows: list[tuple[object, ...]], header: str = "path,label,group") -> None:
    with (root / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def images(root: Path, count: int = 24, name: str = "{:03d}.jpg") -> list[tuple[object, ...]]:
    """`count` images below `root`, and their rows: two classes by two groups."""
    rows: list[tuple[object, ...]] = []
    for number in range(count):
        path = root / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
        rows.append((name.format(number), number // 2 % 2, number % 2))
    return rows


def sides(found: SampleTable, of: dict[str, str]) -> dict[str, set[str]]:
    by: dict[str, set[str]] = {}
    for id, split in zip(found.ids.tolist(), found.splits.tolist(), strict=True):
        by.setdefault(of[id], set()).add(split)
    return by


# ------------------------------------------------------------------------------------------------- one subject


def test_a_face_in_several_folders_counts_once(tmp_path: Path, record_property: Any) -> None:
    record_property("25 one subject on two sides", 240)
    faces(tmp_path / "UTKFace")
    faces(tmp_path / "crop_part1", 20, quality=60)  # the same faces, encoded anew
    found = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)
    names = [id.rsplit("/", 1)[-1] for id in found.ids]
    assert len(names) == len(set(names)) == 12 * 101
    assert found.notes["copies_by_name"] == 240
    assert found.notes["copies_that_count_twice_in_train"] == 0


def test_faces_with_other_suffixes_are_faces(tmp_path: Path, record_property: Any) -> None:
    record_property("29 remedies", 3)
    faces(tmp_path, 101)
    for number, path in enumerate(sorted(tmp_path.iterdir())[:3]):
        path.rename(path.with_suffix((".JPG", ".jpeg", ".png")[number]))
    assert len(prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)) == 12 * 101


def test_copies_inside_train_are_told(tmp_path: Path, record_property: Any) -> None:
    record_property("25 one subject on two sides", 1)
    rows = images(tmp_path, 40)
    (tmp_path / "004.jpg").write_bytes((tmp_path / "000.jpg").read_bytes())
    table(tmp_path, [(*row, "test" if n > 30 else "train") for n, row in enumerate(rows)], "path,label,group,split")
    assert prepare(open_dataset("table", tmp_path), meta_at_least=1).notes["copies_that_count_twice_in_train"] == 1


def test_a_subject_stays_in_one_split(tmp_path: Path, record_property: Any) -> None:
    record_property("25 one subject on two sides", 20)
    rows = images(tmp_path, 240)
    subjects = {str(row[0]): f"s{number // 12}" for number, row in enumerate(rows)}
    table(tmp_path, [(*row, subjects[str(row[0])]) for row in rows], "path,label,group,subject")
    found = prepare(open_dataset("table", tmp_path), meta_at_least=1)
    assert all(len(where) == 1 for where in sides(found, subjects).values())
    count = Counter(found.splits.tolist())
    assert count["test"] == pytest.approx(48, abs=12)
    assert count["meta"] == pytest.approx(20, abs=12)
    for split in ("train", "meta", "test"):
        assert (found.take(found.splits == split).cells(2, 2) > 0).all()


def test_a_subject_on_two_sides_of_the_tables_own_split_is_refused(tmp_path: Path, record_property: Any) -> None:
    record_property("25 one subject on two sides", 1)
    rows = [(*row, "s1", "test" if number == 0 else "train") for number, row in enumerate(images(tmp_path))]
    table(tmp_path, rows, "path,label,group,subject,split")
    with pytest.raises(DataError, match=r"1 of 1 subjects in several splits: 's1' \(test, train\)"):
        prepare(open_dataset("table", tmp_path))


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        (("s1", "nan", "s2", "s3"), r"6 of 24 rows with no subject: '001.jpg'.* .read as empty: 'nan' .6 rows"),
        (("s1", "s1 ", "s2", "s3"), r"one name in several spellings: 's1' .6 rows.*, 's1 ' .6 rows"),
    ],
)
def test_a_subject_without_a_name_or_with_two_is_refused(
    tmp_path: Path, subjects: tuple[str, ...], said: str, record_property: Any
) -> None:
    """Or all who have no name would be one person, and one person would be on two sides."""
    record_property("25 one subject on two sides", 1)
    rows = [(*row, subjects[number % 4]) for number, row in enumerate(images(tmp_path))]
    table(tmp_path, rows, "path,label,group,subject")
    with pytest.raises(DataError, match=said):
        open_dataset("table", tmp_path)


def test_subjects_that_differ_in_case_are_told(tmp_path: Path, record_property: Any) -> None:
    record_property("25 one subject on two sides", 1)
    rows = [(*row, ("s1", "S1", "s2", "s3")[number % 4]) for number, row in enumerate(images(tmp_path))]
    table(tmp_path, rows, "path,label,group,subject")
    told = open_dataset("table", tmp_path).remarks
    assert told == ("column subject: these are taken as different persons: 'S1' (6 rows), 's1' (6 rows)",)


# -------------------------------------------------------------------------------------------------------- links


def test_links_are_followed_once_and_named(tmp_path: Path, record_property: Any) -> None:
    record_property("26 links", 5)
    root, other = tmp_path / "data", tmp_path / "disk2"
    faces(root / "part1", 50)
    faces(other, 51, first=5000)
    (root / "a link").symlink_to(root / "part1")  # sorts first, and gives nothing new
    (root / "part2").symlink_to(other)
    (other / "up").symlink_to(root)  # a circle
    (root / "above").symlink_to(tmp_path)
    dataset = open_dataset("utkface", root, preset="mfd")
    found = prepare(dataset, meta_at_least=1)
    assert Counter(id.split("/")[0] for id in found.ids) == {"part1": 600, "part2": 612}
    assert dataset.remarks == (f"link followed out of {root}: part2 -> {other}, 612 images",)
    (root / "part3").symlink_to(tmp_path / "not mounted")
    with pytest.raises(DataError, match=r"part3: found a link to .*not mounted, which is not there"):
        open_dataset("utkface", root)


def test_a_table_follows_links_too(tmp_path: Path, record_property: Any) -> None:
    record_property("26 links", 1)
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    rows = images(outside)
    (root / "img").symlink_to(outside)
    table(root, [(f"img/{row[0]}", *row[1:]) for row in rows])
    dataset = open_dataset("table", root)
    assert dataset.remarks == (f"link followed out of {root}: img -> {outside}, 24 images",)
    assert len(prepare(dataset, meta_at_least=1)) == 24


@pytest.mark.parametrize("target", ["not mounted/0.jpg", "000.jpg"])
@pytest.mark.parametrize("what", ["000.jpg", "img"])
def test_a_dead_link_in_a_table_is_refused_by_name(
    tmp_path: Path, what: str, target: str, record_property: Any
) -> None:
    record_property("26 links", 1)
    rows = images(tmp_path)
    (tmp_path / "000.jpg").unlink()
    (tmp_path / what).symlink_to(target if what != "img" else "not mounted")
    table(tmp_path, [(f"img/{row[0]}", *row[1:]) for row in rows] if what == "img" else rows)
    how = "in a circle" if target == what else "not there"
    with pytest.raises(DataError, match=rf"{what}: found a link to .*, which .*{how}"):
        prepare(open_dataset("table", tmp_path), max_problem_share=0.5)


def test_links_to_single_images_outside_are_named(tmp_path: Path, record_property: Any) -> None:
    record_property("26 links", 12)
    root, other = tmp_path / "data", tmp_path / "disk2"
    faces(root)
    faces(other, 1, first=5000)
    for path in other.iterdir():
        (root / path.name).symlink_to(path)
    told = open_dataset("utkface", root, preset="mfd").remarks
    assert len(told) == 11
    assert re.fullmatch(r"link followed out of .*: \S+\.jpg -> \S+/disk2/\S+\.jpg, 1 images", told[0])
    assert told[-1] == f"2 more links followed out of {root}: 2 images"


def test_celeba_follows_links_too(tmp_path: Path, record_property: Any) -> None:
    record_property("26 links", 1)
    write_celeba(tmp_path / "data", attributes=".", partition=".", folder="../disk2")
    (tmp_path / "data" / "img_align_celeba").symlink_to(tmp_path / "disk2")
    assert len(prepare(open_dataset("celeba", tmp_path / "data"))) == 160


# ------------------------------------------------------------------------------------------- names and encodings


def test_a_folder_that_is_not_utf8_is_named_and_counted(tmp_path: Path, record_property: Any) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    faces(tmp_path / "UTKFace")
    folder = os.fsencode(tmp_path) + "/Münster".encode("latin-1")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open(folder + b"/25_0_0_99.jpg", "wb") as file:
        file.write(jpeg(9999))
    found = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)
    assert [(each.id, each.label, each.group) for each in found.problems] == [(r"M\xfcnster/25_0_0_99.jpg", 1, 0)]
    assert "not UTF-8: rename it" in found.problems[0].reason


def test_a_table_in_a_folder_that_is_not_utf8(tmp_path: Path, record_property: Any) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnster"))
    try:
        root.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    rows = images(root)
    columns = zip(("path", "label", "group"), zip(*rows, strict=True), strict=True)
    with (root / "samples.parquet").open("wb") as file:
        pq.write_table(pa.table(dict(columns)), file)
    assert len(prepare(open_dataset("table", root), meta_at_least=1)) == 24


def test_paths_of_other_systems_are_found_and_told(tmp_path: Path, record_property: Any) -> None:
    record_property("29 remedies", 3)
    composed = [unicodedata.normalize("NFC", f"img/café {n}.jpg") for n in range(24)]
    rows = images(tmp_path, name=unicodedata.normalize("NFD", "img/café {}.jpg"))
    for name, told in (
        ([path.replace("/", "\\") for path in composed], "with / for .* and in another unicode form"),
        (composed, "in another unicode form"),
        (
            [unicodedata.normalize("NFD", path).replace(".jpg", ".JPG") for path in composed],
            "with the suffix in another case",
        ),
    ):
        table(tmp_path, [(path, *row[1:]) for path, row in zip(name, rows, strict=True)])
        dataset = open_dataset("table", tmp_path)
        assert len(prepare(dataset, meta_at_least=1)) == 24
        assert len(dataset.remarks) == 1
        assert re.search(f"24 of 24 paths were found {told}", dataset.remarks[0])


@pytest.mark.parametrize(
    ("there", "listed", "told"),
    [
        ("img/{}.jpeg", "img/{}.jpg", "with the suffix .jpg for .jpeg"),
        ("img/{}.JPEG", "img/{}.jpg", "with the suffix .jpg for .jpeg"),
        ("Img/{}.jpg", "img/{}.jpg", "with a folder's name in another case"),
    ],
)
def test_other_spellings_of_a_suffix_or_folder_are_found_and_told(
    tmp_path: Path, there: str, listed: str, told: str, record_property: Any
) -> None:
    record_property("29 remedies", 1)
    rows = images(tmp_path, name=there)
    table(tmp_path, [(listed.format(number), *row[1:]) for number, row in enumerate(rows)])
    dataset = open_dataset("table", tmp_path)
    assert len(prepare(dataset, meta_at_least=1)) == 24
    assert f"24 of 24 paths were found {told}" in dataset.remarks[0]


def test_other_separators_and_drives_are_named(tmp_path: Path, record_property: Any) -> None:
    record_property("29 remedies", 3)
    rows = images(tmp_path)
    for mark in (";", "\t"):
        lines = [mark.join(map(str, row)) for row in [("path", "label", "group"), *rows]]
        (tmp_path / "samples.csv").write_text("\n".join(lines))
        with pytest.raises(DataError, match=r"one column.* with commas in the place of") as caught:
            open_dataset("table", tmp_path)
        assert repr(mark) in caught.value.fix
    table(tmp_path, [(rf"C:\faces\{row[0]}", *row[1:]) for row in rows])
    with pytest.raises(DataError, match=r"24 of 24 rows with a path that leaves .*write the paths relative"):
        open_dataset("table", tmp_path)


def test_a_file_whose_name_is_not_utf8_is_named_where_the_table_looks_for_it(
    tmp_path: Path, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    rows = images(tmp_path)
    try:
        os.rename(tmp_path / "000.jpg", os.fsencode(tmp_path) + b"/M\xfcnster.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    table(tmp_path, [("Münster.jpg", *rows[0][1:]), *rows[1:]])
    with pytest.raises(DataError, match=r"M\\xfcnster\.jpg is there, which is not UTF-8: rename it"):
        prepare(open_dataset("table", tmp_path))


def test_a_missing_file_is_named_with_what_lies_there(tmp_path: Path, record_property: Any) -> None:
    record_property("29 remedies", 2)
    rows = images(tmp_path, name="img/{:03d}.png")
    table(tmp_path, [(str(path).replace(".png", ".jpg"), *rest) for path, *rest in rows])
    with pytest.raises(DataError, match=r"/img/000\.jpg is not there; 000\.png is there"):
        prepare(open_dataset("table", tmp_path))
    table(tmp_path, [(f"images/{path}", *rest) for path, *rest in rows])
    with pytest.raises(DataError, match=r"images/img/000\.png is not there; .* holds img, samples\.csv"):
        prepare(open_dataset("table", tmp_path))


# ------------------------------------------------------------------------------------------------ mirrors of CelebA


def write_celeba(
    root: Path, attributes: str, partition: str, folder: str, kind: str = "jpg", suffix: str = "txt", count: bool = True
) -> None:
    for name in (attributes, partition, folder):
        (root / name).mkdir(parents=True, exist_ok=True)
    names, rows = ["Attractive", "Male"], []
    for row in range(160):
        path = root / folder / f"{row + 1:06d}.{kind}"
        path.write_bytes(jpeg(row, kind={"jpg": "JPEG", "png": "PNG"}[kind]))
        values = [1 if row // 2 % 2 else -1, 1 if row % 2 else -1]
        rows.append((f"{row + 1:06d}.jpg", values, 0 if row < 112 else 2))
    if suffix == "csv":
        header = ["image_id," + ",".join(names)]
        lines = [",".join([name, *map(str, values)]) for name, values, _ in rows]
        parts = ["image_id,partition"] + [f"{name},{part}" for name, _, part in rows]
    else:
        header = [*(["160"] if count else []), " ".join(names)]
        lines = [f"{name}  {values[0]}  {values[1]}" for name, values, _ in rows]
        parts = [f"{name} {part}" for name, _, part in rows]
    (root / attributes / f"list_attr_celeba.{suffix}").write_text("\n".join([*header, *lines]) + "\n")
    (root / partition / f"list_eval_partition.{suffix}").write_text("\n".join(parts) + "\n")


@pytest.mark.parametrize(
    "layout",
    [
        {"attributes": ".", "partition": ".", "folder": "img_align_celeba", "count": False},
        {"attributes": ".", "partition": ".", "folder": "img_align_celeba/img_align_celeba"},
        {"attributes": ".", "partition": ".", "folder": "img_align_celeba/img_align_celeba", "suffix": "csv"},
        {"attributes": "Anno", "partition": "Eval", "folder": "Img/img_align_celeba"},
        {"attributes": ".", "partition": ".", "folder": "img_align_celeba", "kind": "png"},
        {"attributes": "CelebA/Anno", "partition": "CelebA/Eval", "folder": "CelebA/Img/img_align_celeba_png"},
    ],
    ids=lambda layout: " ".join(map(str, layout.values())),
)  # fmt: skip
def test_celeba_as_mirrors_have_it(tmp_path: Path, layout: dict[str, str], record_property: Any) -> None:
    record_property("29 remedies", 1)
    usual, mirror = tmp_path / "usual", tmp_path / "mirror"
    write_celeba(usual, ".", ".", "img_align_celeba")
    write_celeba(mirror, **layout)
    expected, dataset = prepare(open_dataset("celeba", usual)), open_dataset("celeba", mirror)
    found = prepare(dataset)
    assert sorted(found.ids) == sorted(expected.ids)
    assert dict(zip(found.ids, found.labels.tolist(), strict=True)) == dict(
        zip(expected.ids, expected.labels.tolist(), strict=True)
    )
    assert dataset.image(str(found.ids[0])).shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("named", [True, False], ids=["with a line of names", "without"])
def test_celebas_lists_are_read_by_what_they_hold(
    tmp_path: Path, suffix: str, mark: str, named: bool, record_property: Any
) -> None:
    """CSV under the name .txt, with other separators, the partition without its first line, and *.PNG on the disk."""
    record_property("29 remedies", 1)
    write_celeba(tmp_path, ".", ".", "img_align_celeba", suffix="csv")
    for name in ("list_attr_celeba", "list_eval_partition"):
        text = (tmp_path / f"{name}.csv").read_text().replace(",", mark)
        (tmp_path / f"{name}.csv").unlink()
        if name == "list_eval_partition" and not named:
            text = text.split("\n", 1)[1]
        (tmp_path / f"{name}.{suffix}").write_text(text)
    for path in (tmp_path / "img_align_celeba").iterdir():
        path.rename(path.with_suffix(".PNG"))
    found = prepare(open_dataset("celeba", tmp_path))
    assert len(found) == 160
    assert found.cells(2, 2).tolist() == [[40, 40], [40, 40]]


def test_a_list_of_celeba_that_is_a_dead_link_is_named(tmp_path: Path, record_property: Any) -> None:
    record_property("26 links", 1)
    write_celeba(tmp_path, ".", ".", "img_align_celeba")
    (tmp_path / "list_attr_celeba.txt").unlink()
    (tmp_path / "list_attr_celeba.txt").symlink_to("not mounted")
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt is there, a link to not mounted, which is not there"):
        open_dataset("celeba", tmp_path)


def test_celeba_without_its_lists_names_what_is_there(tmp_path: Path, record_property: Any) -> None:
    record_property("29 remedies", 1)
    write_celeba(tmp_path, ".", ".", "img_align_celeba")
    (tmp_path / "list_attr_celeba.txt").rename(tmp_path / "list_attr_celeba.xls")
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt: found no such file; list_attr_celeba\.xls is there"):
        open_dataset("celeba", tmp_path)


# ------------------------------------------------------------------------------------------------ columns of a table


def test_other_names_of_splits_are_taken_and_told(tmp_path: Path, record_property: Any) -> None:
    record_property("27 dirty categories", 3)
    words = ("train", "Training", "val", "TEST")
    rows = [(*row, words[number // 4 % 4]) for number, row in enumerate(images(tmp_path, 32))]
    table(tmp_path, rows, "path,label,group,split")
    dataset = open_dataset("table", tmp_path)
    assert Counter(prepare(dataset).splits.tolist()) == {"train": 16, "meta": 8, "test": 8}
    assert "split 'val' is taken as meta: 8 rows" in dataset.remarks


def test_names_that_may_be_the_same_and_columns_that_are_not_read_are_told(
    tmp_path: Path, record_property: Any
) -> None:
    record_property("27 dirty categories", 3)
    kinds = ("yes", "Yes", "no", "N/A")
    table(
        tmp_path, [(row[0], kinds[n % 4], row[2], n) for n, row in enumerate(images(tmp_path))], "path,label,group,age"
    )
    dataset = open_dataset("table", tmp_path)
    assert dataset.class_names == ("N/A", "Yes", "no", "yes")
    assert dataset.remarks == (
        "columns that are not read: 'age'",
        "column label: these are taken as different names: 'Yes' (6 rows), 'yes' (6 rows)",
        "column label: taken as a name, though it may stand for a missing value: 'N/A' (6 rows)",
    )


@pytest.mark.parametrize("form", ["struct", "bytes", "bytes and ids"])
def test_images_inside_a_parquet_table(tmp_path: Path, form: str, record_property: Any) -> None:
    record_property("31 images in Parquet", 1)
    data = [jpeg(number) for number in range(24)]
    columns: dict[str, object] = {
        "label": [number // 2 % 2 == 1 for number in range(24)],
        "group": [number % 2 for number in range(24)],
        "image": [{"bytes": each, "path": f"{n}.jpg"} for n, each in enumerate(data)] if form == "struct" else data,
    }
    if form == "bytes and ids":
        columns["id"] = [f"face {number}" for number in range(24)]
    pq.write_table(pa.table(columns), tmp_path / "samples.parquet")
    dataset = open_dataset("table", tmp_path)
    first = {"struct": "5.jpg", "bytes": "row-05", "bytes and ids": "face 5"}[form]
    assert dataset.read(first) == data[5]
    assert dataset.class_names == ("False", "True")
    assert len(prepare(dataset, meta_at_least=1)) == 24
    assert dataset.image(first).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("column", "values", "fix"),
    [
        ("jpg", [jpeg(n) for n in range(24)], "rename 'jpg' to image"),
        ("image", [[*jpeg(n)] for n in range(24)], "write the encoded bytes"),
        ("image", [[{"bytes": jpeg(n), "path": None}] for n in range(24)], "write the encoded bytes"),
        ("img", [f"{n}.jpg" for n in range(24)], "rename 'img' to path"),
    ],
)
def test_images_in_parquet_in_another_form_are_named(
    tmp_path: Path, column: str, values: list[Any], fix: str, record_property: Any
) -> None:
    """ "Add path" would be no help: a path to what?"""
    record_property("31 images in Parquet", 1)
    cells = {"label": [n // 2 % 2 for n in range(24)], "group": [n % 2 for n in range(24)]}
    pq.write_table(pa.table({**cells, column: values}), tmp_path / "samples.parquet")
    with pytest.raises(DataError, match=f"column {column}: found no column path, and values of type") as caught:
        open_dataset("table", tmp_path)
    assert fix in caught.value.fix


def test_images_in_a_dictionary_and_tables_in_a_folder(tmp_path: Path, record_property: Any) -> None:
    record_property("31 images in Parquet", 2)
    (tmp_path / "data").mkdir()
    cells = {"label": [n // 2 % 2 for n in range(24)], "group": [n % 2 for n in range(24)]}
    images_ = pa.array([jpeg(n) for n in range(24)]).dictionary_encode()
    pq.write_table(pa.table({**cells, "image": images_}), tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"no table; data/train\.parquet is there"):
        open_dataset("table", tmp_path)
    dataset = open_dataset("table", tmp_path, table="data/train.parquet")
    assert dataset.image("row-05").shape == (8, 8, 3)


# -------------------------------------------------------------------------------------- pictures that carry nothing


def test_white_level_and_pictures_that_carry_little(tmp_path: Path, record_property: Any) -> None:
    record_property("30 pictures that carry nothing", 3)
    rng = np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(rng.integers(0, 4096, (8, 8)).astype(np.uint16)).save(tmp_path / f"{number}.png")
    table(tmp_path, [(f"{n}.png", n // 2 % 2, n % 2) for n in range(24)])
    dark, bright = open_dataset("table", tmp_path), open_dataset("table", tmp_path, white_level=4095)
    assert "white_level" not in dark.settings
    assert bright.settings["white_level"] == 4095
    assert carries_little(dark.image("0.png")) == "nearly black"
    assert bright.image("0.png").max() > 200
    assert carries_little(bright.image("0.png")) is None
    assert carries_little(np.full((8, 8, 3), 130, np.uint8)) == "nearly constant"
    assert carries_little(np.broadcast_to(np.array([200, 20, 20], np.uint8), (8, 8, 3))) == "nearly constant"


def test_no_white_level_for_colours_of_16_bits(record_property: Any) -> None:
    record_property("30 pictures that carry nothing", 1)
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes(2 * 2 * 3) for _ in range(2))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_image(png, "colour").shape == (2, 2, 3)
    with pytest.raises(ImageError, match="a colour image of 16 bits"):
        decode_image(png, "colour", white_level=4095)


# ---------------------------------------------------------------------------------- every listed sample is accounted for


def everything_is_accounted_for(root: Path, name: str, listed: int, **how: object) -> dict[str, int]:
    found = prepare(open_dataset(name, root), max_problem_share=0.5, meta_at_least=1, **how)
    assert len(found) + sum(found.left_out.values()) == listed
    reasons: dict[str, int] = {}
    for (reason, *_), rows in found.left_out.items():
        reasons[reason] = reasons.get(reason, 0) + rows
    return reasons


def test_every_listed_row_of_a_table_is_accounted_for_by_cell(tmp_path: Path, record_property: Any) -> None:
    record_property("32 rows left out", 1)
    table(tmp_path, images(tmp_path, 120))
    (tmp_path / "000.jpg").write_bytes((tmp_path / "001.jpg").read_bytes())
    for number in range(4, 84, 4):
        (tmp_path / f"{number:03d}.jpg").unlink()
    found = prepare(open_dataset("table", tmp_path), max_problem_share=0.5, meta_at_least=1)
    assert found.left_out[("missing file", 0, 0, "")] == 20
    reasons = everything_is_accounted_for(tmp_path, "table", 120, limit=60)
    assert reasons == {"missing file": 20, "conflicting copy": 2, "not in --limit": 38}


def test_every_listed_image_of_celeba_is_accounted_for(tmp_path: Path, record_property: Any) -> None:
    record_property("32 rows left out", 1)
    write_celeba(tmp_path, ".", ".", "img_align_celeba")
    list_ = tmp_path / "list_eval_partition.txt"
    list_.write_text(re.sub(r"(00000\d.jpg) 0", r"\1 1", list_.read_text()))
    (tmp_path / "img_align_celeba" / "000160.jpg").unlink()
    reasons = everything_is_accounted_for(tmp_path, "celeba", 160)
    assert reasons == {"validation part, unused": 9, "missing file": 1, "cut to equal test cells": 3}


def test_every_listed_face_of_utkface_is_accounted_for(tmp_path: Path, record_property: Any) -> None:
    record_property("32 rows left out", 1)
    faces(tmp_path / "a", 203)
    faces(tmp_path / "b", 2)
    (tmp_path / "a" / "25_0_4_3.jpg").write_bytes(jpeg(77777))
    (tmp_path / "a" / "25_0_4_4.jpg").write_bytes(jpeg(0))  # the image of a face that is labelled otherwise
    (tmp_path / "a" / "notes.jpg").write_bytes(b"")
    reasons = everything_is_accounted_for(tmp_path, "utkface", 12 * 203 + 24 + 3)
    assert reasons == {
        "copy by its file name": 24,
        "race 4 (Others), not a group of the published set-up": 2,
        "conflicting copy": 1,
        "bad name": 1,
    }


def test_every_image_of_digits_s_is_accounted_for(tmp_path: Path, record_property: Any) -> None:
    record_property("32 rows left out", 1)
    dataset = open_dataset("digits-s")
    found = prepare(dataset, limit=500)
    assert len(found) + sum(found.left_out.values()) == len(dataset.listing().ids)


def test_every_image_of_cifar_10s_is_accounted_for(tmp_path: Path, record_property: Any) -> None:
    record_property("32 rows left out", 1)
    root = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
    if not root.exists():
        pytest.skip("CIFAR-10 is not beside the checkout")
    dataset = open_dataset("cifar10s", root)
    found = prepare(dataset, limit=2000)
    assert len(found) + sum(found.left_out.values()) == len(dataset.listing().ids) + len(dataset.listing().left_out)
