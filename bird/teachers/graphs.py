"""What an ONNX graph says of itself: its outputs, which of them is the vector, and what its bytes are."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bird.errors import TeacherError, UsageError
from bird.teachers.layers import FeatureKind

__all__ = ["choose_output", "class_counts", "digest_of_onnx", "vectors_of"]

Shapes = Mapping[str, tuple[int, ...]]
KEYS = re.compile(
    r"class|label|categor|synset|^names$|^nc$", re.IGNORECASE
)  # of metadata that lists what is told apart
WORDS = re.compile(r"logits|classif|softmax", re.IGNORECASE)
WIDTHS = {10, 100, 200, 365, 1000, 1001, 11821, 21841, 21843}  # classes of the usual sets of labels


def vectors_of(shapes: Shapes) -> dict[str, int]:
    """The outputs that are one vector an image, (N, d) or (N, d, 1, 1): name -> d."""
    return {
        name: shape[1] for name, shape in shapes.items() if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    }


def class_counts(described: Any) -> set[int]:
    """How many classes the graph's metadata (onnxruntime's ModelMetadata) speaks of; the usual numbers where it speaks of
    classification and gives none."""
    found: dict[str, str] = dict(described.custom_metadata_map)
    counts = {_count(value) for key, value in found.items() if KEYS.search(key)} - {0}
    told = [*found, *found.values(), described.description, described.graph_description]
    return counts or (WIDTHS if any(WORDS.search(text) for text in told) else set())


def choose_output(
    where: str, shapes: Shapes, scores: Collection[str], *, output: str | None, kind: FeatureKind | None
) -> str:
    """Which output is the vector. `shapes` are those of all outputs, for a few images; `scores` names those that hold a
    number for each class, which only `kind` logits takes.

    Raises UsageError where the choice is the person's, TeacherError for a graph that has no such output.
    """
    vectors = vectors_of(shapes)
    if output is not None and output not in shapes:
        close = difflib.get_close_matches(output, shapes, n=1)
        fix = f"did you mean {close[0]}?" if close else "choose from these"
        raise UsageError(where=f"{where}, --output", found=repr(output), wanted=f"one of {', '.join(shapes)}", fix=fix)
    asked = [*vectors] if output is None else [name for name in vectors if name == output]
    if not asked:
        told = "; ".join(f"{name} {shapes[name]}" for name in ([*shapes] if output is None else [output]))
        raise TeacherError(
            where=where, found=f"outputs {told}", wanted="one vector an image: (N, d)", fix="pool inside the graph"
        )
    if kind == "logits":
        fitting = [name for name in asked if name in scores] or asked
    else:
        fitting = [name for name in asked if name not in scores]
    if not fitting:
        others = [name for name in vectors if name not in scores]
        remedy = f"say --output {others[0]}" if others else "export the features that the last layer takes"
        raise TeacherError(
            where=where,
            found=f"{', '.join(asked)}: a number for each class, by its name or by the graph's metadata",
            wanted=f"{kind or 'penultimate'} features",
            fix=f"{remedy}, or say --kind logits if these numbers are what you want",
        )
    if len(fitting) > 1:
        raise UsageError(
            where=where,
            found=f"{len(fitting)} outputs that are one vector an image: {', '.join(fitting)}",
            wanted="one",
            fix="name it with --output",
        )
    return fitting[0]


def _count(value: str) -> int:
    """How many names a text lists (JSON, Python, or divided by commas or lines), or the number that it is."""
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return len([each for each in re.split(r"[,\n]", value) if each.strip()]) if re.search(r"[,\n]", value) else 0
    if isinstance(read, int):
        return int(read)
    return len(read) if isinstance(read, list | tuple | dict | set) else 0


def digest_of_onnx(path: Path) -> str:
    """sha256 of the file, and of the files beside it that hold its large tensors.

    ONNX names those as protobuf pairs ("location", file); a pair found by chance only adds a file that exists.
    """
    model = path.read_bytes()
    total = hashlib.sha256(model)
    beside = set()
    for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]?)([\x01-\x7f])", model, re.DOTALL):
        low, high = entry[1], entry[2][0]  # the name's length, 7 bits a byte, lowest first
        length = (low[0] & 0x7F) + (high << 7) if low else high
        beside.add(model[entry.end() : entry.end() + length])
    for name in sorted(beside):
        file = path.parent / name.decode(errors="replace")
        if file.is_file():
            with file.open("rb") as data:
                total.update(hashlib.file_digest(data, "sha256").digest())
    return f"sha256:{total.hexdigest()}"
