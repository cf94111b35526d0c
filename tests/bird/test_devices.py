"""Which device a name means: alone, and among the processes of torchrun. The GPUs are only counted, never used."""

import pytest
import torch

from bird.devices import choose_device
from bird.errors import UsageError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many GPUs."""

    def count(number):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    return count


@pytest.fixture
def rank(monkeypatch):
    """This process as one of those that torchrun started: its number on its machine, and how many there are."""

    def become(local_rank, local_world, before=0):
        world = {"RANK": before + local_rank, "WORLD_SIZE": before + local_world}
        mine = {"LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_world, "TORCHELASTIC_RUN_ID": "none"}
        for name, value in (world | mine).items():
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize(
    ("count", "name", "wanted"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (1, "auto", "cuda"),
        (2, "cuda", "cuda"),
        (2, "cuda:0", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
)
def test_one_process_takes_what_is_named(gpus, count, name, wanted):
    gpus(count)
    assert choose_device(name) == torch.device(wanted)


@pytest.mark.parametrize(
    ("count", "name", "said"),
    [
        (0, "cuda", "--device cpu"),
        (0, "cuda:1", "--device cpu"),
        (2, "cuda:2", "one of cuda:0, cuda:1"),
        (2, "cud", "did you mean cuda"),
        (2, "mps", "one of auto, cpu, cuda"),
        (2, "cuda:x", "one of auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, count, name, said):
    gpus(count)
    with pytest.raises(UsageError, match=f"--device.*{said}"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "auto"])
@pytest.mark.parametrize(("local_rank", "before"), [(0, 0), (3, 0), (2, 4)])
def test_a_process_of_torchrun_takes_the_gpu_of_its_number_on_its_machine(gpus, rank, name, local_rank, before):
    gpus(4)
    rank(local_rank, 4, before)
    assert choose_device(name) == torch.device("cuda", local_rank)


def test_processes_of_torchrun_on_the_cpu(gpus, rank):
    rank(1, 2)
    gpus(0)
    assert choose_device("auto") == torch.device("cpu")
    gpus(2)
    assert choose_device("cpu") == torch.device("cpu")


def test_one_gpu_for_several_processes_is_refused(gpus, rank):
    gpus(2)
    rank(1, 2)
    with pytest.raises(UsageError, match=r"cuda:1 for 2 processes.*a GPU for each process"):
        choose_device("cuda:1")
    rank(2, 4)
    with pytest.raises(UsageError, match=r"2 GPUs for 4 processes.*--nproc-per-node"):
        choose_device("cuda")
