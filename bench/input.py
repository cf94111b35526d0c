"""From files to what a network takes: against an earlier checkout of this project, and against torch's DataLoader. Paired.

    git worktree add --detach /tmp/before COMMIT
    python bench/input.py --before /tmp/before [--rounds 9]

(a) One core, CLIP's view (short edge to 224, bicubic, centre crop, normalised), JPEG files of 178 x 218 and 1024 x 768
pixels: processor time an image, in batches of 32; the pixels of both checkouts are compared bit by bit.
(b) `bird distill` on images that do not fit in memory, with a student of one pooling and one linear layer, so that data is
the bound: samples a second of two epochs, two threads. The DataLoader has two worker processes, reads the same files with
torchvision's own loader (PIL), resizes, crops and flips with torchvision's transforms, and feeds the same student.
Each measurement is a process of its own; the checkouts take turns, and a ratio is taken within a turn.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = ((178, 218), (1024, 768))
VIEW_IMAGES, TRAIN_IMAGES, SIDE, BATCH, EPOCHS = 64, 1600, 64, 128, 2


def write_images(folder, count, width, height):
    """Smooth random JPEG files, and the table that names them."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)
        split = ("test", "meta")[number % 2] if number < 64 else "train"
        lines.append(f"{number:05d}.jpg,{number // 2 % 2},{number // 4 % 2},{split}")
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")


# ---- what is measured, in a process of its own -------------------------------------------------------------------


def seconds_a_view(folder):
    """Processor seconds an image from file to teacher input, the least of some rounds; and a hash of all pixels."""
    import torch

    from bird.images import decode_image
    from bird.teachers.base import View

    torch.set_num_threads(1)
    view = View(
        224, 224, "bicubic", "pillow", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    )
    files = sorted(folder.glob("*.jpg"))[:VIEW_IMAGES]

    def together(paths):
        views = [view(decode_image(path.read_bytes(), path.name)) for path in paths]
        if not hasattr(view, "normalise"):  # the earlier checkout normalises image by image
            return torch.stack(views)
        return view.normalise(torch.stack([each.permute(1, 2, 0) for each in views]).permute(0, 3, 1, 2))

    best, batches = float("inf"), [files[start : start + 32] for start in range(0, len(files), 32)]
    for _ in range(5):
        began = time.thread_time()
        for paths in batches:
            together(paths)
        best = min(best, time.thread_time() - began)
    pixels = b"".join(together(paths).contiguous().numpy().tobytes() for paths in batches)
    return {"seconds": best / len(files), "pixels": hashlib.sha256(pixels).hexdigest()}


def student():
    """One pooling and one linear layer."""
    from torch import nn

    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), 48


def samples_a_second(folder):
    """Of the training loop of `bird distill`, from images that are decoded anew in every epoch."""
    import torch

    from bird.students import STUDENTS, StudentKind
    from bird_pipelines.config.reading import run_of
    from bird_pipelines.distilling import images
    from bird_pipelines.distilling.training import Trainer, read

    torch.set_num_threads(2)
    STUDENTS["trivial"] = StudentKind("image", "pooling and a linear layer", lambda size, dim: student())
    images.IMAGES_IN_MEMORY_BYTES = 0
    given = {"dataset": "table", "data_root": folder, "dataset_settings": {"image_size": SIDE}, "student": "trivial"}
    given |= {"method": "baseline", "batch_size": BATCH, "epochs": EPOCHS, "warmup": 0, "device": "cpu", "workers": 2}
    with tempfile.TemporaryDirectory() as out:
        config = run_of({**given, "out": Path(out)})
        trainer = Trainer(config, read(config))
        began = time.perf_counter()
        trainer.run()
        return {"rate": EPOCHS * len(trainer.train_rows) / (time.perf_counter() - began)}


def samples_a_second_of_torch(folder):
    """Of torch's DataLoader with two workers around the same student."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    views = v2.Compose(
        [
            v2.Resize(SIDE),
            v2.CenterCrop(SIDE),
            v2.RandomCrop(SIDE, padding=SIDE // 8),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    rows = [line.split(",") for line in (folder / "samples.csv").read_text().splitlines()[1:]]
    train = [(folder / path, int(label)) for path, label, _, split in rows if split == "train"]

    class Files(Dataset):
        def __len__(self):
            return len(train)

        def __getitem__(self, row):
            path, label = train[row]
            return views(default_loader(path)), label

    torch.set_num_threads(2)
    backbone, dim = student()
    model = nn.Sequential(backbone, nn.Linear(dim, 2))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loader = DataLoader(Files(), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    began = time.perf_counter()
    for _ in range(EPOCHS):
        for images, labels in loader:
            adam.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            adam.step()
    return {"rate": EPOCHS * len(train) / (time.perf_counter() - began)}


WORK = {each.__name__: each for each in (seconds_a_view, samples_a_second, samples_a_second_of_torch)}


# ---- the comparison ------------------------------------------------------------------------------------------------


def measured(work, folder, checkout):
    """What `work` finds with the code of a checkout."""
    paths = os.pathsep.join(str(checkout / part) for part in ("", "cache", "pipelines"))
    command = [sys.executable, "-W", "ignore", __file__, "--measure", work, str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(box, before, rounds):
    """Rows of the table."""
    from results import paired

    rows = []
    for width, height in SIZES:
        folder = box / f"{width}"
        write_images(folder, VIEW_IMAGES, width, height)
        found = [[measured("seconds_a_view", folder, tree) for tree in (before, ROOT)] for _ in range(rounds)]
        assert len({each["pixels"] for pair in found for each in pair}) == 1, "other pixels than before"
        then, now = ([pair[side]["seconds"] for pair in found] for side in (0, 1))
        row = {"what": f"file to CLIP's input, {width} x {height}", "unit": "ms an image, one core"}
        rows.append(row | {"before": 1000 * min(then), "now": 1000 * min(now), "faster by": paired(then, now)})
    folder = box / "train"
    write_images(folder, TRAIN_IMAGES, *SIZES[0])
    found = []
    for _ in range(rounds):
        turn = [measured("samples_a_second", folder, tree)["rate"] for tree in (before, ROOT)]
        found.append([*turn, measured("samples_a_second_of_torch", folder, ROOT)["rate"]])
    then, now, theirs = zip(*found, strict=True)
    middle = sorted(now)[len(now) // 2]
    row = {"unit": "samples/s, two threads", "now": middle}
    what = f"distill, images of {SIDE} px not held"
    rows.append({"what": what, **row, "before": sorted(then)[len(then) // 2], "faster by": paired(now, then)})
    rows.append(
        {
            "what": f"{what}: DataLoader of 2 workers",
            **row,
            "before": sorted(theirs)[len(theirs) // 2],
            "faster by": paired(now, theirs),
        }
    )
    return rows


def main():
    """Measure one thing, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="an earlier checkout of this project")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        warnings.simplefilter("ignore")
        print(json.dumps(WORK[options.measure[0]](Path(options.measure[1]))))
        return
    if options.before is None:
        parser.error("--before CHECKOUT: there is nothing to compare with")
    from results import save

    commit = subprocess.run(
        ["git", "-C", options.before, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as box:
        rows = compare(Path(box), options.before, options.rounds)
    sys.argv[1:] = ["--before", "CHECKOUT", "--rounds", str(options.rounds)]  # whose place says nothing to others
    columns = ["what", "unit", "before", "now", "faster by"]
    notes = [
        f"Before: commit {commit.stdout.strip()}, or the DataLoader. Equal pixels, compared by hash, in all of (a)."
    ]
    save("input", "From files to a network's input.", columns, rows, notes)


if __name__ == "__main__":
    main()
