"""CIFAR-10S: CIFAR-10 in which colour or gray is nearly tied to the class.

The recipe is that of Wang et al., "Towards Fairness in Visual Recognition: Effective Strategies for Bias
Mitigation" (CVPR 2020), as used by Java, Jandial and Agarwal (2023): of each odd class 95 % of the training images
are in colour and the rest gray, of each even class the other way round; each test image appears in both. Gray is
ITU-R 601 luma in all three channels, in the integer form of pillow's `convert("L")`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import xxhash
from numpy.typing import NDArray

from bird.datasets._cifar_pickle import read_batch
from bird.datasets.base import Dataset, Listing
from bird.datasets.reading import read_parquet
from bird.errors import DataError, UsageError

__all__ = ["DOMAINS", "Cifar10S", "domain_digest", "luma", "skewed_domains"]

DOMAINS = ("colour", "gray")
_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_PIXEL_BYTES = 3 * 32 * 32


@final
@dataclasses.dataclass(frozen=True)
class _Source:
    """One split as stored: a key, a label and the source bytes of each image, encoded or as 3072 planar values."""

    keys: list[str]
    labels: NDArray[np.int64]
    images: Sequence[bytes | None] | NDArray[np.uint8]

    def data(self, row: int) -> bytes:
        image = self.images[row]
        if image is None:
            return b""
        return image if isinstance(image, bytes) else image.tobytes()


@final
class Cifar10S(Dataset):
    """CIFAR-10S from CIFAR-10's batches (binary or Python) or from Parquet, as hubs have it, in that order.

    `skew` is the share of a class's training images in its majority domain; content hashes decide which.
    Ids are `train-00003` and `test-00012-gray`; in Parquet the number is the id column, where there is
    one, without a doubled split.
    """

    name = "cifar10s"
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    group_names = DOMAINS
    image_size = 32
    flip = True

    def __init__(self, root: Path, *, skew: float = 0.95) -> None:
        self.settings = {"skew": skew}
        self._sources, self._encoded = _open_sources(root)
        self._where: dict[str, tuple[str, int, int]] = {}  # id -> split, row, domain
        rows: list[tuple[str, int, int, str]] = []

        def add(id: str, split: str, row: int, domain: int) -> None:
            rows.append((id, int(self._sources[split].labels[row]), domain, split))
            self._where[id] = split, row, domain

        train, test = self._sources["train"], self._sources["test"]
        hashes = [xxhash.xxh3_128_hexdigest(train.data(row)) for row in range(len(train.keys))]
        for row, domain in enumerate(skewed_domains(train.labels, hashes, skew).tolist()):
            add(_with_split("train", train.keys[row]), "train", row, domain)
        for row, key in enumerate(test.keys):
            for domain, domain_name in enumerate(DOMAINS):
                add(f"{_with_split('test', key)}-{domain_name}", "test", row, domain)
        self._listing = Listing.of(rows)

    def listing(self) -> Listing:
        """All training images once, all test images in both domains."""
        return self._listing

    def read(self, id: str) -> bytes:
        """The encoded image from parquet, or its 3072 values (three 32 x 32 planes) from a batch."""
        split, row, _ = self._where[id]
        data = self._sources[split].data(row)
        if not data:
            raise OSError("no image bytes in the table")
        return data

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """RGB pixels in the sample's domain, (32, 32, 3) from the batches."""
        if self._encoded:
            from bird.images import decode_image

            pixels = decode_image(data, id, self.max_pixels)
        else:
            pixels = np.frombuffer(data, np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
        return luma(pixels) if self._where[id][2] == 1 else np.ascontiguousarray(pixels)

    def digest(self, id: str, data: bytes) -> str:
        """Hash of the bytes and of the domain: the two versions of a test image differ in their pixels only."""
        return domain_digest(self._where[id][2], data)


def skewed_domains(labels: NDArray[np.int64], hashes: Sequence[str], skew: float) -> NDArray[np.int64]:
    """Domain (N,) of each training sample with these labels (N,): `skew` of each odd class in colour (0),
    `skew` of each even class gray (1). Raises UsageError for a share that is none."""
    if not 0.0 <= skew <= 1.0:
        raise UsageError(
            where="setting skew",
            found=f"{skew}",
            wanted="a share from 0 to 1",
            fix="0.95 is the published one",
        )
    domains = np.asarray(1 - labels % 2, np.int64)
    for label in np.unique(labels):
        rows = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: hashes[row])
        minority = rows[round(skew * len(rows)) :]
        domains[minority] = label % 2
    return domains


def domain_digest(domain: int, data: bytes) -> str:
    """xxh3-128 of a sample's source bytes together with its domain."""
    return xxhash.xxh3_128_hexdigest(DOMAINS[domain].encode() + b":" + data)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray version of RGB pixels (..., 3), of the same shape: 0.299 R + 0.587 G + 0.114 B in 16-bit fixed
    point, as pillow rounds it."""
    weights = np.array([19595, 38470, 7471], np.int64)
    gray = ((pixels.astype(np.int64) @ weights + 0x8000) >> 16).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _with_split(split: str, key: str) -> str:
    return key if key.startswith((f"{split}-", f"{split}/")) else f"{split}-{key}"


def _open_sources(root: Path) -> tuple[dict[str, _Source], bool]:
    """The two splits, and whether their images are encoded (parquet) or raw (batches)."""
    batches = {"train": _TRAIN_BATCHES, "test": ("test_batch",)}
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if binary.is_dir():
        parts = {split: [_binary(binary / f"{name}.bin") for name in names] for split, names in batches.items()}
    elif python.is_dir():
        parts = {split: [read_batch(python / name) for name in names] for split, names in batches.items()}
    elif tables := _tables(root):
        return {split: _parquet(tables[split]) for split in batches}, True
    else:
        raise DataError(
            where=f"data set cifar10s, {root}",
            found="no CIFAR-10",
            wanted="cifar-10-batches-bin/, cifar-10-batches-py/, train.parquet and test.parquet, or the same as hubs have"
            " them (plain_text/train-00000-of-00001.parquet)",
            fix="unpack CIFAR-10's binary version there, or correct --data-root",
        )
    return {split: _joined(each) for split, each in parts.items()}, False


def _joined(parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> _Source:
    labels = np.concatenate([labels for _, labels in parts])
    images = np.concatenate([images for images, _ in parts])
    return _Source([f"{row:05d}" for row in range(len(labels))], labels, images)


def _binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one file of the binary version: per record one label byte and 3072 values."""
    wanted = f"records of {1 + _PIXEL_BYTES} bytes whose first is a label 0..9"
    fix = "unpack cifar-10-binary.tar.gz again"
    try:
        values = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(where=str(path), found=error.strerror or str(error), wanted=wanted, fix=fix) from error
    if values.size == 0 or values.size % (1 + _PIXEL_BYTES):
        raise DataError(where=str(path), found=f"{values.size} bytes", wanted=wanted, fix=fix)
    records = values.reshape(-1, 1 + _PIXEL_BYTES)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        row = int(labels.argmax())
        raise DataError(where=f"{path}, record {row}", found=f"label {labels[row]}", wanted=wanted, fix=fix)
    return records[:, 1:], labels


def _tables(root: Path) -> dict[str, Path]:
    """train.parquet and test.parquet, or the one file of each split that hubs have; empty where there is no train."""
    found = {}
    for split in ("train", "test"):
        names = (f"{split}.parquet", f"{split}-00000-of-00001.parquet")
        places = [folder / name for folder in (root, root / "plain_text", root / "data") for name in names]
        found[split] = next((path for path in places if path.is_file()), places[0])
    return found if found["train"].is_file() else {}


def _parquet(path: Path) -> _Source:
    columns = read_parquet(path, ("label",), ("id", "image", "img"))
    if "image" not in columns and "img" in columns:
        columns["image"] = columns.pop("img")

    def refuse(found: str) -> DataError:
        return DataError(
            where=str(path),
            found=found,
            wanted="columns image or img (encoded bytes), label (integers 0..9) and perhaps id (no nulls)",
            fix="write the table again in this form",
        )

    import pyarrow as pa
    import pyarrow.compute as pc

    if "image" not in columns:
        raise refuse("no column image or img")
    image = columns["image"]
    if pa.types.is_struct(image.type):
        image = pc.struct_field(image, "bytes")
    if not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
        raise refuse(f"images of type {image.type}")
    if not pa.types.is_integer(columns["label"].type) or columns["label"].null_count:
        raise refuse(f"labels of type {columns['label'].type} with {columns['label'].null_count} nulls")
    if "id" in columns and columns["id"].null_count:
        raise refuse(f"{columns['id'].null_count} ids that are null")
    labels = np.array(columns["label"].to_pylist(), np.int64)
    if labels.size == 0 or labels.min() < 0 or labels.max() > 9:
        raise refuse(f"labels {labels.min()}..{labels.max()}" if labels.size else "no rows")
    ids = columns["id"].to_pylist() if "id" in columns else [f"{row:05d}" for row in range(len(labels))]
    return _Source([str(key) for key in ids], labels, image.to_pylist())
