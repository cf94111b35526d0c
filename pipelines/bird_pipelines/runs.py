"""A run folder: its configuration, its checkpoints, its curve, and what it ended as.

config.json            what the run is, written first: a folder is resumed only by the same configuration
checkpoint.json        where training stands, naming checkpoint-N.safetensors and its sha256
curve.jsonl            one line an epoch
student.safetensors, student.json, metrics-SPLIT.json
predictions-test.npz   a row a test sample: ids, labels, groups, predictions, scores (`scoring.save_predictions`)
run.json               the last word, written last: a folder without it is unfinished

In a notebook `open_run` gives one run, and `table` many as a frame of pandas:

    runs.table(["out/runs"])[["method", "seed", "test.accuracy", "test.mean_deo"]]
    runs.open_run("out/runs/bird-0").curve()["meta.accuracy"].plot()
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from bird.errors import RunError, UsageError, WrongRunError
from bird_cache.files import LOCKS, replace, write_lock
from bird_cache.manifest import flatten
from bird_pipelines.config import RunConfig
from bird_pipelines.config.option import as_json
from bird_pipelines.config.reading import usual_average
from bird_pipelines.config.run import options_of_a_run
from bird_pipelines.marks import MARK

if TYPE_CHECKING:
    import pandas

    from bird.students import Student

__all__ = [
    "Run",
    "finish",
    "held",
    "instead_of",
    "load_checkpoint",
    "open_run",
    "read_json",
    "refuse_another",
    "save_checkpoint",
    "table",
    "write_json",
]

SPLITS = ("train", "meta", "choose", "test")
SCORES = ("accuracy", "f1_macro", "auroc", "mean_deo", "max_deo")
NAMES = {"accuracy": "accuracy", "f1_macro": "F1", "auroc": "AUROC", "mean_deo": "mean-DEO", "max_deo": "max-DEO"}


@contextmanager
def held(config: RunConfig, fingerprint: str | None) -> Iterator[None]:
    """Hold `config.place.out` for one process: start the run in it, or go on with it. A run that kept nothing, since it
    failed or was killed before its first checkpoint, gives way to another one.

    Raises WrongRunError, naming the field, if the folder holds another run or something else; RunError, BusyCacheError.
    """
    folder = config.place.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refuse(
            folder, error.strerror or str(error), "a folder that can be written", "choose another --out"
        ) from None
    refuse_another(config, fingerprint)  # before a lock is left in a folder that is not ours
    with write_lock(folder):
        refuse_another(config, fingerprint)  # another process may have begun it since
        if not _kept(folder):
            cache, root = config.source.cache, config.source.data_root
            cache = cache if cache is None or "://" in cache else str(Path(cache).resolve())
            where = {"cache": cache, "data_root": str(root.resolve()) if root else None}
            write_json(
                folder / "config.json", {"identity": config.identity(), "fingerprint": fingerprint, "place": where}
            )
        yield


def refuse_another(config: RunConfig, fingerprint: str | None) -> None:
    """Raise WrongRunError if the run's folder holds something else than this run, or than one that kept nothing; RunError
    if it cannot be read. It need not be there."""
    folder = config.place.out
    try:
        foreign = [entry.name for entry in folder.iterdir() if entry.name not in LOCKS] if folder.exists() else []
    except OSError as error:
        raise _refuse(folder, error.strerror or str(error), "a folder of runs", "choose another --out") from None
    if not foreign or _only_begun(folder, foreign):
        return
    if "config.json" not in foreign:
        found = f"other files ({', '.join(sorted(foreign)[:3])})"
        raise _wrong(folder, found, "an empty folder", "choose another --out")
    said = read_json(folder / "config.json")
    # a folder that is older than an option does not name it
    identity = said.get("identity", {})
    if "offsets_from" not in identity or "average" not in identity:  # then only some methods heeded `average`
        usual = usual_average(config.method)
        identity = identity | {"average": identity.get("average", usual) if usual else 0.0}
    there, here = (flatten(_defaults() | each) for each in (identity, config.identity()))
    there, here = there | {"fingerprint": said.get("fingerprint")}, here | {"fingerprint": fingerprint}
    own = {field for field in here if field.startswith("own.")}
    for field in sorted({*there, *here}, key=lambda name: (name not in own, name)):  # the file is said, not its label
        if there.get(field) != here.get(field):
            file = config.own[field.split(".")[1]].file if field in own else None
            kept = _kept(folder) or "nothing of it is kept; there are other files"
            raise _wrong(
                folder,
                f"a run with {field} = {there.get(field)} ({kept})",
                f"{field} = {here.get(field)}" + (f", that of {file}" if file else ""),
                "choose another --out, or repeat the old settings to resume it"
                + (f", with {file} as it was" if file else "")
                + "; or delete the folder",
            )


def _kept(folder: Path) -> str:
    """What a run has kept, in words; nothing before its first checkpoint."""
    if (folder / "run.json").exists():
        return "finished"
    path = folder / "checkpoint.json"
    return f"{read_json(path).get('step', 0):,} steps of it are kept" if path.exists() else ""


def _only_begun(folder: Path, names: Iterable[str]) -> bool:
    """Whether the folder holds a run of ours that kept nothing: none of these files is worth anything by itself."""
    ours = all(name in ("config.json", "curve.jsonl", "trace.json") or name.startswith("checkpoint-") for name in names)
    return ours and (folder / "config.json").exists() and "identity" in read_json(folder / "config.json")


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
SHARED = ("dataset", "dataset_settings", "student", "method", "learn_alpha", "optimizer")


def begin_from(config: RunConfig, fingerprint: str | None) -> dict[str, Tensor]:
    """The tensors that `config.training.start_from` ended with. Raises WrongRunError if it is unfinished or of another
    kind, RunError if it is damaged."""
    assert config.training.start_from is not None
    folder = config.training.start_from
    there = read_json(folder / "run.json")
    settings, here = _defaults() | there["config"], _defaults() | config.identity()
    values = {name: (settings.get(name), here[name]) for name in SHARED}
    for name, (found, wanted) in {**values, "fingerprint": (there["fingerprint"], fingerprint)}.items():
        if found != wanted:
            raise _wrong(folder, f"{name} {found}", f"{name} {wanted}", "begin from a run of the same kind")
    loaded = load_checkpoint(folder)
    if loaded is None:
        raise _wrong(folder, "no checkpoint", "the one that it ended with", "begin from another run")
    return loaded[0]


def write_json(path: Path, value: object) -> None:
    """A JSON file, replaced atomically."""
    replace(path, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder. Raises WrongRunError where there is none, RunError for what is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        found, refuse = f"{path.name} that cannot be read ({error})", _refuse
        if not path.exists():
            found, refuse = f"no {path.name}" if path.parent.is_dir() else "no such folder", _wrong
        raise refuse(path.parent, found, "a run folder", instead_of(path.parent)) from None
    if not isinstance(value, dict):
        raise _refuse(path.parent, f"{path.name} that is no JSON object", "a run folder", "check the path")
    return value


def instead_of(folder: Path) -> str:
    """What to do where `folder` is no run: one of `--seeds` holds several."""
    inside = sorted(path.parent for path in folder.glob("seed-*/config.json"))
    return f"give one of the runs of its seeds: {inside[0]}" if inside else "give the --out of a run"


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


def _wrong(folder: Path, found: str, wanted: str, fix: str) -> WrongRunError:
    return WrongRunError(where=f"run {folder}", found=found, wanted=wanted, fix=fix)


@final
@dataclass(frozen=True)
class Run:
    """A run folder. `config` is what decides its result, by the names of `bird distill`; `metrics` are its scores by split
    (shares in 0..1, scores x100; a score that does not exist is None); `info` is run.json, {} while it is unfinished."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    info: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether the run is finished."""
        return self.info.get("complete") is True

    def curve(self) -> pandas.DataFrame:
        """An epoch a row, with the epoch as the index: the losses in nats, `seconds`, and the scores on meta (x100) as
        `meta.accuracy`, `meta.mean_deo`, ... Raises UsageError without pandas."""
        path = self.folder / "curve.jsonl"
        lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        flat = [
            {name: value for name, value in line.items() if name not in ("meta", "gate", "offsets")}
            | {f"meta.{name}": value for name, value in (line["meta"] or {}).items()}
            for line in lines
        ]
        frame = _pandas().DataFrame(flat)
        return frame.set_index("epoch") if flat else frame

    def student(self) -> Student:
        """The trained student, on the CPU, in evaluation mode. Raises WrongRunError for an unfinished run, RunError for a
        damaged one."""
        from bird.students import load_student

        if not self.complete:
            raise _wrong(self.folder, "an unfinished run", "its student", "finish it first")
        return load_student(self.folder).eval()

    def row(self) -> dict[str, Any]:
        """What `table` says of it."""
        found: dict[str, Any] = {"folder": str(self.folder), "complete": self.complete, **self.config}
        found |= {"seconds": self.info.get("seconds")}
        for split, each in self.metrics.items():
            found |= {f"{split}.{name}": each.get(name) for name in SCORES}
            if each.get("mean_deo") is not None:
                low, high = _ends(each)
                found |= {f"{split}.mean_deo_low": low, f"{split}.mean_deo_high": high}
                found |= {f"{split}.mean_deo_floor": each["deo_floor"]["mean"]}
                found |= {f"{split}.trivial": each.get("trivial")}
        return found

    def _repr_html_(self) -> str:
        """A short table for a notebook."""
        lines = {name: self.config.get(name) for name in ("method", "student", "dataset", "seed", "epochs")}
        if not self.complete:
            lines["state"] = "unfinished"
        test = self.metrics.get("test", {})
        for name in SCORES:
            if test.get(name) is not None:
                lines[f"{NAMES[name]}, test, x100"] = f"{test[name]:.2f}"
        if test.get("mean_deo") is not None:
            low, high = _ends(test)
            interval = "" if low is None else f", 95 % interval {low:.1f} to {high:.1f}"
            told = f"{test['mean_deo']:.2f}{interval}, floor {test['deo_floor']['mean']:.1f}"
            lines["mean-DEO, test, x100"] = told + (f" ({MARK})" if test.get("trivial") else "")
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in lines.items()
        )
        return f"<table><caption>run {html.escape(str(self.folder))}</caption>{rows}</table>"


def open_run(folder: str | Path) -> Run:
    """The run in a folder, finished or not. Raises WrongRunError where there is none, RunError for a damaged one."""
    folder = Path(folder)
    if not (folder / "config.json").exists() and not (folder / "run.json").exists():
        found = "no config.json" if folder.is_dir() else "no such folder"
        raise WrongRunError(where=str(folder), found=found, wanted="a run folder", fix=instead_of(folder))
    info = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    config = info.get("config") or read_json(folder / "config.json").get("identity", {})
    metrics = {
        split: read_json(folder / f"metrics-{split}.json")
        for split in SPLITS
        if info and (folder / f"metrics-{split}.json").exists()
    }
    return Run(folder, config, metrics, info)


def table(runs: Iterable[str | Path | Run]) -> pandas.DataFrame:
    """A run a row: its folder, whether it is complete, its settings, and its scores by split (x100), such as
    `test.accuracy` and `test.mean_deo` with the ends of its 95 % interval and its floor.

    `runs` are run folders, folders that hold such folders, or what `open_run` gave. A setting that some of the runs do not
    name is empty there. Raises RunError for a folder without a run, UsageError without pandas.
    """
    pandas, found = _pandas(), []
    for each in runs:
        if isinstance(each, Run):
            found.append(each)
            continue
        places = ("*/config.json", "*/seed-*/config.json")  # those of --seeds, too
        inside = sorted(path.parent for place in places for path in Path(each).glob(place))
        own = (Path(each) / "config.json").exists() or not inside
        found += [open_run(path) for path in ([each] if own else inside)]
    return pandas.DataFrame([run.row() for run in found])


def _ends(metrics: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The ends of the interval of the mean-DEO."""
    ends = (metrics.get("intervals") or {}).get("mean_deo")
    return (None, None) if ends is None else (ends[0], ends[1])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UsageError(
            where="a frame of runs", found="no package pandas", wanted="pandas", fix="pip install pandas"
        ) from None
    return pandas
