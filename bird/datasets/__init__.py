"""The data sets by name. `DATASETS` is the list; `open_dataset` opens one; `bird.datasets.base` says what they share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import final

from bird.datasets.base import Dataset
from bird.datasets.celeba import CelebA
from bird.datasets.cifar10s import Cifar10S
from bird.datasets.class_folders import ImageFolder
from bird.datasets.digits_s import DigitsS
from bird.datasets.hub_folder import HubFolder
from bird.datasets.table import TableDataset
from bird.datasets.utkface import UTKFace
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["DATASETS", "DatasetKind", "Scalar", "located", "open_dataset"]

Scalar = str | int | float | bool
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number, such as 0.2"}


@final
@dataclasses.dataclass(frozen=True)
class DatasetKind:
    """One kind of data set: what it is, what its folder has to hold, and how it is opened."""

    description: str
    layout: str
    open: Callable[..., Dataset]
    needs_root: bool = True

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The settings it knows and their defaults: the keyword arguments of `open`."""
        parameters = inspect.signature(self.open).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


DATASETS: dict[str, DatasetKind] = {
    "digits-s": DatasetKind(
        description="handwritten digits, coloured or gray with a 95 % skew by class; the embedded default",
        layout="nothing: the images come with scikit-learn",
        open=DigitsS,
        needs_root=False,
    ),
    "cifar10s": DatasetKind(
        description="CIFAR-10, colour or gray with a 95 % skew by class (Wang et al. 2020)",
        layout=(
            "cifar-10-batches-bin/ (the binary version) or cifar-10-batches-py/ (as torchvision unpacks it), both"
            " from Alex Krizhevsky's CIFAR page at the University of Toronto; or train.parquet and test.parquet"
            " with columns id, image (encoded bytes), label"
        ),
        open=Cifar10S,
    ),
    "celeba": DatasetKind(
        description="CelebA faces: Attractive by Male, official partition, test cells of equal size",
        layout=(
            "img_align_celeba/*.jpg, list_attr_celeba.txt and list_eval_partition.txt, directly or in celeba/, from"
            " the CelebA page of the Chinese University of Hong Kong (torchvision.datasets.CelebA downloads them); lists as"
            " CSV or in Anno/ and Eval/, PNGs, and images in Img/ or img_align_celeba/img_align_celeba/ are read, too"
        ),
        open=CelebA,
    ),
    "utkface": DatasetKind(
        description="UTKFace: three age classes by four race groups, balanced test cells",
        layout=(
            "files named age_gender_race_timestamp.jpg or .jpg.chip.jpg, in any subfolders, from the UTKFace page"
            " (the aligned and cropped faces)"
        ),
        open=UTKFace,
    ),
    "table": DatasetKind(
        description="your own images: a folder with a CSV or Parquet table of path, label and group",
        layout=(
            "samples.csv or samples.parquet with columns path, label, group and, if wanted, split, id and subject (a subject"
            " stays in one split); in Parquet the images may be inside, in a column image of bytes or {bytes, path}. Columns"
            " that are called otherwise are named: --setting label=smiles --setting group=sex,age (crossed)"
        ),
        open=TableDataset,
    ),
    "imagefolder": DatasetKind(
        description="your own images in folders named after their classes, and a table of their groups",
        layout=(
            "CLASS/x.jpg, or SPLIT/CLASS/x.jpg with splits train, val, test; and groups.csv (or metadata.csv, or the setting"
            " table) with columns path and group. An image without a group trains with unknown_groups=true"
        ),
        open=ImageFolder,
    ),
    "hf": DatasetKind(
        description="a folder of Parquet shards, as the Hugging Face hub serves them; --dataset hf:FOLDER for short",
        layout=(
            "data/train-00000-of-00001.parquet and others, with a column of images ({bytes, path}, or bytes), one of labels"
            " and one of groups: --setting label=COLUMN, group=COLUMN"
        ),
        open=HubFolder,
    ),
}


def located(name: str, root: Path | None = None) -> tuple[str, Path | None]:
    """ "hf:FOLDER" as the data set hf in FOLDER; other names as they are. Raises UsageError for two folders."""
    kind, colon, folder = name.partition(":")
    if kind != "hf" or not colon:
        return name, root
    if root is not None or not folder:
        raise UsageError(
            where=f"--dataset {name}",
            found=f"a second folder, {root}" if folder else "no folder",
            wanted="one folder",
            fix="leave --data-root out" if folder else "write hf:FOLDER",
        )
    return kind, Path(folder)


def open_dataset(name: str, root: Path | None = None, **settings: Scalar) -> Dataset:
    """Open the data set `name` under the folder `root`.

    The result's `settings` are complete, so `open_dataset(d.name, root, **d.settings)` opens the same set again.
    Raises UsageError for an unknown name or setting, DataError for a folder that does not hold the data set.
    """
    name, root = located(name, root)
    if name not in DATASETS:
        raise unknown_name("--dataset", name, DATASETS, "see `bird list datasets`")
    kind = DATASETS[name]
    values = _checked(name, settings, kind.defaults)
    if not kind.needs_root:
        return kind.open(root, **values)
    if root is None:
        raise UsageError(
            where=f"data set {name}",
            found="no folder",
            wanted=f"a folder with {kind.layout}",
            fix="name it with --data-root",
        )
    if not root.is_dir():
        file = root.exists()
        raise DataError(
            where=f"data set {name}, {root}",
            found="a file" if file else "no such folder",
            wanted=f"a folder with {kind.layout}",
            fix=f"give its folder, --data-root {root.parent}" if file else "correct --data-root",
        )
    return kind.open(root, **values)


def _checked(name: str, settings: dict[str, Scalar], defaults: dict[str, Scalar]) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    for key, value in settings.items():
        if key not in defaults:
            raise unknown_name(f"setting of data set {name}", key, defaults)
        kind = type(defaults[key])
        if kind is float and type(value) is int:
            value = float(value)
        if kind is str and type(value) is int:  # a column that is called 3
            value = str(value)
        if type(value) is not kind:
            raise UsageError(
                where=f"data set {name}, setting {key}",
                found=f"{value!r} ({type(value).__name__})",
                wanted=WORDS[kind],
                fix="correct the setting",
            )
        values[key] = value
    return values
