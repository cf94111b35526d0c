"""Folders of Parquet shards: as `datasets` writes them, as pyarrow alone does, and what is wrong with some."""

import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bird.datasets import located, open_dataset
from bird.datasets.base import prepare
from bird.datasets.hub_folder import KEPT
from bird.errors import DataError, UsageError

CLASSES = ("smiling", "neutral")  # not in the order of the alphabet


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(start, count, beside=True):
    numbers = range(start, start + count)
    return {
        "image": [{"bytes": png(n), "path": f"{n}.png" if beside else None} for n in numbers],
        "label": [n % 2 for n in numbers],
        "sex": [n // 2 % 2 for n in numbers],
        "age": [("old", "young")[n // 4 % 2] for n in numbers],
    }


FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": CLASSES, "_type": "ClassLabel"},
    "sex": {"names": ["women", "men"], "_type": "ClassLabel"},
    "age": {"dtype": "string", "_type": "Value"},
}


def shard(path, columns, features=FEATURES, group=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    pq.write_table(pa.table(columns).replace_schema_metadata(about), path, row_group_size=group)


def hub(root, splits=("train", "validation", "test"), **kwargs):
    for n, split in enumerate(splits):
        for part in range(2):
            shard(root / "data" / f"{split}-{part:05d}-of-00002.parquet", rows(32 * n + 16 * part, 16), **kwargs)
    return root


GROUP = {"group": "sex"}


def test_shards_with_splits_in_their_names_and_class_labels(tmp_path):
    data = open_dataset(f"hf:{hub(tmp_path)}", None, **GROUP)
    assert data.name == "hf"
    assert (data.class_names, data.group_names) == (CLASSES, ("women", "men"))
    table = prepare(data)
    assert Counter(table.splits.tolist()) == {"train": 32, "meta": 32, "test": 32}
    assert data.read("40.png") == png(40)
    assert data.image("7.png").shape == (9, 7, 3)
    assert data.settings == {"test_fraction": 0.2, "image_size": 64, "flip": True, "group": "sex"}
    again = open_dataset("hf", tmp_path, **data.settings)
    assert prepare(again).digests.tolist() == table.digests.tolist()
    crossed = open_dataset("hf", tmp_path, group="sex,age")
    assert crossed.group_names == ("women × old", "women × young", "men × old", "men × young")


def test_the_real_library_writes_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    names = {"label": datasets.ClassLabel(names=[*CLASSES]), "sex": datasets.ClassLabel(names=["women", "men"])}
    features = datasets.Features({"image": datasets.Image(), **names, "age": datasets.Value("string")})
    for split, start in (("train", 0), ("test", 32)):
        given = {**rows(start, 32), "image": [Image.open(io.BytesIO(png(n))) for n in range(start, start + 32)]}
        made = datasets.Dataset.from_dict(given, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        for number in range(2):
            part = made.shard(2, number, contiguous=True)
            part.to_parquet(tmp_path / "data" / f"{split}-{number:05d}-of-00002.parquet")
    data = open_dataset("hf", tmp_path, **GROUP)
    assert (data.class_names, data.group_names) == (CLASSES, ("women", "men"))
    assert Counter(prepare(data, meta_at_least=1).splits.tolist())["test"] == 32
    pixels = np.asarray(Image.open(io.BytesIO(png(40))))
    assert np.array_equal(data.image("test-0000008"), pixels)
    loaded = datasets.load_dataset(
        "parquet", data_files={"test": str(tmp_path / "data" / "test-*.parquet")}, cache_dir=str(tmp_path / "cache")
    )
    assert np.array_equal(np.asarray(loaded["test"][8]["image"]), pixels)


def test_a_hidden_folder_above_hides_nothing_and_one_below_does(tmp_path):
    root = hub(tmp_path / ".cache" / "faces")
    shard(root / ".cache" / "train-00000-of-00001.parquet", rows(0, 8))
    names = {**FEATURES, "sex": {"names": ["women", "men", "others"], "_type": "ClassLabel"}}
    for path in (root / "data").iterdir():
        table = pq.read_table(path).to_pydict()
        shard(path, table, names)
    data = open_dataset("hf", root, **GROUP)
    assert len(data.listing().ids) == 96
    assert data.group_names == ("women", "men")
    assert "column sex: no row is 'others'" in data.remarks


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("train.parquet", "test.parquet"), {"train": 16, "test": 16}),
        (("train/0000.parquet", "test/0000.parquet"), {"train": 16, "test": 16}),
        (("data/train_0.parquet", "data/test_0.parquet"), {"train": 16, "test": 16}),
        (("a/train-00000-of-00001-0a1b2c3d4e5f6071.parquet", "a/dev-00000-of-00001.parquet", "a/test-1.parquet"),
         {"train": 16, "meta": 16, "test": 16}),
        (("data/0000.parquet", "data/0001.parquet"), None),
        (("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"), None),
    ],
)  # fmt: skip
def test_what_file_names_say(tmp_path, names, counts):
    for n, name in enumerate(names):
        shard(tmp_path / name, rows(16 * n, 16))
    data = open_dataset("hf", tmp_path, **GROUP)
    listed = Counter(data.listing().splits.tolist())
    assert listed == (counts or {"": 32})
    assert ("the files name no test split: it is drawn" in data.remarks) == (counts is None)


def test_a_column_of_splits_and_one_of_ids(tmp_path):
    columns = rows(0, 48, beside=False)
    columns |= {"fold": [n // 4 % 3 for n in range(48)], "key": [f"k{n}" for n in range(48)]}
    shard(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    names = {"split": "fold", "split_names": "0:train,1:meta,2:test", "id": "key"}
    data = open_dataset("hf", tmp_path, **GROUP, **names)
    assert Counter(prepare(data).splits.tolist()) == {"train": 16, "meta": 16, "test": 16}
    assert data.read("k5") == png(5)


def test_images_are_read_a_row_group_at_a_time(tmp_path):
    data = open_dataset("hf", hub(tmp_path, group=2), **GROUP)
    order = np.random.default_rng(0).permutation(96).tolist()
    assert all(data.read(f"{n}.png") == png(n) for n in order)
    assert len(data._images._held) == KEPT


def without_metadata(root):
    hub(root, features=None)


def arrow(root):
    (root / "data-00000-of-00001.arrow").write_bytes(b"")


def no_images(root):
    shard(root / "train.parquet", {"label": [0, 1], "sex": [0, 1]})


def two_images(root):
    shard(
        root / "train.parquet", {**rows(0, 4), "mask": [png(n) for n in range(4)], "image": [png(n) for n in range(4)]}
    )
    pq.write_table(
        pq.read_table(root / "train.parquet").rename_columns(["a", "label", "sex", "age", "b"]), root / "x.parquet"
    )
    (root / "train.parquet").unlink()


def hidden_labels(root):
    hub(root)
    shard(root / "data" / "test-00000-of-00002.parquet", {**rows(64, 16), "label": [-1] * 16})


def other_classes(root):
    hub(root)
    features = {**FEATURES, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    shard(root / "data" / "train-00001-of-00002.parquet", rows(16, 16), features)


def another_split(root):
    hub(root, ("train", "test", "unsupervised"))


def damaged(root):
    (root / "train.parquet").write_bytes(b"PAR1 and nothing more")


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (lambda root: None, {}, r"no Parquet file; wanted Parquet shards"),
        (arrow, {}, r"but data-00000-of-00001.arrow.*Dataset.to_parquet"),
        (no_images, GROUP, "columns of images: none, of label, sex"),
        (two_images, GROUP, "columns of images: a, b, of .*--setting image=COLUMN"),
        (hub, {}, "columns 'image', 'label', 'sex', 'age'.*add group.*--setting group=COLUMN"),
        (hub, {"group": "sex", "image": "photo"}, "column photo: found columns of images: image"),
        (hidden_labels, GROUP, "16 of 96 rows with no label: '64.png'"),
        (other_classes, GROUP, "other classes than"),
        (another_split, GROUP, r"unknown split: '64.png' \('unsupervised'\)"),
        (damaged, GROUP, "unreadable Parquet file"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, make, settings, told):
    make(tmp_path)
    with pytest.raises((DataError, UsageError), match=told):
        open_dataset("hf", tmp_path, **settings)


def test_plain_parquet_without_features(tmp_path):
    without_metadata(tmp_path)
    data = open_dataset("hf", tmp_path, **GROUP)
    assert (data.class_names, data.group_names) == (("0", "1"), ("0", "1"))


def test_the_folder_is_said_once(tmp_path):
    assert located("hf:a/b") == ("hf", tmp_path.__class__("a/b"))
    assert located("table", tmp_path) == ("table", tmp_path)
    with pytest.raises(UsageError, match="leave --data-root out"):
        open_dataset("hf:a", tmp_path)
    with pytest.raises(UsageError, match="found no folder"):
        open_dataset("hf:")
