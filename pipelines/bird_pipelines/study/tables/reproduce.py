"""`bird reproduce`: a table of the paper from nothing to the report, doing once what rows share and nothing twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from bird.errors import BirdError, UsageError
from bird_cache.errors import CacheError
from bird_pipelines.config import RunConfig, resolve_precompute
from bird_pipelines.progress import Interrupted, stop_requests, tell
from bird_pipelines.study.places import Place, place_of, require_place
from bird_pipelines.study.tables.recipes import Figure, Profile, Recipe, Row, load_profile, load_recipe, select
from bird_pipelines.study.tables.steps import Plan, Step, build_plan, finished, is_done, needed, weight_places
from bird_pipelines.study.tables.table import Outcome, tabulate

__all__ = ["execute", "perform", "reproduce", "run_group"]


def reproduce(
    name: str,
    out: Path,
    *,
    profile: str | Profile = "paper",
    data_root: Path | None = None,
    seeds: int = 5,
    only: Sequence[str] = (),
    jobs: int = 1,
    engine: str = "local",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Run (or finish) the recipe `name` and write its report into `out`; with `dry_run` only say what would be done.

    The result's `failed` lists what went wrong: a failed step costs its own rows, not the others. Raises UsageError for
    unknown names, and, before anything runs, for data or weights that are not there; Interrupted (the same call resumes).
    """
    require_place(engine, address)
    recipe, figure = load_recipe(name)
    chosen = load_profile(profile, recipe) if isinstance(profile, str) else profile
    rows = select(recipe, only)
    plan = build_plan(rows, chosen, range(seeds), out / "work", data_root, split_methods=jobs > 1 or engine == "ray")
    todo = needed(plan)
    missing = missing_inputs(plan, todo, data_root)
    if dry_run:
        return describe(name, plan, todo, missing + weights_to_fetch(plan, todo, data_root), jobs)
    require_inputs(plan, todo, missing, data_root)
    failures = execute(plan, todo, jobs, engine, address)
    outcomes = [outcome(row, plan, failures) for row in rows]
    record = tabulate(recipe, chosen, outcomes)
    return write(record, recipe, figure, out)


def write(record: Mapping[str, Any], recipe: Recipe, figure: Figure | None, out: Path) -> dict[str, Any]:
    """The report's files, and those of the figure."""
    from bird_pipelines.study.tables.figures import draw
    from bird_pipelines.study.tables.files import write_table

    plots = {}
    files: dict[str, str] = {}
    if figure is not None:
        svg, drawn = draw(record, figure, out)
        plots[figure.title] = svg
        files |= drawn
    files |= write_table(record, out, recipe.name, plots)
    return {"recipe": figure.name if figure else recipe.name, "profile": record["profile"], "files": files} | {
        "failed": record["failed"]
    }


def outcome(row: Row, plan: Plan, failures: Mapping[str, str]) -> Outcome:
    """What became of a row; an error that several seeds share is told once."""
    if row.id in plan.errors:
        return Outcome(row, {}, [plan.errors[row.id]])
    configs = plan.rows[row.id]
    done = {seed: config.place.out for seed, config in configs.items() if finished(config)}
    left = [config.place.out for seed, config in configs.items() if seed not in done]
    errors = [failures.get(str(folder)) or failures.get(plan.step_of(folder).key) or "not run" for folder in left]
    return Outcome(row, done, list(dict.fromkeys(errors)), plan.stand_ins.get(row.id))


def run_group(configs: Sequence[RunConfig]) -> dict[str, str]:
    """Train the runs, side by side where they can be; run folder -> message of those that failed. If a stack fails, its
    runs are tried one by one, so that only the faulty run is lost."""
    from bird_pipelines.distilling.side_by_side import distill_many, groups_of

    failures: dict[str, str] = {}
    with stop_requests() as stop:  # training hears them itself; this is for the moments between two runs
        for group in groups_of(configs):
            try:
                distill_many(group)
                continue
            except Interrupted:
                raise
            except Exception as error:
                failures |= {str(group[0].place.out): message(error)} if len(group) == 1 else {}
            for config in group if len(group) > 1 else ():
                if stop():
                    raise Interrupted
                failures |= run_group([config])
    return failures


def perform(step: Step) -> dict[str, str]:
    """Do a step; what failed -> why (a run folder, or the step's key). Raises Interrupted."""
    try:
        if step.kind == "runs":
            return run_group([config for config in step.configs if not finished(config)])
        if step.kind == "teacher":
            from bird_pipelines.distilling.training import distill

            distill(step.configs[0])
        elif step.kind == "head":
            from bird_pipelines.distilling.teacher_head import fit_head

            assert step.cache is not None
            fit_head(str(step.cache.out), epochs=step.head_epochs)
        else:
            write_cache(step)
    except Interrupted:
        raise
    except Exception as error:
        return {step.key: message(error)}
    return {}


def write_cache(step: Step) -> None:
    """Precompute a cache, or the layers that it lacks."""
    from bird_pipelines.precomputing.command import precompute_command

    job = step.cache
    assert job is not None
    given = {"teacher": job.teacher, "dataset": job.dataset, "out": job.out, "data_root": job.data_root}
    given |= {"weights": job.weights, "settings": job.settings, "layers": ",".join(job.layers)}
    precompute_command(resolve_precompute(given))


def execute(
    plan: Plan, todo: set[str], jobs: int = 1, engine: str = "local", address: str | None = None
) -> dict[str, str]:
    """Do the steps in `todo`, each after what it needs; what failed -> why. A step after a failed one fails with it.

    Raises Interrupted once the steps in progress have saved where they stand.
    """
    failures: dict[str, str] = {}
    left = [step for step in plan.steps.values() if step.key in todo]
    if jobs > 1 or engine == "ray":
        with place_of(engine, address, jobs) as place:
            return side_by_side(left, place, failures)
    with stop_requests() as stop:
        for number, step in enumerate(left, 1):
            if stop():
                raise Interrupted
            if reason := blocked(step, failures):
                failures[step.key] = reason
                continue
            tell(f"{number} of {len(left)}: {step.key}{count(step)}")
            failures |= perform(step)
    return failures


def side_by_side(left: list[Step], place: Place, failures: dict[str, str]) -> dict[str, str]:
    """`execute` with several steps at a time, the dearest first."""
    total, started = len(left), 0
    open_keys = {step.key for step in left}
    waiting = sorted(left, key=lambda step: -step.seconds)
    running: dict[Future[dict[str, str]], Step] = {}
    with stop_requests() as stop:
        while waiting or running:
            for step in list(waiting):
                if len(running) >= place.at_once or stop():
                    break
                if reason := blocked(step, failures):
                    failures[step.key] = reason
                elif not ready(step, open_keys, list(running.values())):
                    continue
                else:
                    started += 1
                    tell(f"{started} of {total}: {step.key}{count(step)}")
                    running[place.submit(perform, step)] = step
                    waiting.remove(step)
                    continue
                waiting.remove(step)
                open_keys.discard(step.key)
            if stop():
                place.stop()
                wait(running)
                raise Interrupted
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                open_keys.discard(step.key)
                failures |= result_of(future, step)
    return failures


def result_of(future: Future[dict[str, str]], step: Step) -> dict[str, str]:
    """What became of a step. One that is done, but not here, was done in a folder that this machine does not see."""
    try:
        failed = future.result()
    except (BirdError, Interrupted):
        raise
    except Exception as error:  # the worker is lost
        return {step.key: message(error)}
    if not failed and not is_done(step):
        return {
            step.key: "the worker wrote into a folder that is not seen here: --out must be one that all hosts share"
        }
    return failed


def blocked(step: Step, failures: Mapping[str, str]) -> str | None:
    """Why a step cannot start, if something before it failed."""
    return next((failures[key] for key in step.after if key in failures), None)


def ready(step: Step, unfinished: set[str], running: Sequence[Step]) -> bool:
    """Whether what comes before a step is done, and nobody writes into its cache: that takes one writer at a time."""
    free = step.cache is None or all(each.cache is None or each.cache.out != step.cache.out for each in running)
    return free and not unfinished & {*step.after}


def missing_inputs(plan: Plan, todo: set[str], data_root: Path | None) -> list[str]:
    """What the steps to do would look for in vain: data sets, one sentence each."""
    from bird.datasets import DATASETS, open_dataset

    wanted: dict[str, tuple[Path | None, Mapping[str, Any]]] = {}
    for step in plan.steps.values():
        if step.key in todo:
            if step.cache is not None and step.kind != "head":
                wanted[step.cache.dataset] = (step.cache.data_root, step.cache.settings)
            for config in step.configs:
                if config.student != "adapter":
                    wanted.setdefault(config.source.dataset, (config.source.data_root, config.source.dataset_settings))
    missing = []
    for dataset, (root, settings) in wanted.items():
        try:
            data = open_dataset(dataset, root, **settings)
            data.read(data.listing().ids[0])  # the lists may be there without the images
            continue
        except BirdError as error:
            found = error.found
        except IndexError:
            found = "no images"
        except OSError as error:
            found = f"{error.strerror}: {error.filename}"
        place = f"{data_root}/{dataset} or {data_root}" if data_root else "a folder given with --data-root"
        missing.append(f"data set {dataset}: {found}; put into {place}: {DATASETS[dataset].layout}")
    return missing


def weights_to_fetch(plan: Plan, todo: set[str], data_root: Path | None) -> list[str]:
    """The foundation models without local weights, a sentence each, for a plan."""
    jobs = [step.cache for key, step in plan.steps.items() if key in todo and step.kind == "cache"]
    names = [job.teacher for job in jobs if job and not job.teacher.startswith("run:") and job.weights is None]
    where = f"at {data_root}/weights/NAME" if data_root else "in --data-root"
    return [f"weights of {name}: none {where}, so they will be downloaded" for name in names]


def require_inputs(plan: Plan, todo: set[str], missing: Sequence[str], data_root: Path | None) -> None:
    """Raise UsageError, saying what to put where, if data or weights are not there; weights are looked for by loading
    them, which may download them."""
    from bird.teachers import load_teacher

    found = list(missing)
    for step in plan.steps.values():
        job = step.cache
        if not found and step.key in todo and step.kind == "cache" and job and not job.teacher.startswith("run:"):
            try:
                load_teacher(job.teacher, weights=job.weights)
            except BirdError as error:
                places = " or ".join(map(str, weight_places(job.teacher, data_root)))
                found.append(f"weights of {job.teacher}: {error.found}; put {error.wanted} at {places}")
    if found:
        raise UsageError(
            where="bird reproduce",
            found="; ".join(found),
            wanted="the data sets and weights of this table, before anything runs",
            fix="put them there, or use --profile demo, which needs none",
        )


def describe(name: str, plan: Plan, todo: set[str], missing: Sequence[str], jobs: int) -> dict[str, Any]:
    """The plan in plain values: steps with what is left of them, totals, and what is missing."""
    steps: list[dict[str, Any]] = []
    for step in plan.steps.values():
        left = sum(not finished(config) for config in step.configs) if step.kind == "runs" else int(step.key in todo)
        share = left / max(1, len(step.configs)) if step.kind == "runs" else left
        if step.key not in todo:
            left, share = 0, 0
        cost = {"seconds": round(step.seconds * share, 1), "bytes": int(step.bytes * share)}
        steps.append({"step": step.key, "kind": step.kind, "runs": len(step.configs), "left": left, **cost})
    seconds = sum(each["seconds"] for each in steps) / jobs
    totals = {"seconds": round(seconds, 1), "bytes": sum(each["bytes"] for each in steps)}
    failed = [f"{row}: {error}" for row, error in plan.errors.items()]
    return {"recipe": name, "steps": steps, "total": totals, "missing": list(missing), "cannot": failed}


def count(step: Step) -> str:
    """How many runs a step still has, in words."""
    left = sum(not finished(config) for config in step.configs) if step.kind == "runs" else 0
    return f" ({left} runs)" if left else ""


def message(error: Exception) -> str:
    """An error in one line; its type where it is none of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, BirdError | CacheError) else f"{type(error).__name__}: {text}"
