"""Images a second of `bird predict` on an exported student, beside onnxruntime asked by a plain loop, paired.

    python bench/predict.py EXPORT [--images 2000] [--side 64] [--rounds 5]

JPEG files of the given side are written to a temporary folder. `plain` reads, decodes (Pillow), resizes (Pillow) and runs
them in batches of 64, one after the other; `session alone` has the pixels in memory already. Both have as many threads of
onnxruntime as `bird predict`. Seconds on the wall; starting Python and loading the graph are not counted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

from bird_pipelines.shipping.pictures import pictures
from bird_pipelines.shipping.predict import answers, open_model

BATCH = 64


def written(folder, count, side):
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def plain(session, files, side):
    for start in range(0, len(files), BATCH):
        held = []
        for path in files[start : start + BATCH]:
            image = Image.open(path).convert("RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BILINEAR)
            held.append(np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255))
        session.run(["logits"], {"image": np.stack(held)})


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = str(given.export / "student.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = open_model(given.export)
    pixels = np.random.default_rng(0).random((BATCH, 3, model.side, model.side), np.float32)
    with tempfile.TemporaryDirectory() as box:
        written(Path(box), given.images, given.side)
        found, files = pictures([Path(box)]), sorted(Path(box).iterdir())
        works = {
            "bird predict": lambda: [None for _ in answers(model, found, batch=BATCH)],
            "plain": lambda: plain(session, files, model.side),
            "session alone": lambda: [session.run(["logits"], {"image": pixels}) for _ in range(given.images // BATCH)],
        }
        for work in works.values():
            work()
        seconds = {name: [] for name in works}
        for _ in range(given.rounds):
            for name, work in works.items():
                seconds[name].append(timed(work))
    for name, spent in seconds.items():
        ratios = [other / own for own, other in zip(seconds["bird predict"], spent, strict=True)]
        rate = given.images / statistics.median(spent)
        print(f"{name}: {rate:,.0f} images/s; bird predict is {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
