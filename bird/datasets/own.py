"""Data sets of your own: a `Dataset`, what makes one, or a map-style one of (image, label, group).

What is handed over is looked at before it is used. A cache records the attribute's name, the digest of the source file and
the settings; it never says what to import.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from bird.datasets.base import Dataset, Listing, SampleTable
from bird.datasets.listed import ListedImages, Options, Rows
from bird.errors import BirdError, DataError, UsageError
from bird.own import Part, wrong_part

__all__ = ["MapStyle", "OwnDataset", "is_object", "open_own"]

Scalar = str | int | float | bool
WANTED = "a bird.datasets.base.Dataset, a class or function that makes one, or len() and [] of {image, label, group}"
FIX = "docs/own-parts.md has an example of each"
NEEDED = ("class_names", "group_names", "image_size", "flip")
ITEM = ("image", "label", "group")
FOLDERS = ("root", "data_root", "folder", "path")  # what a parameter that takes the folder is called


def open_own(part: Part, root: Path | None, settings: Mapping[str, Scalar]) -> Dataset:
    """The data set of the user's own. A class or function is called with the folder, if there is one, and the settings;
    an object is taken as it is.

    Raises UsageError for what is none, for a failure, and for a folder or settings that an object cannot take.
    """
    value = part.value
    if not is_object(part):
        made, said = _made(part, value, root, settings), dict(settings)
    elif settings or root is not None:
        raise UsageError(
            where=part.where,
            found="an object, and " + ("--setting" if settings else "--data-root"),
            wanted="a class or function that takes them",
            fix="leave them out, or name the class",
        )
    else:
        made, said = value, dict(getattr(value, "settings", {}))
    if not isinstance(made, Dataset):
        if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")) or isinstance(made, str | bytes | Mapping):
            raise wrong_part(dataclasses.replace(part, value=made), WANTED, FIX)
        made = MapStyle(part, made)
    if lacking := [name for name in NEEDED if not hasattr(made, name)]:
        found = f"a Dataset without {', '.join(lacking)}"
        raise UsageError(where=part.where, found=found, wanted=", ".join(NEEDED), fix=FIX)
    return OwnDataset(part, made, said)


def is_object(part: Part) -> bool:
    """Whether the part is a data set already, and no class or function that makes one."""
    return not (inspect.isclass(part.value) or inspect.isroutine(part.value))


def _made(part: Part, value: Callable[..., Any], root: Path | None, settings: Mapping[str, Scalar]) -> Any:
    places, named = _folder(part, value, root)
    try:
        inspect.signature(value).bind(*places, **named, **settings)
    except TypeError as error:
        raise UsageError(
            where=part.where,
            found=f"the signature {inspect.signature(value)} ({error})",
            wanted="the folder first, where there is one, and the settings by name",
            fix="give --data-root and --setting NAME=VALUE as it takes them",
        ) from None
    except ValueError:  # compiled code has no signature to look at
        pass
    try:
        return value(*places, **named, **settings)
    except BirdError:
        raise
    except Exception as error:  # whatever a stranger's code does
        raise UsageError(
            where=part.where,
            found=f"a failure when it was called ({_first_line(error)})",
            wanted="a data set",
            fix="call it in Python; --debug shows the line",
        ) from error


def _folder(part: Part, value: Callable[..., Any], root: Path | None) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The folder as positional or named arguments: for a parameter that is called so, else for the first one, if it has no
    default. Raises UsageError where there is neither: another parameter would be given a folder in silence."""
    if root is None:
        return (), {}
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):  # compiled code has none to look at
        return (root,), {}
    kinds = inspect.Parameter
    by_name = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    for name in FOLDERS:
        if name in parameters and parameters[name].kind in by_name:
            return (), {name: root}
    first = next(iter(parameters.values()), None)
    if first is not None and first.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD) and first.default is kinds.empty:
        return (root,), {}
    raise UsageError(
        where=part.where,
        found=f"--data-root, and the signature {inspect.signature(value)}",
        wanted=f"a parameter for the folder: the first one, without a default, or one called {' or '.join(FOLDERS)}",
        fix="leave --data-root out, or add such a parameter",
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


@final
class OwnDataset(Dataset):
    """A data set of the user's own, by the name that records have: what it does, and what identifies its code."""

    def __init__(self, part: Part, inner: Dataset, settings: Mapping[str, Scalar]) -> None:
        self.name, self.own, self.settings, self._inner = part.label, part.identity(), dict(settings), inner
        self.class_names, self.group_names = tuple(inner.class_names), tuple(inner.group_names)
        self.image_size, self.flip = int(inner.image_size), bool(inner.flip)
        self.remarks, self.filtered, self.subjects = inner.remarks, inner.filtered, inner.subjects
        self.factors, self.unknown_groups = inner.factors, inner.unknown_groups

    @property
    def max_pixels(self) -> int | None:
        """What an image file may hold: the inner data set decodes."""
        return self._inner.max_pixels

    @max_pixels.setter
    def max_pixels(self, value: int | None) -> None:
        self._inner.max_pixels = value

    def listing(self) -> Listing:
        """As it lists."""
        return self._inner.listing()

    def read(self, id: str) -> bytes:
        """As it reads."""
        return self._inner.read(id)

    def decode(self, id: str, data: bytes) -> NDArray[np.uint8]:
        """As it decodes."""
        return self._inner.decode(id, data)

    def file(self, id: str) -> Path | None:
        """As it says."""
        return self._inner.file(id)

    def digest(self, id: str, data: bytes) -> str:
        """As it says."""
        return self._inner.digest(id, data)

    def assign_splits(self, table: SampleTable) -> NDArray[np.object_]:
        """As it assigns."""
        return self._inner.assign_splits(table)


@final
class MapStyle(ListedImages):
    """A map-style data set, as torch has them: items are mappings of image, label and group, or such tuples.

    An image is a PIL image, uint8 of (height, width) or (height, width, 3), uint8 of torch (3, height, width), encoded
    bytes, or a path. Items may have split, id and subject, too. `class_names` (or `classes`) and `group_names` of the data
    set name its integers; the attributes of `bird.datasets.listed.Options` are heeded. Every item is asked for at the start,
    for its label, and again for its image: transforms that draw at random are refused.
    """

    name = "map-style"

    def __init__(self, part: Part, items: Any) -> None:
        self._part, self._items = part, items
        fields = [each.name for each in dataclasses.fields(Options)]
        options = Options(**{name: getattr(items, name) for name in fields if hasattr(items, name)})
        options.check(part.attribute)
        rows = [self._item(place) for place in range(len(items))]
        if not rows:
            raise UsageError(where=part.where, found="no item", wanted="at least one", fix="check what it holds")
        if _encoded(self._part, rows[0]["image"]) != _encoded(self._part, self._item(0)["image"]):
            raise UsageError(
                where=part.where,
                found="another image when item 0 was asked for twice",
                wanted="the same image each time: a vector is cached for it",
                fix="leave out transforms that draw at random; the student's views are drawn by this project",
            )
        width = len(str(len(rows) - 1))
        ids = [str(row.get("id", f"item-{place:0{width}d}")) for place, row in enumerate(rows)]
        self._place = {id: place for place, id in enumerate(ids)}
        classes = getattr(items, "class_names", None) or getattr(items, "classes", None)
        named = {"label": classes, "group": getattr(items, "group_names", None)}
        columns = {name: _named([row[name] for row in rows], named[name]) for name in ("label", "group")}
        optional = {name: [_plain(row[name]) for row in rows] for name in ("split", "subject") if name in rows[0]}
        taken = Rows(
            source=Path(part.attribute),
            code=True,
            ids=ids,
            label_name="label",
            labels=columns["label"],
            groups={"group": columns["group"]},
            splits=optional.get("split"),
            subjects=optional.get("subject"),
            orders={name: [str(each) for each in names] for name, names in named.items() if names},
        )
        self.settings = {}
        self._take(taken, options, ["the splits are drawn"] if "split" not in optional else [])

    def file(self, id: str) -> Path | None:
        """None: an item is asked for."""
        return None

    def read(self, id: str) -> bytes:
        """The encoded image; pixels as BMP."""
        return _encoded(self._part, self._item(self._place[id])["image"])

    def _item(self, place: int) -> Mapping[str, Any]:
        try:
            item = self._items[place]
        except Exception as error:  # whatever a stranger's code does
            raise DataError(
                where=f"{self._part.where}, item {place}",
                found=f"a failure ({_first_line(error)})",
                wanted="an image, a label and a group",
                fix="ask for it in Python; --debug shows the line",
            ) from error
        if isinstance(item, tuple | list) and len(item) == len(ITEM):
            item = dict(zip(ITEM, item, strict=True))
        if not isinstance(item, Mapping) or not {*ITEM} <= {*item}:
            told = f"{', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
            raise UsageError(
                where=f"{self._part.where}, item {place}",
                found=told,
                wanted="{'image': ..., 'label': ..., 'group': ...}, or these three as a tuple",
                fix="group None is an unknown group",
            )
        return item


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; True and False as text."""
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, bool) else value


def _named(values: list[Any], names: Any) -> list[Any]:
    """Labels or groups by their names, where integers have some; None stays: nobody knows."""
    found = [_plain(value) for value in values]
    if not names:
        return found
    count = len(names)
    return [str(names[each]) if isinstance(each, int) and 0 <= each < count else each for each in found]


def _encoded(part: Part, image: Any) -> bytes:
    """An image as bytes that `decode_image` reads. Raises UsageError for another type."""
    from PIL import Image

    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:  # as torch has it
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
            raise UsageError(
                where=part.where,
                found=f"an image of type {type(image).__name__} ({array.dtype} of shape {array.shape})",
                wanted="a PIL image, uint8 (height, width, 3), torch uint8 (3, height, width), bytes or a path",
                fix="leave normalisation out: the teacher and the student have their own",
            )
        image = Image.fromarray(np.ascontiguousarray(array))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "BMP")  # the same bytes everywhere: nothing is compressed
    return buffer.getvalue()
