"""`bird predict`: classes and probabilities of images, from a run folder or an exported ONNX student."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from bird.devices import choose_device
from bird.errors import DataError, ImageError, UsageError, unknown_name
from bird.images import WHITE, decode_image
from bird.student_views import center_view, unit_range
from bird.students import named_student
from bird_cache.files import make_room_for, replace
from bird_pipelines.prefetch import in_order
from bird_pipelines.progress import progress
from bird_pipelines.runs import read_json
from bird_pipelines.shipping.formats import Runtime, file_of, need_extra, open_onnx
from bird_pipelines.shipping.pictures import Picture, not_taken, pictures

__all__ = ["Model", "answers", "open_model", "predict"]

SUFFIXES = (".csv", ".parquet", ".json")
Scores = Float[NDArray[np.float64], "rows classes"]


@final
class Model(NamedTuple):
    """A student that can be asked: what makes logits of pixels in 0..1, its classes, its side in pixels, and the value of
    a 16-bit gray pixel that becomes 255."""

    logits: Runtime
    class_names: tuple[str, ...]
    side: int
    white_level: int


def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    batch: int = 64,
    workers: int | None = None,
    max_failed: float = 0.01,
    student: object = None,
) -> dict[str, Any]:
    """Write id, predicted class and probabilities of all images to `out` (.csv, .parquet or .json), in their order.

    `model` is a run folder, or the folder of an ONNX export; `inputs` are images, folders and tables
    (`bird_pipelines.shipping.pictures`). Pixels are made as for training. Images that cannot be read are left out and
    named in the answer under `failed`; `not_taken` counts the files of folders with other suffixes, `twice` the images that
    are given more than once. `student` is the module of a student of the user's own.

    Raises UsageError for another kind of `out` or of model, RunError for a damaged model, DataError for inputs without an
    image and where more than a share of `max_failed` cannot be read: then nothing is written.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise unknown_name("--out", out.name, SUFFIXES, "end its name in one of these")
    found = pictures(inputs)
    opened = open_model(model, student)
    make_room_for(out)
    ids: list[str] = []
    failed: dict[str, str] = {}
    parts: list[Scores] = []
    with progress("predict", "images", len(found)) as advance:
        for names, lost, scores in answers(opened, found, batch=batch, workers=workers):
            ids += names
            failed |= lost
            parts.append(scores)
            advance(len(names) + len(lost))
    if len(failed) == len(found):
        first, why = next(iter(failed.items()))
        raise DataError(
            where="bird predict",
            found=f"no image in {len(found):,} file{'s' * (len(found) > 1)}; {first}: {why}",
            wanted="images that can be read",
            fix="give images, folders of images, or tables of them",
        )
    if len(failed) > max_failed * len(found):
        first, why = next(iter(failed.items()))
        raise DataError(
            where="bird predict",
            found=f"{len(failed):,} of {len(found):,} images that cannot be read; first: {first}: {why}",
            wanted=f"at most a share of {max_failed:g}",
            fix="repair or remove them, or give a larger --max-failed",
        )
    scores = np.concatenate(parts)
    told = [opened.class_names[each] for each in scores.argmax(1).tolist()]
    replace(out, _written(out.suffix.lower(), ids, told, scores, opened.class_names, failed))
    counts = {name: told.count(name) for name in opened.class_names}
    told_of = {"not_taken": not_taken(inputs), "twice": len(found) - len({os.path.abspath(each.id) for each in found})}
    return {"out": str(out), "images": len(ids), "predicted": counts, "failed": failed, **told_of}


def open_model(folder: Path, student: object = None) -> Model:
    """A run folder, with the user's own `student` where it is one, or an export of ONNX. Raises UsageError for a student of
    vectors, for one of the user's own that is not given and for other exports, WrongRunError for what is no finished run,
    RunError for a file with another sha256 than student.json records."""
    about = read_json(folder / "student.json")
    recipe = about.get("input") or {}
    if recipe.get("kind") == "features":
        raise UsageError(
            where=str(folder),
            found="a student of its teacher's vectors, which reads no image",
            wanted="a student of images",
            fix="export it (`bird export`): the card has a script that takes the teacher's vectors",
        )
    exported = about.get("format") == "bird-export-1"
    if exported and about["to"] != "onnx":
        raise UsageError(
            where=str(folder),
            found=f"an export --to {about['to']}",
            wanted="a run folder or an ONNX export",
            fix="its README.md has a script that runs it; or export the run --to onnx",
        )
    logits, names, side = _exported(folder, about) if exported else _of_a_run(folder, about, student)
    return Model(logits, tuple(names), side, recipe.get("white_level") or WHITE)


def _exported(folder: Path, about: Mapping[str, Any]) -> tuple[Runtime, Sequence[str], int]:
    need_extra("bird predict on an ONNX export", ("onnxruntime",))
    file_of(folder, about, about["file"])
    return open_onnx(folder / about["file"], spin=False), about["class_names"], about["input"]["shape"][-1]


def _of_a_run(folder: Path, about: Mapping[str, Any], own: object) -> tuple[Runtime, Sequence[str], int]:
    device = choose_device("auto")
    student = named_student(folder, own).to(device)
    names = about.get("class_names") or read_json(folder / "run.json")["class_names"]

    def logits(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = student(torch.from_numpy(pixels).to(device)).logits.cpu().numpy()
        return found

    return logits, names, student.image_size


def answers(
    model: Model, found: Sequence[Picture], *, batch: int = 64, workers: int | None = None
) -> Iterator[tuple[list[str], dict[str, str], Scores]]:
    """Batch by batch: the ids of the images that could be read, why the others could not, and the probabilities of the
    first, float64 (rows, classes). While a batch is computed, `workers` threads (default: one a core) decode the next."""
    workers = workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
    parts = [found[start : start + batch] for start in range(0, len(found), batch)]
    chunk = max(1, -(-batch // workers))
    pieces = [part[start : start + chunk] for part in parts for start in range(0, len(part), chunk)]
    try:
        views = in_order(pool, partial(_views, model), pieces, 2 * workers)
        for part in parts:
            rows = [view for _ in range(0, len(part), chunk) for view in next(views)]
            named = list(zip([each.id for each in part], rows, strict=True))
            failed = {id: view for id, view in named if isinstance(view, str)}
            kept = [view for view in rows if not isinstance(view, str)]
            scores = np.empty((0, len(model.class_names)))
            if kept:
                logits = model.logits(unit_range(torch.from_numpy(np.stack(kept))).numpy())
                scores = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
            yield [id for id, view in named if not isinstance(view, str)], failed, scores
    finally:
        pool.shutdown(cancel_futures=True)


def _views(model: Model, piece: Sequence[Picture]) -> list[NDArray[np.uint8] | str]:
    """The pixels of each image, uint8 (3, side, side), or why there are none."""
    return [_view(model, each) for each in piece]


def _view(model: Model, picture: Picture) -> NDArray[np.uint8] | str:
    try:
        image = decode_image(picture.read(), picture.id, white_level=model.white_level)
    except (ImageError, OSError) as error:
        return str(getattr(error, "found", getattr(error, "strerror", None) or error))
    pixels: NDArray[np.uint8] = center_view(image, model.side).numpy()
    return pixels


def _written(
    suffix: str,
    ids: Sequence[str],
    told: Sequence[str],
    scores: Scores,
    class_names: Sequence[str],
    failed: Mapping[str, str],
) -> bytes:
    """The bytes of the file."""
    columns = [f"p_{name}" for name in class_names]
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            [pa.array(ids, pa.string()), pa.array(told, pa.string()), *scores.T], ["id", "predicted", *columns]
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return bytes(sink.getvalue())
    if suffix == ".json":
        rows = [
            {"id": id, "predicted": name, "probabilities": dict(zip(class_names, row, strict=True))}
            for id, name, row in zip(ids, told, scores.tolist(), strict=True)
        ]
        return json.dumps({"predictions": rows, "failed": failed}, ensure_ascii=False, indent=1).encode() + b"\n"
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "predicted", *columns])
    writer.writerows([id, name, *row] for id, name, row in zip(ids, told, scores.tolist(), strict=True))
    return text.getvalue().encode()
