"""The command `bird-cache`: the cache by itself, from a shell. Each prints one JSON object; an error is one line on stderr.

`bird cache`, of the distribution bird-distill, has the same commands for people to read, and those that need a data set or a
teacher.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bird_cache.errors import CacheError
from bird_cache.files import remedy

__all__ = ["main"]

Options = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, as `bird_cache.errors` lists them. 0: done, 130: interrupted."""
    options = _parser().parse_args(arguments)
    try:
        answer: dict[str, Any] = options.run(options)
    except CacheError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{error.filename}: found {error.strerror or error}; {remedy(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done is kept: run the same command again to resume", file=sys.stderr)
        return 130
    print(json.dumps(answer))
    return 3 if answer.get("findings") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bird-cache", description="Look into a feature cache, and make new ones of it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Options], Any], help: str, *places: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        for place in places:
            command.add_argument(place, help="folder or URL" if place != "out" else "a new file")
        command.set_defaults(run=run)
        return command

    add("info", _info, "What a cache holds.", "cache")
    add("verify", _verify, "Check every byte. Exit code 3 if anything is wrong.", "cache")
    command = add("drop", _drop, "A new cache without some rows.", "cache", "target")
    _ids_of(command, required=True)
    command = add("subset", _subset, "A new cache of some rows.", "cache", "target")
    _ids_of(command, required=False)
    for name in ("split", "class", "group"):
        command.add_argument(f"--{name}", action="append", dest=f"of_{name}", help="can be repeated")
    add("append", _append, "A new cache of the rows of two.", "cache", "addition", "target")
    command = add("to-parquet", _to_parquet, "The cache as one Parquet file.", "cache", "out")
    command.add_argument("--layer", action="append", help="can be repeated; left out: all layers")
    command = add("search", _search, "The nearest rows of a sample, or near-duplicates across splits.", "cache")
    asked = command.add_mutually_exclusive_group(required=True)
    asked.add_argument("--id", action="append", help="can be repeated")
    asked.add_argument("--near-duplicates", type=float, metavar="COSINE", help="such as 0.98")
    command.add_argument("--layer", default="penultimate")
    command.add_argument("--neighbours", type=int, default=10)
    return parser


def _ids_of(command: argparse.ArgumentParser, *, required: bool) -> None:
    given = command.add_mutually_exclusive_group(required=required)
    given.add_argument("--id", action="append", help="can be repeated")
    given.add_argument("--ids", type=Path, help=".txt (one a line) or .csv")


def _ids(options: Options) -> list[str] | None:
    from bird_cache.importers import read_ids

    given: list[str] | None = options.id
    return read_ids(options.ids) if options.ids is not None else given


def _info(options: Options) -> dict[str, Any]:
    from bird_cache.store import open_cache

    return open_cache(options.cache).info()


def _verify(options: Options) -> dict[str, Any]:
    from bird_cache.verify import verify

    return verify(options.cache)._asdict()


def _drop(options: Options) -> dict[str, Any]:
    from bird_cache.generations import drop

    return drop(options.cache, options.target, _ids(options) or [])._asdict()


def _subset(options: Options) -> dict[str, Any]:
    from bird_cache.generations import subset

    chosen = {"splits": options.of_split, "classes": options.of_class, "groups": options.of_group}
    return subset(options.cache, options.target, ids=_ids(options), **chosen)._asdict()


def _append(options: Options) -> dict[str, Any]:
    from bird_cache.generations import append

    return append(options.cache, options.addition, options.target)._asdict()


def _to_parquet(options: Options) -> dict[str, Any]:
    from bird_cache.parquet import to_parquet

    return to_parquet(options.cache, options.out, options.layer)


def _search(options: Options) -> dict[str, Any]:
    from bird_cache.search import near_duplicates, nearest_to
    from bird_cache.store import open_cache

    store = open_cache(options.cache)
    if options.id is not None:
        return {"neighbours": nearest_to(store, options.id, options.neighbours, layer=options.layer)}
    return near_duplicates(store, options.near_duplicates, layer=options.layer)
