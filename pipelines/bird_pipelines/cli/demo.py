"""`bird demo`: the whole pipeline on the embedded data set, offline, in a few minutes."""

from __future__ import annotations

from pathlib import Path

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.teachers import load_teacher
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.precomputing.extraction import precompute
from bird_pipelines.reporting.report import write_report

__all__ = ["demo"]

DATASET, TEACHER_STUDENT = "digits-s", "shufflenetv2"
METHODS = ("baseline", "fitnet", "bird-no-meta", "bird")
SEEDS = (0, 1, 2)


def demo(out: Path) -> Path:
    """Train a small teacher on Digits-S, cache its features, distil them with four methods and three seeds, and write
    the report, whose path is returned. Finished steps are not repeated."""
    teacher_run = out / "teacher"
    small = {
        "epochs": 6,
        "batch_size": 32,
        "lr": 2e-3,
    }  # 1,068 train images: small batches, so that there are steps enough
    distill(
        resolve(
            {
                "dataset": DATASET,
                "student": TEACHER_STUDENT,
                "method": "baseline",
                **small,
                "out": teacher_run,
            }
        )
    )
    dataset = open_dataset(DATASET, None)
    precompute(load_teacher(f"run:{teacher_run}"), dataset, prepare(dataset), out / "cache")
    runs = [out / "runs" / f"{method}-{seed}" for method in METHODS for seed in SEEDS]
    for run in runs:
        method, seed = run.name.rsplit("-", 1)
        flags = {
            "dataset": DATASET,
            "student": "adapter",
            "cache": out / "cache",
            "method": method,
            "seed": int(seed),
        }
        distill(resolve({**flags, "epochs": 20, "out": run}))
    return write_report(runs, out / "report.html", title="BIRD demo on Digits-S")
