"""What a run that failed leaves in its folder: what was paid for is kept, and what kept nothing gives way to another try."""

import json

import numpy as np
import pytest
from helpers.own_parts import SQUARES
from helpers.shell import distilled

import bird_pipelines
from bird.errors import DivergedError, OutOfMemoryError, WrongRunError
from bird_cache.errors import BusyCacheError, StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines import runs
from bird_pipelines.config import resolve
from bird_pipelines.distilling.side_by_side import distill_many

SHORT = {"epochs": 3, "warmup": 1, "batch_size": 32}
METHOD = """
from torch import nn

from bird.methods import Method


class Plain(Method):
    features = True

    def step(self, learner, batch, meta_batch, *, warm):
        loss = nn.functional.cross_entropy(learner.model(batch.inputs).logits, batch.labels)
        if self.number >= {at}:
            {fault}
        learner.descend(loss)
        return {{"loss": loss.detach()}}
"""
NEVER = 10**9


@pytest.fixture
def own(tmp_path):
    """A method of one's own, which meets a fault at a step."""

    def write(fault, at):
        path = tmp_path / "mine.py"
        path.write_text(METHOD.format(fault=fault, at=at))
        return f"{path}:Plain"

    return write


def steps_an_epoch(cache):
    return -(-int((open_cache(cache).samples.splits == "train").sum()) // SHORT["batch_size"])


def bytes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("checkpoint")}


@pytest.mark.parametrize("seeds", [{"seed": 1}, {"seeds": "0-1"}], ids=["one", "stack"])
def test_the_rate_that_diverged_in_the_first_epoch_can_be_mended_in_the_same_folder(cache, tmp_path, seeds):
    with pytest.raises(DivergedError, match=r"run .*after step"):
        distilled(cache, tmp_path / "run", method="fitnet", **SHORT, lr=1e30, **seeds)
    distilled(cache, tmp_path / "run", method="fitnet", **SHORT, lr=1e-3, **seeds)
    said = [json.loads(path.read_text()) for path in (tmp_path / "run").rglob("config.json")]
    assert {each["identity"]["lr"] for each in said} == {1e-3}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("raise MemoryError", OutOfMemoryError),
        ("raise LookupError", LookupError),
        ("raise KeyboardInterrupt", KeyboardInterrupt),
    ],
)
def test_what_failed_before_its_first_checkpoint_gives_way(cache, tmp_path, own, fault, kind):
    with pytest.raises(kind):
        distilled(cache, tmp_path / "run", method=own(fault, at=1), **SHORT)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["batch_size"] == 32
    smaller = {**SHORT, "batch_size": 64}
    assert distilled(cache, tmp_path / "run", method=own(fault, at=NEVER), **smaller)["complete"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["batch_size"] == 64


def test_a_method_that_raises_in_the_second_epoch_loses_nothing_and_is_told_what_is_kept(cache, tmp_path, own):
    steps = steps_an_epoch(cache)
    broken = own("raise LookupError", at=steps + 1)
    with pytest.raises(LookupError):
        distilled(cache, tmp_path / "run", method=broken, **SHORT)
    kept = bytes_in(tmp_path / "run")
    assert json.loads(kept["checkpoint.json"])["epoch"] == 1
    mended = own("raise LookupError", at=NEVER)
    with pytest.raises(
        WrongRunError, match=rf"own\.method\.sha256 = .*\({steps} steps of it are kept\).*mine\.py.*delete the folder"
    ):
        distilled(cache, tmp_path / "run", method=mended, **SHORT)
    assert bytes_in(tmp_path / "run") == kept


def test_a_student_of_nan_never_replaces_a_checkpoint(cache, tmp_path, own):
    """Also where one is saved at each step: the last one is from before the loss was none."""
    at = steps_an_epoch(cache) + 2
    with pytest.raises(DivergedError, match=rf"run .*run: found NaN .* after step {at + 1}: .*lower --lr"):
        distilled(
            cache, tmp_path / "run", method=own("loss = loss * float('nan')", at), **SHORT, checkpoint_seconds=1e-9
        )
    tensors, state = runs.load_checkpoint(tmp_path / "run")
    assert state["step"] == at
    assert all(each.isfinite().all() for each in tensors.values())


def test_one_of_a_stack_that_diverges_takes_nothing_from_the_others(cache, tmp_path):
    flags = {"dataset": "digits-s", "student": "adapter", "method": "fitnet", "cache": cache, **SHORT}
    rates = {"a": 1e30, "b": 1e-3}
    with pytest.raises(DivergedError, match=r"run .*a: found NaN"):
        distill_many([resolve({**flags, "lr": lr, "out": tmp_path / name}) for name, lr in rates.items()])
    assert not (tmp_path / "a" / "checkpoint.json").exists()
    assert runs.load_checkpoint(tmp_path / "b")[1]["epoch"] == 1


def test_a_folder_of_another_program_and_one_in_use_are_not_taken(cache, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(WrongRunError, match="there are other files"):
        distilled(cache, tmp_path / "model", method="fitnet", **SHORT)
    assert (tmp_path / "model" / "config.json").read_text() == '{"hidden_size": 8}'
    flags = {"dataset": "digits-s", "student": "adapter", "method": "fitnet", "cache": cache, "out": tmp_path / "run"}
    with runs.held(resolve({**flags, "lr": 1e-3}), None):
        with pytest.raises(BusyCacheError), runs.held(resolve({**flags, "lr": 1e-2}), None):
            pass
        assert json.loads((tmp_path / "run" / "config.json").read_text())["identity"]["lr"] == 1e-3


TEACHER = """
from pathlib import Path

import torch

asked = 0


def corners(pixels):
    global asked
    asked += 1
    Path({notes!r}).write_text(str(asked))
    if asked > {at}:
        raise LookupError("no more")
    return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)
"""


@pytest.mark.parametrize("kept", [0, 2], ids=["no-shard", "two-shards"])
def test_a_teacher_that_fails_gives_its_folder_back_unless_vectors_were_paid_for(tmp_path, kept):
    """Three shards of one batch each, which are the last that is asked."""
    file, notes, out = tmp_path / "mine.py", tmp_path / "notes", tmp_path / "cache"

    def write(out, at):
        file.write_text(TEACHER.format(at=at, notes=str(notes)) + SQUARES)
        sizes = {"workers": 1, "batch_size": 32, "shard_rows": 32}
        return bird_pipelines.precompute(teacher=f"{file}:corners", dataset=f"{file}:Squares", out=out, **sizes)

    def files():
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    write(tmp_path / "whole", NEVER)
    with pytest.raises(Exception, match="no more"):
        write(out, int(notes.read_text()) - 3 + kept)
    before = files()
    if not kept:
        write(out, NEVER)
        found, expected = (open_cache(each)["penultimate"][:] for each in (out, tmp_path / "whole"))
        assert np.array_equal(found, expected)
        return
    with pytest.raises(StaleCacheError, match=r"found vectors of corners@.*write to another folder"):
        write(out, NEVER)
    assert files() == before
    assert sum("commits" in str(path) for path in before) == kept
