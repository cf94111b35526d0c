"""How a teacher sees an image: our own fast view, or its library's own processor.

`view_of_transform` reads our view off a torchvision transform, which is what open_clip and timm give. Whether our view may
stand for the library's is not decided here: `bird.teachers.proof` compares them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bird.errors import UsageError
from bird.stored_views import cut

__all__ = ["Json", "LibraryView", "View", "Viewer", "Views", "view_of_transform"]

Json = str | int | float | bool | list[Any] | dict[str, Any] | None
Views = UInt8[Tensor, "batch channels height width"] | Float[Tensor, "batch channels height width"]


class Viewer(ABC):
    """Makes views of images, and of a batch of views what a network takes. Both are called from several threads."""

    @abstractmethod
    def __call__(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "channels height width"]:
        """The view of an RGB image (height, width, 3), or of a box of it (`bird.stored_views`)."""

    @abstractmethod
    def normalise(self, views: Views) -> Float[Tensor, "batch channels height width"]:
        """What the network takes of a batch of views, on the views' device; float views are taken as they are."""

    @abstractmethod
    def canonical(self) -> dict[str, Json]:
        """Everything that shapes the pixels, as JSON values: it enters a cache's fingerprint."""


@final
@dataclasses.dataclass(frozen=True)
class View(Viewer):
    """Resize, centre crop (`view(image)`), then scale to [0, 1] and normalise (`view.normalise`): the deterministic view of
    nearly every image model.

    `resize` is a side for the short edge, or (height, width) to reach exactly; `resizer` "pillow" resamples as PIL does
    (what open_clip, timm and torchvision do with a photo), "tensor" as torch with antialiasing (what transformers does).
    Where a crop cannot lie in the middle, `centre` "round" puts it where torchvision does, "floor" where transformers does.
    """

    resize: int | tuple[int, int]
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resizer: Literal["pillow", "tensor"] = "tensor"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    centre: Literal["round", "floor"] = "round"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the view of a square, in pixels."""
        if self.crop is not None:
            return self.crop, self.crop
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    def __call__(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> UInt8[Tensor, "3 height width"]:
        """The view of an RGB image (height, width, 3). Of a box of it, all is seen: resized, not cropped again."""
        from torchvision.transforms.v2 import InterpolationMode  # seconds to import: not for `bird list`
        from torchvision.transforms.v2 import functional as F

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        if box is not None and box.any():
            image, size = cut(image, box).permute(1, 2, 0).numpy(), list(self.sides)
        mode = InterpolationMode(self.interpolation)
        seen: Any
        if image.shape[:2] == self.sides == (size[0], size[-1]):  # nothing to resize and nothing to cut: it is the view
            return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        if self.resizer == "pillow":
            seen = F.resize(Image.fromarray(image), size, interpolation=mode)
        else:
            tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
            seen = F.resize(tensor, size, interpolation=mode, antialias=True)
        if self.crop is not None:
            seen = self._crop(F, seen, self.crop)
        return seen if isinstance(seen, Tensor) else torch.from_numpy(np.array(seen)).permute(2, 0, 1)

    def _crop(self, F: Any, seen: Any, side: int) -> Any:
        height, width = F.get_size(seen)
        if self.centre == "round" or min(height, width) < side:
            return F.center_crop(seen, [side, side])
        return F.crop(seen, (height - side) // 2, (width - side) // 2, side, side)

    def normalise(self, views: Views) -> Float[Tensor, "batch 3 height width"]:
        """(x / 255 - mean) / std of each channel, on the views' device; float views are left as they are."""
        if views.is_floating_point():
            return views
        out = torch.empty(views.shape, device=views.device)
        plain = self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)
        mean, std = (torch.tensor(values, device=views.device)[:, None, None] for values in (self.mean, self.std))
        # On the CPU image by image: one fits in a core's cache, a batch does not.
        for given, unit in zip(views, out, strict=True) if views.is_cpu else [(views, out)]:
            unit.copy_(given).div_(255.0)
            if not plain:
                unit.sub_(mean).div_(std)
        return out

    def canonical(self) -> dict[str, Json]:
        """As JSON values; `centre` only where it is not torchvision's, so that older fingerprints stay."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in values.items() if (name, value) != ("centre", "round")}


@final
class LibraryView(Viewer):
    """A library's own processor, image by image: `see` gives what the network takes of an upright RGB image, `rules` are the
    processor's settings. It cannot be told to see a box of an image."""

    def __init__(self, see: Callable[[Image.Image], Tensor], rules: Mapping[str, Json]) -> None:
        self._see, self._rules = see, rules

    def __call__(
        self, image: NDArray[np.uint8], box: NDArray[np.int32] | None = None
    ) -> Float[Tensor, "channels height width"]:
        """See Viewer. Raises UsageError for a box."""
        if box is not None and box.any():
            raise UsageError(
                where="--views",
                found="a teacher that sees through its library's own processor",
                wanted="a teacher whose view is ours, to see a part of an image",
                fix="leave --views out",
            )
        return self._see(Image.fromarray(image))

    def normalise(self, views: Views) -> Float[Tensor, "batch channels height width"]:
        """The views as they are: the processor has normalised them."""
        return views

    def canonical(self) -> dict[str, Json]:
        """The processor's settings, which say what our own view's fields would."""
        return {"resize": None, "crop": None, "interpolation": None, "processor": dict(self._rules)}


def view_of_transform(transform: Any) -> View | None:
    """Our view for a torchvision transform of photos: a Compose of Resize, CenterCrop and Normalize (open_clip, timm), or
    the preset of published weights. None for one that does anything else."""
    names = {type(step).__name__: step for step in getattr(transform, "transforms", [transform])}
    if preset := names.get("ImageClassification"):
        (side,), (crop,) = preset.resize_size, preset.crop_size
        return _view(side, crop, preset.interpolation, preset.mean, preset.std)
    pixels = {"ToTensor", "MaybeToTensor", "MaybeConvertMode", "_convert_to_rgb", "function"}
    if not {"Resize", "Normalize"} <= {*names} <= {"Resize", "CenterCrop", "Normalize", *pixels}:
        return None
    resize, normal = names["Resize"], names["Normalize"]
    crop = _sides(names["CenterCrop"].size) if "CenterCrop" in names else []
    if len(_sides(resize.size)) == 2 and crop == _sides(resize.size):
        crop = []  # the resize has reached it
    if len({*crop}) > 1 or getattr(resize, "max_size", None) is not None:
        return None
    return _view(resize.size, crop[0] if crop else None, resize.interpolation, normal.mean, normal.std)


def _sides(size: Any) -> list[int]:
    return [size] if isinstance(size, int) else [int(side) for side in size]


def _view(size: Any, crop: int | None, interpolation: Any, mean: Any, std: Any) -> View | None:
    """None where our view lacks the filter, or the view's shape would follow from the photo's."""
    name, sides = getattr(interpolation, "value", interpolation), _sides(size)
    if name not in ("bilinear", "bicubic") or (len(sides) == 1 and crop is None):
        return None
    resize = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    return View(resize, crop, "bilinear" if name == "bilinear" else "bicubic", "pillow", _floats(mean), _floats(std))


def _floats(values: Any) -> tuple[float, ...]:
    """As they were written: .485, where a float32 tensor holds .48500001."""
    return tuple(float(str(np.float32(value))) if isinstance(value, Tensor) else float(value) for value in values)
