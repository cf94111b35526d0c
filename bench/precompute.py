"""`bird precompute` from JPEG files against its two halves alone, and against clip-retrieval's loop. Paired, in one process.

    python bench/precompute.py [--only NAME ...] [--images 128] [--rounds 3] [--threads 2] [--onnx FILE]

Random JPEG files of CelebA's size (178 x 218); open_clip's ViT-B/32 and RN50 with random weights through the real
loaders, an untrained ShuffleNet, and a black box if --onnx names one. Each round measures, one after the other: the bare
forward pass of the plain module (pixels ready, same batch, same precision), the teacher's own forward pass, decoding and
preprocessing alone (in as many threads as precompute has), the whole (from files to a finished, checked cache), and
clip-retrieval's own reader, runner and writer (with as many worker processes) around what its mapper does on a CPU: the
plain module in float32 under no_grad, whatever precision the row has, then norms and float16. It is measured where it is
installed (no need of what it depends on):

    python -m venv /tmp/venv-clipret && /tmp/venv-clipret/bin/pip install --no-deps clip-retrieval

and a .pth file there that names our site-packages. `two together` is the rate that two cores which share both jobs without
loss would have: 1 / (t_forward + t_decode).
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from results import paired, save

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.students import build_student, student_files
from bird.teachers import load_teacher
from bird_pipelines.precomputing.extraction import precompute

BATCH, DECODERS = 32, 2
COLUMNS = (
    "teacher",
    "images/s: forward",
    "ours",
    "decode",
    "precompute",
    "ours / forward",
    "precompute / slower alone",
    "precompute / two together",
    "precompute / clip-retrieval",
)


def write_images(folder, count):
    rng = np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (14, 11, 3), dtype=np.uint8))
        coarse.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)
        lines.append(f"{number:05d}.jpg,{number % 2},{number // 2 % 2},{'test' if number < 8 else 'train'}")
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")


def open_clip_teacher(box, name, model, precision="fp32"):
    """The teacher, and the plain image tower with the same weights."""
    import open_clip

    torch.manual_seed(0)
    path = box / f"{name}.pt"
    plain = open_clip.create_model(model, load_weights=False, pretrained_text=False)
    torch.save(plain.state_dict(), path)
    return load_teacher(name, weights=path, precision=precision), plain.visual.eval().requires_grad_(False)


def shufflenet(box):
    folder = box / "shufflenet"
    folder.mkdir(exist_ok=True)
    plain = build_student("shufflenetv2", classes=10, image_size=64, seed=0).eval().requires_grad_(False)
    for name, data in student_files(plain).items():
        (folder / name).write_bytes(data)
    return load_teacher(f"run:{folder}"), lambda pixels: plain(pixels).features


def squeezenet(onnx):
    """The teacher, and onnxruntime's own way with its defaults."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (output,) = session.get_outputs()[:1]
    return load_teacher(f"onnx:{onnx}", image_size=128), lambda pixels: torch.from_numpy(
        session.run([output.name], {given.name: pixels.numpy()})[0]
    ).flatten(1)


TEACHERS = {
    "ShuffleNet 64 px, fp32": (16, "fp32", lambda box, onnx: shufflenet(box)),
    "SqueezeNet (ONNX) 128 px": (16, "fp32", lambda box, onnx: squeezenet(onnx)),
    "ViT-B/32, fp32": (1, "fp32", lambda box, onnx: open_clip_teacher(box, "clip-vit-b32", "ViT-B-32-quickgelu")),
    "ViT-B/32, bf16": (
        1,
        "bf16",
        lambda box, onnx: open_clip_teacher(box, "clip-vit-b32", "ViT-B-32-quickgelu", "bf16"),
    ),
    "RN50, fp32": (1, "fp32", lambda box, onnx: open_clip_teacher(box, "clip-rn50", "RN50-quickgelu")),
    "RN50, bf16": (1, "bf16", lambda box, onnx: open_clip_teacher(box, "clip-rn50", "RN50-quickgelu", "bf16")),
}


def bare(plain, precision):
    """The plain module in the row's precision, in all threads."""

    def model(pixels):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return plain(pixels)

    return model


def forward(model, pixels):
    for start in range(0, len(pixels), BATCH):
        model(pixels[start : start + BATCH])


def decode(teacher, dataset, ids):
    def some(start):
        return torch.stack([teacher.preprocess(dataset.image(id)) for id in ids[start : start + BATCH]])

    with ThreadPoolExecutor(DECODERS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.cat(list(pool.map(some, range(0, len(ids), BATCH))))


def clip_retrieval_parts():
    """The modules reader, runner and writer of the installed package; its top imports a web server, so not by its name."""
    found = importlib.util.find_spec("clip_retrieval")
    if found is None:
        return None
    parts = []
    for name in ("reader", "runner", "writer"):
        file = Path(found.submodule_search_locations[0]) / "clip_inference" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"clip_retrieval_{name}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        parts.append(module)
    return parts


def clip_retrieval(parts, teacher, plain, images, out):
    reader, runner, writer = parts

    def view(image):
        return teacher.normalise(teacher.preprocess(np.asarray(image.convert("RGB")))[None])[0]

    def mapper(item):
        """ClipMapper.__call__, whose encode_image computes in float32 on a CPU (all_clip's OpenClipWrapper)."""
        with torch.no_grad():
            found = plain(item["image_tensor"])
            found /= found.norm(dim=-1, keepdim=True)
            return {"image_embs": found.to(torch.float16).numpy(), "image_filename": item["image_filename"]}

    run = runner.Runner(
        lambda sampler: reader.FilesReader(sampler, view, None, str(images), BATCH, DECODERS, enable_text=False),
        lambda: mapper,
        lambda part: writer.NumpyWriter(part, str(out), False, True, False, 1),
        lambda part: type("Quiet", (), {"start": int, "end": int, "__call__": lambda self, said: None})(),
        1,
    )
    run(0)


def timed(work, count):
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def measure(teacher, plain, precision, images, count, rounds, box, parts):
    dataset = open_dataset("table", images)
    table = prepare(dataset, keep_conflicts=True)
    table = table.take(np.arange(min(count, len(table))))
    pixels = teacher.normalise(decode(teacher, dataset, table.ids))
    model = bare(plain, precision)
    for each in (model, plain, teacher.features):  # each has seen a batch before it is timed
        forward(each, pixels[:BATCH])
    rates = SimpleNamespace(forward=[], ours=[], decode=[], whole=[], theirs=[])
    every = len(list(images.glob("*.jpg")))
    for number in range(rounds):
        out = box / f"{teacher.name.replace('/', '-').replace(':', '-')}-{number}-{time.time_ns()}"
        rates.forward.append(timed(lambda: forward(model, pixels), len(pixels)))
        rates.ours.append(timed(lambda: forward(teacher.features, pixels), len(pixels)))
        rates.decode.append(timed(lambda: decode(teacher, dataset, table.ids), len(table)))
        rates.whole.append(
            timed(
                lambda out=out: precompute(teacher, dataset, table, out, batch_size=BATCH, workers=DECODERS), len(table)
            )
        )
        if parts is not None and every == len(table):
            rates.theirs.append(
                timed(lambda out=out: clip_retrieval(parts, teacher, plain, images, f"{out}-theirs"), every)
            )
    return rates


def row_of(name, rates):
    slower = [min(pair) for pair in zip(rates.forward, rates.decode, strict=True)]
    together = [1 / (1 / a + 1 / b) for a, b in zip(rates.forward, rates.decode, strict=True)]
    median = statistics.median
    return {
        "teacher": name,
        "images/s: forward": median(rates.forward),
        "ours": median(rates.ours),
        "decode": median(rates.decode),
        "precompute": median(rates.whole),
        "ours / forward": paired(rates.ours, rates.forward),
        "precompute / slower alone": paired(rates.whole, slower),
        "precompute / two together": paired(rates.whole, together),
        "precompute / clip-retrieval": paired(rates.whole, rates.theirs) if rates.theirs else "not measured",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*TEACHERS])
    parser.add_argument("--images", type=int, default=128, help="for ViT-B/32 and RN50; 16 times as many for the small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--onnx", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts, notes, rows = clip_retrieval_parts(), [], []
    if parts is None:
        notes.append("clip-retrieval is not installed: not measured.")
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        for name in options.only or TEACHERS:
            times, precision, load = TEACHERS[name]
            if "ONNX" in name and (options.onnx is None or not options.onnx.is_file()):
                notes.append(f"{name} left out: no --onnx FILE.")
                continue
            images = box / f"images-{times}"
            if not images.exists():
                images.mkdir()
                write_images(images, times * options.images)
            teacher, plain = load(box, options.onnx)
            rates = measure(teacher, plain, precision, images, times * options.images, options.rounds, box, parts)
            rows.append(row_of(name, rates))
            print(rows[-1], flush=True)
    notes.append(
        f"JPEG files of 178 x 218 pixels, batch {BATCH}, {DECODERS} decoders, {options.threads} threads of the forward "
        f"pass; {options.rounds} rounds. Wanted: .95 of the slower alone, 1.3 x clip-retrieval."
    )
    notes.append(
        "forward: the plain module in the row's precision (bf16 is autocast); ours: the teacher's forward pass, in as many "
        "threads. clip-retrieval: the plain module in fp32 in every row, bf16 rows too, as its mapper computes on a CPU; "
        "for SqueezeNet, which it cannot load, onnxruntime's session with its defaults."
    )
    save("precompute", "`bird precompute`, from files to a checked cache.", COLUMNS, rows, notes)


if __name__ == "__main__":
    main()
