"""CelebA (Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015): one attribute by another.

The default is Attractive by Male on the official partition, with the test part cut to cells of equal size as in Java,
Jandial and Agarwal (2023). The attributes are annotators' judgements of photographs, not facts about people.
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing, Problem, SampleTable
from bird.datasets.celeba_lists import (
    LISTS,
    find_images,
    find_list,
    read_attributes,
    read_partition,
    same_names,
)
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["CelebA"]

_UNUSED = "validation part, unused"


@final
class CelebA(Dataset):
    """`target` by `protected` from torchvision's on-disk layout, or that of a mirror (`bird.datasets.celeba_lists`). Class
    and group 1 have the attribute, 0 lack it.

    `validation` says what the official validation part is for: "unused", or "meta" to make it the meta split.
    The test part is cut, in file order, to `test_per_cell` samples a (class, group) cell: 1600 is the published
    number, 0 means as many as the smallest cell has.
    """

    name = "celeba"
    image_size = 176
    flip = True
    filtered = "cut to equal test cells"

    def __init__(
        self,
        root: Path,
        *,
        target: str = "Attractive",
        protected: str = "Male",
        validation: str = "unused",
        test_per_cell: int = 0,
    ) -> None:
        if validation not in ("unused", "meta"):
            raise unknown_name("data set celeba, setting validation", validation, ("unused", "meta"))
        if test_per_cell < 0:
            raise UsageError(
                where="data set celeba, setting test_per_cell",
                found=str(test_per_cell),
                wanted="0 (all that equal cells allow) or a number of samples",
                fix="1600 is the published number",
            )
        self.settings = {
            "target": target,
            "protected": protected,
            "validation": validation,
            "test_per_cell": test_per_cell,
        }
        self.class_names = (f"not {target}", target)
        self.group_names = (f"not {protected}", protected)
        self._test_per_cell = test_per_cell
        base = next((root / name for name in ("celeba", "CelebA") if (root / name).is_dir()), root)
        base = root if any(find_list(root, name) for name in LISTS) else base
        attributes, partition = (find_list(base, name) or base / f"{name}.txt" for name in LISTS)
        values = read_attributes(attributes, target, protected)
        parts = read_partition(partition)
        same_names(attributes, set(values), partition, set(parts))
        self._images, self._suffix = find_images(base, list(parts))
        usual = root in (base, base.parent) and (attributes, partition) == tuple(base / f"{name}.txt" for name in LISTS)
        if not usual or self._images != base / "img_align_celeba" or self._suffix:
            kind = f" as *{self._suffix}" if self._suffix else ""
            self.remarks = (f"read from {attributes}, {partition} and {self._images}{kind}",)
        splits = {0: "train", 2: "test"} | ({1: "meta"} if validation == "meta" else {})
        rows = [(id, *values[id], splits[part]) for id, part in parts.items() if part in splits]
        self._ids = {row[0] for row in rows}
        unused = [
            Problem(id, _UNUSED, *values[id], "validation", _UNUSED) for id, part in parts.items() if part not in splits
        ]
        self._listing = Listing.of(rows, left_out=unused)

    def listing(self) -> Listing:
        """All images of the parts in use, in file order."""
        return self._listing

    def file(self, id: str) -> Path:
        """The image file; in mirrors of PNGs the one with that suffix."""
        return self._images / (Path(id).stem + self._suffix if self._suffix else id)

    def read(self, id: str) -> bytes:
        """The image file."""
        if id not in self._ids:
            raise KeyError(id)
        return self.file(id).read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels, (218, 178, 3) in the aligned images."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """The official parts, test cut to equal cells in file order. Raises DataError for a cell too small."""
        splits = table.splits.copy()
        cells = {
            (label, group): np.flatnonzero((splits == "test") & (table.labels == label) & (table.groups == group))
            for label in (0, 1)
            for group in (0, 1)
        }
        size = self._test_per_cell or min(len(rows) for rows in cells.values())
        for (label, group), rows in cells.items():
            if len(rows) < max(size, 1):
                raise DataError(
                    where=f"data set celeba, test cell {self.class_names[label]} / {self.group_names[group]}",
                    found=f"{len(rows)} samples",
                    wanted=f"at least {max(size, 1)}",
                    fix="complete the images, or lower the setting test_per_cell",
                )
            splits[rows[size:]] = ""
        return splits
