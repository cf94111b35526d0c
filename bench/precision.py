"""A student in fp32, in fp32 with channels_last, and in bf16 autocast with and without channels_last; and its metrics.

    OMP_NUM_THREADS=1 python bench/precision.py [--students resnet18 shufflenetv2] [--size 32] [--batch 16] [--rounds 3]

Speed: steps of fitnet and BIRD (meta batch of the same size) in turn, ratios of processor time within a round. Metrics: the
same runs in both precisions on Digits-S from a cache, some seeds, x100.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from results import paired, save

from bird.methods import Batch, Hyperparameters, SingleLearner, build_method
from bird.precision import in_bf16
from bird.students import build_student

CLASSES, DIM, PLAIN = 10, 512, "fp32"
METRICS = ("auroc", "f1_macro", "mean_deo", "max_deo")


def no_layout(model):
    in_bf16(model)
    model.to(memory_format=torch.contiguous_format)


KINDS = {
    PLAIN: lambda model: None,
    "fp32, channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "bf16": no_layout,
    "bf16, channels_last": in_bf16,
}


def batch(size, count, seed, layout):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=generator).contiguous(memory_format=layout)
    number = torch.arange(count)
    return Batch(pixels, number % CLASSES, number // CLASSES % 2, torch.randn(count, DIM, generator=generator))


def speed(student, method, options):
    """Seconds of a step of each kind, by round."""
    step, learners, found = build_method(method, Hyperparameters(), 2), {}, {name: [] for name in KINDS}
    for name, change in KINDS.items():
        net = build_student(student, classes=CLASSES, image_size=options.size, seed=0)
        learners[name] = SingleLearner(net, teacher_dim=DIM, lr=1e-3, mu2=1e-3, seed=0)
        change(learners[name].model)
    for number in range(options.rounds + 1):
        for name, learner in learners.items():
            layout = torch.channels_last if "last" in name else torch.contiguous_format
            train, meta = (batch(options.size, options.batch, seed, layout) for seed in (number, 1000 + number))
            began = time.process_time()
            step.step(learner, train, lambda meta=meta: meta, warm=True)
            if number:
                found[name].append(time.process_time() - began)
    return found


def metrics(folder, seeds, epochs):
    """Metrics of runs in both precisions: (method, precision) -> metric -> values by seed."""
    import bird_pipelines
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.training import distill

    flags = {"dataset": "digits-s", "student": "tiny-resnet-deep", "method": "baseline"}
    distill(resolve({**flags, "epochs": 2 * epochs, "batch_size": 64, "seed": 1000, "out": folder / "teacher"}))
    teacher = f"run:{folder / 'teacher'}"
    bird_pipelines.precompute(teacher=teacher, dataset="digits-s", out=folder / "cache")
    found = {}
    for method in ("fitnet", "bird"):
        for precision in ("fp32", "bf16"):
            flags = {"dataset": "digits-s", "student": "tiny-resnet", "method": method, "cache": folder / "cache"}
            flags |= {"epochs": epochs, "batch_size": 64, "precision": precision}
            runs = [
                distill(resolve({**flags, "seed": seed, "out": folder / f"{method}-{precision}-{seed}"}))
                for seed in range(seeds)
            ]
            found[method, precision] = {name: [run["metrics"]["test"][name] for run in runs] for name in METRICS}
    return found


def spread(values):
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--students", nargs="+", default=["resnet18", "shufflenetv2"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = []
    for student in options.students:
        for method in ("fitnet", "bird"):
            found = speed(student, method, options)
            for name, seconds in found.items():
                row = {"what": f"{student}, {method}", "precision": name}
                row |= {"ms a step": 1000 * statistics.median(seconds), "fp32 / it": paired(found[PLAIN], seconds)}
                rows.append(row)
                print(row, flush=True)
    title = f"Precision: {options.size} px, batches of {options.batch}"
    notes = [f"Metrics: {options.seeds} seeds, mean ± standard deviation, x100; bf16 as --precision bf16 has it."]
    save("precision", title, ["what", "precision", "ms a step", "fp32 / it", *METRICS], rows, notes)
    with tempfile.TemporaryDirectory() as folder:
        for (method, precision), values in metrics(Path(folder), options.seeds, options.epochs).items():
            row = {"what": f"tiny-resnet, {method}, Digits-S test", "precision": precision}
            rows.append(row | {name: spread(each) for name, each in values.items()})
            print(rows[-1], flush=True)
    save("precision", title, ["what", "precision", "ms a step", "fp32 / it", *METRICS], rows, notes)


if __name__ == "__main__":
    main()
