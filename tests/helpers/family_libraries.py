"""The families of timm, open_clip and torchvision (see `helpers.families`), and how one is compared with its library."""

import json
import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers.families import Family, fill, tensors
from PIL import Image
from safetensors.torch import load_file

# ---- timm -------------------------------------------------------------------------------------------------------

TIMM_KEYS = {"input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "pool_size"}
TIMM_KEYS |= {"first_conv", "classifier"}


def timm_folder(architecture):
    """A repository of timm's on the hub: config.json with the data config, weights in timm's own names."""

    def make(folder):
        import timm

        model = fill(timm.create_model(architecture, pretrained=False, num_classes=5))
        tensors(model, folder / "model.safetensors")
        data = {name: value for name, value in model.pretrained_cfg.items() if name in TIMM_KEYS}
        config = {"architecture": architecture, "num_classes": 5, "num_features": model.num_features}
        (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {**data, "num_classes": 5}}))
        return folder

    return Family("hf:timm/x", make, lambda folder: timm_library(architecture, folder / "model.safetensors", False))


def timm(name):
    """A model by its own name, weights from a file."""

    def make(folder):
        import timm

        return tensors(fill(timm.create_model(name, pretrained=False, num_classes=5)), folder / "model.safetensors")

    return Family(f"timm:{name}", make, lambda folder: timm_library(name, folder / "model.safetensors"))


def timm_library(name, file, with_logits=True):
    """As timm's model cards do it: num_classes=0, the model's own data config."""
    import timm

    whole, bare = (timm.create_model(name, pretrained=False, num_classes=5) for _ in range(2))
    for model in (whole, bare):
        model.load_state_dict(load_file(file))
    bare.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(whole), is_training=False)

    def say(photo):
        pixels = transform(photo)
        with torch.inference_mode():
            said = {"logits": whole.eval()(pixels[None])} if with_logits else {}
            return {"pixels": pixels, "penultimate": bare.eval()(pixels[None]), **said}

    return say


# ---- open_clip --------------------------------------------------------------------------------------------------

CLIP_TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
CLIP_VIT = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
COCA_VIT = {
    **CLIP_VIT,
    "attentional_pool": True,
    "attn_pooler_queries": 4,
    "attn_pooler_heads": 2,
    "output_tokens": True,
}
CLIP_TOWERS = {
    "bird-vit": {"vision_cfg": CLIP_VIT},
    "bird-rn": {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}},
    "bird-timm": {
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    },
    "bird-coca": {
        "vision_cfg": COCA_VIT,
        "text_cfg": {**CLIP_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**CLIP_TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
    "bird-roberta": {
        "vision_cfg": CLIP_VIT,
        "text_cfg": {"hf_model_name": "nobody/has-this-config", "hf_tokenizer_name": "nobody/has-this-config"},
        "custom_text": True,
    },
}


def clip_config(name):
    """As open_clip's model_configs hold one."""
    return {"embed_dim": 24, "text_cfg": CLIP_TEXT, **CLIP_TOWERS[name]}


def clip_model(name, quick_gelu=False):
    """The library's own model, whose text tower is a plain one where its own cannot be built here."""
    import open_clip

    config = {**clip_config(name), "quick_gelu": quick_gelu}
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] = CLIP_TEXT
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    return kind(**{key: value for key, value in config.items() if key != "custom_text"})


def clip(name, tag="", view=None, quick_gelu=False, folder_form=False):
    """`view` are the preprocessing rules of the weights, as open_clip's own table or config file has them."""

    def make(folder):
        import open_clip
        from open_clip import pretrained

        config = clip_config(name)
        (folder / "configs").mkdir()
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / "configs")
        pretrained._PRETRAINED.pop(name, None)
        if tag:
            pretrained._PRETRAINED[name] = {tag: {"url": "", "hf_hub": "", **(view or {}), "quick_gelu": quick_gelu}}
        path = tensors(fill(clip_model(name)), folder / "open_clip_model.safetensors")
        if not folder_form:
            return path
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": view or {}}))
        return None

    def library(folder):
        from open_clip.transform import PreprocessCfg, image_transform_v2

        model = clip_model(name, quick_gelu)
        model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
        rules = PreprocessCfg(**{**(view or {}), "size": model.visual.image_size})
        transform = image_transform_v2(rules, is_train=False)

        def say(photo):
            pixels = transform(photo)
            with torch.inference_mode():
                return {"pixels": pixels, "penultimate": model.eval().encode_image(pixels[None], normalize=False)}

        return say

    spec = "open_clip:local-dir:{folder}" if folder_form else f"open_clip:{name}" + (f"/{tag}" if tag else "")
    return Family(spec, make, library)


# ---- torchvision ------------------------------------------------------------------------------------------------


def torchvision(name, weights="", features=False):
    """With `weights` by the transform that torchvision publishes with them; the penultimate layer by putting the identity in
    the place of the last linear layer."""

    def build():
        from torchvision import models

        inception = name in ("googlenet", "inception_v3")
        # what its builder does with published weights, see torchvision/models/googlenet.py
        more = {"transform_input": True, "aux_logits": True, "init_weights": False} if inception else {}
        return models.get_model(name, weights=None, num_classes=5, **more)

    def library(folder):
        from torchvision import models

        entries = models.get_model_weights(name)
        transform = entries[weights or next(iter(entries)).name].transforms()
        whole, bare = build().eval(), build().eval()
        for model in (whole, bare):
            model.load_state_dict(load_file(folder / "w.safetensors"))
        if not features:
            path = [path for path, part in bare.named_modules() if isinstance(part, torch.nn.Linear)][-1]
            bare.set_submodule(path, torch.nn.Identity())

        def say(photo):
            pixels = transform(photo)
            with torch.inference_mode():
                vector = bare.features(pixels[None]).mean((2, 3)) if features else bare(pixels[None])
                return {"pixels": pixels, "logits": whole(pixels[None]), "penultimate": vector}

        return say

    spec = f"torchvision:{name}" + (f"/{weights}" if weights else "")
    return Family(spec, lambda folder: tensors(fill(build()), folder / "w.safetensors"), library)


# ---- one family, compared ---------------------------------------------------------------------------------------


@cache
def photos():
    """Two photographs and a small part of one: a wide, a tall and a tiny image, whose crops and rounding differ."""
    from sklearn.datasets import load_sample_image

    wide, tall = load_sample_image("china.jpg"), load_sample_image("flower.jpg")[:, 200:483]
    return [Image.fromarray(np.ascontiguousarray(each)) for each in (wide, tall, wide[100:147, 200:261])]


def cosine(a, b):
    """nan where they have not as many numbers."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm())) if len(a) == len(b) else float("nan")


class Row(NamedTuple):
    """A teacher beside its library: the lowest cosine of its pixels and of each layer."""

    name: str
    kind: str
    teacher: Any
    cosines: dict[str, float]

    def stable(self):
        """What the documentation's table says of it, but for the cosines."""
        teacher, note = self.teacher, self.teacher.notes["view"]
        beside = ", ".join(layer for layer in ("projection", "cls", "pooled", "logits") if layer in teacher.layers)
        seen = "our view" if note.startswith("ours") else note.partition(" itself")[0]
        reading = re.sub(r"local-dir:\S+", "local-dir:DIR,", teacher.preprocessing["reading"])
        return f"| {self.name} | `{self.kind}` | {reading} | {teacher.feature_kind} | {beside or 'none'} | {seen} |"


def compare(name, family, folder):
    """The row of a family whose files are written to `folder`."""
    from bird.teachers import load_teacher

    weights = family.make(folder)
    teacher = load_teacher(family.spec.format(folder=folder), weights=weights, device="cpu")
    say, cosines = family.library(folder), {}
    for photo in photos():
        view, theirs = teacher.preprocess(np.asarray(photo)), say(photo)
        answers = teacher.answer(view[None], [layer for layer in theirs if layer != "pixels"])
        pixels = teacher.normalise(view[None])[0]
        if theirs["pixels"].ndim == 2:  # NaFlex's patches; behind each of ours are its mask and the grid
            pixels = pixels[0, :, :-3]
        for layer, ours in {**answers, "pixels": pixels}.items():
            cosines[layer] = min(cosines.get(layer, 1.0), cosine(ours, theirs[layer]))
    return Row(name, family.spec.partition(":")[0], teacher, cosines)
