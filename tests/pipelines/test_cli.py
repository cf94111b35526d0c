"""The command line: quick to answer, one clear panel for a mistake, one JSON object where asked."""

import json
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.shell import BIRD, ENVIRONMENT, bird, bird_json, panel

import bird_pipelines
from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.errors import (
    BirdError,
    DataError,
    EmptyCellError,
    ImageError,
    RunError,
    TeacherError,
    UsageError,
    WrongRunError,
)
from bird_cache import errors as cache_errors
from bird_pipelines.cli import main, show


def test_help_answers_in_half_a_second():
    """In seconds of processor time, the best of three: the clock on the wall depends on what else is running."""

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(3):
        before = spent()
        subprocess.run([*BIRD, "--help"], capture_output=True, env=ENVIRONMENT, check=True)
        seconds.append(spent() - before)
    assert min(seconds) < 0.5


def test_help_names_every_command():
    text = bird("--help").stdout
    for command in (
        "precompute",
        "distill",
        "train",
        "evaluate",
        "report",
        "demo",
        "reproduce",
        "doctor",
        "list",
        "cache",
    ):
        assert command in text
    for command in ("precompute", "distill", "train"):
        assert "--out" in bird(command, "--help").stdout


@pytest.mark.parametrize("what", ["teachers", "students", "methods", "datasets"])
def test_lists(what):
    found = bird_json("list", what)
    expected = {"teachers": "clip-vit-b32", "students": "adapter", "methods": "bird", "datasets": "celeba"}
    assert expected[what] in found
    assert expected[what] in bird("list", what).stdout


def test_doctor_is_well():
    assert bird_json("doctor")["checks"] == {"cache": "ok", "feedback": "ok"}


MISTAKES = {
    "unknown teacher": ("precompute", "--teacher", "clip-vit-b-32", "--dataset", "digits-s", "--out", "OUT"),
    "unknown data set": ("precompute", "--teacher", "onnx:x", "--dataset", "cifar10", "--out", "OUT"),
    "wrong data root": (
        "precompute",
        "--teacher",
        "onnx:x",
        "--dataset",
        "cifar10s",
        "--data-root",
        "OUT",
        "--out",
        "OUT",
    ),
    "unknown setting": ("train", "--dataset", "digits-s", "--setting", "skwe=1", "--out", "OUT"),
    "unknown list": ("list", "teacher"),
    "no such cache": ("cache", "info", "OUT/absent"),
    "adapter without a cache": ("train", "--dataset", "digits-s", "--student", "adapter", "--out", "OUT"),
    "unknown dtype": (
        "precompute",
        "--teacher",
        "onnx:x",
        "--dataset",
        "digits-s",
        "--dtype",
        "int8",
        "--out",
        "OUT",
    ),
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_panel_and_exit_2(arguments, tmp_path):
    done = bird(*(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments), code=2)
    assert done.stdout == ""
    assert "what to do" in panel(done)
    assert not (tmp_path / "out").exists()


def test_a_missing_teacher_is_exit_4(tmp_path):
    done = bird(
        "precompute",
        "--teacher",
        f"onnx:{tmp_path}/x.onnx",
        "--dataset",
        "digits-s",
        "--out",
        tmp_path / "c",
        code=4,
    )
    assert "no such file" in panel(done)


def test_a_typo_in_an_option_is_exit_2():
    done = bird("distill", "--cahce", "x", code=2)
    assert "--cache" in done.stderr


def test_not_a_run_is_said(tmp_path):
    assert "run folder" in panel(bird("evaluate", tmp_path, code=2))


PARSED = {
    "unknown command": (("distil",), "'distil'", "did you mean distill?"),
    "unknown command of a group": (("cache", "verfy"), "'verfy'", "did you mean verify?"),
    "unknown option": (("distill", "--cahce", "x"), "'--cahce'", "did you mean --cache?"),
    "unknown option, unlike any": (("list", "--zzz", "x"), "'--zzz'", "see `bird list --help`"),
    "no option that is needed": (("distill", "--out", "x"), "no --cache", "give --cache"),
    "no argument": (("evaluate",), "no RUN", "give RUN"),
    "no number": (
        ("distill", "--cache", "x", "--out", "y", "--epochs", "ten"),
        "found: 'ten'",
        "`bird distill --help`",
    ),
    "too small a number": (
        ("precompute", "--teacher", "t", "--dataset", "d", "--out", "o", "--tasks", 0),
        "--tasks",
        "1",
    ),
    "no value": (("distill", "--cache"), "where: --cache", "correct it"),
    "one argument too many": (("evaluate", "a", "b"), "extra argument", "see `bird evaluate --help`"),
}


@pytest.mark.parametrize(("arguments", "found", "fix"), PARSED.values(), ids=PARSED)
def test_what_the_parser_refuses_is_one_panel_of_ours(arguments, found, fix):
    said = panel(bird(*arguments, code=2))
    assert "UsageError" in said
    for part in ("where: ", "found: ", "wanted: ", "what to do: ", found, fix):
        assert part in said


def test_help_and_version_end_well():
    for asked in ("--help", "--version"):
        assert bird(asked).stderr == ""
    shown = bird(code=2)
    assert "precompute" in shown.stdout + shown.stderr
    assert "╭─ UsageError" not in shown.stderr


WRONG = {
    "an empty folder": ({}, "evaluate", 2),
    "no run to export": ({}, "export", 2),
    "no run to report on": ({}, "report", 2),
    "an unfinished run to export": ({"config.json": "{}"}, "export", 2),
    "an unfinished run to report on": ({"config.json": "{}"}, "report", 2),
    "a damaged config": ({"config.json": "{"}, "evaluate", 1),
    "a config of another version": ({"config.json": '{"identity": {}}'}, "evaluate", 2),
    "a damaged record": ({"config.json": "{}", "run.json": "["}, "report", 1),
}


@pytest.mark.parametrize(("files", "command", "code"), WRONG.values(), ids=WRONG)
def test_the_exit_code_says_whether_the_folder_is_wrong_or_damaged(tmp_path, files, command, code):
    run = tmp_path / "run"
    run.mkdir()
    for name, text in files.items():
        (run / name).write_text(text)
    more = {"export": ("--to", "torch", tmp_path / "out"), "report": ("--out", tmp_path / "page.html")}.get(command, ())
    said = panel(bird(command, run, *more, code=code))
    assert ("WrongRunError" in said) == (code == 2)


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "from bird_pipelines.cli import main; main()", "list", "x", "--debug"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert "Traceback" in done.stderr


def picture_table(folder, seed):
    """A CIFAR-10 look-alike as Parquet: raw PNGs of random pixels."""
    from io import BytesIO

    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(seed)
    for split, count in (("train", 200), ("test", 20)):
        images = []
        for _ in range(count):
            buffer = BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
            images.append(buffer.getvalue())
        table = {
            "id": [f"{split}-{i}" for i in range(count)],
            "image": images,
            "label": [i % 10 for i in range(count)],
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


@pytest.mark.slow
def test_a_cache_of_another_data_set_is_refused(teacher, tmp_path):
    picture_table(tmp_path / "mine", 0)
    picture_table(tmp_path / "other", 1)
    out = tmp_path / "cache"
    flags = ("--teacher", f"run:{teacher}", "--dataset", "cifar10s", "--setting", "skew=0.8", "--out", out)
    bird("precompute", *flags, "--data-root", tmp_path / "mine")
    assert "dataset.identity" in panel(bird("precompute", *flags, "--data-root", tmp_path / "other", code=3))
    train = ("distill", "--cache", out, "--student", "shufflenetv2", "--epochs", 1, "--out", tmp_path / "run")
    assert "another image" in panel(bird(*train, "--data-root", tmp_path / "other", code=3))
    bird("cache", "verify", out)


def test_json_is_one_object_and_nothing_else(cache, tmp_path):
    done = bird("distill", "--cache", cache, "--epochs", 1, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["complete"]
    assert done.stdout.count("\n") == 1
    metrics = bird_json("evaluate", tmp_path / "run")
    wanted = (
        "auroc",
        "f1_macro",
        "f1_binary",
        "accuracy",
        "mean_deo",
        "max_deo",
        "recalls",
        "counts",
        "deo_floor",
        "beyond_chance",
        "intervals",
    )
    assert {*wanted} <= {*metrics}
    assert metrics["f1_binary"] is None, "ten classes"
    assert (len(metrics["recalls"]), len(metrics["recalls"][0])) == (10, 2)


def test_exit_codes_are_those_of_the_readme():
    assert [kind.exit_code for kind in (BirdError, RunError)] == [1, 1]
    assert {kind.exit_code for kind in (UsageError, WrongRunError, DataError, ImageError, EmptyCellError)} == {2}
    assert TeacherError.exit_code == cache_errors.FeatureError.exit_code == 4
    stale = (cache_errors.StaleCacheError, cache_errors.DamagedCacheError, cache_errors.IncompleteCacheError)
    assert {kind.exit_code for kind in stale} == {3}


def test_a_share_that_is_a_percentage_is_told_as_a_share(tmp_path):
    flags = ("--teacher", "onnx:none", "--dataset", "digits-s", "--out", tmp_path / "cache", "--max-failed")
    told = panel(bird("precompute", *flags, 75, code=2))
    assert "found: 75 wanted: a share, from 0 to 1 what to do: did you mean 0.75?" in told
    assert "did you mean" not in panel(bird("precompute", *flags, 200, code=2))
    with pytest.raises(UsageError, match=r"did you mean 0\.75"):
        bird_pipelines.precompute(teacher="onnx:none", dataset="digits-s", out=tmp_path / "cache", max_failed=75)


def test_an_interrupt_anywhere_is_one_panel_and_exit_130(monkeypatch, capsys):
    def stopped(what, name):
        raise KeyboardInterrupt

    monkeypatch.setattr("bird_pipelines.cli.catalogue.catalogue", stopped)
    monkeypatch.setattr(sys, "argv", ["bird", "list", "methods"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_every_count_of_a_data_set_is_told_in_words():
    assert {*prepare(open_dataset("digits-s")).notes} - {"listed"} <= {*show.PREPARED}
