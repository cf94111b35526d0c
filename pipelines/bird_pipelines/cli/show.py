"""What the command line prints: tables of results on stdout, one panel for an error on stderr."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Any

import typer

__all__ = [
    "cache",
    "compared",
    "listing",
    "metrics_of",
    "panel",
    "parts",
    "parts_of",
    "repaired",
    "replace_what_the_terminal_lacks",
    "run",
    "seeds",
    "surprise",
    "table",
    "tuned",
    "verification",
]

PREPARED = {
    "unusable": "of these, cannot be used",
    "identical_groups": "images that are there more than once",
    "conflicting_groups": "of these, with several classes or groups",
    "conflicting_dropped": "rows left out because of that",
    "copies_dropped_across_splits": "copies left out because another split has the image",
    "copies_that_count_twice_in_train": "copies that stay in train",
    "copies_by_name": "copies by name, left out",
    "kept_on_their_side": "rows kept in the split of the earlier cache",
}
# A plain table; a column of names, which are shown whole in a narrow terminal; a column of numbers.
TABLE: Any = {"title_justify": "left", "box": None, "pad_edge": False}
NAME: Any = {"justify": "left", "overflow": "fold"}
NUMBER: Any = {"justify": "right", "no_wrap": True}


def panel(title: str, lines: dict[str, str], colour: str) -> None:
    """One panel on stderr: a title, and lines of name and text."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = Text("\n").join(Text.assemble((f"{name}: ", "bold"), value) for name, value in lines.items())
    Console(stderr=True).print(Panel(text, title=title, title_align="left", border_style=colour))


def replace_what_the_terminal_lacks() -> None:
    """A character that stdout's encoding lacks is printed as "?": a finished command never fails by its output."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


def surprise(error: Exception) -> dict[str, str]:
    """The lines of a panel for an error that is none of ours. What a file system refuses has a path and a remedy."""
    from bird_cache.files import remedy

    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        name = error.object[max(0, error.start - 60) : error.end + 60]
        return {
            "where": ascii(name),
            "found": "a name that is not UTF-8",
            "wanted": "paths of files and folders in UTF-8",
            "what to do": "rename it (convmv does it for whole folders)",
        }
    if isinstance(error, UnicodeEncodeError) and error.encoding == codecs.lookup(sys.getfilesystemencoding()).name:
        return {
            "where": ascii(error.object[:200]),
            "found": f"a name that file names here cannot hold: the locale's encoding is {error.encoding}",
            "wanted": "file names in UTF-8",
            "what to do": "set PYTHONUTF8=1, or a UTF-8 locale (LANG=C.UTF-8), and run the same command again",
        }
    if isinstance(error, OSError) and error.filename is not None:
        names = [
            ascii(name) if not str(name).isprintable() else str(name)
            for name in (error.filename, error.filename2)
            if name
        ]
        return {"where": ", ".join(names), "found": error.strerror or str(error), "what to do": remedy(error)}
    return {"unexpected": str(error), "what to do": "run it again with --debug and report it"}


def table(title: str, values: dict[str, Any]) -> None:
    """Two columns on stdout: names and values."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in values.items():
        grid.add_row(Text(str(name), style="bold"), Text(str(value)))
    Console().print(grid)


def parts(info: dict[str, Any]) -> None:
    """A table for each part."""
    for part, values in info.items():
        table(part, values)


def cache(info: dict[str, Any]) -> None:
    """What `FeatureStore.info` says, and what `precompute` adds to it."""
    state = (
        "complete"
        if info["complete"]
        else f"unfinished, {info['shards']['committed']} of {info['shards']['planned']} shards"
    )
    layers = "; ".join(
        f"{name} {layer['shape']} {layer['dtype']} ({layer['kind']})" for name, layer in info["layers"].items()
    )
    head = {
        "cache": info["path"],
        "state": state,
        "fingerprint": info["fingerprint"],
        "teacher": info["notes"].get("teacher", "unknown"),
        **{name: said for name, said in info["notes"].items() if name not in ("teacher", "batch_size")},
        "rows": f"{info['rows']:,} = {info['written']:,} written + {info['failed']:,} failed",
        "splits": ", ".join(f"{split} {count:,}" for split, count in info["splits"].items()),
        "layers": layers,
    }
    table("", head)
    table("class, group: samples by split", cells_of(info))
    if info.get("prepared"):
        table("data set", {PREPARED.get(name, name): count for name, count in info["prepared"].items()})
    if (accounted := info.get("accounted")) and accounted["left_out"]:
        missing = accounted["listed"] - info["rows"]
        typer.echo(f"listed {accounted['listed']:,} = {info['rows']:,} rows + {missing:,} left out before the teacher:")
        for line in accounted["left_out"]:
            split = f", {line['split']}" if line["split"] else ""
            typer.echo(f"  {line['reason']}: {line['rows']:,} of {line['cell']}{split}")
    for what, by_cell in info.get("doubtful", {}).items():
        typer.echo(f"{what} images: {sum(by_cell.values()):,} of {info['rows']:,} rows")
        table("", by_cell)
    if "nearly black" in info.get("doubtful", {}):
        typer.echo(
            "nearly black: no pixel reaches 32 of 255. 16-bit images of fewer bits need --setting white_level=4095"
        )
    if left_out := info.get("left_out"):
        table(f"left out: {len(left_out):,}, such as", dict(list(left_out.items())[:10]))


def cells_of(info: dict[str, Any]) -> dict[str, str]:
    """A line a (class, group) cell: its usable samples by split, and what failed; an empty one stands out."""
    lines = {}
    for name in next(iter(info["cells"].values())):
        # Rows of an unknown group are in train alone.
        found = {split: rows[name] for split, rows in info["cells"].items() if name in rows}
        sizes = [f"{split} {rows:>7,}" if rows else f"{split}    NONE" for split, rows in found.items()]
        failed = info["groups"].get(name, {"failed": 0})["failed"]
        norm = info["norms"].get(name, {"mean": None})["mean"]
        lines[name] = f"{'  '.join(sizes)}  {failed:,} failed, mean norm {number(norm)}"
    return lines


def run(info: dict[str, Any]) -> None:
    """A finished run and its metrics."""
    config = info["config"]
    table(
        "",
        {
            "run": info["out"],
            "method": config["method"],
            "student": config["student"],
            "seconds": round(info["seconds"], 1),
        },
    )
    for split, metrics in info["metrics"].items():
        typer.echo(f"{split}:")
        metrics_of(metrics)


def metrics_of(metrics: dict[str, Any]) -> None:
    """One split's metrics with better-direction arrows, intervals and floors."""
    if "error" in metrics:
        typer.echo(f"  not evaluated: {metrics['error']}")
        return
    arrows = {
        "auroc": "↑",
        "f1_macro": "↑",
        "f1_binary": "↑",
        "accuracy": "↑",
        "mean_deo": "↓",
        "max_deo": "↓",
    }
    rows, missing = {}, metrics.get("undefined", {})
    for name, arrow in arrows.items():
        if metrics[name] is None:
            rows[f"{name} {arrow}"] = f"n/a: {missing.get(name, 'not recorded')}"
            continue
        interval = metrics["intervals"].get(name)
        span = f"  [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
        if interval is None and (why := missing.get(f"intervals.{name}")):
            span = f"  [n/a: {why}]"
        floor = metrics["deo_floor"].get(name.removesuffix("_deo")) if name.endswith("_deo") else None
        chance = f"  floor {floor:.1f}" if floor is not None else ""
        beyond = metrics["beyond_chance"].get(name.removesuffix("_deo")) if name.endswith("_deo") else None
        chance += f"  beyond chance {beyond:.1f}" if beyond is not None else ""
        if name == "accuracy" and metrics.get("largest_class") is not None:
            chance = f"  largest class {metrics['largest_class']:.1f}"
        mark = "  TRIVIAL, see below" if metrics.get("trivial") and name.endswith("_deo") else ""
        rows[f"{name} {arrow}"] = f"{number(metrics[name])}{span}{chance}{mark}"
    table("x100, 95 % intervals; the floor is the gap that equal recalls would show with so few samples", rows)
    if why := metrics.get("trivial"):
        typer.echo(f" trivial student, whose gap says nothing: {why}")
    for factor, found in metrics.get("marginals", {}).items():
        typer.echo(f" by {factor} alone ({', '.join(found['group_names'])}): {_gaps(found)}")


def _gaps(metrics: dict[str, Any]) -> str:
    """mean-DEO and max-DEO on one line, with intervals and floors."""
    told = []
    for name, short in (("mean_deo", "mean"), ("max_deo", "max")):
        if metrics[name] is None:
            told.append(f"{name} n/a")
            continue
        low, high = metrics["intervals"][name]
        told.append(f"{name} {metrics[name]:.2f} [{low:.1f}, {high:.1f}] floor {metrics['deo_floor'][short]:.1f}")
    return "; ".join(told)


def verification(result: dict[str, Any]) -> None:
    """The outcome of `verify`, finding by finding."""
    state = "sound" if result["sound"] else f"{len(result['findings'])} findings"
    typer.echo(f"{state}: {result['rows']:,} rows in {result['shards']} shards, {result['bytes']:,} bytes")
    for name, cell in result.get("live", {}).get("cells", {}).items():
        lowest, mean = cell["cosine_min"], cell["cosine_mean"]
        typer.echo(f"  {name}: {cell['rows']} rows computed again, cosine {mean:.6f} on average, {lowest:.6f} at worst")
    for name, value in result.get("live", {}).get("proof", {}).items():
        typer.echo(f"  {name}: {value}")
    for finding in result["findings"]:
        typer.echo(f"  {finding}")


def repaired(result: dict[str, Any]) -> None:
    """What `bird cache repair` did."""
    for line in result["done"]:
        typer.echo(f"  {line}")
    fix = "run the same `bird precompute` command again" if result["done"] else "nothing to repair"
    typer.echo(f"{result['cache']}: {fix}")


def listing(caches: dict[str, Any]) -> None:
    """Caches, one a line."""
    for where, line in caches.items():
        typer.echo(f"{where}: {', '.join(str(value) for value in line.values())}")
    if not caches:
        typer.echo("no caches here")


def parts_of(values: dict[str, Any]) -> None:
    """Names and values, one a line."""
    for name, value in values.items():
        typer.echo(f"{name}: {value}")


def number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def compared(result: dict[str, Any]) -> None:
    """The scores of each method, and how each differs from the reference. It fits in 80 columns."""
    from rich.console import Console
    from rich.table import Table

    from bird_pipelines.marks import p_value

    names = {"auroc": "AUROC", "f1_macro": "F1", "accuracy": "accuracy", "mean_deo": "mean-DEO", "max_deo": "max-DEO"}
    shown = [name for name in names if name != "accuracy"]
    scores = Table(title=f"test, x100, {result['seeds']} seeds, mean ± deviation", **TABLE)
    for column in ("method", *(names[name] for name in shown), "floor", "s"):
        scores.add_column(column, **(NAME if column == "method" else NUMBER))
    for method, found in result["methods"].items():
        cells = ["n/a" if name not in found else _spread(found[name]) for name in shown]
        scores.add_row(method, *cells, number(found["deo_floor"]), f"{found['seconds']:.0f}")
    Console().print(scores)
    typer.echo("floor: the mean-DEO that chance alone makes; s: seconds a run")
    for method, found in result["methods"].items():
        if found["trivial"]:
            typer.echo(f"{method}: {found['trivial']}")
    less = Table(title=f"minus {result['against']}, paired by seed and row", **TABLE)
    for column in ("method", "score", "effect", "95 % interval", "p", "p, Holm"):
        less.add_column(column, **(NAME if column in ("method", "score") else NUMBER))
    for method, metrics in result["differences"].items():
        for name, each in metrics.items():
            ends = "n/a" if each["interval"] is None else "{:+.1f} to {:+.1f}".format(*each["interval"])
            p = p_value(each["p"]), p_value(each["p_holm"])
            less.add_row(method, names.get(name, name), f"{each['effect']:+.1f}", ends, *p)
    Console().print(less)
    if any(each["p"] is None for metrics in result["differences"].values() for each in metrics.values()):
        typer.echo("p: n/a with fewer than eight seeds")
    typer.echo(f"report: {result['report']}")


def seeds(result: dict[str, Any]) -> None:
    """The scores of several seeds of one configuration: one by one, and mean and deviation."""
    from rich.console import Console
    from rich.table import Table

    names = {"auroc": "AUROC", "f1_macro": "F1", "accuracy": "accuracy", "mean_deo": "mean-DEO", "max_deo": "max-DEO"}
    found, config = result["test"], result["config"]
    title = f"{config['method']} -> {config['student']}, test, x100"
    scores = Table(title=title, **TABLE)
    for column in ("seed", *names.values()):
        scores.add_column(column, **(NAME if column == "seed" else NUMBER))
    for each in result["by_seed"]:
        scores.add_row(str(each["seed"]), *(number(each[name]) for name in names))
    scores.add_row("mean ± deviation", *("n/a" if name not in found else _spread(found[name]) for name in names))
    Console().print(scores)
    typer.echo(f"floor: chance alone makes a mean-DEO of {number(found['deo_floor'])}")
    if found["trivial"]:
        typer.echo(found["trivial"])
    typer.echo(f"runs: {result['out']}/seed-N")


def dialled(result: dict[str, Any]) -> None:
    """The scores along the path, a line a point."""
    from rich.console import Console
    from rich.table import Table

    names = {"auroc": "AUROC", "f1_macro": "F1", "accuracy": "accuracy", "mean_deo": "mean-DEO", "max_deo": "max-DEO"}
    title = f"test, x100, {result['seeds']} seeds, mean ± deviation"
    points = Table(title=title, **TABLE)
    for column in ("balance", *names.values(), "floor"):
        points.add_column(column, **NUMBER)
    for point in result["points"]:
        cells = ["n/a" if name not in point else _spread(point[name]) for name in names]
        points.add_row(f"{point['balance']:g}", *cells, number(point["deo_floor"]))
    Console().print(points)
    typer.echo("balance 1: feedback of the balanced CE, 0: of L_o; floor: the mean-DEO that chance alone makes")
    for point in result["points"]:
        if point["trivial"]:
            typer.echo(f"balance {point['balance']:g}: {point['trivial']}")
    typer.echo(f"report: {result['report']}")


def _spread(score: dict[str, Any]) -> str:
    return f"{score['mean']:.1f}" + ("" if score["std"] is None else f" ± {score['std']:.1f}")


def tuned(result: dict[str, Any]) -> None:
    """What `bird tune` chose, how it did on the choosing half, and on test, beside the baseline."""
    chosen, test, baseline = result["chosen"], result["test"], result["baseline"]
    on = result["search"]["floor_on"]
    table("chosen", {name: f"{value:.4g}" for name, value in chosen["setting"].items()})
    judged = {"candidates": f"{len(result['candidates'])}, and as many of the baseline"}
    judged[f"floor of {on}"] = number(result["floor"])
    for name, each in (("baseline", baseline["chosen"]), ("chosen", chosen)):
        low, high = each["deo_interval"]
        judged[name] = f"mean-DEO {each['mean_deo']:.2f} [{low:.1f}, {high:.1f}]  floor {each['deo_floor']:.1f}"
        judged[f"{name}, {on}"] = number(each[on])
    table("on the choosing half of meta, x100", judged)
    if not chosen["feasible"]:
        typer.echo(f" no candidate reached the floor of {on} with a student that is not trivial: the highest is taken")
    marked = {"chosen": chosen, "baseline": baseline["chosen"], "test": test, "test, baseline": baseline["test"]}
    for name, each in marked.items():
        if each.get("trivial"):
            typer.echo(f" {name}: {each['trivial']}")
    if "error" in test:
        typer.echo(f"test: not evaluated: {test['error']}")
    else:
        scores = {name: each for name, each in test.items() if isinstance(each, dict)}
        spread = {name: "" if each["std"] is None else f" ± {each['std']:.2f}" for name, each in scores.items()}
        rows = {
            name: f"{each['mean']:.2f}{spread[name]}  (baseline {baseline['test'][name]['mean']:.2f})"
            for name, each in scores.items()
        }
        table(f"test, x100, {test['seeds']} seeds; mean-DEO's floor {number(test['deo_floor'])}", rows)
    for split, found in result["less_baseline"].items():
        if "mean_deo" in found:
            effect, (low, high) = found["mean_deo"]["effect"], found["mean_deo"]["interval"]
            told = "" if high < 0 else ": not shown to be better"
            typer.echo(f" {split}, mean-DEO minus the baseline's: {effect:+.1f} [{low:+.1f}, {high:+.1f}]{told}")
    typer.echo(f"report: {result['report']}")
