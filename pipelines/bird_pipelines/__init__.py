"""The two phases and what surrounds them: data set -> precompute -> cache -> distill -> run -> evaluate -> report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bird_pipelines.runs import Run

__all__ = [
    "audit",
    "compare",
    "dial",
    "distill",
    "evaluate",
    "export",
    "open_run",
    "precompute",
    "predict",
    "push",
    "report",
    "tune",
]


def precompute(
    *, teacher: str | object, dataset: str | object, out: str | Path, config: str | Path | None = None, **options: Any
) -> dict[str, Any]:
    """`bird precompute` from Python: write, or finish, the cache of `teacher` over `dataset` in `out`. Returns what
    `bird cache info` shows.

    `options` are the command's, with underscores (`slice_` for slice, `range_` for range); `config` is a TOML file of
    them; `settings` are the data set's, by name. None means the default. `teacher` and `dataset` may be your own
    (docs/own-parts.md): references as on the command line, or the objects. Raises the errors that the command reports:
    BirdError of bird.errors or CacheError of bird_cache.

        info = bird_pipelines.precompute(teacher="onnx:model.onnx", dataset="digits-s", out="out/cache")
    """
    from bird_pipelines.config import resolve_precompute
    from bird_pipelines.precomputing.command import precompute_command

    flags = {"teacher": teacher, "dataset": dataset, "out": out, **options}
    return precompute_command(resolve_precompute(flags, None if config is None else Path(config)))


def distill(
    *,
    cache: str | Path,
    out: str | Path,
    config: str | Path | None = None,
    seeds: str | Iterable[int] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`bird distill` from Python: train (or finish) the run in `out` on the features of `cache`, and return run.json with
    `metrics`, by split.

    `options` are the command's, with underscores (`lambda_` for lambda): `bird distill --help` lists them; `config` is a
    TOML file of them. None means the default. `student`, `method` and `dataset` may be your own (docs/own-parts.md):
    references as on the command line, or the objects. With several `seeds`, "0-7" or [0, 3, 5], each is a run in
    `out`/seed-N, and the answer is their summary: `test` has the mean and the standard deviation of each score, x100.

    Raises the errors that the command reports: UsageError for options that are unknown or out of range, WrongRunError if
    `out` holds another run, and the errors of the cache and the data set (all BirdError of bird.errors or CacheError of
    bird_cache).

        info = bird_pipelines.distill(cache="out/cache", out="out/run", method="bird", lambda_=0.1)
        info["metrics"]["test"]["mean_deo"]
        eight = bird_pipelines.distill(cache="out/cache", out="out/eight", method="bird", seeds=range(8))
        eight["test"]["mean_deo"]  # {"mean": ..., "std": ...}
    """
    from bird.errors import UsageError
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.data import cache_dataset
    from bird_pipelines.distilling.training import distill as train
    from bird_pipelines.progress import tell
    from bird_pipelines.reporting.settings import unread

    defaults = {"student": "adapter", "method": "bird", "dataset": cache_dataset(str(cache))}
    flags = {"cache": str(cache), "out": Path(out), **options}
    told = resolve(flags, None if config is None else Path(config), defaults)
    given = [name.removesuffix("_") for name, value in options.items() if value is not None]
    if idle := unread(told.method, given):
        tell(f"note: {told.method} does not read {', '.join('--' + name.replace('_', '-') for name in idle)}")
    if seeds is None:
        return train(told)
    from bird_pipelines.study.seeds import distill_seeds, seeds_of

    if options.get("seed") is not None:
        raise UsageError(where="--seeds", found="--seed as well", wanted="one of them", fix="leave --seed out")
    return distill_seeds(told, seeds_of(seeds))


def evaluate(
    run: str | Path,
    split: str = "test",
    *,
    data_root: str | Path | None = None,
    cache: str | None = None,
    student: object = None,
    dataset: object = None,
) -> dict[str, Any]:
    """`bird evaluate` from Python: the metrics of a finished run on one split, also written into its folder.

    `data_root` and `cache` say where its data and its cache are now, if they moved; `student` is the module of a student of
    your own, `dataset` a data set of your own. Raises the errors that the command
    reports.

        bird_pipelines.evaluate("out/run", "meta")["mean_deo"]
    """
    from bird_pipelines.distilling.evaluate import evaluate as score

    root = None if data_root is None else Path(data_root)
    return score(Path(run), split, data_root=root, cache=cache, student=student, dataset=dataset)


def report(
    runs: str | Path | Sequence[str | Path], out: str | Path = "report.html", *, against: str | None = None
) -> Path:
    """`bird report` from Python: one page about run folders, or about folders that hold them. Returns where it is.

    `against` is the method that the others are compared with: by default the baseline, else the first.

        bird_pipelines.report("out/runs", "out/report.html")
    """
    from bird_pipelines.reporting.report import write_report

    paths = [runs] if isinstance(runs, str | Path) else runs
    return write_report([Path(each) for each in paths], Path(out), against=against)


def audit(
    file: str | Path,
    out: str | Path = "report.html",
    *,
    label: str = "label",
    group: str | Sequence[str] = "group",
    prediction: str | None = None,
    scores: Sequence[str] = (),
    baseline: str | Path | None = None,
) -> dict[str, Any]:
    """`bird audit` from Python: a page about the predictions in a CSV or Parquet file, and its numbers, by grouping.

    `label`, `group`, `prediction` and `scores` name columns. Several groups are crossed, and shown one by one. A value that
    does not exist is None, with its reason. Without `prediction`, the column is prediction, else predicted, else the class
    with the highest score. Raises DataError for a file that does not fit, UsageError for a column that it does not have,
    or that has two roles.

        found = bird_pipelines.audit("predictions.csv", group=["sex", "age"], scores=["p_no", "p_yes"])
        found["groups"]["sex"]["by_group"]["accuracy"]
    """
    from bird_pipelines.reporting.audit import audit as write_audit

    groups = [group] if isinstance(group, str) else [*group]
    columns: dict[str, Any] = {"label": label, "group": groups, "prediction": prediction, "scores": [*scores]}
    return write_audit(Path(file), Path(out), baseline=None if baseline is None else Path(baseline), **columns)


def compare(
    *,
    cache: str | Path,
    methods: Sequence[str],
    out: str | Path,
    seeds: int = 8,
    against: str | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`bird compare` from Python: train `methods` with the seeds 0..seeds-1 on `cache`, into `out`/METHOD-SEED, and write
    `out`/report.html. Resumes.

    Returns the scores of each method on the test split, x100, and under `differences` each method minus `against` (default:
    the first), paired by seed and row. `options` are those of `distill`, the same for all methods. Raises the errors that
    the command reports, before the first run begins if a method cannot be trained on this cache.

        found = bird_pipelines.compare(cache="out/cache", methods=["fitnet", "bird"], out="out/compared", alpha=0.5)
        found["differences"]["bird"]["mean_deo"]  # {"effect": ..., "interval": ..., "p": ..., "p_holm": ...}
    """
    from bird_pipelines.study.compare import compare_methods

    file = None if config is None else Path(config)
    return compare_methods(str(cache), Path(out), methods, seeds=seeds, against=against, flags=options, file=file)


def dial(
    *,
    cache: str | Path,
    out: str | Path,
    balances: Sequence[float] = (1.0, 0.75, 0.5, 0.25, 0.0),
    seeds: int = 8,
    epochs_each: int = 3,
    config: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`bird dial` from Python: train bird-offsets along a path from the balanced CE (balance 1) to L_o (balance 0), into
    `out`/BALANCE-SEED, and write `out`/report.html, which draws accuracy against gap. Resumes.

    Returns the scores of each point on the test split, x100. `options` are those of `distill`. Raises the errors that the
    command reports.

        found = bird_pipelines.dial(cache="out/cache", out="out/dial", balances=[1, 0.5, 0], alpha=0.5)
        [point["mean_deo"]["mean"] for point in found["points"]]
    """
    from bird_pipelines.study.dial import turn

    file = None if config is None else Path(config)
    return turn(str(cache), Path(out), balances, seeds=seeds, epochs_each=epochs_each, flags=options, file=file)


def tune(
    *,
    cache: str | Path,
    out: str | Path,
    config: str | Path | None = None,
    trials: int = 24,
    per_round: int = 6,
    seeds: int = 3,
    final_seeds: int = 8,
    floor_on: str = "balanced_accuracy",
    drop: float = 1.0,
    floor: float | None = None,
    seed: int = 0,
    engine: str = "local",
    address: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`bird tune` from Python: choose the weights of a method, and of the baseline, on half of the meta split. Resumes.

    Among the candidates whose score `floor_on` (x100) is at or above a floor, the lowest mean-DEO wins. The floor is
    `floor`, or `drop` points below the baseline with its default settings. `options` are those of `distill`. Returns what
    OUT/tune.json says. With the `engine` "ray" the runs are tasks of the cluster at `address`.
    Raises the errors that the command reports.

        found = bird_pipelines.tune(cache="out/cache", out="out/tune", method="bird-offsets", trials=12)
        found["chosen"]["setting"]
    """
    from bird.errors import unknown_name
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.data import cache_dataset
    from bird_pipelines.study.places import require_place, trainer
    from bird_pipelines.study.tune import tune as run
    from bird_pipelines.study.tune_search import FLOORS, Search

    require_place(engine, address)
    defaults = {"student": "adapter", "method": "bird", "dataset": cache_dataset(str(cache))}
    flags = {"cache": str(cache), "out": Path(out), **options}
    base = resolve(flags, None if config is None else Path(config), defaults)
    if floor_on not in FLOORS:
        raise unknown_name("--floor-on", floor_on, FLOORS, "choose one of them")
    search = Search(
        trials=trials,
        per_round=per_round,
        seeds=seeds,
        final_seeds=final_seeds,
        floor_on=floor_on,
        drop=drop,
        floor=floor,
        seed=seed,
    )
    with trainer(engine, address) as train:
        return run(base, search, train)


def export(run: str | Path, out: str | Path, to: str = "onnx", **options: Any) -> dict[str, Any]:
    """`bird export` from Python: the student of a run as a file for another program, in the new folder `out`, accepted only
    if it answers as the student does. Returns student.json.

    `to` is onnx, pt2, torch or hf; `options` are the command's: precision, batch, calibrate, rows (--check-rows),
    allow_drift, data_root and cache. Raises the errors that the command reports: RunError for a file that is not accepted.

        bird_pipelines.export("out/run", "out/onnx")["check"]
    """
    from bird_pipelines.shipping.export import export as write_export

    root = options.pop("data_root", None)
    return write_export(Path(run), Path(out), to, data_root=None if root is None else Path(root), **options)


def predict(
    model: str | Path, inputs: str | Path | Sequence[str | Path], out: str | Path, **options: Any
) -> dict[str, Any]:
    """`bird predict` from Python: ask a run, or an exported ONNX student, about images, folders of images, or tables, and
    write ids, classes and probabilities to `out` (.csv, .parquet or .json). Returns what was written.

    `options` are the command's: batch, workers and max_failed. Raises the errors that the command reports.

        bird_pipelines.predict("out/run", "photos/", "answers.csv")
    """
    from bird_pipelines.shipping.predict import predict as ask

    paths = [inputs] if isinstance(inputs, str | Path) else inputs
    return ask(Path(model), [Path(each) for each in paths], Path(out), **options)


def push(export: str | Path, repository: str, *, public: bool = False, revision: str | None = None) -> dict[str, Any]:
    """`bird push` from Python: send an export folder to the model repository OWNER/NAME of a hub, in one commit. Returns
    where it is now. The repository is made if there is none, private unless `public`; `revision` is a branch.

    It needs a token of huggingface_hub (`hf auth login`, HF_TOKEN). Raises UsageError for what is no export, for a name or
    a token that is missing, and for a repository that everybody can read unless `public`; HubError of bird.errors for a
    hub that does not answer, or that refuses.

        bird_pipelines.push("out/onnx", "me/my-student")["url"]
    """
    from bird_pipelines.shipping.push import push as send

    return send(Path(export), repository, public=public, revision=revision)


def open_run(folder: str | Path) -> Run:
    """A run folder as an object: its `config`, its `metrics` by split, its `curve()` as a frame of pandas, its `student()`.
    `bird_pipelines.runs.table` puts many of them into one frame. Raises WrongRunError where there is no run.

        run = bird_pipelines.open_run("out/run")
        run.metrics["test"]["accuracy"], run.curve()["loss"]
    """
    from bird_pipelines.runs import open_run as read

    return read(folder)
