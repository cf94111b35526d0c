"""`bird cache`: what can be done with a cache without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.cache_rows import append, drop, search, subset, to_parquet
from bird_pipelines.cli.misuse import Commands
from bird_pipelines.cli.options import CacheArgument, Json, OwnDataset, Setting, output, settings_of, takes
from bird_pipelines.config.cache import options_of_a_cache

__all__ = ["cache_app"]

cache_app = typer.Typer(
    cls=Commands,
    help="Look into feature caches, check and convert them, and make new ones of them.",
    no_args_is_help=True,
)
Workers = Annotated[int, typer.Option(min=1, help="Threads that read.")]


@cache_app.command("info")
def cache_info(cache: CacheArgument, json_: Json = False) -> None:
    """What a cache holds: fingerprint, rows per class and group, layers, causes."""
    from bird_cache.store import open_cache

    output(open_cache(cache).info(), json_, show.cache)


@cache_app.command("verify")
@takes(
    options_of_a_cache(),
    ("data_root", "weights", "image_size", "kind", "output", "range", "mean", "std", "device"),
)
def cache_verify(
    flags: dict[str, Any],
    cache: CacheArgument,
    teacher: Annotated[str | None, typer.Option(help="Compute some rows again with this teacher and compare.")] = None,
    dataset: OwnDataset = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows, spread over all classes and groups.")] = 64,
    workers: Workers = 2,
    json_: Json = False,
) -> None:
    """Check every byte of a cache against what was committed. Exit code 3 if anything is wrong."""
    from bird_cache.verify import verify
    from bird_pipelines.precomputing.caches import compare_with_teacher

    result = verify(cache, workers=workers)._asdict()
    if teacher is not None and not result["findings"]:
        root = flags.pop("data_root", None)
        result["live"] = compare_with_teacher(cache, teacher, sample, data_root=root, dataset=dataset, **flags)
        result["findings"] = result["live"]["findings"]
    output(result | {"sound": not result["findings"]}, json_, show.verification)
    if result["findings"]:
        raise typer.Exit(3)


@cache_app.command("repair")
def cache_repair(cache: CacheArgument, workers: Workers = 2, json_: Json = False) -> None:
    """Delete the commit records of damaged shards. Then run the same precompute command: it computes those again."""
    from bird_cache.verify import repair

    done = repair(cache, workers=workers)
    output({"cache": cache, "done": done}, json_, show.repaired)


@cache_app.command("convert")
@takes(options_of_a_cache(), ("data_root",))
def cache_convert(
    flags: dict[str, Any],
    source: Annotated[str, typer.Argument(help="A finished cache: folder or URL.")],
    target: Annotated[str, typer.Argument(help="Where to write it: folder or URL.")],
    store: Annotated[str | None, typer.Option(help="zarr or webdataset; left out: the one that SOURCE is not.")] = None,
    images: Annotated[bool, typer.Option(help="Put the images into WebDataset shards.")] = True,
    compress: Annotated[
        str | None, typer.Option(help="Of a Zarr store: none, zstd or pcodec; left out: as SOURCE is.")
    ] = None,
    dataset: OwnDataset = None,
    json_: Json = False,
) -> None:
    """Copy a cache into the other kind of store (zarr or webdataset), bit by bit, without the teacher."""
    from bird_pipelines.precomputing.caches import convert_command

    made = convert_command(source, target, store, flags.get("data_root"), images, compress, dataset)
    output(made, json_, show.cache)


@cache_app.command("fit-head")
@takes(options_of_a_cache(), ("device",))
def cache_fit_head(
    flags: dict[str, Any],
    cache: CacheArgument,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train features.")] = 10,
    json_: Json = False,
) -> None:
    """Fit a classifier on the cached train features and store its logits as a layer (bkd uses them)."""
    from bird_pipelines.distilling.teacher_head import fit_head

    output(fit_head(cache, epochs=epochs, **flags), json_, show.cache)


@cache_app.command("import")
@takes(
    options_of_a_cache(),
    ("dataset", "out", "data_root", "dtype", "limit", "keep_conflicts", "max_failed", "store"),
    need=("dataset", "out"),
)
def cache_import(
    flags: dict[str, Any],
    vectors: Annotated[
        Path, typer.Argument(help="A .npy (with --ids) or .parquet file, or a clip-retrieval output folder.")
    ],
    kind: Annotated[str, typer.Option(help="What they are: penultimate, projection, projection_l2 or logits.")],
    provenance: Annotated[str, typer.Option(help="Where they come from, in words: model, version, who ran it.")],
    ids: Annotated[Path | None, typer.Option(help="The ids of a .npy: .txt (one a line) or .csv.")] = None,
    logits: Annotated[Path | None, typer.Option(help="The teacher's logits, in the same form and order.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column of ids, where the name tells nothing.")] = None,
    vector_column: Annotated[str | None, typer.Option(help="The column of lists, or the prefix of f0, f1, ...")] = None,
    match: Annotated[str, typer.Option(help="How ids are compared: exact, stem (file name) or path-suffix.")] = "exact",
    setting: Setting = None,
    teacher_name: Annotated[str | None, typer.Option(help="What reports call the teacher.")] = None,
    json_: Json = False,
) -> None:
    """Make a cache from vectors that somebody else computed."""
    from bird_pipelines.precomputing.imports import import_vectors

    info = import_vectors(
        vectors,
        flags.pop("dataset"),
        flags.pop("out"),
        kind=kind,
        provenance=provenance,
        ids=ids,
        logits=logits,
        id_column=id_column,
        vector_column=vector_column,
        match=match,
        settings=settings_of(setting),
        teacher_name=teacher_name,
        **flags,
    )
    output(info, json_, show.cache)


@cache_app.command("export")
def cache_export(
    cache: CacheArgument,
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    layer: Annotated[str, typer.Option(help="Which layer.")] = "penultimate",
    json_: Json = False,
) -> None:
    """Write a layer as .npy and .parquet files in clip-retrieval's layout."""
    from bird_pipelines.precomputing.imports import export

    output(export(cache, out, layer), json_, show.parts_of)


@cache_app.command("merge")
def cache_merge(
    sources: Annotated[list[str], typer.Argument(help="Caches that one command made with different --slice.")],
    out: Annotated[str, typer.Option(help="Folder or URL to write.")],
    json_: Json = False,
) -> None:
    """Join partial caches of one plan."""
    from bird_cache.convert import merge

    committed, planned = merge(sources, out)
    output({"cache": out, "shards": f"{committed} of {planned}"}, json_, show.parts_of)


@cache_app.command("ls")
def cache_ls(folder: Annotated[str, typer.Argument(help="Folder or URL.")] = ".", json_: Json = False) -> None:
    """The caches in a folder and below it."""
    from bird_pipelines.precomputing.caches import list_caches

    output(list_caches(folder), json_, show.listing)


cache_app.command("append")(append)
cache_app.command("drop")(drop)
cache_app.command("subset")(subset)
cache_app.command("to-parquet")(to_parquet)
cache_app.command("search")(search)
