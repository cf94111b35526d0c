"""A step's batch is made while the step before is computed: in order, errors in their turn, and no bit is different."""

import threading
import time

import pytest
from helpers.shell import distilled

from bird.devices import enough_memory
from bird.errors import OutOfMemoryError
from bird_pipelines.distilling import images
from bird_pipelines.prefetch import one_ahead


def test_one_is_made_ahead_and_no_more():
    made = []

    def make(item):
        made.append(item)
        return 10 * item

    upcoming = one_ahead(make, range(5))
    assert next(upcoming) == 0
    deadline = time.monotonic() + 5
    while made != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1]
    assert list(upcoming) == [10, 20, 30, 40]


def test_an_error_is_raised_when_its_turn_has_come():
    upcoming = one_ahead(lambda item: 6 // item, [3, 2, 0, 1])
    assert [next(upcoming), next(upcoming)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(upcoming)


def test_the_thread_ends_with_the_iterator():
    upcoming = one_ahead(lambda item: item, range(1000))
    next(upcoming)
    upcoming.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("ahead")]


@pytest.mark.slow
def test_images_that_are_not_held_give_the_same_run(cache, tmp_path, monkeypatch):
    """Also with other threads, and scored in inference mode."""
    flags = {"student": "tiny-convnet", "epochs": 2, "warmup": 1, "meta_per_cell": 2, "batch_size": 32}
    held = distilled(cache, tmp_path / "held", **flags)
    monkeypatch.setattr(images, "IMAGES_IN_MEMORY_BYTES", 0)
    anew = distilled(cache, tmp_path / "anew", workers=3, **flags)
    assert held["metrics"] == anew["metrics"]
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("held", "anew")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_full_memory_is_told_with_what_to_lower(error):
    with (
        pytest.raises(OutOfMemoryError, match=r"--batch-size 64.*lower it"),
        enough_memory("--batch-size 64", "lower it"),
    ):
        raise error
    with pytest.raises(RuntimeError, match="of another kind"), enough_memory("--batch-size 64", "lower it"):
        raise RuntimeError("of another kind")
