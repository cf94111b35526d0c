"""Rough costs for a plan: seconds on one CPU core, bytes on disk. Orders of magnitude, from a few measured points.

Measured on an AMD EPYC core: adapters 7,700 samples/s, ShuffleNet V2 at 32 px 72 samples/s in training, a BIRD step 3.6
plain ones (docs/measurements). The other networks are scaled by their multiplications; a GPU is 50 to 200 times faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bird_pipelines.config import RunConfig

__all__ = ["of_cache", "of_run"]

# rows to train on, all rows, square pixels relative to 32 px with a stride-1 stem
DATASETS: Mapping[str, tuple[int, int, float]] = {
    "celeba": (162_770, 169_170, 2.0),
    "utkface": (20_000, 23_700, 2.0),
    "cifar10s": (45_000, 70_000, 1.0),
    "digits-s": (1_130, 2_330, 1.0),
}
# seconds a sample in training at 32 px, megabytes of weights, features; foundation models: seconds a forward pass
NETWORKS: Mapping[str, tuple[float, float, int]] = {
    "resnet18": (0.05, 44.7, 512),
    "resnet34": (0.1, 85.1, 512),
    "shufflenetv2": (0.014, 5.2, 1024),
    "tiny-vit": (0.0012, 0.3, 64),
    "tiny-resnet": (0.0007, 0.4, 64),
    "tiny-resnet-deep": (0.001, 0.8, 64),
    "tiny-convnet": (0.0005, 0.3, 96),
}
FOUNDATION: Mapping[str, tuple[float, int]] = {
    "flava": (0.5, 768),
    "clip-vit-b32": (0.13, 512),
    "clip-rn50": (0.2, 1024),
}
ADAPTER_SECONDS, RUN_SECONDS = 1.3e-4, 2.0
STEPS: Mapping[str, float] = {"bird": 3.6, "bird+at": 4.0, "bird+mfd": 4.0, "ad": 2.0, "baseline": 1.0}
VALUES: Mapping[str, int] = {"attention": 1_360, "maps": 122_880, "logits": 10}  # a row at 32 px, ResNet-18


def of_run(config: RunConfig) -> tuple[float, int]:
    """Seconds and bytes of a training run with its evaluation."""
    train, rows, area = DATASETS.get(config.source.dataset, (10_000, 12_000, 1.0))
    tested = rows - train
    train = min(train, config.source.limit or train)
    steps = 1 + (STEPS.get(config.method, 1.2) - 1) * (1 - config.training.warmup / config.training.epochs)
    if config.student == "adapter":
        seconds, size = ADAPTER_SECONDS, 1_000_000 * 4
    else:
        each, megabytes, _ = NETWORKS.get(config.student, (0.05, 45.0, 512))
        seconds, size = each * area, int(megabytes * 1e6 * 4)  # weights, and a checkpoint with Adam's two moments
    return RUN_SECONDS + seconds * (train * config.training.epochs * steps + tested / 3), size


def of_cache(dataset: str, arch: str, layers: Sequence[str]) -> tuple[float, int]:
    """Seconds and bytes of a cache, or of layers added to one; without layers: of a head."""
    _, rows, area = DATASETS.get(dataset, (10_000, 12_000, 1.0))
    if not layers:
        return 10 * rows * ADAPTER_SECONDS, rows * 40
    forward, dim = FOUNDATION.get(arch, (0.0, 0))
    if not dim:
        each, _, dim = NETWORKS.get(arch, (0.05, 45.0, 512))
        forward = each * area / 3
    values = sum(dim if name == "penultimate" else int(VALUES.get(name, 0) * area) for name in layers)
    return RUN_SECONDS + rows * forward, rows * (values * 2 + 100)
