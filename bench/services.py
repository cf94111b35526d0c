"""How far text and image models lie apart by the measure that tells them (bird.teachers.canaries.byte_share).

    python bench/services.py --text FOLDER [--image FILE.onnx]

FOLDER holds a text encoder and its tokenizer as transformers saves them, FILE a network of images. Prints one line a way of
reading: below .3 a service is taken for one of images.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bird.teachers.canaries import byte_share, twin_images

Embed = Callable[[bytes], Any]


def text_ways(folder: Path) -> dict[str, Embed]:
    """A text encoder's vectors of data URIs, cut and pooled in the usual ways."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    tokenizer.model_max_length = 10**9

    def tokens(image: bytes) -> list[int]:
        uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        return list(tokenizer(uri, truncation=False).input_ids)

    def hidden(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).last_hidden_state[0]

    def windows(image: bytes) -> torch.Tensor:
        ids = tokens(image)
        return torch.stack([hidden(ids[i : i + 512]).mean(0) for i in range(0, len(ids), 512)]).mean(0)

    def words(image: bytes) -> torch.Tensor:
        with torch.inference_mode():
            return model.get_input_embeddings()(torch.tensor(tokens(image))).mean(0)

    return {
        "first 256 tokens, mean": lambda image: hidden(tokens(image)[:256]).mean(0),
        "first 512 tokens, mean": lambda image: hidden(tokens(image)[:512]).mean(0),
        "first 512 tokens, CLS": lambda image: hidden(tokens(image)[:512])[0],
        "last 512 tokens, mean": lambda image: hidden(tokens(image)[-512:]).mean(0),
        "all, in windows of 512": windows,
        "all, mean of the word vectors": words,
    }


def image_ways(file: Path) -> dict[str, Embed]:
    """A network's vectors of decoded pictures."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def embed(image: bytes) -> Any:
        picture = Image.open(io.BytesIO(image)).convert("RGB").resize((128, 128))
        pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
        return session.run(None, {session.get_inputs()[0].name: pixels})[0].ravel()

    return {file.stem: embed}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--image", type=Path)
    given = parser.parse_args()
    ways = {**(text_ways(given.text) if given.text else {}), **(image_ways(given.image) if given.image else {})}
    for name, embed in ways.items():
        vectors = np.array([[np.asarray(embed(file)) for file in pair] for pair in twin_images()], np.float32)
        print(f"{name:32s} {byte_share(vectors):.3g}")


if __name__ == "__main__":
    main()
