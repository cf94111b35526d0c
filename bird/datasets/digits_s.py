"""Digits-S: the embedded default. Real handwritten digits, coloured by the CIFAR-10S recipe; nothing to download.

The images are the 1,797 digits (8 x 8, values 0..16) of the UCI "Optical Recognition of Handwritten Digits" test
set that scikit-learn bundles. The skew is that of `bird.datasets.cifar10s` (Wang et al. 2020): odd digits are mostly
in colour, even ones mostly gray. It is small enough for a laptop and for tests, and no substitute for a benchmark.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing
from bird.datasets.cifar10s import DOMAINS, domain_digest, skewed_domains

__all__ = ["DigitsS"]

_TEST_SHARE = 0.3
_TEST_SEED = 20  # any fixed number: it only has to stay the same


@final
class DigitsS(Dataset):
    """30 % of each digit's images are test, in both domains; the others train, `skew` of them in the majority domain.

    Ids are `train-00003` and `test-00012-colour`: the number is scikit-learn's row. A coloured digit has one
    saturated hue, drawn from a hash of its number; a gray one has white ink.
    """

    name = "digits-s"
    class_names = tuple("0123456789")
    group_names = DOMAINS
    image_size = 32
    flip = False

    def __init__(self, root: Path | None = None, *, skew: float = 0.95) -> None:
        from sklearn.datasets import load_digits

        self.settings = {"skew": skew}
        digits = load_digits()
        self._values: NDArray[np.uint8] = digits.data.astype(np.uint8)
        labels: NDArray[np.int64] = digits.target.astype(np.int64)
        test = _test_rows(self._values, labels)
        train = np.setdiff1d(np.arange(len(labels)), test)
        hashes = [xxhash.xxh3_128_hexdigest(self._values[row].tobytes()) for row in train]
        domains = skewed_domains(labels[train], hashes, skew)
        self._where = {
            f"train-{row:05d}": (row, domain) for row, domain in zip(train.tolist(), domains.tolist(), strict=True)
        }
        self._where |= {
            f"test-{row:05d}-{name}": (row, domain) for row in test.tolist() for domain, name in enumerate(DOMAINS)
        }
        self._listing = Listing.of(
            (id, int(labels[row]), domain, id.split("-")[0]) for id, (row, domain) in self._where.items()
        )

    def listing(self) -> Listing:
        """Each training digit once, each test digit in both domains."""
        return self._listing

    def read(self, id: str) -> bytes:
        """The digit's 64 values, row by row, one byte each."""
        values: NDArray[np.uint8] = self._values[self._where[id][0]]
        return values.tobytes()

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels, (32, 32, 3): the digit enlarged (bicubic), its ink coloured or white on black."""
        from PIL import Image

        row, domain = self._where[id]
        small = (np.frombuffer(data, np.uint8).reshape(8, 8).astype(np.float64) * 255 / 16).round()
        large = Image.fromarray(small.astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        ink = np.asarray(large, np.float64)[..., None]
        return (ink * (_hue(row) if domain == 0 else np.ones(3))).round().astype(np.uint8)

    def digest(self, id: str, data: bytes) -> str:
        """Hash of the values and of the domain: the two versions of a test digit share their values."""
        return domain_digest(self._where[id][1], data)


def _test_rows(values: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    chosen: list[int] = []
    for label in range(10):
        rows = np.flatnonzero(labels == label).tolist()
        rows.sort(key=lambda row: xxhash.xxh3_64_intdigest(values[row].tobytes(), _TEST_SEED))
        chosen += rows[: round(_TEST_SHARE * len(rows))]
    return np.array(sorted(chosen), np.int64)


def _hue(row: int) -> NDArray[np.float64]:
    degrees = xxhash.xxh3_64_intdigest(f"digit {row}".encode()) % 360
    return np.array(colorsys.hsv_to_rgb(degrees / 360, 1.0, 1.0))
