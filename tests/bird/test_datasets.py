"""The laws of `prepare`, and each data set on small real files in its own layout.

One long file, because every data set is held to the same laws with the same few helpers; a section each.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from bird.datasets import DATASETS, open_dataset
from bird.datasets.base import (
    Dataset,
    Listing,
    SampleTable,
    carve_meta,
    empty_cells,
    prepare,
    require_test_cells,
    subset,
)
from bird.errors import DataError, UsageError

REAL_CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"

# settings that older caches do not name: left out where they are the default
NEWER = {"white_level", "unknown_groups", "split_names", "label", "group", "split", "subject", "path", "id", "image"}


def strings(values: list[str]) -> NDArray[np.object_]:
    return np.array([*values, None], dtype=object)[:-1]


def picture(seed: int, width: int = 20, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def jpeg(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, **size).save(buffer, "JPEG")
    return buffer.getvalue()


def pairs(table: SampleTable) -> list[tuple[str, str, int, int]]:
    return list(zip(table.ids, table.splits, table.labels.tolist(), table.groups.tolist(), strict=True))


def reopened(dataset: Dataset, root: Path | None) -> Dataset:
    kept = json.loads(json.dumps(dict(dataset.settings)))
    assert set(kept) >= set(DATASETS[dataset.name].defaults) - NEWER
    again = open_dataset(dataset.name, root, **kept)
    assert dict(again.settings) == kept
    return again


# ---------------------------------------------------------------------------------------------- laws of the table


@st.composite
def tables(draw: st.DrawFn) -> SampleTable:
    rows = draw(st.lists(st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 2), st.integers(0, 1)),
                         min_size=1, max_size=120))  # fmt: skip
    digests = [f"{draw(st.integers(0, 2**32)):032x}{row}" for row in range(len(rows))]
    return SampleTable(
        strings([f"s{row}" for row in range(len(rows))]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows]),
        strings([row[0] for row in rows]),
        strings(digests),
    )


def strata(table: SampleTable) -> Counter[tuple[str, int, int]]:
    return Counter((split, label, group) for _, split, label, group in pairs(table))


@settings(deadline=None)
@given(tables(), st.integers(1, 130), st.randoms())
def test_a_subset_keeps_proportions_and_ignores_order(table: SampleTable, limit: int, random: object) -> None:
    chosen = table.take(subset(table, limit))
    assert len(chosen) == min(limit, len(table))
    before, after = strata(table), strata(chosen)
    quota = {key: count * min(1.0, limit / len(table)) for key, count in before.items()}
    if limit >= len(before):
        assert all(after[key] >= 1 for key in before)
    if limit < len(before) or min(quota.values()) >= 1:
        assert all(abs(after[key] - quota[key]) < 1 for key in before)
    else:  # strata raised to one sample are paid for by the others, which then get less than their share, never more
        assert all(after[key] < quota[key] + 1 for key in before)
    shuffled = np.arange(len(table))
    random.shuffle(shuffled)
    again = table.take(shuffled)
    assert sorted(pairs(again.take(subset(again, limit)))) == sorted(pairs(chosen))


@settings(deadline=None)
@given(tables(), st.floats(0.01, 0.5), st.integers(0, 20), st.integers(0, 3))
def test_meta_takes_its_minimum_but_never_more_than_half_a_cell(
    table: SampleTable, fraction: float, at_least: int, seed: int
) -> None:
    carved = carve_meta(table, fraction, at_least, seed)
    np.testing.assert_array_equal(carved == "test", table.splits == "test")
    for (split, label, group), count in strata(table).items():
        cell = (table.labels == label) & (table.groups == group)
        if split == "train":
            wanted = min(max(math.ceil(fraction * count), at_least), count // 2)
            assert int(((carved == "meta") & cell).sum()) == wanted
    order = np.arange(len(table))[::-1]
    np.testing.assert_array_equal(carve_meta(table.take(order), fraction, at_least, seed), carved[order])


def write_table(root: Path, rows: list[tuple[object, ...]], header: str = "path,label,group") -> None:
    with (root / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def table_of_images(root: Path, count: int = 60, first: int = 0) -> list[tuple[object, ...]]:
    """`count` JPEGs in four cells; rows for `write_table`."""
    rows: list[tuple[object, ...]] = []
    for number in range(count):
        (root / f"{number:03d}.jpg").write_bytes(jpeg(first + number))
        rows.append((f"{number:03d}.jpg", number % 2, number // 2 % 2))
    return rows


def test_conflicting_copies_are_dropped_and_listed_and_others_stay_on_one_side(tmp_path: Path) -> None:
    rows = [(*row, "test" if number < 20 else "train") for number, row in enumerate(table_of_images(tmp_path))]
    for copy, source in (
        ("020.jpg", "000.jpg"),
        ("021.jpg", "000.jpg"),
        ("024.jpg", "004.jpg"),
        ("040.jpg", "044.jpg"),
    ):
        (tmp_path / copy).write_bytes((tmp_path / source).read_bytes())
    write_table(tmp_path, rows, "path,label,group,split")
    dataset = open_dataset("table", tmp_path)
    table = prepare(dataset, meta_at_least=4)
    assert {p.id for p in table.problems} == {"000.jpg", "020.jpg", "021.jpg"}
    assert all("identical images, different labels" in p.reason for p in table.problems)
    assert table.notes["conflicting_groups"] == 1
    assert table.notes["conflicting_dropped"] == 3
    assert table.notes["identical_groups"] == 3
    assert "024.jpg" not in table.ids
    assert "004.jpg" in table.ids
    sides: dict[str, set[str]] = {}
    for digest, split in zip(table.digests, table.splits, strict=True):
        sides.setdefault(digest, set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    kept = prepare(dataset, meta_at_least=4, keep_conflicts=True)
    assert "000.jpg" in kept.ids
    assert "020.jpg" not in kept.ids  # its copy is in test


def test_missing_files_are_counted_by_cell_and_too_many_are_fatal(tmp_path: Path) -> None:
    write_table(tmp_path, table_of_images(tmp_path))
    (tmp_path / "003.jpg").unlink()
    (tmp_path / "004.jpg").unlink()
    (tmp_path / "004.jpg").mkdir()
    dataset = open_dataset("table", tmp_path)
    with pytest.raises(DataError, match=r"2 of 60 samples unusable \(class 0 group 0: 1, class 1 group 1: 1\)"):
        prepare(dataset)
    table = prepare(dataset, max_problem_share=0.05)
    assert [(p.id, p.label, p.group) for p in table.problems] == [("003.jpg", 1, 1), ("004.jpg", 0, 0)]
    assert all(p.reason.startswith("unreadable: ") for p in table.problems)


def test_listing_refuses_repeated_ids_and_takes_any_iterable() -> None:
    with pytest.raises(DataError, match="'a'"):
        Listing.of([("a", 0, 0, ""), ("a", 1, 0, "")])
    assert Listing.of(("x", 0, 0, "") for _ in range(0)).ids.size == 0


# --------------------------------------------------------------------------------------------- opening by name


def test_unknown_names_and_settings_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'cifar10-s'.*digits-s, cifar10s, celeba, utkface, table.*mean cifar10s\?"):
        open_dataset("cifar10-s", tmp_path)
    with pytest.raises(UsageError, match=r"'skwe'.*skew.*did you mean skew\?"):
        open_dataset("digits-s", skwe=0.9)
    with pytest.raises(UsageError, match=r"setting skew: found 'x' \(str\)"):
        open_dataset("digits-s", skew="x")
    with pytest.raises(UsageError, match="split_seed: found True"):
        open_dataset("utkface", tmp_path, split_seed=True)
    with pytest.raises(UsageError, match="--data-root"):
        open_dataset("celeba")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset("celeba", tmp_path / "none")
    (tmp_path / "samples.txt").touch()
    with pytest.raises(DataError, match=r"found a file; .*give its folder, --data-root /"):
        open_dataset("table", tmp_path / "samples.txt")
    with pytest.raises(UsageError, match=r"setting unknown_groups: found 'x' .*wanted true or false"):
        open_dataset("table", tmp_path, unknown_groups="x")
    assert open_dataset("digits-s", skew=1).settings == {"skew": 1.0}
    for skew in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="skew"):
            open_dataset("digits-s", skew=skew)
    for name, setting in (("preset", "x"), ("split_seed", -1)):
        with pytest.raises(UsageError, match=name):
            open_dataset("utkface", tmp_path, **{name: setting})
    for name in ("cifar10s", "celeba", "table"):
        with pytest.raises(DataError, match=str(tmp_path)):
            open_dataset(name, tmp_path)
    assert len(open_dataset("utkface", tmp_path).listing().ids) == 0


# --------------------------------------------------------------------------------------------------- Digits-S


def test_digits_s_skew_test_pairs_and_pixels() -> None:
    dataset = open_dataset("digits-s")
    table = prepare(dataset)
    assert pairs(table) == pairs(prepare(reopened(dataset, None), workers=1))
    assert not table.problems
    training = table.take(table.splits != "test").cells(10, 2)
    for label in range(10):
        assert training[label, 1 - label % 2] == round(0.95 * training[label].sum())
    test = {id for id, split, _, _ in pairs(table) if split == "test"}
    assert {id.rsplit("-", 1)[0] for id in test} == {id[: len("test-00000")] for id in test}
    assert len(test) == 2 * len({id.rsplit("-", 1)[0] for id in test})
    assert abs(len(test) / 2 - 0.3 * 1797) <= 5
    ids = {id.split("-")[1] for id in table.ids}
    assert len(ids) == 1797
    gray, colour = (dataset.image(f"{min(test).rsplit('-', 1)[0]}-{name}") for name in ("gray", "colour"))
    assert gray.shape == colour.shape == (32, 32, 3)
    assert (gray == gray[..., :1]).all()
    np.testing.assert_array_equal(colour.max(axis=2), gray[..., 0])
    assert colour.min(axis=2).max() == 0  # saturated
    extreme = prepare(open_dataset("digits-s", skew=1.0))
    assert (extreme.take(extreme.splits != "test").cells(10, 2) == 0).sum() == 10


# --------------------------------------------------------------------------------------------------- CIFAR-10S


def cifar_pixels(seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


BATCHES = {**{f"data_batch_{n}": (n, 40) for n in range(1, 6)}, "test_batch": (9, 30)}


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, (seed, count) in BATCHES.items():
        images, labels = cifar_pixels(seed, count)
        (folder / f"{name}.bin").write_bytes(np.column_stack([labels, images]).tobytes())
    return folder


def python2_pickle(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Opcode by opcode as Python 2 wrote the original batches: protocol 2, byte strings, numpy's old module name."""

    def text(value: bytes) -> bytes:
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value

    def integer(value: int) -> bytes:
        return b"M" + struct.pack("<H", value)

    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R" + b"(K\3" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    kind += b"K\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    shape = integer(len(images)) + integer(3072) + b"\x86"
    state = b"(K\1" + shape + kind + b"\x89" + text(images.tobytes()) + b"tb"
    listed = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\2}(" + text(b"data") + array + state + text(b"labels") + listed + b"u."


def write_python(root: Path, protocol: int) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name, (seed, count) in BATCHES.items():
        images, labels = cifar_pixels(seed, count)
        if protocol == 0:
            data = python2_pickle(images, labels.tolist())
        else:
            data = pickle.dumps({b"data": images, b"labels": labels.tolist(), b"x": ["name"]}, protocol=protocol)
        (folder / name).write_bytes(data)
    return folder


def test_cifar10s_binary_layout(tmp_path: Path) -> None:
    write_binary(tmp_path)
    dataset = open_dataset("cifar10s", tmp_path, skew=0.9)
    table = prepare(dataset, meta_at_least=1)
    assert pairs(table) == pairs(prepare(reopened(dataset, tmp_path), meta_at_least=1, workers=1))
    cells = table.take(table.splits != "test").cells(10, 2)
    assert cells.tolist() == [[2, 18] if label % 2 == 0 else [18, 2] for label in range(10)]
    assert table.take(table.splits == "test").cells(10, 2).tolist() == [[3, 3]] * 10
    images, _ = cifar_pixels(9, 30)
    for row, flat in enumerate(images):
        colour = np.ascontiguousarray(flat.reshape(3, 32, 32).transpose(1, 2, 0))
        np.testing.assert_array_equal(dataset.image(f"test-{row:05d}-colour"), colour)
        gray = np.asarray(Image.fromarray(colour).convert("L"))
        np.testing.assert_array_equal(dataset.image(f"test-{row:05d}-gray"), np.stack([gray] * 3, axis=2))
    with pytest.raises(KeyError):
        dataset.read("test-00000")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10s_python_layout_equals_the_binary_one(tmp_path: Path, protocol: int) -> None:
    for name in ("bin", "py"):
        (tmp_path / name).mkdir()
    write_binary(tmp_path / "bin")
    write_python(tmp_path / "py", protocol)
    first, second = (prepare(open_dataset("cifar10s", tmp_path / name)) for name in ("bin", "py"))
    assert pairs(first) == pairs(second)
    assert first.digests.tolist() == second.digests.tolist()


class Hostile:
    """Runs a command when unpickled by anything that trusts it."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def hostile_pickles(mark: Path) -> dict[str, bytes]:
    command = f"touch {mark}"
    good = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0]}, protocol=4)
    return {
        "os.system": pickle.dumps({b"data": Hostile(os.system, command), b"labels": [0]}),
        "eval": pickle.dumps(Hostile(eval, f"open({str(mark)!r}, 'w').close()"), protocol=2),
        "getattr": pickle.dumps(Hostile(getattr, "x", "format"), protocol=0),
        "open": pickle.dumps(Hostile(open, str(mark), "w")),
        "builtin by its old name": b"c__builtin__\nopen\n(S'" + str(mark).encode() + b"'\nS'w'\ntR.",
        "instance opcode": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "numpy's own loader": b"cnumpy\nload\n(S'x'\ntR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
        "object array": pickle.dumps({b"data": np.array([[None]], object), b"labels": [0]}),
        "float array": pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [0]}),
        "huge shape": good.replace(b"M\x00\x0c", b"J\xff\xff\xff\x7f"),
        "far memo slot": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "persistent id": b"Pname\n.",
        "extension": b"\x80\x02\x82\x01.",
        "cut": good[:200],
        "a label of 10": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
        "no labels": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}),
        "a list": pickle.dumps([1, 2, 3]),
        "empty": b"",
    }


@pytest.mark.parametrize("name", hostile_pickles(Path("mark")))
def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path, name: str, record_property: object) -> None:
    record_property("12 hostile files", 1)
    folder = write_python(tmp_path, 4)
    open_dataset("cifar10s", tmp_path)
    mark = tmp_path / "mark"
    (folder / "data_batch_3").write_bytes(hostile_pickles(mark)[name])
    with pytest.raises(DataError, match=r"data_batch_3: found not a CIFAR-10 batch"):
        open_dataset("cifar10s", tmp_path)
    assert not mark.exists()


def test_the_hostile_pickles_do_harm_where_they_are_trusted(tmp_path: Path) -> None:
    for number, name in enumerate(("os.system", "eval", "instance opcode")):
        mark = tmp_path / str(number)
        pickle.loads(hostile_pickles(mark)[name])  # noqa: S301 - the negative control
        assert mark.exists()


def test_cifar10s_damaged_binary_files_are_named(tmp_path: Path) -> None:
    folder = write_binary(tmp_path)
    whole = (folder / "data_batch_2.bin").read_bytes()
    for data, found in (
        (whole[:-1], "bytes"),
        (b"", "0 bytes"),
        (b"\x0b" + whole[1:], "record 0: found label 11"),
    ):
        (folder / "data_batch_2.bin").write_bytes(data)
        with pytest.raises(DataError, match=rf"data_batch_2\.bin.*{found}"):
            open_dataset("cifar10s", tmp_path)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin.*No such file"):
        open_dataset("cifar10s", tmp_path)


def write_cifar_parquet(root: Path, struct_column: bool, **replaced: pa.Array) -> None:
    for split, count, seed in (("train", 200, 0), ("test", 30, 500)):
        images = [jpeg(seed + row, width=32, height=32) for row in range(count)]
        column = pa.array([{"bytes": image, "path": None} for image in images]) if struct_column else pa.array(images)
        columns = {
            "id": pa.array(range(count)),
            "image": column,
            "label": pa.array([row % 10 for row in range(count)]),
        }
        pq.write_table(pa.table(columns | (replaced if split == "train" else {})), root / f"{split}.parquet")


@pytest.mark.parametrize("struct_column", [False, True])
def test_cifar10s_parquet_layout(tmp_path: Path, struct_column: bool) -> None:
    write_cifar_parquet(tmp_path, struct_column)
    dataset = open_dataset("cifar10s", tmp_path)
    table = prepare(dataset, meta_at_least=1)
    assert "train-199" in table.ids
    cells = table.take(table.splits != "test").cells(10, 2)
    assert cells.tolist() == [[1, 19] if label % 2 == 0 else [19, 1] for label in range(10)]
    assert dataset.read("test-7-gray") == dataset.read("test-7-colour") == jpeg(507, width=32, height=32)
    decoded = Image.open(io.BytesIO(jpeg(507, width=32, height=32)))
    np.testing.assert_array_equal(dataset.image("test-7-colour"), np.asarray(decoded))
    np.testing.assert_array_equal(dataset.image("test-7-gray")[..., 1], np.asarray(decoded.convert("L")))
    # a copy of a test image in train is dropped from train
    copied = pa.array(
        [jpeg(507, width=32, height=32), *(jpeg(row, width=32, height=32) for row in range(1, 199)), None]
    )
    write_cifar_parquet(tmp_path, False, image=copied, label=pa.array([7, *(row % 10 for row in range(1, 200))]))
    table = prepare(open_dataset("cifar10s", tmp_path), meta_at_least=1)
    assert "train-0" not in table.ids
    assert table.notes["copies_dropped_across_splits"] == 1
    assert [(p.id, p.reason) for p in table.problems] == [("train-199", "unreadable: no image bytes in the table")]


def test_cifar10s_as_hubs_have_it(tmp_path: Path) -> None:
    """Columns img and label, no id, in a folder of its own."""
    write_cifar_parquet(tmp_path, True)
    (tmp_path / "hub" / "plain_text").mkdir(parents=True)
    for split in ("train", "test"):
        columns = pq.read_table(tmp_path / f"{split}.parquet").drop_columns(["id"]).rename_columns(["img", "label"])
        pq.write_table(columns, tmp_path / "hub" / "plain_text" / f"{split}-00000-of-00001.parquet")
    dataset = open_dataset("cifar10s", tmp_path / "hub")
    assert len(prepare(dataset, meta_at_least=1)) == 200 + 2 * 30
    assert dataset.read("test-00007-gray") == jpeg(507, width=32, height=32)


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("label", pa.array([10] * 200), r"labels 10\.\.10"),
        ("label", pa.array([None, *[1] * 199]), "1 nulls"),
        ("label", pa.array(["cat"] * 200), "type string"),
        ("image", pa.array(["x"] * 200), "type string"),
        ("id", pa.array([None, *range(199)]), "1 ids that are null"),
        ("id", pa.array([5] * 200), "ids more than once"),
    ],
)
def test_cifar10s_parquet_refusals(tmp_path: Path, column: str, values: pa.Array, found: str) -> None:
    write_cifar_parquet(tmp_path, False, **{column: values})
    with pytest.raises(DataError, match=found):
        open_dataset("cifar10s", tmp_path)


@pytest.mark.skipif(not REAL_CIFAR.is_dir(), reason=f"no CIFAR-10 parquet files in {REAL_CIFAR}")
def test_cifar10s_on_the_real_images() -> None:
    dataset = open_dataset("cifar10s", REAL_CIFAR)
    table = prepare(dataset)
    cells = table.take(table.splits != "test").cells(10, 2)
    assert cells.tolist() == [[250, 4750] if label % 2 == 0 else [4750, 250] for label in range(10)]
    assert table.take(table.splits == "test").cells(10, 2).tolist() == [[1000, 1000]] * 10
    for id, group in list(zip(table.ids, table.groups.tolist(), strict=True))[::701]:
        pixels = dataset.image(id)
        assert pixels.shape == (32, 32, 3)
        assert group == 0 or (pixels == pixels[..., :1]).all()
    small = prepare(dataset, limit=1400)
    assert Counter(small.splits)["test"] == 400
    assert small.take(small.splits != "test").cells(10, 2).tolist() == [[5, 95], [95, 5]] * 5


# ------------------------------------------------------------------------------------------------------ CelebA

CELEBA = 120


def write_celeba(root: Path) -> None:
    """Unequal test cells: Attractive is every third image, Male every second; part 2 from number 60 on."""
    (root / "img_align_celeba").mkdir(parents=True)
    attributes = [str(CELEBA), "Attractive Male Smiling"]
    parts = []
    for number in range(CELEBA):
        name = f"{number + 1:06d}.jpg"
        (root / "img_align_celeba" / name).write_bytes(jpeg(number))
        values = (number % 3 == 0, number % 2 == 0, True)
        attributes.append(f"{name}  " + " ".join("1" if value else "-1" for value in values))
        parts.append(f"{name} {0 if number < 50 else 1 if number < 60 else 2}")
    (root / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")


@pytest.mark.parametrize("folder", [".", "celeba"])
def test_celeba_equal_cells_in_file_order(tmp_path: Path, folder: str) -> None:
    write_celeba(tmp_path / folder)
    dataset = open_dataset("celeba", tmp_path)
    assert (dataset.class_names, dataset.group_names) == (
        ("not Attractive", "Attractive"),
        ("not Male", "Male"),
    )
    table = prepare(dataset, meta_at_least=2)
    assert pairs(table) == pairs(prepare(reopened(dataset, tmp_path), meta_at_least=2, workers=1))
    assert table.take(table.splits == "test").cells(2, 2).tolist() == [[10, 10], [10, 10]]
    assert {int(id[:6]) for id in table.ids} & set(range(51, 61)) == set()
    first = [number + 1 for number in range(60, 120) if number % 3 and number % 2][:5]
    small = prepare(open_dataset("celeba", tmp_path, test_per_cell=5))
    chosen = [id for id, split, label, group in pairs(small) if (split, label, group) == ("test", 0, 0)]
    assert chosen == [f"{number:06d}.jpg" for number in first]
    meta = prepare(open_dataset("celeba", tmp_path, validation="meta"))
    assert [id for id, split, _, _ in pairs(meta) if split == "meta"] == [f"{n:06d}.jpg" for n in range(51, 61)]
    assert dataset.image("000001.jpg").shape == (24, 20, 3)
    with pytest.raises(KeyError):
        dataset.read("../list_attr_celeba.txt")
    with pytest.raises(DataError, match="test cell Attractive / not Male: found 10 samples; wanted at least 11"):
        prepare(open_dataset("celeba", tmp_path, test_per_cell=11))


def test_celeba_other_attributes_and_missing_images(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    assert open_dataset("celeba", tmp_path, target="Male", protected="Attractive").class_names == (
        "not Male",
        "Male",
    )
    for wrong in (
        {"target": "Atractive"},
        {"protected": "Attractive"},
        {"validation": "test"},
        {"test_per_cell": -1},
    ):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            open_dataset("celeba", tmp_path, **wrong)
    with pytest.raises(DataError, match="cell not Attractive / not Smiling: found 0 samples"):
        prepare(open_dataset("celeba", tmp_path, protected="Smiling"))
    (tmp_path / "img_align_celeba" / "000007.jpg").unlink()
    table = prepare(open_dataset("celeba", tmp_path))
    assert [(p.id, p.label, p.group) for p in table.problems] == [("000007.jpg", 1, 1)]


@pytest.mark.parametrize(
    ("file", "line", "text", "found"),
    [
        ("list_attr_celeba.txt", 1, "119", "line 1: found '119' before 120 images"),
        ("list_attr_celeba.txt", 5, "000003.jpg 1 -1", "line 5"),
        ("list_attr_celeba.txt", 5, "000003.jpg 1 0 1", "line 5"),
        ("list_attr_celeba.txt", 5, "", "line 5"),
        ("list_attr_celeba.txt", 5, "000002.jpg 1 1 1", "line 5: found 000002.jpg a second time"),
        ("list_attr_celeba.txt", 5, "../03.jpg 1 1 1", "line 5: found the image name '../03.jpg'"),
        ("list_attr_celeba.txt", 5, "new.jpg 1 1 1", "only one of the two lists: 000003.jpg, new.jpg"),
        ("list_eval_partition.txt", 3, "000003.jpg 3", "line 3"),
        ("list_eval_partition.txt", 3, "000003.jpg", "line 3"),
        ("list_eval_partition.txt", 3, "000002.jpg 1", "line 3: found 000002.jpg a second time"),
    ],
)
def test_celeba_malformed_lists_are_named_by_line(tmp_path: Path, file: str, line: int, text: str, found: str) -> None:
    write_celeba(tmp_path)
    lines = (tmp_path / file).read_text().splitlines()
    lines[line - 1] = text
    (tmp_path / file).write_text("\n".join(lines))
    with pytest.raises(DataError, match=found):
        open_dataset("celeba", tmp_path)


# ----------------------------------------------------------------------------------------------------- UTKFace


def write_utkface(root: Path, per_cell: int) -> None:
    seed = 0
    for age in (5, 25, 70):
        for race in range(5):
            folder = root / f"part{race % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(per_cell):
                seed += 1
                name = f"{age}_{number % 2}_{race}_2017{number:013d}.jpg" + (".chip.jpg" if number % 3 else "")
                (folder / name).write_bytes(jpeg(seed, width=8, height=8))


def test_utkface_cells_seed_and_names(tmp_path: Path) -> None:
    write_utkface(tmp_path, 103)
    for name in ("61_1_20170109142408075.jpg", "part0/x.jpg", "24_0_7_20170116.jpg", "1_2_3_4.jpg"):
        (tmp_path / name).write_bytes(jpeg(9999))
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / "._25_0_0_20170116.jpg").write_bytes(b"a file manager's shadow")
    dataset = open_dataset("utkface", tmp_path, preset="mfd")
    table = prepare(dataset, meta_at_least=1)
    assert pairs(table) == pairs(prepare(reopened(dataset, tmp_path), meta_at_least=1, workers=1))
    assert {p.id for p in table.problems} == {
        "61_1_20170109142408075.jpg",
        "part0/x.jpg",
        "24_0_7_20170116.jpg",
        "1_2_3_4.jpg",
    }
    assert table.take(table.splits == "test").cells(3, 4).tolist() == [[100] * 4] * 3
    assert len(table) == 12 * 103
    id = "part1/25_0_3_20170000000000000.jpg"
    assert pairs(table)[table.ids.tolist().index(id)][2:] == (1, 3)
    assert dataset.image(id).shape == (8, 8, 3)
    other = prepare(open_dataset("utkface", tmp_path, preset="mfd", split_seed=1), meta_at_least=1)
    assert pairs(other) != pairs(table)
    assert prepare(dataset, split_seed=5).splits.tolist().count("test") == 1200
    with pytest.raises(DataError, match="cell below 20 / White: found 103 different images; wanted 201"):
        prepare(open_dataset("utkface", tmp_path))


def test_utkface_copies_stay_on_one_side_and_test_holds_different_images(tmp_path: Path) -> None:
    write_utkface(tmp_path / "a", 101)
    write_utkface(tmp_path / "b", 101)
    for file in [*(tmp_path / "b").rglob("*.jpg")]:  # another name: the content alone tells that it is a copy
        file.rename(file.with_name(file.name.replace("_2017", "_2018")))
    table = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)
    test = table.take(table.splits == "test")
    assert test.cells(3, 4).tolist() == [[100] * 4] * 3
    assert len(set(test.digests)) == 1200
    assert not set(test.digests) & set(table.digests[table.splits != "test"])
    assert table.notes["copies_dropped_across_splits"] >= 1200


def test_utkface_an_unreadable_folder_is_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    if os.access(tmp_path / "locked", os.R_OK):
        pytest.skip("permissions do not bind this user (root)")
    with pytest.raises(DataError, match="locked"):
        open_dataset("utkface", tmp_path)


# ------------------------------------------------------------------------------------------------------- table


def test_table_draws_its_test_split_by_content(tmp_path: Path) -> None:
    rows = table_of_images(tmp_path)
    write_table(tmp_path, rows)
    dataset = open_dataset("table", tmp_path, test_fraction=0.25)
    assert dataset.settings == {"table": "samples.csv", "test_fraction": 0.25, "image_size": 64, "flip": True}
    table = prepare(dataset, meta_at_least=1)
    assert table.take(table.splits == "test").cells(2, 2).tolist() == [[4, 4], [4, 4]]
    assert (dataset.class_names, dataset.group_names) == (("0", "1"), ("0", "1"))
    assert pairs(table) == pairs(prepare(reopened(dataset, tmp_path), meta_at_least=1, workers=1))
    write_table(tmp_path, rows[::-1])
    backwards = prepare(open_dataset("table", tmp_path, test_fraction=0.25), meta_at_least=1)
    assert sorted(pairs(backwards)) == sorted(pairs(table))
    assert dataset.image("000.jpg").shape == (24, 20, 3)


def test_table_names_ids_and_splits_from_parquet(tmp_path: Path) -> None:
    rows = table_of_images(tmp_path, 8)
    columns = {
        "path": [row[0] for row in rows],
        "label": pa.array(["dog", "cat"] * 4).dictionary_encode(),
        "group": pa.array([1, 1, 0, 0, 2, 2, 0, 0], pa.int8()),
        "split": ["train", "test", "meta", "train"] * 2,
        "id": pa.array(range(100, 108)),
        "remark": [None] * 8,
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    dataset = open_dataset("table", tmp_path, table="mine.parquet", image_size=32, flip=False)
    assert (dataset.class_names, dataset.group_names) == (("cat", "dog"), ("0", "1", "2"))
    assert (dataset.image_size, dataset.flip) == (32, False)
    table = prepare(dataset)
    assert sorted(pairs(table))[:2] == [("100", "train", 1, 1), ("101", "test", 0, 1)]
    assert Counter(table.splits) == {"train": 4, "test": 2, "meta": 2}


def table_with_unknown_groups(root: Path, kind: str) -> Dataset:
    """60 images of two classes and two groups; of every third nobody knows the group."""
    rows = table_of_images(root)
    rows = [(path, label, "" if n % 3 == 0 else "fm"[n // 2 % 2]) for n, (path, label, *_) in enumerate(rows)]
    if kind == "csv":
        write_table(root, rows)
    else:
        path, label, group = zip(*rows, strict=True)
        columns = {"path": path, "label": label, "group": [each or None for each in group]}
        pq.write_table(pa.table(columns), root / "samples.parquet")
    return open_dataset("table", root, unknown_groups=True)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_without_a_group_train_and_are_nowhere_else(tmp_path: Path, kind: str) -> None:
    dataset = table_with_unknown_groups(tmp_path, kind)
    assert dataset.group_names == ("f", "m")
    assert "column group: not known in 20 of 60 rows" in dataset.remarks
    table = prepare(dataset)
    unknown = table.groups < 0
    assert unknown.sum() == 20
    assert {*table.splits[unknown]} == {"train"}
    assert {*table.splits[~unknown]} == {"train", "meta", "test"}
    assert table.cells(2, 2).sum() == 40
    assert [*dataset.settings][-1] == "unknown_groups"  # it is part of a cache's fingerprint, where it is set
    limited = prepare(dataset, limit=30)
    assert {*limited.splits[limited.groups < 0]} == {"train"}
    with pytest.raises(DataError, match=r"20 of 60 rows with no group: .*unknown_groups=true"):
        open_dataset("table", tmp_path)


def test_subjects_with_an_unknown_group_stay_in_train(tmp_path: Path) -> None:
    rows = [(path, n % 2, "fm"[n // 2 % 2], f"s{n // 4}") for n, (path, *_) in enumerate(table_of_images(tmp_path))]
    rows[0] = (*rows[0][:2], "", rows[0][3])
    write_table(tmp_path, rows, "path,label,group,subject")
    table = prepare(open_dataset("table", tmp_path, unknown_groups=True))
    of_first = [row for row, id in enumerate(table.ids.tolist()) if id in {each[0] for each in rows[:4]}]
    assert len(of_first) == 4
    assert {*table.splits[of_first]} == {"train"}
    assert (table.splits == "test").any()


@pytest.mark.parametrize("split", ["meta", "test"])
def test_meta_and_test_need_groups(tmp_path: Path, split: str) -> None:
    splits = ("train", "meta", "test")
    rows = [
        (path, n % 2, "fm"[n // 2 % 2], splits[n // 4 % 3]) for n, (path, *_) in enumerate(table_of_images(tmp_path))
    ]
    wrong = next(n for n, row in enumerate(rows) if row[3] == split)
    rows[wrong] = (*rows[wrong][:2], "", split)
    write_table(tmp_path, rows, "path,label,group,split")
    dataset = open_dataset("table", tmp_path, unknown_groups=True)
    with pytest.raises(DataError, match=f"1 {split} rows without a group: '{rows[wrong][0]}'"):
        prepare(dataset)


BAD_TABLES: dict[str, tuple[str, list[tuple[object, ...]], str]] = {
    "null label": ("path,label,group", [("0.jpg", "", 0), ("1.jpg", " ", 0), ("2.jpg", 1, 0)], "2 of 3 .* no label: '0"),
    "null group": ("path,label,group", [("0.jpg", 0, "")], "1 of 1 rows with no group"),
    "null path": ("path,label,group", [("", 0, 0)], "1 of 1 rows with no path: row 1"),
    "null id": ("path,label,group,id", [("0.jpg", 0, 0, "")], "no id"),
    "unknown split": ("path,label,group,split", [("0.jpg", 0, 0, "fold1"), ("1.jpg", 0, 0, "")], r"2 of 2 .*'fold1'"),
    "numbered split": ("path,label,group,split", [("0.jpg", 0, 0, "0"), ("1.jpg", 0, 0, "1")], "0 is train, 1 is meta"),
    "nan": ("path,label,group", [(f"{n}.jpg", ("nan", "a", "<NA>")[n], 0) for n in range(3)], "2 of 3 .*'<NA>' .1 rows"),
    "no group": ("path,label,group", [(f"{n}.jpg", 0, ("NaT", "NULL", "x")[n]) for n in range(3)], "2 of 3 .*no group"),
    "blanks": ("path,label,group", [(f"{n}.jpg", ("a", "a ", "a ")[n], 0) for n in range(3)], r"'a' \(1 rows\), 'a ' \(2"),
    "unicode forms": ("path,label,group", [("0.jpg", "\u00e9", 0), ("1.jpg", "e\u0301", 0)], r"'e\\u0301' \(1 rows\)"),
    "digits": ("path,label,group", [("0.jpg", 0, 0), ("1.jpg", "00", 0), ("2.jpg", 1, 0)], "'00' .1 rows"),
    "duplicate id": ("path,label,group,id", [("0.jpg", 0, 0, "a"), ("1.jpg", 0, 0, "a")], r"2 of 2 .*'a' \(row 1\)"),
    "duplicate path": ("path,label,group", [("0.jpg", 0, 0), ("0.jpg", 0, 1)], "2 of 2"),
    "unicode twins": ("path,label,group", [("caf\u00e9.jpg", 0, 0), ("cafe\u0301.jpg", 0, 0)], "2 of 2"),
    "absolute path": ("path,label,group", [("/etc/passwd", 0, 0)], "1 of 1 rows with a path that leaves .*'/etc/passwd'"),
    "path upwards": ("path,label,group", [("a/../../x.jpg", 0, 0)], "leaves"),
    "path with NUL": ("path,label,group", [("a\0.jpg", 0, 0)], "leaves|unreadable"),
    "the folder itself": ("path,label,group", [(".", 0, 0)], "leaves"),
    "more than ten": ("path,label,group", [(f"{n}.jpg", "", 0) for n in range(12)], "12 of 12 .*'9.jpg'; wanted"),
    "a gap in the labels": ("path,label,group", [("0.jpg", 0, 0), ("1.jpg", 2, 0)], r"label: .* integers 0, 2; .* 0\.\.1"),
    "labels from 1": ("path,label,group", [("0.jpg", 1, 0), ("1.jpg", 2, 0)], r"integers 1, 2"),
    "a negative group": ("path,label,group", [("0.jpg", 0, -1), ("1.jpg", 1, 0)], "group: found the 2 integers -1, 0"),
    "a huge label": ("path,label,group", [("0.jpg", 10**12, 0)], "integers 1000000000000"),
    "a lacking column": ("path,label", [("0.jpg", 0)], "columns 'path', 'label'.*add group"),
    "a column twice": ("path,label,group,label", [("0.jpg", 0, 0, 1)], "rename one label"),
    "a short row": ("path,label,group", [("0.jpg", 0, 0), ("1.jpg", 0)], "line 3: found 2 values; wanted 3"),
    "an empty file": ("", [], "columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_table_refusals(tmp_path: Path, name: str, record_property: object) -> None:
    record_property("14 labels, groups, paths", 1)
    header, rows, found = BAD_TABLES[name]
    write_table(tmp_path, rows, header)
    with pytest.raises(DataError, match=found):
        open_dataset("table", tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("label", pa.array([0.5, 1.0]), "column label: found values of type double"),
        ("split", pa.array([True, False]), "column split: found values of type bool"),
        ("path", pa.array([1, 2]), "column path: found values of type int64; wanted strings"),
        ("label", pa.array([None, 1]), "1 of 2 rows with no label"),
        ("label", pa.array([None, None]), "values of type null"),
        ("split", pa.array([None, "test"]), r"1 of 2 .*\(None\)"),
    ],
)
def test_table_parquet_refusals(
    tmp_path: Path, column: str, values: pa.Array, found: str, record_property: object
) -> None:
    record_property("14 labels, groups, paths", 1)
    columns = {"path": pa.array(["a.jpg", "b.jpg"]), "label": pa.array([0, 1]), "group": pa.array([0, 1])}
    pq.write_table(pa.table(columns | {column: values}), tmp_path / "samples.parquet")
    with pytest.raises(DataError, match=found):
        open_dataset("table", tmp_path)


def test_table_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_bytes(b"path,label,group\n\xff\xfe,0,0\n")
    with pytest.raises(DataError, match="UTF-8"):
        open_dataset("table", tmp_path)
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"samples\.csv and samples\.parquet"):
        open_dataset("table", tmp_path)
    with pytest.raises(DataError, match="unreadable Parquet"):
        open_dataset("table", tmp_path, table="samples.parquet")
    outside = tmp_path / "inner"
    outside.mkdir()
    for table in ("../samples.csv", str(tmp_path / "samples.csv"), "none.csv", "samples.txt"):
        with pytest.raises(DataError, match=r"leaves|no table"):
            open_dataset("table", outside, table=table)
    for wrong in ({"test_fraction": 0.0}, {"test_fraction": 1.0}, {"image_size": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            open_dataset("table", tmp_path, **wrong)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_table_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    write_table(tmp_path, table_of_images(tmp_path, 8))
    (tmp_path / "000.jpg").unlink()
    os.mkfifo(tmp_path / "000.jpg")
    table = prepare(open_dataset("table", tmp_path), max_problem_share=0.2)
    assert [(p.id, p.reason) for p in table.problems] == [("000.jpg", "unreadable: not a regular file")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(limit=st.integers(12, 120), meta_fraction=st.floats(0.05, 0.4), seed=st.integers(0, 9))
def test_no_content_is_on_two_sides(tmp_path: Path, limit: int, meta_fraction: float, seed: int) -> None:
    if not (tmp_path / "samples.csv").exists():
        rows = table_of_images(tmp_path, 60)
        for number in range(0, 60, 3):  # an agreeing copy: same label, same group
            name = f"copy{number:03d}.jpg"
            (tmp_path / name).write_bytes((tmp_path / f"{number:03d}.jpg").read_bytes())
            rows.append((name, *rows[number][1:]))
        write_table(tmp_path, rows)
    dataset = open_dataset("table", tmp_path)
    table = prepare(dataset, limit=limit, meta_fraction=meta_fraction, meta_at_least=2, split_seed=seed)
    sides = [set(table.digests[table.splits == split]) for split in ("train", "meta", "test")]
    assert sum(map(len, sides)) == len(set().union(*sides))
    assert not table.problems
    order = [("train", "meta", "test").index(split) for split in table.splits]
    assert order == sorted(order)


# ------------------------------------------------------------------------------------- what is said before a teacher runs


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        ("label", lambda row: (row[0], "yes", *row[2:])),
        ("group", lambda row: (*row[:2], "female", *row[3:])),
        ("label", lambda row: (row[0], 0, *row[2:])),
    ],
)
def test_a_column_of_one_value_is_refused_by_its_name_and_value(tmp_path: Path, column: str, rows: object) -> None:
    table = [rows(row) for row in table_of_images(tmp_path, 40)]
    write_table(tmp_path, table)
    value = table[0][1 if column == "label" else 2]
    with pytest.raises(DataError, match=rf"column {column}: found one value, '{value}', in all 40 rows; wanted two"):
        open_dataset("table", tmp_path)


def test_a_slip_in_a_tables_name_or_columns_is_told(tmp_path: Path) -> None:
    write_table(tmp_path, table_of_images(tmp_path, 8), "path,lable,group")
    with pytest.raises(DataError, match=r"rename 'lable' to label; or say"):
        open_dataset("table", tmp_path)
    with pytest.raises(DataError, match=r"did you mean samples.csv\?"):
        open_dataset("table", tmp_path, table="sample.csv")


def test_empty_cells_are_named_by_split(tmp_path: Path) -> None:
    parts = [("train", "train", "meta", "test")[number // 4 % 4] for number in range(80)]
    rows = [(*row, part) for row, part in zip(table_of_images(tmp_path, 80), parts, strict=True)]
    write_table(tmp_path, rows, "path,label,group,split")
    dataset = open_dataset("table", tmp_path)
    table = prepare(dataset)
    names = dataset.class_names, dataset.group_names
    assert empty_cells(table, *names) == {}
    last = (table.labels == 1) & (table.groups == 1)
    learned = table.take(~(last & (table.splits != "test")))
    assert empty_cells(learned, *names) == {"train": ["class 1 x group 1"], "meta": ["class 1 x group 1"]}
    require_test_cells(dataset, learned)
    with pytest.raises(DataError, match="no test sample for class 1 x group 1"):
        require_test_cells(dataset, table.take(~(last & (table.splits == "test"))))
    with pytest.raises(DataError, match="no test sample for class 0 x group 0, class 0 x group 1, class 1 x group 0"):
        require_test_cells(dataset, table.take(table.splits != "test"))


# --------------------------------------------------------------------------------------------------------------- limit


@pytest.mark.parametrize("limit", [200, 400, 1400])
def test_a_limit_keeps_the_proportions_of_the_splits(limit: int) -> None:
    """Meta is carved before the limit: of so few samples its least number a cell would be a third."""
    dataset = open_dataset("digits-s", None)
    whole, part = prepare(dataset), prepare(dataset, limit=limit)
    assert len(part) == limit
    split_of = dict(zip(whole.ids, whole.splits, strict=True))
    assert all(split_of[id] == split for id, split in zip(part.ids, part.splits, strict=True))
    raised = 0
    for split in ("train", "meta", "test"):
        cells, kept = (table.take(table.splits == split).cells(10, 2) for table in (whole, part))
        assert kept.min() >= 1
        raised += int(np.maximum(1 - cells * limit / len(whole), 0).sum())
    for split in ("train", "meta", "test"):
        wanted, got = (whole.splits == split).mean(), (part.splits == split).mean()
        assert abs(got - wanted) <= (raised + 1) / limit, split


@st.composite
def three_splits(draw: st.DrawFn) -> SampleTable:
    cell = st.tuples(st.sampled_from(["train", "train", "meta", "test"]), st.integers(0, 2), st.integers(0, 1))
    rows = draw(st.lists(cell, min_size=1, max_size=150))
    columns = [np.array([row[place] for row in rows]) for place in (1, 2)]
    ids = strings([f"s{row}" for row in range(len(rows))])
    return SampleTable(
        ids, *columns, strings([row[0] for row in rows]), strings([f"{row:032x}" for row in range(len(rows))])
    )


@settings(deadline=None, max_examples=300)
@given(three_splits(), st.integers(1, 160))
def test_a_subset_keeps_what_is_learned_from_tested_on_and_meta(table: SampleTable, limit: int) -> None:
    chosen = table.take(subset(table, limit))
    assert len(chosen) == min(limit, len(table)) == len({*chosen.ids})
    before, after = strata(table), strata(chosen)
    share = min(1.0, limit / len(table))
    if limit >= len(before):
        assert all(after[key] >= 1 for key in before)
    if limit >= len(before) and min(count * share for count in before.values()) < 1:
        return  # what is raised to one sample is paid for by the others
    for kind in (("train", "meta"), ("test",)):
        count = sum(split in kind for split in table.splits)
        assert abs(sum(split in kind for split in chosen.splits) - count * share) < 1
        for label, group in {(key[1], key[2]) for key in before}:
            cells = [sum(found[split, label, group] for split in kind) for found in (before, after)]
            assert abs(cells[1] - cells[0] * share) < 1
    if limit >= len(before):
        assert abs((chosen.splits == "meta").sum() - (table.splits == "meta").sum() * share) <= 1


def test_a_limit_keeps_a_meta_split_of_the_data_sets_own(tmp_path: Path) -> None:
    parts = ("meta", "test", "train", "train", "train")
    rows = [(*row, parts[number // 4 % 5]) for number, row in enumerate(table_of_images(tmp_path, 100))]
    write_table(tmp_path, rows, "path,label,group,split")
    dataset = open_dataset("table", tmp_path)
    assert Counter(prepare(dataset).splits) == {"train": 60, "meta": 20, "test": 20}
    assert Counter(prepare(dataset, limit=50).splits) == {"train": 30, "meta": 10, "test": 10}
    few = prepare(dataset, limit=3)
    split_of = {row[0]: row[3] for row in rows}
    assert all(split_of[id] == split for id, split in zip(few.ids, few.splits, strict=True)), "nothing is carved anew"


def test_the_sample_table_without_a_limit_is_what_it_always_was() -> None:
    """Caches are found again by it."""
    table = prepare(open_dataset("digits-s", None))
    columns = zip(table.ids, table.splits, table.labels, table.groups, strict=True)
    text = "\n".join(f"{id} {split} {label} {group}" for id, split, label, group in columns)
    assert xxhash.xxh3_128_hexdigest(text.encode()) == "dd53b594dc10c4f1f1f73eb2864937ba"
