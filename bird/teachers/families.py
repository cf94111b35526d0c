"""What each family of transformers documents as its embedding of an image, by model type.

| reading | what |
|---|---|
| pooler_output | the library's own pooled output: most families |
| last_hidden_state[:, 0] | a class token: named for no family that has none |
| mean of last_hidden_state | over all patches: families without a class token (I-JEPA, AIMv2) |
| mean of last_hidden_state over height and width | the same of maps |
| summary | of several class tokens, one after the other (RADIO) |

A folder with a classifier gives what its classifier takes, whatever its family (`HEADS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor

__all__ = ["FAMILIES", "HEADS", "READINGS", "Family", "Reading"]

POOLER, CLASS_TOKEN, SUMMARY = "pooler_output", "last_hidden_state[:, 0]", "summary"
MEAN, MEAN_OF_MAPS = "mean of last_hidden_state", "mean of last_hidden_state over height and width"


@final
@dataclasses.dataclass(frozen=True)
class Reading:
    """Of a model's output, which field, and what is made of it."""

    field: str
    of: Callable[[Tensor], Tensor]

    def __call__(self, output: Any) -> Tensor:
        """(batch, width)."""
        return self.of(getattr(output, self.field))


READINGS: Mapping[str, Reading] = {
    POOLER: Reading("pooler_output", lambda pooled: pooled.flatten(1)),
    CLASS_TOKEN: Reading("last_hidden_state", lambda tokens: tokens[:, 0]),
    MEAN: Reading("last_hidden_state", lambda tokens: tokens.mean(1)),
    MEAN_OF_MAPS: Reading("last_hidden_state", lambda maps: maps.mean((2, 3))),
    SUMMARY: Reading("summary", lambda summary: summary),
}


@final
@dataclasses.dataclass(frozen=True)
class Family:
    """How a model type is read: the vector's reading, and the one of weights that came without a pooler; for a model of
    images and text, where its image tower is, and what projects the vector into the space that both share."""

    reading: str = POOLER
    without_pooler: str = ""
    tower: str = ""
    projection: str = ""


TWO_TOWERS = Family(tower="vision_model", projection="visual_projection")
ONE_SPACE = Family(tower="vision_model")  # its pooled output is the embedding that images and texts share
PROJECTED = "aimv2 altclip blip chinese_clip clip clipseg groupvit metaclip_2 owlv2 owlvit"
SHARED = "align siglip siglip2 tipsv2"
POOLED = """
    beit bit blip_vision_model convnext convnextv2 data2vec-vision dinat dinov2 dinov2_with_registers dinov3_convnext
    dinov3_vit dpt efficientnet focalnet hiera levit mlcd mlcd_vision_model mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2
    pixio regnet resnet siglip_vision_model siglip2_vision_model swin swinv2 timm_wrapper tipsv2_vision_model yolos
"""

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(POOLED.split(), Family()),
    **dict.fromkeys(PROJECTED.split(), TWO_TOWERS),
    **dict.fromkeys(SHARED.split(), ONE_SPACE),
    "aimv2_vision_model": Family(without_pooler=MEAN),  # as timm reads it: global_pool="avg"
    "clip_vision_model": Family(projection="visual_projection"),
    "deit": Family(without_pooler=CLASS_TOKEN),
    "flava": Family(CLASS_TOKEN, tower="image_model", projection="image_projection"),  # Singh et al. 2022, section 3.1
    "ijepa": Family(MEAN),  # Assran et al. 2023, appendix A.1: average-pooled patches
    "internvl_vision": Family(CLASS_TOKEN),  # pooler_output of the authors' own InternVisionModel
    "pvt": Family(CLASS_TOKEN),  # what PvtForImageClassification reads: its last stage has one
    "pvt_v2": Family(MEAN_OF_MAPS),  # what PvtV2ForImageClassification reads
    "radio": Family(SUMMARY),
    "segformer": Family(MEAN_OF_MAPS),  # what SegformerForImageClassification reads
    "vit": Family(without_pooler=CLASS_TOKEN),
    "vit_mae": Family(CLASS_TOKEN),  # He et al. 2022, appendix A.1: the class token, all patches seen
    "vit_msn": Family(CLASS_TOKEN),  # what ViTMSNForImageClassification reads
}

# Where the classifiers of transformers are: the first of these that a model has.
HEADS = ("cls_classifier", "fc", "head", "classifier")
