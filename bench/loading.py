"""What comparing a teacher with its library costs: seconds of a load; and milliseconds of a view, ours and the libraries'.

    python bench/loading.py [--rounds 3]

Models of full size with random weights, from local files; a photo of 640 x 427 pixels. One thread, the processor's seconds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bird.teachers import load_teacher, proof
from bird.teachers.views import View

COMPARING = ("_look", "_say", "_compare", "ask_again")


def timed(work):
    began = time.process_time()
    found = work()
    return time.process_time() - began, found


def loads(box, rounds):
    """Seconds of a load, and of it in the comparison; medians."""
    import open_clip

    for model, name in (("ViT-B-32-quickgelu", "clip-vit-b32"), ("RN50-quickgelu", "clip-rn50")):
        torch.manual_seed(0)
        whole = open_clip.create_model(model, load_weights=False, pretrained_text=False)
        path = box / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in whole.visual.state_dict().items()}, path)
        totals, parts = [], []
        for _ in range(rounds):
            spent = []
            plain = {each: getattr(proof, each) for each in COMPARING}

            def count(work, spent=spent):
                def run(*given, **named):
                    seconds, found = timed(lambda: work(*given, **named))
                    spent.append(seconds)
                    return found

                return run

            for each, work in plain.items():
                setattr(proof, each, count(work))
            totals.append(timed(lambda name=name, path=path: load_teacher(name, weights=path, device="cpu"))[0])
            parts.append(sum(spent))
            for each, work in plain.items():
                setattr(proof, each, work)
        print(f"{name}: load {statistics.median(totals):.2f} s, of it comparing {statistics.median(parts):.2f} s")


def views(rounds):
    """Milliseconds of a view of 224 pixels, bicubic, normalised; the fastest of some rounds in turn."""
    import transformers
    from torchvision import models

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (640, 427), Image.Resampling.BICUBIC
    )
    photo = np.array(coarse)
    ours = {resizer: View(224, 224, "bicubic", resizer) for resizer in ("tensor", "pillow")}
    processor = transformers.CLIPImageProcessor()
    transform = models.get_model_weights("swin_t").DEFAULT.transforms()
    ways = {
        "our view (tensor)": lambda: ours["tensor"].normalise(ours["tensor"](photo)[None]),
        "our view (pillow)": lambda: ours["pillow"].normalise(ours["pillow"](photo)[None]),
        "transformers' CLIPImageProcessor": lambda: processor(images=Image.fromarray(photo), return_tensors="pt"),
        "torchvision's transform": lambda: transform(Image.fromarray(photo)),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(10 * rounds):
        for name, way in ways.items():
            best[name] = min(best[name], timed(lambda way=way: [way() for _ in range(5)])[0] / 5)
    for name, seconds in best.items():
        print(f"{name}: {1000 * seconds:.2f} ms a photo")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loads(Path(folder), options.rounds)
    views(options.rounds)


if __name__ == "__main__":
    main()
