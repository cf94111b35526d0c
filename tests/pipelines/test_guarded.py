"""The guard on the feedback changes no number of a run, alone or in a stack."""

import pytest
from helpers.shell import distilled

import bird.precision
from bird.step.guard import Guard
from bird_pipelines.config import resolve
from bird_pipelines.distilling.side_by_side import distill_many

SHORT = {"epochs": 2, "warmup": 1, "batch_size": 16}
SMALL = {"limit": 120, "meta_per_cell": 1, "batch_size": 8, "epochs": 3}  # 8 steps and more after the warmup
PRECISIONS = ["fp32", "bf16"]
if bird.precision.CPU_FLAGS_HERE.isdisjoint(bird.precision.CPU_FLAGS):
    PRECISIONS = PRECISIONS[:1]


@pytest.fixture
def guards(monkeypatch):
    """Have the trainers' guards check every step or none; and the guards that decided something."""
    decided = set()

    def watch(name):
        decide = getattr(Guard, name)

        def watched(self, *args):
            found = decide(self, *args)
            if self.apart is not None:
                decided.add(self)
            return found

        monkeypatch.setattr(Guard, name, watched)

    watch("agrees")
    watch("require")  # a stack's

    def check(every):
        decided.clear()
        monkeypatch.setattr(Guard.__init__, "__defaults__", (every,))
        return decided

    return check


def left(folder):
    """What a run leaves, but its seconds."""
    return [
        (folder / name).read_bytes() for name in ("student.safetensors", "metrics-test.json", "predictions-test.npz")
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "flags",
    [
        {"student": "adapter", "method": "bird"},
        {"student": "adapter", "method": "bird-plus"},
        {"student": "tiny-resnet", "method": "bird"} | SMALL,
        {"student": "tiny-resnet", "method": "bird", "recompute": True} | SMALL,
    ],
    ids=lambda flags: " ".join(map(str, flags.values())),
)
def test_a_run_ends_the_same_with_and_without_it(cache, tmp_path, guards, flags, precision):
    for every in (0, 1):
        decided = guards(every)
        distilled(cache, tmp_path / str(every), **(SHORT | flags), precision=precision)
        assert len(decided) == every
    assert left(tmp_path / "0") == left(tmp_path / "1")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_stack_ends_the_same_with_and_without_it(cache, tmp_path, guards, precision):
    common = {"dataset": "digits-s", "student": "adapter", "method": "bird", "cache": cache, **SHORT}
    common["precision"] = precision
    for every in (0, 1):
        decided = guards(every)
        runs = [
            {"seed": seed, "mu1": mu1, "out": tmp_path / str(every) / str(seed)} for seed, mu1 in enumerate((1e-3, 0.1))
        ]
        distill_many([resolve(common | run) for run in runs])
        assert len(decided) == every
    for seed in range(2):
        assert left(tmp_path / "0" / str(seed)) == left(tmp_path / "1" / str(seed))
