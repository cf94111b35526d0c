"""Shared by all rooms: hypothesis without deadlines (machines differ), shapes checked at run time, real data where it is."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("bird", deadline=None)
settings.load_profile("bird")
install_import_hook(
    ["bird.gate", "bird.losses", "bird.students", "bird.transforms", "bird.methods"], "beartype.beartype"
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real CIFAR-10 images and a real ONNX teacher. Tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'} (CIFAR-10 as Parquet, SqueezeNet as ONNX)")
    return SHARED / "data"
