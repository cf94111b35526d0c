"""Families of teachers, tiny, with random weights, in the formats that their libraries publish; and for each what its own
library says of a photo, by its own processor and by a line that follows the library's documentation, not ours.

Here are those of transformers; `helpers.family_libraries` has the others, `helpers.family_table` names them all.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file

VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CNN = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def square(side):
    return {"height": side, "width": side}


def processor(kind, *parts, **rules):
    usual = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    return {"image_processor_type": kind, **usual, **{k: v for part in parts for k, v in part.items()}, **rules}


def cropped(kind, mean, short=73, **rules):
    return processor(
        kind, mean, **{"do_center_crop": True, "size": {"shortest_edge": short}, "crop_size": square(64), **rules}
    )


def squashed(kind, mean, **rules):
    return processor(kind, mean, **{"do_center_crop": False, "size": square(64), **rules})


CLIP = cropped("CLIPImageProcessor", OPENAI, short=64)
VIT_VIEW = squashed("ViTImageProcessor", HALF, resample=2)
CONVNEXT = processor("ConvNextImageProcessor", IMAGENET, crop_pct=0.875, size={"shortest_edge": 224})


class Family(NamedTuple):
    """What a person asks for, what writes the files (returning --weights), and how the library loads them and then says of a
    photo its pixels, and its vectors by layer."""

    spec: str
    make: Callable[[Path], Path | None]
    library: Callable[[Path], Callable[[Image.Image], dict[str, torch.Tensor]]]


class Refused(NamedTuple):
    """A family without a vector, and words that its message has."""

    spec: str
    make: Callable[[Path], Path | None]
    words: tuple[str, ...]


def fill(module, seed=0):
    """Random weights of an order that every layer feels, and statistics that are not those of a new norm."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.dim() >= 2:
                value.copy_(draw(value) / max(1, value[0].numel()) ** 0.5)
            elif any(word in name for word in ("weight", "gamma", "lambda", "scale")):
                value.copy_(1 + 0.3 * draw(value))
            else:
                value.copy_(0.2 * draw(value))
        for name, value in module.named_buffers():
            if "running_var" in name:
                value.copy_(1 + 0.3 * torch.rand(value.shape, generator=generator))
            elif "running_mean" in name:
                value.copy_(0.2 * draw(value))
    return module.eval()


def tensors(module, path):
    """A state dict as a file."""
    save_file({name: value.clone().contiguous() for name, value in module.state_dict().items()}, path)
    return path


# ---- transformers -----------------------------------------------------------------------------------------------


def save_folder(build, rules, folder):
    """A folder as the hub has it: config.json, model.safetensors, preprocessor_config.json."""
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    fill(build(transformers)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(rules))
    return folder


def hf(build, rules, kind, spec="hf:a/b", change=None, **layers):
    """`build` makes the model of the library `T`; `kind` is the class that its documentation loads; `layers` read it."""

    def make(folder):
        save_folder(build, rules, folder)
        if change is not None:
            change(folder)
        return folder

    def library(folder):
        import transformers

        model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
        see = transformers.AutoImageProcessor.from_pretrained(folder)

        def say(photo):
            given = see(images=photo, return_tensors="pt")
            with torch.inference_mode():
                vectors = {name: read(model, given) for name, read in layers.items()}
            return {"pixels": given["pixel_values"][0], **vectors}

        return say

    return Family(spec, make, library)


def pooler(path=""):
    return lambda model, x: (getattr(model, path) if path else model)(**x).pooler_output.flatten(1)


def hidden(read, path=""):
    return lambda model, x: read((getattr(model, path) if path else model)(**x).last_hidden_state)


def first(tokens):
    return tokens[:, 0]


def shared(model, x):
    """What images and texts share, by the library's own method."""
    return model.get_image_features(**x).pooler_output


def logits(model, x):
    return model(**x).logits


def towers(name, rules=CLIP, text=TEXT, vision=VIT, **more):
    """CLIP and its kin: an image tower, a projection."""
    return hf(
        lambda T: getattr(T, f"{name}Model")(
            getattr(T, f"{name}Config")(text_config=text, vision_config=vision, projection_dim=16, **more)
        ),
        rules,
        f"{name}Model",
        penultimate=pooler("vision_model"),
        projection=shared,
    )


def one_space(name, rules, text=TEXT, vision=VIT, **more):
    """SigLIP and its kin: the image tower's pooled output is what texts share."""
    return hf(
        lambda T: getattr(T, f"{name}Model")(
            getattr(T, f"{name}Config")(text_config=text, vision_config=vision, **more)
        ),
        rules,
        f"{name}Model",
        penultimate=shared,
    )


def classifier(name, rules, read, *, suffix="ForImageClassification", **config):
    return hf(
        lambda T: getattr(T, f"{name}{suffix}")(getattr(T, f"{name}Config")(**{"num_labels": 5, **config})),
        rules,
        f"{name}{suffix}",
        penultimate=read,
        logits=logits,
    )


def alone(name, rules, read, **config):
    return hf(
        lambda T: getattr(T, f"{name}Model")(getattr(T, f"{name}Config")(**config)),
        rules,
        f"{name}Model",
        penultimate=read,
    )


def both_tokens(model, x):
    return model.deit(**x).last_hidden_state[:, :2].flatten(1)


def without(prefix):
    """Take the weights under a name out of the file, as the published ones lack them."""

    def change(folder):
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in state.items() if not name.startswith(prefix)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def all_patches(model, x):
    """The class token of ViTMAE with nothing masked; the order of the patches, which it draws, does not reach it."""
    model.config.mask_ratio = 0.0
    return model(**x).last_hidden_state[:, 0]


def flava_shared(model, x):
    """FLAVA projects every token: the first is the image's."""
    return model.get_image_features(**x).pooler_output[:, 0]


def flava(spec, processor_rules):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return hf(
        lambda T: T.FlavaModel(
            T.FlavaConfig(
                image_config=VIT, text_config=TEXT, multimodal_config=small, hidden_size=32, projection_dim=16
            )
        ),
        processor_rules,
        "FlavaModel",
        spec=spec,
        penultimate=lambda model, x: model.image_model(**x).last_hidden_state[:, 0],
        projection=flava_shared,
    )
