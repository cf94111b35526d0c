"""From flags and a TOML file to the record that a phase is given. Checked once, here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, final

from bird.errors import UsageError, nearest, unknown_name
from bird.own import Part, find, is_label
from bird_pipelines.config import cache, run
from bird_pipelines.config.cache import PrecomputeConfig, options_of_a_cache
from bird_pipelines.config.option import Declared, Record, declared, wanted_in_words
from bird_pipelines.config.run import RunConfig, options_of_a_run

__all__ = ["own_parts", "resolve", "resolve_precompute", "run_of", "usual_average"]

# Where a paper gives values for one data set (Java et al. 2023, section 4 and Table 8; mfd_weight: Jung et al. 2021).
PRESETS: Mapping[str, Mapping[str, float]] = {
    "cifar10s": {"alpha": 0.5, "tau": 10.0, "lambda": 0.2},
    "celeba": {"mfd_weight": 7.0},
}
# Values that hold for every data set, by the name that `--preset` gives them.
NAMED_PRESETS: Mapping[str, Mapping[str, float]] = {"paper": {"at_beta": 1e6}}
USUAL_STEPS: Mapping[str, float] = {"lr_step_epochs": 10, "lr_gamma": 0.1}
AS_USUAL = -1.0  # an average that nobody has given
AD_SHORT = 20  # epochs up to which the student of AD moves in every one


def resolve_precompute(flags: Mapping[str, Any], file: Path | None = None) -> PrecomputeConfig:
    """The order for a cache: defaults, then the TOML `file`, then `flags` that are not None. Raises UsageError naming every
    option that is unknown or out of range."""
    values = {} if file is None else _read(file, "bird precompute")
    values |= {name.removesuffix("_"): value for name, value in flags.items() if value is not None}
    values = {name: str(value) if name in ("out", "update") else value for name, value in values.items()}
    _locate(values)
    own = own_parts(values)
    found = _checked({**values, **_labels(own)}, options_of_a_cache(), cache.PARTS, "bird precompute", file)
    return PrecomputeConfig(**found, own=own)


def _locate(values: dict[str, Any]) -> None:
    """Read "hf:FOLDER" as a data set and its folder. Raises UsageError for two folders."""
    if isinstance(name := values.get("dataset"), str) and name.startswith("hf:"):
        from bird.datasets import located

        values["dataset"], values["data_root"] = located(name, values.get("data_root"))


def resolve(flags: Mapping[str, Any], file: Path | None = None, defaults: Mapping[str, Any] | None = None) -> RunConfig:
    """A run's configuration: defaults, then the data set's preset, then the one that `preset` names, then the TOML `file`,
    then `flags` that are not None.

    Raises UsageError naming every option that is unknown or out of range, or the unknown preset, data set, student or
    method.
    """
    values = dict(defaults or {})
    for given in ({} if file is None else _read(file), flags):
        values |= {name.removesuffix("_"): value for name, value in given.items() if value is not None}
    named = NAMED_PRESETS[_known_preset(values.pop("preset"))] if "preset" in values else {}
    _locate(values)
    own = own_parts(values)
    config = run_of({**PRESETS.get(str(values.get("dataset")), {}), **named, **values, **_labels(own)}, file)
    config = dataclasses.replace(config, own=own)
    _require_known(config)
    training, weights = config.training, config.weights
    if training.start_from is not None:
        config = config.but(started=_digest(training.start_from))
    if training.init is not None:
        config = config.but(initial=_initial(config))
    if training.warmup < 0:
        config = config.but(warmup=training.epochs // 2)
    if weights.average < 0 and weights.average != AS_USUAL:
        raise UsageError(
            where="--average",
            found=f"{weights.average:g}",
            wanted="a share, from 0 to below 1",
            fix="0 keeps no mean; leave it out for the method's own",
        )
    if weights.average < 0:
        config = config.but(average=usual_average(config.method, config.part("method")))
    if weights.ad_every == 0:
        config = config.but(ad_every=1 if training.epochs <= AD_SHORT else 3)
    config = config.but(**_steps(config))
    if training.warmup > training.epochs:
        raise UsageError(
            where="--warmup",
            found=str(training.warmup),
            wanted=f"at most --epochs ({training.epochs})",
            fix="lower it, or train longer",
        )
    return config


def _steps(config: RunConfig) -> dict[str, float]:
    """The settings of `--lr-schedule step`, where it is asked for. Raises UsageError for such a setting without it."""
    given = {name: getattr(config.training, name) for name in USUAL_STEPS}
    said = {name: value for name, value in given.items() if value is not None}
    if config.training.lr_schedule == "step":
        return {**USUAL_STEPS, **said}
    if said:
        raise UsageError(
            where=", ".join(f"--{name.replace('_', '-')}" for name in said),
            found=f"--lr-schedule {config.training.lr_schedule}",
            wanted="--lr-schedule step, which alone reads it",
            fix="add --lr-schedule step, or leave it out",
        )
    return {}


def run_of(values: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """A run of options by their names outside, each in its range. Raises UsageError."""
    values = {name: str(value) if name == "cache" and value else value for name, value in values.items()}
    return RunConfig(**_checked(values, options_of_a_run(), run.PARTS, "bird distill", file))


def _checked(
    values: Mapping[str, Any],
    options: Sequence[Declared],
    parts: Mapping[str, type[Record]],
    command: str,
    file: Path | None,
) -> dict[str, Any]:
    """The parts, and what belongs to none, checked. Raises one UsageError for all that is unknown, missing or out of
    range, with what was probably meant."""
    from pydantic import TypeAdapter, ValidationError

    known = {each.name: each for each in options}
    faults = [
        _Fault(name, repr(value), "an option that there is", nearest(name, [*known, *_beside(command)]))
        for name, value in values.items()
        if name not in known
    ]
    found: dict[str, Any] = {}
    for part, record in parts.items():
        names = {each.name: each.field for each in declared(record)}
        mine = {names[name]: _numbers(known[name], value) for name, value in values.items() if name in names}
        try:
            found[part] = TypeAdapter(record).validate_python(mine)
        except ValidationError as error:
            faults += [_fault(each, names) for each in error.errors()]
    held = {each.name for record in parts.values() for each in declared(record)}
    for each in options:
        if each.name in held:
            continue
        if each.name not in values:
            if each.default is MISSING:
                faults.append(_Fault(each.name, "nothing", "a value", []))
            else:
                found[each.field] = each.default
            continue
        try:
            found[each.field] = TypeAdapter(each.type).validate_python(values[each.name])
        except ValidationError as error:
            faults += [_fault({**one, "loc": (each.name,)}, {}) for one in error.errors()]
    if faults:
        meant = [close for fault in faults for close in fault.meant]
        raise UsageError(
            where=", ".join(f"--{fault.name.replace('_', '-')}" for fault in faults)
            + (f" (with {file})" if file else ""),
            found=", ".join(fault.found for fault in faults),
            wanted="; ".join(fault.wanted for fault in faults),
            fix=f"did you mean {' and '.join(meant)}?" if meant else f"see `{command} --help`",
        )
    return found


@final
class _Fault(typing.NamedTuple):
    name: str
    found: str
    wanted: str
    meant: list[str]


def _fault(error: Mapping[str, Any], names: Mapping[str, str]) -> _Fault:
    """What pydantic says of one option, by the option's name outside."""
    outside = {field: name for name, field in names.items()}
    first, *rest = map(str, error["loc"])
    name = ".".join([outside.get(first, first), *rest])
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return _Fault(name, "nothing", "a value", [])
    meant, wanted = [], wanted_in_words(error)
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        meant, wanted = nearest(str(error["input"]), choices), f"one of {', '.join(choices)}"
    elif error["type"] == "less_than_equal" and error["ctx"]["le"] == 1 and float(error["input"]) <= 100:
        meant = [f"{float(error['input']) / 100:g}"]  # a percentage
    return _Fault(name, repr(error.get("input")), wanted, meant)


def _numbers(option: Declared, value: object) -> object:
    """ "0.5, 0.5" as a list, where several numbers are wanted; a list of TOML or Python is left alone."""
    several = any(typing.get_origin(each) is tuple for each in (option.type, *typing.get_args(option.type)))
    return [each.strip() for each in value.split(",")] if several and isinstance(value, str) else value


def _beside(command: str) -> list[str]:
    return ["preset"] if command == "bird distill" else []


def _digest(start: Path) -> str:
    """A finished run's configuration, but for its seed, in 12 hexadecimal digits."""
    try:
        config = json.loads((start / "run.json").read_bytes())["config"]
        kept = {name: value for name, value in config.items() if name != "seed"}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UsageError(
            where="--start-from",
            found=f"{start}, which is no finished run",
            wanted="the folder of a finished run",
            fix="give the --out of `bird distill`",
        ) from None
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _initial(config: RunConfig) -> str:
    """What identifies the weights that a student starts from. Raises UsageError."""
    from bird.student_weights import file_digest

    assert config.training.init is not None
    if config.training.start_from is not None:
        raise UsageError(
            where="--init", found="--start-from as well", wanted="one of them", fix="a run that goes on has its weights"
        )
    return file_digest(config.training.init)


def usual_average(method: str, part: Part | None = None) -> float:
    """The decay of the running mean of the weights where nobody says; 0: none. A method that is not there has none."""
    from bird.methods import METHODS, Hyperparameters, build_method

    if part is None and method not in METHODS:
        return 0.0
    return 0.999 if build_method(method, Hyperparameters(), 2, part).averages else 0.0


def own_parts(values: Mapping[str, Any]) -> dict[str, Part]:
    """The parts of the user's own among `student`, `method`, `teacher` and `dataset`, by kind: references, names that
    packages have registered, and objects. Built-in names come first. Executes what is named; raises UsageError for what does
    not fit."""
    from bird.datasets import DATASETS

    found: dict[str, Part] = {}
    if not isinstance(teacher := values.get("teacher", ""), str):  # a reference is resolved where teachers are loaded
        found["teacher"] = find("teacher", teacher)
    student, method, dataset = (values.get(kind) for kind in ("student", "method", "dataset"))
    if dataset is not None and not (isinstance(dataset, str) and (dataset in DATASETS or is_label(dataset))):
        found["dataset"] = find("dataset", dataset, DATASETS)
    if student is None and method is None:
        return found
    from bird.methods import METHODS, own_method
    from bird.student_bodies import TIMM, own_student
    from bird.students import STUDENTS

    if student is not None and not (isinstance(student, str) and (student in STUDENTS or student.startswith(TIMM))):
        found["student"] = own_student(student, [*STUDENTS, TIMM])
    if method is not None and not (isinstance(method, str) and method in METHODS):
        found["method"] = own_method(method, METHODS)
    return found


def _labels(own: Mapping[str, Part]) -> dict[str, str]:
    return {kind: part.label for kind, part in own.items()}


def _known_preset(name: object) -> str:
    if name not in NAMED_PRESETS:
        raise unknown_name("--preset", name, NAMED_PRESETS, "leave it out for the defaults")
    return str(name)


def _require_known(config: RunConfig) -> None:
    """Raise UsageError for a data set or a timm student that there is not: before anything is read or written. (Other
    students and methods are known here, or parts of the user's own.)"""
    from bird.datasets import DATASETS
    from bird.student_bodies import TIMM, known_timm

    if config.source.dataset not in DATASETS and not is_label(config.source.dataset):
        raise unknown_name("--dataset", config.source.dataset, DATASETS, "see `bird list datasets`")
    if config.student.startswith(TIMM):
        known_timm(config.student)


def _read(file: Path, command: str = "bird distill") -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        found = error.strerror or str(error)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = str(error)
    raise UsageError(
        where=f"--config {file}",
        found=found,
        wanted="a TOML file of options",
        fix=f"one NAME = VALUE a line, names as in `{command} --help`",
    )
