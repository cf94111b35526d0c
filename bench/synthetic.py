"""A run's data without a data set or a cache, for benchmarks."""

from bird_pipelines.distilling.data import RunData

NOTHING = {
    "images": None,
    "features": None,
    "logits": None,
    "logits_fingerprint": None,
    "stages": None,
    "boxes": None,
    "fingerprint": "synthetic",
    "teacher": "synthetic",
    "failed": {},
}


def run_data(table, **given):
    """RunData with what is given, and nothing else."""
    return RunData(table=table, flip=True, **{**NOTHING, **given})
