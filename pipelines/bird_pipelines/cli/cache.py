"""`bird cache`: what can be done with a cache without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bird_pipelines.cli import show
from bird_pipelines.cli.options import (
    CacheArgument,
    DataRoot,
    Device,
    ImageSize,
    Json,
    Kind,
    Limit,
    Mean,
    Output,
    Range,
    Std,
    Workers,
    output,
    settings_of,
    share,
)

__all__ = ["cache_app"]

cache_app = typer.Typer(help="Look into a feature cache.", no_args_is_help=True)


@cache_app.command("info")
def cache_info(cache: CacheArgument, json_: Json = False) -> None:
    """What a cache holds: fingerprint, rows per class and group, layers, causes."""
    from bird_cache.store import open_cache

    output(open_cache(cache).info(), json_, show.cache)


@cache_app.command("verify")
def cache_verify(
    cache: CacheArgument,
    teacher: Annotated[str | None, typer.Option(help="Compute some rows again with this teacher and compare.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows, spread over all classes and groups.")] = 64,
    data_root: DataRoot = None,
    weights: Annotated[Path | None, typer.Option(help="Local weights of the teacher.")] = None,
    image_size: ImageSize = None,
    kind: Kind = None,
    output_: Output = None,
    range_: Range = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    workers: Workers = 2,
    json_: Json = False,
) -> None:
    """Check every byte of a cache against what was committed. Exit code 3 if anything is wrong."""
    asked = {"weights": weights, "image_size": image_size, "device": device, "kind": kind, "output": output_}
    asked |= {"range": range_, "mean": mean, "std": std}
    from bird_cache.verify import verify
    from bird_pipelines.precomputing.caches import compare_with_teacher

    result = verify(cache, workers=workers)._asdict()
    if teacher is not None and not result["findings"]:
        result["live"] = compare_with_teacher(cache, teacher, sample, data_root=data_root, **asked)
        result["findings"] = result["live"]["findings"]
    output(result | {"sound": not result["findings"]}, json_, show.verification)
    if result["findings"]:
        raise typer.Exit(3)


@cache_app.command("repair")
def cache_repair(cache: CacheArgument, workers: Workers = 2, json_: Json = False) -> None:
    """Drop the commit records of damaged shards: the same precompute command then computes just those again."""
    from bird_cache.verify import repair

    done = repair(cache, workers=workers)
    output({"cache": cache, "done": done}, json_, show.repaired)


@cache_app.command("convert")
def cache_convert(
    source: Annotated[str, typer.Argument(help="A finished cache: folder or URL.")],
    target: Annotated[str, typer.Argument(help="Where to write it: folder or URL.")],
    store: Annotated[str | None, typer.Option(help="zarr or webdataset; left out: the one that SOURCE is not.")] = None,
    data_root: DataRoot = None,
    images: Annotated[bool, typer.Option(help="Put the images into WebDataset shards.")] = True,
    compress: Annotated[
        str | None, typer.Option(help="Of a Zarr store: none, zstd or pcodec; left out: as SOURCE is.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a cache as the other store, bit by bit, without the teacher."""
    from bird_pipelines.precomputing.caches import convert_command

    output(convert_command(source, target, store, data_root, images, compress), json_, show.cache)


@cache_app.command("fit-head")
def cache_fit_head(
    cache: CacheArgument,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the train features.")] = 10,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Fit a classifier on the cached train features and store its logits as a layer (bkd uses them)."""
    from bird_pipelines.distilling.head import fit_head

    output(fit_head(cache, epochs=epochs, device=device), json_, show.cache)


@cache_app.command("import")
def cache_import(
    vectors: Annotated[Path, typer.Argument(help=".npy (with --ids), .parquet, or a clip-retrieval output folder.")],
    dataset: Annotated[str, typer.Option(help="The data set that the ids belong to (`bird list datasets`).")],
    out: Annotated[str, typer.Option(help="Folder or URL to write; the same command resumes what is there.")],
    kind: Annotated[str, typer.Option(help="What they are: penultimate, projection, projection_l2 or logits.")],
    provenance: Annotated[str, typer.Option(help="Where they come from, in words: model, version, who ran it.")],
    ids: Annotated[Path | None, typer.Option(help="The ids of a .npy: .txt (one a line) or .csv.")] = None,
    logits: Annotated[Path | None, typer.Option(help="The teacher's logits, in the same form and order.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column of ids, where the name tells nothing.")] = None,
    vector_column: Annotated[str | None, typer.Option(help="The column of lists, or the prefix of f0, f1, ...")] = None,
    match: Annotated[str, typer.Option(help="How ids are compared: exact, stem (file name) or path-suffix.")] = "exact",
    data_root: DataRoot = None,
    dtype: Annotated[str, typer.Option(help="How they are stored: float16, float32 or bfloat16.")] = "float16",
    limit: Limit = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting of the data set, NAME=VALUE.")] = None,
    keep_conflicts: Annotated[bool, typer.Option(help="Keep identical images with different labels.")] = False,
    max_failed: Annotated[float, typer.Option(callback=share, help="Share of samples that may lack a vector.")] = 0.01,
    teacher_name: Annotated[str | None, typer.Option(help="What reports call the teacher.")] = None,
    store: Annotated[str, typer.Option(help="zarr or webdataset.")] = "zarr",
    json_: Json = False,
) -> None:
    """Make a cache from vectors that somebody else computed."""
    from bird_pipelines.precomputing.imports import import_vectors

    info = import_vectors(
        vectors,
        dataset,
        out,
        kind=kind,
        provenance=provenance,
        ids=ids,
        logits=logits,
        id_column=id_column,
        vector_column=vector_column,
        match=match,
        data_root=data_root,
        dtype=dtype,
        limit=limit,
        settings=settings_of(setting),
        keep_conflicts=keep_conflicts,
        max_failed=max_failed,
        teacher_name=teacher_name,
        store=store,
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
