"""Tiny random models on disk, in the formats that the servers load."""

import json

import numpy as np


def write_clip(folder, side=32, seed=0):
    """A CLIP of two layers with a byte-level tokenizer that never merges: config, safetensors, preprocessor, tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters += [256 + number for number in range(256 - len(letters))]
    words = [chr(letter) + end for end in ("", "</w>") for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    small = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 77, **ends}
    vision = {**small, "image_size": side, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = CLIPModel(config).eval()
    with torch.no_grad():  # the usual initialisation is so small that all images look alike
        for parameter in model.vision_model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    tokenizer |= {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    statistics = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    steps = {
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 3}
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"}
    for name, content in {
        "vocab.json": {word: number for number, word in enumerate(words)},
        "tokenizer_config.json": tokenizer,
        "preprocessor_config.json": {**preprocessor, **steps, **sizes, **statistics, "rescale_factor": 1 / 255},
    }.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def clip_vectors(folder, images):
    """The projected, normalised vectors of RGB images (height, width, 3), by transformers in this process: (n, d)."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, CLIPModel

    model, processor = CLIPModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        vectors = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def write_onnx(path, seed=0):
    """A small convolutional network, pixels (n, 3, height, width) -> features (n, 16) and logits (n, 10)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(seed)
    weights = {
        "first": draw.normal(size=(8, 3, 3, 3)) / 3,
        "second": draw.normal(size=(16, 8, 3, 3)) / 4,
        "last": draw.normal(size=(16, 10)),
        "bias": draw.normal(size=10),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "first"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "bias"], ["logits"]),
    ]

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "tiny",
        [info("pixels", ["n", 3, "height", "width"])],
        [info("features", ["n", 16]), info("logits", ["n", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def onnx_vectors(path, images, output):
    """One output of the network for RGB images (n, height, width, 3), by onnxruntime in this process."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), np.float32) / 255
    return session.run([output], {session.get_inputs()[0].name: pixels})[0]
