"""Shared by all rooms: hypothesis without deadlines and, unless asked, without chance; checked shapes; real data."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("bird", deadline=None, derandomize=True)  # the same examples for all who run the tests
settings.register_profile("random", deadline=None)  # --hypothesis-profile random, as in `make torture`
settings.load_profile("bird")
install_import_hook(
    [
        f"bird.{name}"
        for name in [
            "attention",
            "gate",
            "losses",
            "methods",
            "mmd",
            "student_networks",
            "students",
            "transforms",
            "weighting",
        ]
    ],
    "beartype.beartype",
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real CIFAR-10 images and a real ONNX teacher. Tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'} (CIFAR-10 as Parquet, SqueezeNet as ONNX)")
    return SHARED / "data"


def pytest_terminal_summary(terminalreporter):
    """How many times each fault was tried, for the tests that say so."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("passed", []):
        for fault, count in report.user_properties if report.when == "call" else ():
            if not fault[0].isdigit():  # a figure, not a fault's number in the list of faults
                continue
            counts[fault] = counts.get(fault, 0) + count
    for fault, count in sorted(counts.items(), key=lambda item: int(item[0].split()[0])):
        terminalreporter.write_line(f"fault {fault}: {count:,} tried, none silent")
