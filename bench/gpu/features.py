"""`bird precompute` on a GPU: the bare forward pass, ours from images in memory, ours from JPEG files; and its bound.

The teachers are open_clip's towers with random weights, in bf16. Bare: the plain tower on normalised pixels that lie on the
GPU. In memory: uint8 images of the tower's size, which need no decoding and no resizing. Files: JPEGs of CelebA's size.
All end in a finished, checked cache. Decode, view and copy are measured alone, by all cores; the slowest stage is the bound.
"""

import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from here import DEVICE, ON_GPU, SMALL, name_of_device
from precompute import write_images
from results import save

from bird.datasets import open_dataset
from bird.datasets.base import Dataset, Listing, prepare
from bird.devices import send
from bird.images import decode_image
from bird.teachers.base import PENULTIMATE, TorchTeacher, View
from bird.teachers.layers import Tap
from bird_pipelines.precomputing.extraction import precompute, usual_workers

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
TOWERS = {"ViT-B-32": (24_576, 256), "ViT-L-14": (6_144, 128)} if not SMALL else {"tiny": (32, 8)}
FILES = 4_096 if not SMALL else 32
COLUMNS = ["teacher", "bare, images/s", "in memory / bare", "files / bare", "GPU busy, in memory", "GPU busy, files"]
COLUMNS += ["decode, images/s", "view, images/s", "copy, images/s", "bound from files"]


class InMemory(Dataset):
    """Decoded images of the tower's size."""

    name, class_names, group_names, flip, settings = "in memory", ("a", "b"), ("g", "h"), False, {}

    def __init__(self, count, side):
        self.image_size, self.count = side, count
        distinct = min(count, 512)
        self.held = np.random.default_rng(0).integers(0, 256, (distinct, side, side, 3), dtype=np.uint8)

    def listing(self):
        return Listing.of((f"{row:06d}", row % 2, row // 2 % 2, "train") for row in range(self.count))

    def read(self, id):
        return self.held[int(id) % len(self.held)].tobytes()

    def digest(self, id, data):
        return f"{int(id):032x}"  # copies of one image are different samples here

    def decode(self, id, data):
        return np.frombuffer(data, np.uint8).reshape(self.held.shape[1:])


class Busy:
    """The share of the time that the GPU has work, as nvidia-smi samples it; None on a CPU."""

    def __enter__(self):
        self.samples, self._over = [], threading.Event()
        self._thread = threading.Thread(target=self._watch) if ON_GPU else None
        if self._thread:
            self._thread.start()
        return self

    def _watch(self):
        query = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            f"--id={DEVICE.index or 0}",
        ]
        while not self._over.wait(0.2):
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
            self.samples += [float(said)] if said.replace(".", "").isdigit() else []

    def __exit__(self, *_):
        self._over.set()
        if self._thread:
            self._thread.join()

    def share(self):
        return f"{np.mean(self.samples):.0f} %" if self.samples else None


def tower(name):
    """open_clip's image tower with random weights, and its side in pixels."""
    import open_clip

    torch.manual_seed(0)
    if name == "tiny":
        vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
        return open_clip.CLIP(
            16, vision, {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1}
        ).visual, 32
    return open_clip.create_model(name, load_weights=False, pretrained_text=False).visual, 224


def rate(work, count):
    """Images a second of one call."""
    began = time.perf_counter()
    work()
    if ON_GPU:
        torch.cuda.synchronize()
    return count / (time.perf_counter() - began)


def bare(model, side, batch, count):
    """The plain tower under autocast, on pixels that are there."""
    pixels = torch.randn(batch, 3, side, side, device=DEVICE)

    def run():
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
            for _ in range(max(1, count // batch)):
                model(pixels)

    rate(run, count)
    return rate(run, max(1, count // batch) * batch)


def alone(files, view, batch):
    """Images a second of decoding, of the view, and of copying, by all cores and one after the other."""
    encoded = [path.read_bytes() for path in sorted(files.glob("*.jpg"))[:512]]
    decoded = [decode_image(each, "image") for each in encoded]
    views = torch.stack([view(each).permute(1, 2, 0) for each in decoded[:batch]]).permute(0, 3, 1, 2)
    with ThreadPoolExecutor(usual_workers(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        decode = rate(lambda: [*pool.map(lambda each: decode_image(each, "image"), encoded)], len(encoded))
        see = rate(lambda: [*pool.map(view, decoded)], len(decoded))
    send(views, DEVICE)
    return {"decode": decode, "view": see, "copy": rate(lambda: send(views, DEVICE), len(views))}


def cached(teacher, dataset, batch, out):
    """Images a second from the data set to a finished cache, and how busy the GPU was."""
    table = prepare(dataset)
    with Busy() as busy:
        found = rate(lambda: precompute(teacher, dataset, table, out, batch_size=batch, precision="bf16"), len(table))
    return found, busy.share()


def row_of(name, count, batch, box):
    """One teacher."""
    model, side = tower(name)
    model = model.eval().requires_grad_(False).to(DEVICE)
    view = View(side, side, "bicubic", "pillow", **CLIP)
    plain = bare(model, side, batch, count)
    taps = {PENULTIMATE: Tap("projection")}
    teacher = TorchTeacher(name, model, view, taps=taps, device=DEVICE, precision="bf16", reading="projection")
    files = box / "files"
    if not files.exists():
        files.mkdir()
        write_images(files, FILES)
    parts = {"forward": plain, **alone(files, view, batch)}
    memory, busy = cached(teacher, InMemory(count, side), batch, box / f"{name}-memory")
    disk, busy_disk = cached(teacher, open_dataset("table", files), batch, box / f"{name}-files")
    row = {"teacher": name, "bare, images/s": plain, "in memory / bare": memory / plain, "files / bare": disk / plain}
    row |= {"GPU busy, in memory": busy, "GPU busy, files": busy_disk, "bound from files": min(parts, key=parts.get)}
    return row | {f"{part}, images/s": parts[part] for part in ("decode", "view", "copy")}


def main():
    """Row by row, kept as they come."""
    rows = []
    notes = [f"{name_of_device()}, {usual_workers()} threads; bf16. Wanted: in memory >= .95 of bare."]
    notes += [
        f"{name}: {count:,} images, batches of {batch}; {FILES:,} files" for name, (count, batch) in TOWERS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, (count, batch) in TOWERS.items():
            rows.append(row_of(name, count, batch, Path(folder)))
            save("gpu-precompute", "`bird precompute` on a GPU.", COLUMNS, rows, notes)


if __name__ == "__main__":
    main()
