"""Images in class folders, and the table that says their groups."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bird.datasets import open_dataset
from bird.datasets.base import prepare, require_test_cells
from bird.errors import DataError, UsageError

SPLITS = ("train", "val", "test")


def photo(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(path)


def folders(root, splits=(), rows=24):
    """Two classes of photos (JPEG, PNG, WebP), and path, sex, age and person of each."""
    told = []
    for n in range(rows):
        kind = ("png", "jpg", "webp")[n % 3]
        path = f"{('cat', 'dog')[n % 2]}/{'deep/' if n % 5 == 0 else ''}{n:02d}.{kind}"
        path = f"{splits[n // 4 % len(splits)]}/{path}" if splits else path
        photo(root / path, n)
        told.append((path, "FM"[n // 2 % 2], ("old", "young")[n // 4 % 2], f"p{n // 4}"))
    return told


def write(path, rows, header="path,group,age,person"):
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]))


def test_classes_are_folders_and_groups_are_a_tables(tmp_path):
    write(tmp_path / "groups.csv", folders(tmp_path))
    data = open_dataset("imagefolder", tmp_path, test_fraction=0.5)
    assert (data.class_names, data.group_names) == (("cat", "dog"), ("F", "M"))
    table = prepare(data, meta_at_least=1)
    require_test_cells(data, table)
    assert Counter(table.splits.tolist())["test"] == 12
    assert data.image("cat/deep/00.png").shape == (9, 7, 3)
    assert data.file("dog/01.jpg") == tmp_path / "dog" / "01.jpg"
    assert data.settings == {"table": "", "test_fraction": 0.5, "image_size": 64, "flip": True}
    again = open_dataset("imagefolder", tmp_path, **data.settings)
    assert prepare(again, meta_at_least=1).splits.tolist() == table.splits.tolist()


def test_folders_of_splits_and_crossed_groups_of_a_named_table(tmp_path):
    rows = folders(tmp_path, SPLITS, 48)
    columns = dict(zip(("file_name", "sex", "age", "person"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "people.parquet")
    settings = {"table": "people.parquet", "group": "sex,age", "subject": "person"}
    data = open_dataset("imagefolder", tmp_path, **settings)
    assert data.group_names == ("F × old", "F × young", "M × old", "M × young")
    assert Counter(prepare(data).splits.tolist()) == {"train": 16, "meta": 16, "test": 16}
    assert data.subjects is not None
    assert "split 'val' is taken as meta: 16 rows" in data.remarks


def test_metadata_in_each_split_as_datasets_has_it(tmp_path):
    rows = folders(tmp_path, ("train", "test"))
    for split in ("train", "test"):
        mine = [(path.removeprefix(f"{split}/"), *more) for path, *more in rows if path.startswith(split)]
        write(tmp_path / split / "metadata.csv", mine, "file_name,group,label,person")
    data = open_dataset("imagefolder", tmp_path, label="label")  # the table says the class, not the folders
    assert data.class_names == ("old", "young")
    assert open_dataset("imagefolder", tmp_path, **data.settings).class_names == ("old", "young")
    assert Counter(prepare(data, meta_at_least=1).splits.tolist())["test"] == 12
    assert open_dataset("imagefolder", tmp_path).class_names == ("cat", "dog")


def test_a_train_folder_alone_has_its_test_rows_drawn(tmp_path):
    write(tmp_path / "groups.csv", folders(tmp_path, ("train",)))
    data = open_dataset("imagefolder", tmp_path)
    assert "one split, train: the test rows are drawn from it" in data.remarks
    assert "test" in prepare(data, meta_at_least=1).splits


def test_images_that_the_table_leaves_out_train(tmp_path):
    rows = folders(tmp_path)
    write(tmp_path / "groups.csv", [*rows[3:], ("cat/none.png", "F", "old", "p")])
    with pytest.raises(DataError, match=r"3 of 24 rows with no group: 'cat/02.webp'.*unknown_groups=true"):
        open_dataset("imagefolder", tmp_path)
    data = open_dataset("imagefolder", tmp_path, unknown_groups=True)
    table = prepare(data, meta_at_least=1)
    assert sorted(table.ids[table.groups < 0].tolist()) == ["cat/02.webp", "cat/deep/00.png", "dog/01.jpg"]
    assert "1 of 22 rows of groups.csv name no image here, such as cat/none.png" in data.remarks


def test_numbers_as_class_folders_are_names(tmp_path):
    rows = []
    for n in range(16):
        path = f"{(3, 10)[n % 2]}/{n}.png"
        photo(tmp_path / path, n)
        rows.append((path, "FM"[n // 2 % 2]))
    write(tmp_path / "groups.csv", rows, "path,group")
    assert open_dataset("imagefolder", tmp_path).class_names == ("10", "3")


def no_table(root):
    folders(root)
    (root / "people.csv").write_text("")


def other_paths(root):
    write(root / "groups.csv", [(f"images/{path}", *more) for path, *more in folders(root)])


def upwards(root):
    write(root / "groups.csv", [("../x.png", "F", "old", "p"), *folders(root)])


def one_class(root):
    write(root / "groups.csv", [row for row in folders(root) if row[0].startswith("cat")])
    for path in (root / "dog").rglob("*.*"):
        path.unlink()


def mixed(root):
    write(root / "groups.csv", folders(root, ("train", "extra")))


def loose(root):
    rows = folders(root)
    photo(root / "aside.png", 99)
    write(root / "groups.csv", [*rows, ("aside.png", "F", "old", "p")])


def twice(root):
    rows = folders(root)
    write(root / "groups.csv", [*rows, rows[0]])


def no_test(root):
    write(root / "groups.csv", folders(root, ("train", "val")))


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (lambda root: None, {}, "found no image; wanted images"),
        (no_table, {}, r"24 images, but no table of their groups; people.csv is there; wanted groups.csv with the columns"
         r" path and group, and a line such as cat/02.webp,women.*table=people.csv\?.*unknown_groups=true"),
        (no_table, {"table": "peoples.csv"}, "no table peoples.csv.*did you mean --setting table=people.csv"),
        (other_paths, {}, "paths such as images/cat.*none of them is an image below"),
        (upwards, {}, "a path that leaves"),
        (one_class, {}, "column class folder: found one value, 'cat', in all 12 rows"),
        (mixed, {}, r"folders of splits \(train\) beside others \(extra\).*split_names=extra:train"),
        (loose, {}, "1 of 25 rows with no class folder: 'aside.png'"),
        (twice, {}, "2 of 25 rows with an id that another row has too"),
        (no_test, {}, "the splits 'train', 'val': none is test.*split_names=val:test"),
        (twice, {"group": "sex"}, r"columns 'path', 'group'.*add sex.*--setting group=COLUMN"),
        (twice, {"gruop": "sex"}, "did you mean group"),
        (twice, {"lable": "sex"}, "did you mean label"),
        (twice, {"table": "/elsewhere/many.csv"}, "--setting table: found '/elsewhere/many.csv', which leaves .*inside"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path, make, settings, told):
    make(tmp_path)
    with pytest.raises((DataError, UsageError), match=told):
        open_dataset("imagefolder", tmp_path, **settings)
