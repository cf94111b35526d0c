"""One run by several processes: torchrun, gloo, loopback. The rows, the steps and the metrics are those of one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shell import ENVIRONMENT, bird, distilled, exists
from hypothesis import given
from hypothesis import strategies as st

from bird.errors import UsageError
from bird.methods import METHODS
from bird_pipelines.config import resolve
from bird_pipelines.distilling.ranks import World, refuse_ranks
from bird_pipelines.distilling.training import Trainer, distill, read

SHORT = ("--epochs", 3, "--warmup", 1, "--batch-size", 32)
QUICK = {"epochs": 3, "warmup": 1, "batch_size": 32}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def start(world, *args, program=("-m", "bird_pipelines"), **more):
    """torchrun with that many processes of `bird ARGS`, just begun."""
    return subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", str(world), *program, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        **more,
    )


def ended(process, *, ok=True):
    """What it said: stdout and stderr. torchrun's own exit code is 0 or 1."""
    try:
        out, err = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        raise
    assert process.returncode == (0 if ok else 1), f"{out}\n{err}"
    return out, err


def torchrun(world, *args, ok=True, **more):
    return ended(start(world, *args, **more), ok=ok)


def panels(err):
    """The panels on stderr, unwrapped."""
    return [" ".join(line.strip("│ ") for line in part.splitlines()) for part in err.split("╭")[1:]]


def metrics_of(run):
    return json.loads((run / "metrics-test.json").read_text())


def same(found, wanted):
    """Equal metrics. Scores are equal but for their rounding in float32; AUROC but for pairs of rows that nearly tie."""
    ours, theirs = metrics_of(found), metrics_of(wanted)
    for name in ("accuracy", "f1_macro", "mean_deo", "max_deo", "recalls"):
        assert ours[name] == theirs[name], name
    with np.load(found / "predictions-test.npz") as one, np.load(wanted / "predictions-test.npz") as two:
        labels, scores, others = one["labels"], one["scores"], two["scores"]
    apart = float(np.abs(scores - others).max())
    assert apart < 1e-4
    ties = 100 * near_ties(labels, others.astype(np.float64), 2 * apart)
    assert ours["auroc"] == pytest.approx(theirs["auroc"], abs=ties + 1e-9)


def near_ties(labels, scores, apart):
    """The share of the pairs of AUROC whose scores are no further apart: rounding may rank them the other way."""
    of_class = [(scores[labels == each, each], scores[labels != each, each]) for each in range(scores.shape[1])]
    return np.mean([(np.abs(own[:, None] - rest) <= apart).mean() for own, rest in of_class if len(own) and len(rest)])


def children(process):
    """The ids of the processes that torchrun started."""
    while not (found := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        time.sleep(0.01)
    return [int(each) for each in found]


def rank_of(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)


def wait_for(when, process):
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """The run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    distilled(cache, out, method="bird", **QUICK)
    return out


@pytest.mark.slow
def test_two_ranks_make_the_run_of_one_process(cache, alone, tmp_path):
    out, err = torchrun(2, "distill", "--cache", cache, "--out", tmp_path / "run", *SHORT, "--json")
    info = json.loads(out)  # said once
    assert err.count("samples/s") <= 4, "both ranks showed progress"
    assert info["ranks"] == [2]
    assert info["batch_statistics"] is None
    same(tmp_path / "run", alone)
    curves = [
        [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", alone)
    ]
    for one, two in zip(*curves, strict=True):
        assert one["meta"] == two["meta"]
        for part in ("loss", "ce", "distance", "bias", "meta_bias"):
            assert one[part] == (None if two[part] is None else pytest.approx(two[part], rel=1e-4)), part
    with np.load(tmp_path / "run" / "predictions-test.npz") as ours, np.load(alone / "predictions-test.npz") as theirs:
        assert (ours["ids"] == theirs["ids"]).all()
    bird("evaluate", tmp_path / "run")


LONG = ("--epochs", 20, "--warmup", 10, "--batch-size", 32)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.torture), 1])
def test_a_killed_rank_ends_the_run_and_another_number_finishes_it(cache, tmp_path, killed):
    """The others do not hang; what was saved is resumed with the rows that were left, by two, one or three."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    distilled(cache, whole, method="bird", epochs=20, warmup=10, batch_size=32)
    command = ("distill", "--cache", cache, "--out", run, *LONG)
    process = start(2, *command)
    wait_for(exists(f"{run}/checkpoint.json"), process)
    os.kill(next(pid for pid in children(process) if rank_of(pid) == killed), signal.SIGKILL)
    began = time.monotonic()
    _, err = ended(process, ok=False)
    assert time.monotonic() - began < 60
    assert "bird_pipelines/" not in err, "a traceback of ours"
    (said,) = panels(err)
    assert "LostRankError" in said
    assert "exit code: 1 (rank" in said
    assert not (run / "run.json").exists()
    other = 1 if killed else 3
    if other == 1:
        bird(*command)
    else:
        torchrun(other, *command)
    assert json.loads((run / "run.json").read_text())["ranks"] == [2, other]
    same(run, whole)


@pytest.mark.slow
def test_sigterm_is_kept_by_all(cache, tmp_path):
    run = tmp_path / "run"
    command = ("distill", "--cache", cache, "--out", run, *LONG)
    process = start(2, *command)
    wait_for(exists(f"{run}/checkpoint.json"), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert [each for each in panels(err) if "Interrupted" in each] == panels(err)
    assert len(panels(err)) == 1
    state = json.loads((run / "checkpoint.json").read_text())
    assert state["step"] > 0


SHELL = ("--no-python", "sh", "-c")


@pytest.mark.slow
def test_what_one_rank_lacks_is_said_once(cache, tmp_path):
    """The panel is that of the rank that failed, with our exit code."""
    where = (
        f'if [ $RANK = 1 ]; then C={tmp_path}/none; else C={cache}; fi; exec {sys.executable} -m bird_pipelines "$@"'
    )
    where += f" --cache $C --out {tmp_path}/run"
    _, err = torchrun(2, where, "bird", "distill", program=SHELL, ok=False)
    (said,) = panels(err)
    assert "NotACacheError" in said
    assert "exit code: 2 (rank 1 of 2)" in said
    last = err[err.rindex("Traceback") :]  # torchrun's own
    assert "NotACacheError" in last
    assert "what to do: " in last
    assert not (tmp_path / "run").exists()


@pytest.mark.torture
def test_ranks_of_different_runs_are_refused(cache, tmp_path):
    where = f'exec {sys.executable} -m bird_pipelines "$@" --cache {cache} --out {tmp_path}/run --seed $RANK'
    _, err = torchrun(2, where, "bird", "distill", *SHORT, program=SHELL, ok=False)
    (said,) = panels(err)
    assert "other weights" in said


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_refused_once(cache, tmp_path):
    _, err = torchrun(2, "compare", "--cache", cache, "--out", tmp_path / "runs", ok=False)
    (said,) = panels(err)
    assert "without torchrun" in said
    assert "exit code: 2" in said


def test_a_method_that_is_no_mean_over_rows_is_refused(cache, tmp_path):
    for method in ("mfd", "bird+mfd"):
        config = resolve(
            {"cache": str(cache), "dataset": "digits-s", "student": "adapter", "method": method, "out": tmp_path}
        )
        with pytest.raises(UsageError, match=f"{re.escape(method)}.*all pairs"):
            Trainer(config, read(config), World(0, 2))


@pytest.mark.torture
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"at", "bird+at", "mfd", "bird+mfd"}))
def test_every_method_in_four_ranks(cache, tmp_path, method):
    distilled(cache, tmp_path / "alone", method=method, **QUICK)
    torchrun(4, "distill", "--cache", cache, "--out", tmp_path / "run", "--method", method, *SHORT)
    same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.torture
def test_torchrun_starts_the_ranks_again(cache, tmp_path):
    distilled(cache, tmp_path / "whole", method="bird", epochs=20, warmup=10, batch_size=32)
    program = ("--max-restarts", "1", "-m", "bird_pipelines")
    process = start(2, "distill", "--cache", cache, "--out", tmp_path / "run", *LONG, program=program)
    wait_for(exists(f"{tmp_path}/run/checkpoint.json"), process)
    os.kill(next(pid for pid in children(process) if rank_of(pid) == 1), signal.SIGKILL)
    ended(process)
    same(tmp_path / "run", tmp_path / "whole")


AGAIN = """
import os, signal
from bird_pipelines.config import resolve
from bird_pipelines.distilling.ranks import joined

config = resolve({"cache": "none", "out": "none", "dataset": "digits-s", "student": "adapter", "method": "bird"})
with joined(config.place) as world:
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"attempt {attempt}: {world.sum(1.0)}", flush=True)
    if attempt == "0" and world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.wait()
"""


@pytest.mark.slow
def test_ranks_that_are_started_again_find_each_other(tmp_path):
    """torchrun keeps one store for all attempts, with the addresses of the ranks that died."""
    (tmp_path / "again.py").write_text(AGAIN)
    out, _ = torchrun(2, program=("--max-restarts", "1", str(tmp_path / "again.py")))
    assert out.count("attempt 1: [2.0]") == 2


@pytest.mark.torture
def test_a_rank_that_hangs_is_not_waited_for(cache, tmp_path):
    (tmp_path / "options.toml").write_text("rank_seconds = 5\n")
    options = ("--config", tmp_path / "options.toml", "--out", tmp_path / "run")
    process = start(2, "distill", "--cache", cache, *LONG, *options)
    wait_for(exists(f"{tmp_path}/run/checkpoint.json"), process)
    os.kill(next(pid for pid in children(process) if rank_of(pid) == 1), signal.SIGSTOP)
    _, err = ended(process, ok=False)
    (said,) = panels(err)
    assert "LostRankError" in said


@pytest.mark.torture
def test_an_image_student_says_whose_statistics_it_has(cache, tmp_path):
    options = ("--student", "shufflenetv2", "--limit", 120, "--epochs", 1, "--warmup", 0, "--batch-size", 32)
    out, _ = torchrun(2, "distill", "--cache", cache, "--out", tmp_path / "run", *options, "--json")
    assert json.loads(out)["batch_statistics"] == "each rank's own rows of a batch"


def test_ranks_see_the_rows_and_views_of_one_process(cache, tmp_path):
    """The same draw for each row, by whichever rank looks at it."""
    options = {
        "student": "shufflenetv2",
        "limit": 120,
        "method": "bird",
        "dataset": "digits-s",
        "warmup": 0,
        "epochs": 1,
    }
    config = resolve({**options, "cache": str(cache), "out": tmp_path / "run", "batch_size": 13})
    data = read(config)
    whole = Trainer(config, data)
    ranks = [Trainer(config, data, World(rank, 3)) for rank in range(3)]
    for step, rows in enumerate([whole.train_rows[:13], whole.train_rows[13:18]]):
        wanted, parts = whole.material(step, rows), [each.material(step, rows) for each in ranks]
        assert [part.rows for part in parts] == [len(rows)] * 3
        assert sum(part.share for part in parts) == pytest.approx(1)
        busy = [part.batch for part in parts if part.share]
        for number in range(len(rows)):
            assert torch.equal(busy[number % len(busy)].inputs[number // len(busy)], wanted.batch.inputs[number])
        metas = [part.meta.inputs for part in parts]
        for number in range(len(wanted.meta.inputs)):
            assert torch.equal(metas[number % 3][number // 3], wanted.meta.inputs[number])


@given(st.integers(2, 300), st.integers(1, 9))
def test_all_rows_are_dealt_once(count, size):
    dealt = [World(rank, size).deal(count) for rank in range(size)]
    rows = [np.arange(count)[mine] for mine, share in dealt if share]
    assert sorted(np.concatenate(rows).tolist()) == list(range(count))
    assert all(len(each) >= 2 for each in rows)
    assert all(len(np.arange(count)[mine]) >= 2 for mine, _ in dealt)
    assert sum(share for _, share in dealt) == pytest.approx(1)
    assert dealt[0][1] > 0, "rank 0 has rows of its own: its running statistics are kept"


def test_batches_with_too_few_rows_are_refused():
    refuse_ranks(World(0, 4), "bird", "", 8, 8)
    with pytest.raises(UsageError, match=r"--batch-size.*at least 8"):
        refuse_ranks(World(0, 4), "bird", "", 7, 8)
    with pytest.raises(UsageError, match="--meta-per-cell"):
        refuse_ranks(World(0, 4), "bird", "", 8, 7)


def test_a_world_of_one_is_what_there_was(cache, alone):
    info = json.loads((alone / "run.json").read_text())
    assert info["ranks"] == [1]
    assert distill(
        resolve(
            {"cache": str(cache), "dataset": "digits-s", "student": "adapter", "method": "bird", **QUICK, "out": alone}
        )
    )
