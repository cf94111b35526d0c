"""`bird export`: a finished run's student as a file that runs elsewhere, accepted only if it answers as the student does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bird.errors import RunError, UsageError, WrongRunError, unknown_name
from bird.students import Student, input_recipe
from bird_pipelines import runs
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.evaluate import open_run
from bird_pipelines.shipping.card import card
from bird_pipelines.shipping.check import Checked, check, check_rows, refusals
from bird_pipelines.shipping.formats import FORMATS, Format, input_name, need_extra
from bird_pipelines.shipping.halves import not_finite
from bird_pipelines.shipping.networks import hub_config, network_of, summed_heads
from bird_pipelines.shipping.openvino import in_openvino
from bird_pipelines.shipping.quantise import BATCH, Quantiser, calibration_rows, quantised_share, static_int8
from bird_pipelines.shipping.reference import reference_inputs, reference_of
from bird_pipelines.shipping.snippets import snippet_of

__all__ = ["export"]

ABILITIES = ("avx2", "avx512", "avx_vnni", "amx", "asimd", "i8mm", "bf16", "fp16")


def export(
    run: Path,
    out: Path,
    to: str = "onnx",
    *,
    precision: str = "fp32",
    runtime: str | None = None,
    compute: str | None = None,
    batch: int = 64,
    calibrate: int = 512,
    rows: int | None = None,
    allow_drift: bool = False,
    data_root: Path | None = None,
    cache: str | None = None,
    student: object = None,
    dataset: object = None,
    quantiser: Quantiser = static_int8,
) -> dict[str, Any]:
    """Write the student of `run` to the new folder `out`: the file, student.json and README.md. Returns student.json.

    `to` is onnx, pt2, torch or hf; `precision` fp32, fp16 or (ONNX) int8, which `quantiser` makes on about `calibrate` meta
    rows. The file is then run by its `runtime` (openvino may run ONNX, and computes in `compute`: fp32, bf16, fp16) on the
    test rows (all, or about `rows`) in batches of `batch` and one by one, beside the student:
    `bird_pipelines.shipping.check` says what is accepted. `data_root` and `cache` say where these are, if moved;
    `student` is the module of a student of the user's own, `dataset` a data set of theirs.

    Raises UsageError for an unknown or impossible format, a missing library or an `out` that is in use; WrongRunError for
    an unfinished run and for one without test rows; RunError for a file that drifts from its student, unless
    `allow_drift`: then nothing is left of it. Raises as `evaluate` does for missing data.
    """
    kind = _format(to, precision, runtime, compute)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(where=str(out), found="files", wanted="a new or an empty folder", fix="choose another OUT")
    info = _finished(run)
    trained, data, _ = open_run(run, data_root=data_root, cache=cache, student=student, dataset=dataset)
    tested = _tested(run, data, rows)
    with _unfinished(out) as folder:
        path = folder / kind.file
        calibration = _write(trained, data, kind, path, precision, calibrate, quantiser)
        about = _about(trained, data, info, to, precision, kind, kind.facts(path))
        if to == "hf":
            runs.write_json(folder / "config.json", hub_config(trained, about))
        inputs = reference_inputs(trained)
        about["reference"] = reference_of(inputs, kind.open(path, trained), data.class_names)
        about["calibration"] = calibration
        if to == "onnx":
            _annotate(path, about)
        checked = check(trained, kind.open(path, trained), data, tested, batch)  # the bytes that ship
        inside = _beyond_half(path, data, tested, calibrate) if (to, precision) == ("onnx", "fp16") else ()
        about["check"] = _judged(run, replace(checked, beyond_half=inside), allow_drift)
        about["files"] = {each.name: _hash(each) for each in sorted(folder.iterdir())}
        runs.write_json(folder / "student.json", about)
        metrics = runs.read_json(run / "metrics-test.json")
        (folder / "README.md").write_text(card(about, metrics, snippet_of(about)), encoding="utf-8")
        os.replace(folder, out)
    return about | {"out": str(out)}


def _format(to: str, precision: str, runtime: str | None, compute: str | None) -> Format:
    if to not in FORMATS:
        raise unknown_name("--to", to, FORMATS)
    if precision not in FORMATS[to].precisions:
        raise unknown_name(f"--to {to} --precision", precision, FORMATS[to].precisions)
    if to == "onnx":
        need_extra("bird export --to onnx")
    kind = FORMATS[to]
    known = (kind.runtime, "openvino") if to == "onnx" else (kind.runtime,)
    if runtime is not None and runtime not in known:
        raise unknown_name(f"--to {to} --runtime", runtime, known)
    if runtime == "openvino":
        return in_openvino(kind, compute or "fp32")
    if compute is not None:
        raise UsageError(
            where="--compute",
            found=f"a file that {kind.runtime} runs",
            wanted="--runtime openvino, the only runtime here that lets you choose",
            fix="leave --compute out, or add --runtime openvino",
        )
    return kind


def _finished(run: Path) -> dict[str, Any]:
    """run.json. Raises WrongRunError where it is not there."""
    if not (run / "run.json").exists():
        found = "an unfinished run" if (run / "config.json").exists() else "no run folder"
        fix = "run the command that made it again: it resumes" if found.startswith("an") else runs.instead_of(run)
        raise WrongRunError(where=str(run), found=found, wanted="a finished run", fix=fix)
    return runs.read_json(run / "run.json")


def _tested(run: Path, data: RunData, rows: int | None) -> NDArray[np.int64]:
    """The rows of the check. Raises WrongRunError where there is none."""
    tested = check_rows(data, rows)
    if not len(tested):
        raise WrongRunError(
            where=f"run {run}",
            found="no test rows",
            wanted="test rows: an exported file is checked on them",
            fix="export a run whose data set has a test split",
        )
    return tested


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone at the end, unless it was renamed. What a killed export left there goes first."""
    folder = out.parent / f".{out.name}.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    student: Student,
    data: RunData,
    kind: Format,
    path: Path,
    precision: str,
    calibrate: int,
    quantiser: Quantiser,
) -> dict[str, Any] | None:
    """The file, and how it was calibrated. Raises RunError for a quantiser that changed no weight."""
    if precision != "int8":
        kind.write(student, path, precision == "fp16")
        return None
    rows = calibration_rows(data, calibrate)
    whole = path.with_name("whole.onnx")
    kind.write(student, whole, False)
    quantiser(whole, path, _batches(data, rows))
    whole.unlink()
    share = quantised_share(path)
    if share == 0:
        raise RunError(
            where="--precision int8",
            found="a quantised file that holds 0 % of the weights in 8 bits",
            wanted="a quantiser that changes the weights",
            fix="export with --precision fp32: this file is that, under another name",
        )
    return {
        "ids": [str(each) for each in data.table.ids[rows]],
        "split": "meta",
        "balanced_over": "class and group",
        "rows_by_cell": _cells(data, rows),
        "quantised_share": share,
    }


def _beyond_half(path: Path, data: RunData, tested: NDArray[np.int64], most: int) -> tuple[str, ...]:
    """The values inside the graph that half precision cannot hold, for some of at most `most` test rows (one at least)."""
    apart = -(-len(tested) // max(most, 1))
    return tuple(not_finite(path, _batches(data, tested[::apart])))


def _batches(data: RunData, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(rows), BATCH):
        yield data.batch(rows[start : start + BATCH], torch.device("cpu")).inputs.numpy()


def _cells(data: RunData, rows: NDArray[np.int64]) -> dict[str, int]:
    table = data.table
    names = [
        f"{data.class_names[label]}, {data.group_names[group]}"
        for label, group in zip(table.labels[rows].tolist(), table.groups[rows].tolist(), strict=True)
    ]
    return {name: names.count(name) for name in sorted(set(names))}


def _about(
    student: Student,
    data: RunData,
    info: Mapping[str, Any],
    to: str,
    precision: str,
    kind: Format,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """student.json, but for what the file itself answers."""
    config = info["config"]
    network = network_of(summed_heads(student))
    recipe = input_recipe(student, data.images.white_level if data.images else None)
    state_dict = to in ("torch", "hf")
    if recipe["kind"] == "image" and not state_dict:
        recipe["normalisation"] = "inside the file"
    elif recipe["kind"] == "image":
        recipe["normalisation"] = "(pixels - mean) / std, by whoever runs it"
    settings = ("dataset", "dataset_settings", "teacher", "student", "method", "epochs", "seed")
    return {
        "format": "bird-export-1",
        "to": to,
        "precision": precision,
        "effective_precision": _effective(to, precision, facts),
        "file": kind.file,
        "architecture": student.architecture,
        "dim": student.dim,
        "network": None if network is None else network.as_json(),
        "class_names": list(data.class_names),
        "group_names": list(data.group_names),
        "cache_fingerprint": data.fingerprint,
        "input": {"name": input_name(student), "dtype": "float32", **recipe},
        "outputs": {
            "logits": ["batch", student.classes],
            **({} if state_dict else {"features": ["batch", student.dim]}),
        },
        "run": {name: config.get(name) for name in settings} | {"rows": info["rows"], "cells": info.get("cells")},
        "runtime": {"name": kind.runtime, "version": version(kind.runtime), "processor": _abilities(), **facts},
    }


def _effective(to: str, precision: str, facts: Mapping[str, Any]) -> str:
    """What is really computed in which precision, on a CPU."""
    if "layers" in facts:
        return f"OpenVINO computes {', '.join(f'{count} layers in {name}' for name, count in facts['layers'].items())}"
    if precision == "int8":
        return "weights and activations in 8 bits, sums in 32; what onnxruntime does not quantise in float32"
    if precision == "fp32":
        return "float32"
    if to in ("torch", "hf"):
        return "weights kept in float16, computed with in float32"
    return "float16; on a CPU onnxruntime computes in float32 what it has no float16 for" if to == "onnx" else "float16"


def _annotate(path: Path, about: Mapping[str, Any]) -> None:
    """What student.json says of the graph, in the graph's own metadata, each value as JSON."""
    import onnx

    model = onnx.load(path)
    names = ("class_names", "group_names", "cache_fingerprint", "precision", "input", "outputs", "reference")
    onnx.helper.set_model_props(model, {name: json.dumps(about[name], ensure_ascii=False) for name in names})
    onnx.save(model, path)


def _judged(run: Path, checked: Checked, allow_drift: bool) -> dict[str, Any]:
    """The check as JSON. Raises RunError for a file that is not accepted."""
    reasons = refusals(checked)
    if reasons and not allow_drift:
        raise RunError(
            where=f"export of {run}",
            found="; ".join(reasons),
            wanted="a file that answers as its student does, cell by cell",
            fix="export in a higher precision, or keep it all the same with --allow-drift: the card then says so",
        )
    return {"accepted": not reasons, "refusals": reasons, **checked.as_json()}


def _hash(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _abilities() -> list[str]:
    """What the processor can do that decides how low precision is computed; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted(flag for flag in flags if flag.startswith(ABILITIES))
