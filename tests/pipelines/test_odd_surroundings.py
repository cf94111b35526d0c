"""Terminals, names and images that are not what one hopes for: the command says what it found, and finishes its work."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.shell import BIRD, ENVIRONMENT, bird, bird_json, panel
from PIL import Image

from bird.students import build_student, student_files
from bird_cache.store import open_cache
from bird_pipelines.cli import show


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_arrows_gets_question_marks_and_exit_0(
    cache: Path, tmp_path: Path, encoding: str, record_property: Any
) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
    command = [*BIRD, "distill", "--cache", str(cache), "--epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert b"auroc ?" in done.stdout


def test_what_the_file_system_refuses_has_a_path_and_a_remedy(record_property: Any) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    lines = show.surprise(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/data/x.jpg"))
    assert lines["where"] == "/data/x.jpg"
    assert "ulimit" in lines["what to do"]
    assert "unexpected" in show.surprise(ValueError("a fault of ours"))


def test_a_path_that_is_not_utf8_is_named(cache: Path, tmp_path: Path, record_property: Any) -> None:
    record_property("28 names, encodings and refusing systems", 1)
    out = os.fsencode(tmp_path) + "/Läufe".encode("latin-1")
    try:
        os.mkdir(out)
        os.rmdir(out)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    done = bird("distill", "--cache", cache / "gone", "--out", os.fsdecode(out), code=2)
    assert "unexpected" not in panel(done)
    with pytest.raises(UnicodeEncodeError) as caught:
        json.dumps({"place": os.fsdecode(out)}, ensure_ascii=False).encode()
    assert r"L\udce4ufe" in show.surprise(caught.value)["where"]


def test_a_locale_without_utf8_is_named(monkeypatch: pytest.MonkeyPatch, record_property: Any) -> None:
    """Python has UTF-8 in the locale C, unless PYTHONUTF8=0, and not in those of other code pages."""
    record_property("28 names, encodings and refusing systems", 1)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UnicodeEncodeError) as caught:
        "/data/é.png".encode("ascii")
    lines = show.surprise(caught.value)
    assert lines["where"] == r"'/data/\xe9.png'"
    assert "PYTHONUTF8=1" in lines["what to do"]


def test_images_that_carry_little_are_counted_by_group(teacher: Path, tmp_path: Path, record_property: Any) -> None:
    """Gray images of 16 bits that use 12, as many sensors write them; in a second cache with the white level they have."""
    record_property("30 pictures that carry nothing", 40)
    rng, lines = np.random.default_rng(0), ["path,label,group"]
    for number in range(80):
        pixels = rng.integers(0, 4096, (24, 24)).astype(np.uint16)
        Image.fromarray(pixels if number % 2 else pixels * 16).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number // 2 % 2},{'ab'[number % 2]}")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path)
    info = bird_json("precompute", *flags, "--out", tmp_path / "dark")
    assert info["doubtful"] == {"nearly black": {"0, b": 20, "1, b": 20}}
    assert "nearly black images: 40 of 80 rows" in bird("cache", "info", tmp_path / "dark").stdout
    bird("cache", "convert", tmp_path / "dark", tmp_path / "copy", "--store", "zarr")
    assert open_cache(tmp_path / "copy").info()["doubtful"] == info["doubtful"]
    updated = bird_json("precompute", *flags, "--update", tmp_path / "dark", "--out", tmp_path / "again")
    assert updated["doubtful"] == info["doubtful"]  # of rows that were not looked at again
    data = ("--dataset", "table", "--data-root", tmp_path, "--student", "tiny-convnet", "--epochs", "1")
    trained = bird("train", *data, "--out", tmp_path / "run")
    assert "40 of 80 images carry little" in " ".join(trained.stderr.split())
    info = bird_json("precompute", *flags, "--setting", "white_level=4095", "--out", tmp_path / "right")
    assert info["doubtful"] == {}
    assert info["causes"]["dataset"]["settings"]["white_level"] == 4095


def test_what_was_read_otherwise_is_told_before_the_teacher_runs(teacher: Path, tmp_path: Path) -> None:
    lines = ["path,label,group,split,age"]
    for number in range(40):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        split = ("train", "val", "test", "test")[number // 4 % 4]
        lines.append(f"{number}.png,{number // 2 % 2},{number % 2},{split},30")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--out", tmp_path / "cache")
    done = bird("precompute", *flags)
    assert "note: columns that are not read: 'age'" in done.stderr
    assert "note: split 'val' is taken as meta: 12 rows" in done.stderr


def test_student_json_says_what_the_student_reads_and_answers(record_property: Any) -> None:
    record_property("33 a student elsewhere", 1)
    student = build_student("resnet18", classes=2, image_size=32)
    about = json.loads(student_files(student, None, ["no", "yes"], ["a", "b"])["student.json"])
    assert about["class_names"] == ["no", "yes"]
    assert about["group_names"] == ["a", "b"]
    assert about["input"]["shape"] == ["batch", 3, 32, 32]
    assert about["input"]["range"] == "0 to 1: values of 0 to 255 divided by 255"
    assert about["outputs"] == {"features": ["batch", 512], "logits": ["batch", 2]}
