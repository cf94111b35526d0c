"""Several processes take the step that one takes on all their rows: real processes under torchrun, gloo, loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranked import GROUPS, METHOD_CASES, OTHER_CASES, REFUSED, STEP_CASES, by_step, everything, grouped, own
from helpers.strangers import WIDTH, Net, batch_of

from bird import BirdStep, Gate
from bird.errors import StudentError
from bird.methods import METHODS
from bird.step.ranks import Ranks

BOUND = 1e-10


def torchrun(world, *words):
    """What `world` processes say."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def together(world, out, *more):
    """What each of `world` ranks found."""
    torchrun(world, "-m", "helpers.ranked", str(out), *more)
    return [np.load(out / f"{rank}-of-{world}.npz") for rank in range(world)]


def apart(found, wanted):
    """|found - wanted| / |wanted|, of one vector."""
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-300)


def compare(ranks, alone):
    """Every vector of every case that is exact; returns how far apart the farthest are."""
    farthest = 0.0
    for name, wanted in alone.items():
        case = name.partition(":")[0]
        if case in OTHER_CASES or name.endswith("way"):
            continue
        for rank in ranks:
            assert np.array_equal(rank[name], ranks[0][name]), f"{name}: ranks differ"
            farthest = max(farthest, apart(rank[name], wanted))
            assert apart(rank[name], wanted) < BOUND, name
    return farthest


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one_process(tmp_path):
    ranks, alone = together(2, tmp_path), everything(0, 1, None, images=False)
    compare(ranks, alone)
    # an operator without forward mode on one rank: both go on to the next way, together
    assert [int(rank["no forward mode on rank 1: way"]) for rank in ranks] == [1, 1]
    # what is no number on one rank is none on all of them
    assert all(np.isnan(rank["no number: 0 theta"]).all() for rank in ranks)
    # batch norm has each rank's own statistics: another step, in the same direction on all ranks
    name = "batch norm: 0 theta"
    assert np.array_equal(ranks[0][name], ranks[1][name])
    assert 1e-3 < apart(ranks[0][name], alone[name]) < 1


@pytest.mark.torture
@pytest.mark.parametrize("world", [2, 3, 4])
def test_more_ranks_take_the_step_of_one_process(tmp_path, world):
    found = compare(together(world, tmp_path, "--all"), everything(0, 1, None))
    print(f"{world} ranks: {found:.1e} apart at most, {len(STEP_CASES) + len(METHOD_CASES)} cases")


@pytest.mark.slow
def test_the_example_of_the_page_runs_on_two_ranks(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()
    (program,) = (text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "reduce=total" in text)
    (tmp_path / "own_loop.py").write_text(program)
    one, two = (sorted(torchrun(world, str(tmp_path / "own_loop.py")).split("\n")[:world]) for world in (1, 2))
    said = [line.partition(": ")[2] for line in (*one, *two)]
    assert len(said) == 3
    assert "L_o 0." in said[0]
    assert len({*said[1:]}) == 1, "ranks differ"
    numbers = [[float(each) for each in re.findall(r"\d+\.\d+", line)] for line in said]
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-4)


def test_a_world_of_one_gives_the_same_bits():
    alone, one = by_step(0, 1, None, grouped), by_step(0, 1, lambda vector: vector, grouped)
    assert all(torch.equal(alone[name], one[name]) for name in alone)


def test_all_methods_are_compared_or_refused():
    assert {case.partition(",")[0] for case in METHOD_CASES} | REFUSED == {*METHODS}


def test_what_a_step_sends():
    sent = []

    def reduce(vector):
        sent.append(len(vector))
        return vector

    torch.manual_seed(0)
    student, gate = Net(grouped()).double(), Gate(WIDTH).double()
    step = BirdStep(student, gate, groups=GROUPS, reduce=reduce, check=0)
    for number in range(2):
        sent.clear()
        step(batch_of(number), batch_of(9))[0].backward()
        step.reduce_gradients()
    tensors = list(student.parameters())
    theta, phi, cells = sum(each.numel() for each in tensors), WIDTH, 3 * GROUPS
    # the count of the rows, and which tensors have a gradient
    assert sum(sent) == 3 * theta + phi + 4 * cells + 1 + len(tensors)
    assert len(sent) == 7


def test_ranks_with_other_weights_are_refused():
    student = Net(grouped())
    step = BirdStep(student, Gate(WIDTH), groups=GROUPS, reduce=lambda vector: vector * 2 + (len(vector) == 3))
    with pytest.raises(StudentError, match="differ between the processes"):
        step(batch_of(0, torch.float32), batch_of(1, torch.float32))


def test_gradients_that_were_not_summed_are_noticed():
    student = Net(grouped())
    step = BirdStep(student, Gate(WIDTH), groups=GROUPS, reduce=lambda vector: vector)
    batches = batch_of(0, torch.float32), batch_of(1, torch.float32)
    step(*batches)[0].backward()
    with pytest.raises(StudentError, match="reduce_gradients"):
        step(*batches)
    step.reduce_gradients()
    step(*batches)


def test_a_total_has_no_forward_mode():
    """A dual that is summed would keep the tangent of its own rank alone."""
    from torch.autograd import forward_ad

    ranks, ones = Ranks(lambda vector: vector * 2), torch.ones(3)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        ranks.total(forward_ad.make_dual(ones, ones))


def test_rows_are_dealt_without_loss():
    batch = batch_of(0)
    assert (
        sorted(torch.cat([own(batch, rank, 5).labels for rank in range(5)]).tolist()) == batch.labels.sort()[0].tolist()
    )
