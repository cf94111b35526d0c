"""UTKFace (Zhang et al., "Age Progression/Regression by Conditional Adversarial Autoencoder", CVPR 2017): age by race.

Three age classes (below 20, 20 to 39, 40 and above) by four groups, with test cells of equal size: the set-up of Jung
et al., "Fair Feature Distillation for Visual Recognition" (MFD, CVPR 2021) and of Java, Jandial and Agarwal (2023).
Age and race are estimates by a program and annotators, in the data set's own words; they are not facts about people.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.base import COPY_BY_NAME, Dataset, Listing, Problem, SampleTable
from bird.datasets.finding import images_below, printable
from bird.errors import DataError, UsageError, unknown_name

__all__ = ["TEST_PER_CELL", "UTKFace"]

TEST_PER_CELL = {"paper": 201, "mfd": 100}
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_(\d+)\.(jpe?g|png)(\.chip\.jpg)?", re.ASCII | re.IGNORECASE)
_RACE_LEFT_OUT, _OTHERS = 4, "race 4 (Others), not a group of the published set-up"


@final
class UTKFace(Dataset):
    """All images below a folder, named `age_gender_race_timestamp.jpg` (or `.jpg.chip.jpg`, `.JPG`, `.jpeg`, `.png`).

    `preset` sets the test samples a (race, age) cell: "paper" 201, "mfd" 100. Content hashes with `split_seed`
    decide which, so that every training seed is tested on the same images. Hidden files are not looked at; links are
    followed. The same file name in several folders is the same face: the first path stands for all.
    """

    name = "utkface"
    class_names = ("below 20", "20 to 39", "40 and above")
    group_names = ("White", "Black", "Asian", "Indian")
    image_size = 176
    flip = True

    def __init__(self, root: Path, *, preset: str = "paper", split_seed: int = 0) -> None:
        if preset not in TEST_PER_CELL:
            raise unknown_name("data set utkface, setting preset", preset, TEST_PER_CELL)
        if split_seed < 0:
            raise UsageError(
                where="data set utkface, setting split_seed",
                found=str(split_seed),
                wanted="a number from 0 up",
                fix="correct the setting",
            )
        self.settings = {"preset": preset, "split_seed": split_seed}
        self._root, self._seed, self._test_per_cell = root, split_seed, TEST_PER_CELL[preset]
        paths, self.remarks = images_below(root, "data set utkface")
        rows: list[tuple[str, int, int, str]] = []
        problems: list[Problem] = []
        left_out: list[Problem] = []
        others: list[str] = []
        first: dict[tuple[str, ...], str] = {}
        for id in paths:
            match = _NAME.fullmatch(id.rsplit("/", 1)[-1])
            if match is None:
                problems.append(Problem(printable(id), "name is not age_gender_race_timestamp.jpg", kind="bad name"))
                continue
            age = int(match[1])
            label, group = int(age >= 20) + int(age >= 40), int(match[3])
            if printable(id) != id:
                problems.append(
                    Problem(printable(id), "a folder name that is not UTF-8: rename it", label, group, kind="bad name")
                )
            elif (other := first.setdefault(match.group(1, 2, 3, 4), id)) != id:
                left_out.append(Problem(id, f"the same face by its name: {other}", label, group, kind=COPY_BY_NAME))
            elif group == _RACE_LEFT_OUT:
                left_out.append(Problem(id, _OTHERS, label, kind=_OTHERS))
                others.append(id)
            else:
                rows.append((id, label, group, ""))
        self._ids = {row[0] for row in rows} | {*others}
        self._listing = Listing.of(rows, problems, left_out, others)

    def listing(self) -> Listing:
        """One image of every name that parses, sorted by path; the other names as problems, further files of the same
        name (mirrors hold faces in several folders, encoded anew) as copies."""
        return self._listing

    def file(self, id: str) -> Path:
        """The JPEG file."""
        return self._root / id

    def read(self, id: str) -> bytes:
        """The JPEG file."""
        if id not in self._ids:
            raise KeyError(id)
        return (self._root / id).read_bytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels."""
        from bird.images import decode_image

        return decode_image(data, id, self.max_pixels)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """Test cells of equal size, the rest train. Raises DataError naming a cell that is too small."""
        splits = np.full(len(table), "train", dtype=object)
        for label, class_name in enumerate(self.class_names):
            for group, group_name in enumerate(self.group_names):
                rows = np.flatnonzero((table.labels == label) & (table.groups == group)).tolist()
                # A byte-identical copy is no second test sample: the first of each content stands for all.
                first = {str(table.digests[row]): row for row in reversed(rows)}
                if len(first) < self._test_per_cell + 1:
                    raise DataError(
                        where=f"data set utkface, cell {class_name} / {group_name}",
                        found=f"{len(first)} different images",
                        wanted=f"{self._test_per_cell} for test and at least one for training",
                        fix="complete the data set, or choose the preset mfd (100 a cell)",
                    )
                order = sorted(first, key=lambda digest: xxhash.xxh3_64_intdigest(digest.encode(), self._seed))
                splits[[first[digest] for digest in order[: self._test_per_cell]]] = "test"
        return splits
