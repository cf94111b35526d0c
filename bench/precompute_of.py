"""Images a second of `bird precompute` by a checkout's own code: of processor's time, and of wall time. To compare two, run
it for each in turn, some times:

    for tree in BEFORE . BEFORE .; do python bench/precompute_of.py $tree "ShuffleNet 64 px, fp32" "ViT-B/32, fp32"; done

The teachers are bench/precompute.py's (with --onnx FILE also its SqueezeNet); 512 files of 178 x 218 pixels, 96 for the
large ones.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("tree", type=Path)
parser.add_argument("teachers", nargs="+")
parser.add_argument("--onnx", type=Path)
options = parser.parse_args()
tree = options.tree.resolve()
sys.path[:0] = [str(tree / part) for part in ("bench", "", "cache", "pipelines")]

import numpy as np  # noqa: E402  # after the path is set
import precompute as its  # noqa: E402  # after the path is set
import torch  # noqa: E402  # after the path is set

from bird.datasets import open_dataset  # noqa: E402  # after the path is set
from bird.datasets.base import prepare  # noqa: E402  # after the path is set

torch.set_num_threads(2)
found = {}
with tempfile.TemporaryDirectory() as folder:
    box = Path(folder)
    (box / "images").mkdir()
    its.write_images(box / "images", 512)
    for name in options.teachers:
        count = 96 if "ViT" in name or "RN50" in name else 512
        teacher, _ = its.TEACHERS[name][2](box, options.onnx)
        dataset = open_dataset("table", box / "images")
        table = prepare(dataset, keep_conflicts=True).take(np.arange(count))
        for attempt in range(2):  # the first one warms up
            spent, began = time.process_time(), time.perf_counter()
            its.precompute(teacher, dataset, table, box / f"{len(found)}-{attempt}", batch_size=32, workers=2)
            rates = count / (time.process_time() - spent), count / (time.perf_counter() - began)
        found[name] = [round(rate, 1) for rate in rates]
print(json.dumps({str(tree): found}))
