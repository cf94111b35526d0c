"""The image processors of transformers: what they make of a photo, our view in their place, what a model is asked with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bird.errors import TeacherError
from bird.teachers.views import View, view_of_transform

__all__ = ["Inputs", "inputs_of", "only_pixels", "see_with", "view_of_processor"]

FILTERS = {2: "bilinear", 3: "bicubic"}

Inputs = Callable[[Tensor], dict[str, Tensor]]


def see_with(name: str, processor: Any, photo: Image.Image) -> Tensor:
    """What a network takes of one photo, (channels, height, width); NaFlex's patches as `_pack` puts them.

    Raises TeacherError for what is no single view, such as tiles, tokens or a video.
    """
    given = processor(images=photo, return_tensors="pt")
    if "spatial_shapes" in given:
        given = {"pixel_values": _pack(given)}
    pixels = given.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != 1:
        said = ", ".join(f"{field} {tuple(getattr(value, 'shape', ()))}" for field, value in given.items())
        raise TeacherError(
            where=f"teacher {name}",
            found=f"a processor ({type(processor).__name__}) that makes {said} of a photo",
            wanted="pixel_values (1, 3, height, width): one view of one image",
            fix="export the vector that you want as an ONNX file (onnx:FILE)",
        )
    return pixels[0]


def view_of_processor(processor: Any) -> View | None:
    """Our view by the rules that most processors share; those that it leaves out show when both are compared."""
    if hasattr(processor, "val_transforms"):  # timm's
        return view_of_transform(processor.val_transforms)
    has = {name: getattr(processor, f"do_{name}", None) for name in ("resize", "center_crop", "rescale", "normalize")}
    size, crop = getattr(processor, "size", None), getattr(processor, "crop_size", None) if has["center_crop"] else None
    resize, square = _resize(size), crop is None or _side(crop, "height") == _side(crop, "width")
    if crop is None and isinstance(resize, int) and (share := getattr(processor, "crop_pct", None)) is not None:
        resize, crop = _by_share(resize, share)
    if not (has["resize"] and has["rescale"] and resize and square and processor.resample in FILTERS):
        return None
    if isinstance(resize, int) and crop is None:
        return None
    mean, std = (processor.image_mean, processor.image_std) if has["normalize"] else ((0.0,) * 3, (1.0,) * 3)
    return View(
        resize,
        crop and _side(crop, "height"),
        "bilinear" if FILTERS[processor.resample] == "bilinear" else "bicubic",
        "tensor",
        tuple(mean),
        tuple(std),
        "floor" if crop else "round",
    )


def _side(size: Any, name: str) -> Any:
    """A side of a size that a processor may lack, or keep as a plain dict."""
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)


def _resize(size: Any) -> Any:
    """The short edge's side, or height and width; None for any other rule."""
    both = _side(size, "height"), _side(size, "width")
    return _side(size, "shortest_edge") or (both if all(both) else None)


def _by_share(side: int, share: float) -> tuple[Any, Any]:
    """ConvNeXt's rule: below 384 pixels the middle of a larger image, from there on the whole of it."""
    return (int(side / share), {"height": side, "width": side}) if side < 384 else ((side, side), None)


def only_pixels(views: Tensor) -> dict[str, Tensor]:
    """As nearly every model is asked."""
    return {"pixel_values": views}


def _unpack(views: Tensor) -> dict[str, Tensor]:
    """NaFlex's patches, mask and grid, as `_pack` put them together."""
    rows = views[:, 0]
    values, mask, grid = rows[..., :-3], rows[..., -3], rows[:, 0, -2:]
    return {"pixel_values": values, "pixel_attention_mask": mask.long(), "spatial_shapes": grid.long()}


def _pack(given: Mapping[str, Tensor]) -> Tensor:
    """(1, 1, patches, width + 3): a view as every other, of one row a patch."""
    values, mask, grid = (given[name].float() for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"))
    return torch.cat([values, mask[..., None], grid[:, None].expand(-1, values.shape[1], -1)], -1)[:, None]


def inputs_of(config: Any, processor: Any) -> Inputs:
    """What a model is asked with for a batch of views, by the names that it gives them."""
    if type(processor).__name__.startswith("Siglip2ImageProcessor"):
        return _unpack
    if config.model_type != "vit_mae":
        return only_pixels

    def in_order(views: Tensor) -> dict[str, Tensor]:
        """ViTMAE shuffles its patches by this noise, and hides the last of them: none is hidden (its mask_ratio is 0)."""
        patches = (views.shape[-2] // config.patch_size) * (views.shape[-1] // config.patch_size)
        return {"pixel_values": views, "noise": torch.arange(patches, device=views.device).expand(len(views), -1)}

    return in_order
