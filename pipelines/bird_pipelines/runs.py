"""A run folder: its configuration, its checkpoints, its curve, and what it ended as.

config.json            what the run is, written first: a folder is resumed only by the same configuration
checkpoint.json        where training stands, naming checkpoint-N.safetensors and its sha256
curve.jsonl            one line an epoch
student.safetensors, student.json, metrics-SPLIT.json
predictions-test.npz   a row a test sample: ids, labels, groups, predictions, scores (`scoring.save_predictions`)
run.json               the last word, written last: a folder without it is unfinished
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from bird.errors import RunError
from bird_cache.files import LOCKS, replace
from bird_cache.manifest import flatten
from bird_pipelines.config import RunConfig
from bird_pipelines.config.option import as_json
from bird_pipelines.config.reading import usual_average
from bird_pipelines.config.run import options_of_a_run

__all__ = ["claim", "finish", "load_checkpoint", "read_json", "save_checkpoint", "write_json"]


def claim(config: RunConfig, fingerprint: str | None) -> None:
    """Start a run in `config.place.out`, or check that the one there is this one.

    Raises RunError, naming the field, if the folder holds another run or something else.
    """
    folder = config.place.out
    asked: dict[str, Any] = {"identity": config.identity(), "fingerprint": fingerprint}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refuse(
            folder, error.strerror or str(error), "a folder that can be written", "choose another --out"
        ) from None
    if (folder / "config.json").exists():
        found = read_json(folder / "config.json")
        # a folder that is older than an option does not name it
        identity = found.get("identity", {})
        if "offsets_from" not in identity or "average" not in identity:  # then only some methods heeded `average`
            usual = usual_average(config.method)
            identity = identity | {"average": identity.get("average", usual) if usual else 0.0}
        there, here = (flatten(_defaults() | each) for each in (identity, asked["identity"]))
        there, here = there | {"fingerprint": found.get("fingerprint")}, here | {"fingerprint": fingerprint}
        for field in sorted({*there, *here}):
            if there.get(field) != here.get(field):
                raise _refuse(
                    folder,
                    f"a run with {field} = {there.get(field)}",
                    f"{field} = {here.get(field)}",
                    "choose another --out, or repeat the old settings to resume it",
                )
        return
    if foreign := [entry.name for entry in folder.iterdir() if entry.name not in LOCKS]:
        raise _refuse(
            folder,
            f"other files ({', '.join(sorted(foreign)[:3])})",
            "an empty folder",
            "choose another --out",
        )
    cache, root = config.source.cache, config.source.data_root
    cache = cache if cache is None or "://" in cache else str(Path(cache).resolve())
    where = {"cache": cache, "data_root": str(root.resolve()) if root else None}
    write_json(folder / "config.json", asked | {"place": where})


def _defaults() -> dict[str, Any]:
    found = {each.name: as_json(each.default) for each in options_of_a_run() if not each.option.place}
    return {name: value for name, value in found.items() if value is not MISSING}


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Tensors and state, replaced together: the JSON names the tensor file and is written second."""
    data = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    name = f"checkpoint-{step}.safetensors"
    replace(folder / name, data)
    write_json(folder / "checkpoint.json", {**state, "tensors": name, "sha256": hashlib.sha256(data).hexdigest()})
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_checkpoint` saved last, or None. Raises RunError if it is damaged."""
    if not (folder / "checkpoint.json").exists():
        return None
    state = read_json(folder / "checkpoint.json")
    try:
        data = (folder / state["tensors"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != state["sha256"]:
            raise ValueError("another sha256")
        return load_tensors(data), state
    except (OSError, ValueError, KeyError) as error:
        raise _refuse(
            folder,
            f"a damaged checkpoint ({error})",
            "the bytes that were saved",
            "delete the folder and start again",
        ) from None


# What a run must share with the one that it begins from.
SHARED = ("dataset", "dataset_settings", "student", "method", "optimizer")


def begin_from(config: RunConfig, fingerprint: str | None) -> dict[str, Tensor]:
    """The tensors that `config.training.start_from` ended with. Raises RunError if it is unfinished, or of another kind."""
    assert config.training.start_from is not None
    folder = config.training.start_from
    there = read_json(folder / "run.json")
    settings, here = _defaults() | there["config"], _defaults() | config.identity()
    values = {name: (settings.get(name), here[name]) for name in SHARED}
    for name, (found, wanted) in {**values, "fingerprint": (there["fingerprint"], fingerprint)}.items():
        if found != wanted:
            raise _refuse(folder, f"{name} {found}", f"{name} {wanted}", "begin from a run of the same kind")
    loaded = load_checkpoint(folder)
    if loaded is None:
        raise _refuse(folder, "no checkpoint", "the one that it ended with", "begin from another run")
    return loaded[0]


def write_json(path: Path, value: object) -> None:
    """A JSON file, replaced atomically."""
    replace(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder. Raises RunError where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _refuse(
            path.parent, f"{path.name} that cannot be read ({error})", "a run folder", "check the path"
        ) from None
    if not isinstance(value, dict):
        raise _refuse(path.parent, f"{path.name} that is no JSON object", "a run folder", "check the path")
    return value


def finish(folder: Path, summary: Mapping[str, Any]) -> None:
    """The last word: run.json with complete = true."""
    write_json(folder / "run.json", {"complete": True, **summary})


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named PREFIX.NAME, by NAME."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _refuse(folder: Path, found: str, wanted: str, fix: str) -> RunError:
    return RunError(where=f"run {folder}", found=found, wanted=wanted, fix=fix)
