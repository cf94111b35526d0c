"""`bird precompute` against the bare forward pass of the same teacher: same images, batch and precision, in one process.

    python bench/precompute.py --teacher onnx:FILE --dataset cifar10s --data-root DIR [--limit 6000] [--rounds 5]
    python bench/precompute.py            (the embedded data set and an untrained ShuffleNet)

Each round runs both, in turn. The bare pass gets its pixels decoded and preprocessed beforehand; precompute starts from
the encoded images and ends with a verified cache on disk. Reported: precompute's rate over the bare rate.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.students import build_student, student_files
from bird.teachers import load_teacher
from bird_pipelines.precompute import precompute

BATCH = 64


def untrained(folder):
    for name, data in student_files(build_student("shufflenetv2", classes=10, image_size=32, seed=0)).items():
        (folder / name).write_bytes(data)
    return f"run:{folder}"


def bare(teacher, pixels):
    began = time.perf_counter()
    for start in range(0, len(pixels), BATCH):
        teacher.features(pixels[start : start + BATCH])
    return len(pixels) / (time.perf_counter() - began)


def whole(teacher, dataset, table, folder):
    began = time.perf_counter()
    precompute(teacher, dataset, table, folder, batch_size=BATCH)
    return len(table) / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher")
    parser.add_argument("--dataset", default="digits-s")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        teacher = load_teacher(options.teacher or untrained(box))
        dataset = open_dataset(options.dataset, options.data_root)
        table = prepare(dataset, limit=options.limit)
        pixels = torch.stack([teacher.preprocess(dataset.image(id)) for id in table.ids])
        bare(teacher, pixels[:BATCH])
        ratios, rates = [], []
        for round_ in range(options.rounds):
            rates.append((bare(teacher, pixels), whole(teacher, dataset, table, box / f"cache-{round_}")))
            ratios.append(rates[-1][1] / rates[-1][0])
    low, middle, high = statistics.quantiles(ratios, n=4)
    result = {
        "teacher": teacher.name,
        "images": len(table),
        "threads": torch.get_num_threads(),
        "bare images/s": statistics.median(rate for rate, _ in rates),
        "precompute images/s": statistics.median(rate for _, rate in rates),
        "ratio": {"median": middle, "quartiles": [low, high]},
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
