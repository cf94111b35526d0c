"""Each tracker writes real files, which are read back; nothing is sent twice; one that fails does not stop a run."""

import json
import os
import struct
import sys
import time

import pytest
from helpers.shell import bird, distilled, panel

from bird.errors import UsageError
from bird_pipelines.distilling import training
from bird_pipelines.tracking import TRACKERS, Tracker

SHORT = {"method": "bird", "epochs": 3, "warmup": 1, "batch_size": 32}


def wanted(run):
    """The losses and the accuracy on meta of each epoch, as curve.jsonl has them, and the test scores."""
    curve = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    loss = {line["epoch"]: line["loss"] for line in curve}
    accuracy = {line["epoch"]: line["meta"]["accuracy"] for line in curve}
    test = json.loads((run / "metrics-test.json").read_text())
    return loss, accuracy, {"accuracy": test["accuracy"], "mean_deo_floor": test["deo_floor"]["mean"]}


def same(run, found):
    """`found` is a function of a name that gives {epoch: value}, each epoch once."""
    loss, accuracy, test = wanted(run)
    assert found("loss") == pytest.approx(loss, rel=1e-6)
    assert found("meta/accuracy") == pytest.approx(accuracy, rel=1e-6)
    assert set(found("meta/trivial").values()) <= {0.0, 1.0}
    for name, value in test.items():
        assert found(f"test/{name}") == pytest.approx({max(loss): value}, rel=1e-6)


def interrupted_once(cache, run, monkeypatch, **flags):
    """A run that was stopped after its second and again after its last epoch, and finished."""
    save = training.Trainer.save

    def killed(trainer):
        save(trainer)
        if trainer.epoch in (2, 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "save", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                distilled(cache, run, **SHORT, **flags)
    distilled(cache, run, **SHORT, **flags)


def test_tensorboard(cache, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    interrupted_once(cache, tmp_path / "run", monkeypatch, report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()

    def found(name):
        lines = events.Tensors(name)
        assert len(lines) == len({each.step for each in lines})
        return {each.step: float(make_ndarray(each.tensor_proto)) for each in lines}

    same(tmp_path / "run", found)


@pytest.mark.slow
def test_trackio(cache, tmp_path):
    """In a process of its own: trackio reads its folder when it is imported. Two runs side by side."""
    pytest.importorskip("trackio")
    script = (
        "import sys, json, bird_pipelines\n"
        "cache, out = sys.argv[1:]\n"
        f"bird_pipelines.distill(cache=cache, out=out, seeds='0-1', report_to='trackio', **{SHORT!r})\n"
        "print('OUT')\n"
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps({name: S.get_logs('bird', name) for name in S.get_runs('bird')}))\n"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", script, str(cache), str(tmp_path / "all")],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, logs = done.stdout.split("OUT\n")
    assert told == "", "stdout is the command's own"
    logs = json.loads(logs)
    assert len(logs) == 2
    for seed in (0, 1):
        (mine,) = (lines for name, lines in logs.items() if f"seed-{seed}-" in name)
        same(tmp_path / "all" / f"seed-{seed}", lambda name, mine=mine: {e["step"]: e[name] for e in mine if name in e})


def records(path):
    """The records of a .wandb file: a LevelDB log of blocks of 32 KiB, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        whole, place = whole + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def whole(path, seconds=60):
    """The records of a run that has ended: wandb's own process may still write them for a moment."""
    end = time.monotonic() + seconds
    while not (found := [*records(path)]) or found[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < end, "the end was never written"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_wandb_is_offline_and_two_parts_of_a_run_have_one_id(cache, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    interrupted_once(cache, tmp_path / "run", monkeypatch, report_to="wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1, "one id"
    logged: dict[str, dict[int, float]] = {}
    for path in files:
        for record in whole(path):
            values = {"".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            for name, value in values.items():
                if not name.startswith("_"):
                    assert record.history.step.num not in logged.setdefault(name, {})
                    logged[name][record.history.step.num] = value
    same(tmp_path / "run", logged.__getitem__)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy")
def test_mlflow(cache, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    interrupted_once(cache, tmp_path / "run", monkeypatch, report_to="mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bird").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "bird"

    def found(name):
        lines = client.get_metric_history(run.info.run_id, name)
        assert len(lines) == len({each.step for each in lines})
        return {each.step: each.value for each in lines}

    same(tmp_path / "run", found)


class Breaks(Tracker):
    """A tracker of a kind that loses its connection at the second epoch."""

    package = "json"

    def begin(self, run, id, *, resumed):
        self.seen = []

    def log(self, epoch, values):
        self.seen.append(epoch)
        if epoch == 2:
            raise ConnectionError("the server is gone\nand more")

    def end(self, *, complete):
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_warns_once_and_the_run_goes_on(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKERS, "breaks", Breaks)
    info = distilled(cache, tmp_path / "run", **SHORT, report_to="breaks")
    assert info["complete"]
    told = [line for line in capsys.readouterr().err.splitlines() if "report-to" in line]
    assert len(told) == 1
    assert "the server is gone" in told[0]
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["breaks"]["epoch"] == 1


def test_a_tracker_changes_no_bit_and_is_no_part_of_what_a_run_is(cache, tmp_path):
    pytest.importorskip("tensorboard")
    distilled(cache, tmp_path / "plain", **SHORT)
    distilled(cache, tmp_path / "told", **SHORT, report_to="tensorboard")
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("plain", "told")]
    assert files[0] == files[1]
    assert "report_to" not in json.loads((tmp_path / "told" / "run.json").read_text())["config"]


def test_unknown_and_missing_trackers_are_refused_before_anything_is_written(cache, tmp_path, monkeypatch):
    said = panel(bird("distill", "--cache", cache, "--out", tmp_path / "x", "--report-to", "tensorbord", code=2))
    assert "tensorboard" in said

    class Missing(Breaks):
        package = "no_such_package"

    monkeypatch.setitem(TRACKERS, "wandb", Missing)
    with pytest.raises(UsageError, match=r"bird-distill\[wandb\]"):
        distilled(cache, tmp_path / "x", **SHORT, report_to="wandb")
    assert not (tmp_path / "x").exists()
