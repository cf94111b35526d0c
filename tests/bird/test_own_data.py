"""Data sets of one's own: what can be handed over, and what is told of what cannot."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bird.datasets.base import Dataset, Listing, prepare, require_test_cells
from bird.datasets.own import open_own
from bird.errors import DataError, UsageError
from bird.own import find


def pixels(n):
    return np.random.default_rng(n).integers(0, 255, (9, 7, 3), dtype=np.uint8)


def png(n):
    buffer = io.BytesIO()
    Image.fromarray(pixels(n)).save(buffer, "PNG")
    return buffer.getvalue()


class Faces(Dataset):
    """A data set as the protocol has it, with a folder and a setting."""

    name = "faces"
    class_names = ("no", "yes")
    group_names = ("F", "M")
    image_size = 16
    flip = True

    def __init__(self, root, *, count=40):
        self.settings, self.root = {"count": count}, root
        self.rows = [(f"{n}.png", n % 2, n // 2 % 2, ("train", "test")[n // 4 % 2]) for n in range(count)]

    def listing(self):
        return Listing.of(self.rows)

    def read(self, id):
        return png(int(id.removesuffix(".png")))

    def decode(self, id, data):
        return np.asarray(Image.open(io.BytesIO(data)))


class Items:
    """A map-style data set, as torch has them."""

    classes = ("no", "yes")
    group_names = ("men", "women")

    def __init__(self, count=40, image=lambda n: Image.fromarray(pixels(n)), more=lambda n: {}):
        self.count, self.image, self.more = count, image, more

    def __len__(self):
        return self.count

    def __getitem__(self, n):
        return {"image": self.image(n), "label": n % 2, "group": n // 2 % 2, **self.more(n)}


def opened(value, root=None, **settings):
    return open_own(find("dataset", value), root, settings)


def test_a_class_is_called_with_the_folder_and_the_settings(tmp_path):
    data = opened(Faces, tmp_path, count=24)
    assert data.name.startswith("Faces@")
    assert data.own == {"attribute": "Faces", "sha256": data.own["sha256"]}
    assert data.settings == {"count": 24}
    table = prepare(data, meta_at_least=1)
    require_test_cells(data, table)
    assert len(table) == 24
    assert np.array_equal(data.image("3.png"), pixels(3))
    assert data.image_size == 16
    data.max_pixels = 5
    assert data.max_pixels == 5
    made = opened(Faces(tmp_path))
    assert made.settings == {"count": 40}
    assert len(made.listing().ids) == 40


IMAGES = {
    "pillow": lambda n: Image.fromarray(pixels(n)),
    "numpy": pixels,
    "torch": lambda n: torch.from_numpy(pixels(n)).permute(2, 0, 1),
    "bytes": png,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_map_style_one_of_any_kind_of_image(kind):
    data = opened(Items(image=IMAGES[kind]))
    assert (data.class_names, data.group_names) == (("no", "yes"), ("men", "women"))
    table = prepare(data, meta_at_least=1)
    require_test_cells(data, table)
    assert np.array_equal(data.image("item-03"), pixels(3))


def test_paths_strings_ids_splits_subjects_and_numbers_of_torch(tmp_path):
    for n in range(48):
        (tmp_path / f"{n}.png").write_bytes(png(n))

    def item(n):
        more = {"label": ("b", "a")[n % 2], "group": torch.tensor(n // 2 % 2), "id": f"k{n}"}
        return more | {"split": ("train", "val", "test")[n // 4 % 3], "subject": n // 4}

    items = Items(48, image=lambda n: tmp_path / f"{n}.png", more=item)
    items.classes = items.group_names = None
    data = opened(items)
    assert (data.class_names, data.group_names) == (("a", "b"), ("0", "1"))
    table = prepare(data)
    assert dict(zip(table.ids.tolist(), table.splits.tolist(), strict=True))["k4"] == "meta"
    assert data.subjects["k5"] == "1"


def test_tuples_unknown_groups_and_other_options():
    class Tuples:
        unknown_groups, image_size, test_fraction = True, 24, 0.5

        def __len__(self):
            return 40

        def __getitem__(self, n):
            return pixels(n), n % 2, None if n < 4 else n // 2 % 2

    data = opened(Tuples)
    assert data.image_size == 24
    table = prepare(data, meta_at_least=1)
    assert (table.groups < 0).sum() == 4
    assert (table.splits == "test").sum() == 16


def random_image(n):
    return np.random.default_rng().integers(0, 255, (9, 7, 3), dtype=np.uint8)


def failing(n):
    raise RuntimeError("the disk is gone")


class Lacking(Dataset):
    name = "x"
    class_names = ("a", "b")
    listing = read = decode = None


class Shaded(Items):
    def __init__(self, shade=100, *, root_like=None):
        super().__init__()
        self.image = lambda n: pixels(n) // 100 * shade


@pytest.mark.parametrize(
    "make",
    [
        lambda images: Faces(images),
        lambda *images: Faces(*images),
        lambda root=None: Faces(root),
        lambda shade=3, folder=None: Faces(folder),
        lambda shade=3, *, data_root: Faces(data_root),
        lambda shade, path: Faces(path),
    ],
)
def test_the_folder_goes_to_the_parameter_that_is_meant_for_it(tmp_path, make):
    settings = {"shade": 7} if "shade" in make.__code__.co_varnames else {}
    assert opened(make, tmp_path, **settings)._inner.root == tmp_path


@pytest.mark.parametrize(
    ("value", "root", "settings", "told"),
    [
        (3, None, {}, "an object of int; wanted a bird.datasets.base.Dataset, a class or function"),
        (lambda: [], None, {}, "found no item"),
        (lambda: 1 / 0, None, {}, "a failure when it was called .ZeroDivisionError: division by zero"),
        (Faces, None, {}, r"the signature \(root, \*, count=40\) .missing a required argument: 'root'"),
        (Faces, Path("/tmp"), {"size": 3}, "got an unexpected keyword argument 'size'.*--setting NAME=VALUE"),
        (Shaded, Path("/tmp"), {}, r"--data-root, and the signature \(shade=100, \*, root_like=None\); wanted a parameter"),
        (lambda: Items(), Path("/tmp"), {}, r"--data-root, and the signature \(\)"),
        (Items(), Path("/tmp"), {}, "an object, and --data-root"),
        (Items(), None, {"count": 3}, "an object, and --setting"),
        (Lacking, None, {}, "a Dataset without group_names, image_size, flip"),
        (Items(image=random_image), None, {}, "another image when item 0 was asked for twice"),
        (Items(image=failing), None, {}, "item 0: found a failure .RuntimeError: the disk is gone"),
        (Items(image=lambda n: pixels(n) / 255), None, {}, r"an image of type ndarray \(float64 of shape \(9, 7, 3\)\)"),
        (lambda: [1, 2], None, {}, "item 0: found a int"),
        (lambda: [{"image": pixels(0), "label": 1}], None, {}, "found image, label; wanted .*group"),
        (Items(more=lambda n: {"group": 0}), None, {}, "column group: found one value, 'men'"),
        (Items(more=lambda n: {"label": f"c{n}"}, count=1000), None, {}, "column label: found 1,000 values"),
        (Items(more=lambda n: {"label": ("no", "maybe")[n == 7]}), None, {},
         r"found 1 of 40 rows with a label that the names do not have: 'maybe' .item-07.; wanted 0..1, or .*'no', 'yes'"),
        (Items(more=lambda n: {"label": 7}), None, {}, r"40 of 40 rows .*: 7 .item-00.*; wanted 0\.\.1"),
        (Items(more=lambda n: {"label": -(n == 9)}), None, {}, r"1 of 40 rows .*: -1 .item-09.; wanted 0\.\.1"),
        (Items(more=lambda n: {"group": 3}), None, {}, r"40 of 40 rows with a group that .*; wanted 0\.\.1.*'men'"),
        (Items(more=lambda n: {"label": None}), None, {}, "40 of 40 rows with no label"),
        (Items(more=lambda n: {"group": None}), None, {}, "with no group.*the attribute unknown_groups = True of the class"),
        (Items(more=lambda n: {"split": ("train", "tset")[n % 2]}), None, {}, "the attribute split_names = .WORD:SPLIT"),
        (Items(more=lambda n: {"split": "train"}), None, {}, "the attribute split_names = .train:test. of the class"),
        (Items(more=lambda n: {"id": "x"}), None, {}, "1 ids more than once: .x."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(value, root, settings, told):
    with pytest.raises((DataError, UsageError), match=told):
        opened(value, root, **settings)


@pytest.mark.parametrize("more", [{"group": None}, {"group": 0}, {"split": "x"}, {"split": "train"}])
def test_no_advice_is_about_a_setting_that_a_class_does_not_take(more):
    with pytest.raises(DataError) as caught:
        opened(Items(more=lambda n: more))
    assert "--setting" not in str(caught.value)
