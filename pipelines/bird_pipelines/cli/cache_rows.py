"""`bird cache drop`, `subset`, `append`, `search` and `to-parquet`: the rows of a cache, taken elsewhere or looked up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import CacheArgument, Json, output

__all__ = ["append", "drop", "search", "subset", "to_parquet"]

Target = Annotated[str, typer.Argument(help="Where to write it: a new folder or URL; the same command resumes.")]
IdsFile = Annotated[Path | None, typer.Option(help="The samples' ids: .txt (one a line) or .csv.")]
Id = Annotated[list[str] | None, typer.Option("--id", help="The id of a sample. It can be repeated.")]


def drop(cache: CacheArgument, target: Target, ids: IdsFile = None, id: Id = None, json_: Json = False) -> None:
    """Write the cache without some samples: gone from vectors, table, images and receipts. CACHE itself stays as it is."""
    from bird_cache.generations import drop as run

    given = _ids(ids, id) or []
    _made([cache], lambda advance: run(cache, target, given, advance), "drop", json_)


def subset(
    cache: CacheArgument,
    target: Target,
    ids: IdsFile = None,
    id: Id = None,
    split: Annotated[list[str] | None, typer.Option(help="train, meta or test. It can be repeated.")] = None,
    class_: Annotated[list[str] | None, typer.Option("--class", help="A class. It can be repeated.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group. It can be repeated.")] = None,
    json_: Json = False,
) -> None:
    """Write a cache of some samples: those that are in all that is given."""
    from bird_cache.generations import subset as run

    chosen = {"ids": _ids(ids, id), "splits": split, "classes": class_, "groups": group}
    _made([cache], lambda advance: run(cache, target, **chosen, advance=advance), "subset", json_)


def append(
    cache: CacheArgument,
    addition: Annotated[str, typer.Argument(help="Another cache of the same teacher and data set.")],
    target: Target,
    json_: Json = False,
) -> None:
    """Write a cache of the samples of two. Every sample stays on its side of the split."""
    from bird_cache.generations import append as run

    _made([cache, addition], lambda advance: run(cache, addition, target, advance), "append", json_)


def to_parquet(
    cache: CacheArgument,
    out: Annotated[Path, typer.Argument(help="A new file.")],
    layer: Annotated[list[str] | None, typer.Option(help="Which layer. It can be repeated; left out: all.")] = None,
    view: Annotated[int, typer.Option(min=0, help="Which stored view.")] = 0,
    json_: Json = False,
) -> None:
    """Write the cache as one Parquet file: ids, names of classes and groups, splits, and each layer as lists of numbers."""
    from bird_cache.parquet import to_parquet as run

    output(run(cache, out, layer, view), json_, show.parts_of)


def search(
    cache: CacheArgument,
    id: Id = None,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Count near-duplicates across splits by class and group.")
    ] = False,
    threshold: Annotated[float, typer.Option(help="The least cosine of a near-duplicate.")] = 0.98,
    neighbours: Annotated[int, typer.Option(min=1, help="How many for each --id.")] = 10,
    split: Annotated[
        str | None, typer.Option(help="Where to look for neighbours of --id: train, meta or test.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Which layer.")] = "penultimate",
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Search near-duplicates by an index of usearch, which may miss some.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find the samples nearest to one by cosine, or near-duplicates across splits."""
    from bird.errors import UsageError
    from bird_cache.search import near_duplicates as duplicates
    from bird_cache.search import nearest_to
    from bird_cache.store import open_cache
    from bird_pipelines.progress import progress

    if bool(id) == near_duplicates:
        found = "both" if id else "neither --id nor --near-duplicates"
        raise UsageError(
            where="bird cache search", found=found, wanted="one of the two", fix="name a sample or ask for all"
        )
    store = open_cache(cache)
    if id:
        found_near = {"neighbours": nearest_to(store, id, neighbours, layer=layer, split=split)}
        output(found_near, json_, _say_neighbours)
        return
    sizes = store.samples.counts("split")
    with progress("search", "rows", sizes.get("meta", 0) + 2 * sizes.get("test", 0)) as advance:
        options: dict[str, Any] = {"layer": layer, "approximate": approximate, "advance": advance}
        found_all = duplicates(store, threshold, **options)
    output(found_all, json_, _say_near_duplicates)


def _ids(file: Path | None, ids: list[str] | None) -> list[str] | None:
    """The ids that were given in either way; None: none were."""
    from bird_cache.importers import read_ids

    if file is None:
        return ids
    return [*read_ids(file), *(ids or [])]


def _made(caches: list[str], run: Callable[[Callable[[int], None]], Any], what: str, as_json: bool) -> None:
    """Write a new generation under a bar, and say what became of the rows."""
    from bird_cache.store import open_cache
    from bird_pipelines.progress import progress

    with progress(what, "rows", sum(len(open_cache(cache)) for cache in caches)) as advance:
        made = run(advance)
    output(made._asdict(), as_json, _say_made)


def _say_made(made: dict[str, Any]) -> None:
    """A new generation of a cache, and what became of the rows."""
    from bird_pipelines.marks import few

    typer.echo(
        f"{made['path']}: {made['rows']:,} rows, from {made['rows_before']:,}; fingerprint {made['fingerprint']}"
    )
    show.table("class, group: rows that went or came", {name: f"{rows:,}" for name, rows in made["changed"].items()})
    if made["emptied"]:
        typer.echo(f"warning: no row is left of {few(made['emptied'])}")
    if made["layers_left_out"]:
        typer.echo(f"left out, for only one of the two has them: {', '.join(made['layers_left_out'])}")


def _say_neighbours(found: dict[str, Any]) -> None:
    """The nearest rows of some samples."""
    for id, rows in found["neighbours"].items():
        lines = {row["id"]: f"{row['similarity']:.6f}  {row['split']}, {row['cell']}" for row in rows}
        show.table(f"nearest to {id}: cosine, split, class and group", lines)


def _say_near_duplicates(found: dict[str, Any]) -> None:
    """Near-duplicates of each pair of splits, by class and group."""
    exact = "" if found["exact"] else "; approximate: some may be missing"
    typer.echo(f"{found['cache']}: cosine of {found['layer']} at least {found['threshold']:g}{exact}")
    for pair in found["splits"]:
        lines = {name: _near(cell) for name, cell in pair["cells"].items()}
        show.table(f"{pair['of']} rows that have one in {pair['in']}", {"all": _near(pair), **lines})
        shares = ", ".join(f"{float(share):.1%} {score:.4f}" for share, score in pair["quantiles"].items())
        typer.echo(f"cosine of the nearest row, quantiles: {shares}")
        for row in pair["first"]:
            other = row["nearest"]
            typer.echo(f"  {row['similarity']:.6f}  {row['id']} ({row['cell']}) = {other['id']} ({other['cell']})")


def _near(counts: dict[str, int]) -> str:
    others = ", ".join(
        f"{counts[name]:,} {name.replace('_', ' ')}"
        for name in ("of_another_class", "of_another_group")
        if counts[name]
    )
    return f"{counts['near_duplicates']:,} of {counts['rows']:,}" + (f" (nearest one: {others})" if others else "")
