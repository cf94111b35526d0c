"""`bird export`, `bird predict` and `bird push`: students leave the project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import bird_pipelines
from bird_pipelines.cli import show
from bird_pipelines.cli.options import Json, OwnDataset, OwnStudent, output, share

__all__ = ["export", "predict", "push"]


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path, typer.Argument(help="A new folder for the file, student.json and README.md.")],
    to: Annotated[
        str,
        typer.Option(help="onnx, pt2 (torch.export), torch (plain weights of the network) or hf (a hub folder, timm)."),
    ] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8 (ONNX; static, by channel).")] = "fp32",
    batch: Annotated[int, typer.Option(min=1, help="The largest batch that the file is checked with.")] = 64,
    calibrate: Annotated[
        int, typer.Option(min=0, help="Meta rows that int8 is calibrated on, evenly over cells.")
    ] = 512,
    check_rows: Annotated[
        int | None, typer.Option(min=1, help="Check on about so many test rows, evenly over cells. Default all.")
    ] = None,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Keep a file that is not accepted.")] = False,
    data_root: Annotated[Path | None, typer.Option(help="Where its data set is now, if it moved.")] = None,
    cache: Annotated[str | None, typer.Option(help="Where the run's cache is now, if it moved.")] = None,
    student: OwnStudent = None,
    dataset: OwnDataset = None,
    json_: Json = False,
) -> None:
    """Export a student, and accept the file only if it answers as the student does, cell by cell."""
    from bird_pipelines.shipping.export import export as run_export

    told = {"precision": precision, "batch": batch, "calibrate": calibrate, "rows": check_rows}
    moved = {"data_root": data_root, "cache": cache, "student": student, "dataset": dataset}
    output(run_export(run, out, to, **told, allow_drift=allow_drift, **moved), json_, exported)  # type: ignore[arg-type]  # the options are checked there


def predict(
    model: Annotated[Path, typer.Argument(help="A finished run folder, or the folder of an ONNX export.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Images, folders of images, CSV or Parquet tables with a column path (or image)."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write: .csv, .parquet or .json.")],
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode images. Default one a core.")] = None,
    max_failed: Annotated[
        float, typer.Option(help="Largest share of unreadable images before the command fails.", callback=share)
    ] = 0.01,
    student: OwnStudent = None,
    json_: Json = False,
) -> None:
    """Ask a student about images: id, predicted class and probabilities, from the same pixels as in training."""
    from bird_pipelines.shipping.predict import predict as run_predict

    found = run_predict(model, inputs, out, batch=batch, workers=workers, max_failed=max_failed, student=student)
    output(found, json_, predicted)


def push(
    export: Annotated[Path, typer.Argument(help="The folder of an export.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub. It is made, private, if it is not there.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make it public, or send to one that everybody can read.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch. It is made if it is not there. Default main.")] = None,
    json_: Json = False,
) -> None:
    """Send an exported student to a hub of models: the file, student.json and the card, in one commit.

    huggingface_hub does it, with its token (`hf auth login`, HF_TOKEN) and its hub (HF_ENDPOINT)."""
    output(bird_pipelines.push(export, repository, public=public, revision=revision), json_, pushed)


def pushed(found: dict[str, Any]) -> None:
    """Where it is now."""
    lines = {
        "pushed to": found["url"],
        "who can read it": "those with access to it" if found["private"] else "everybody",
        "revision": f"{found['revision']}, commit {found['commit']}",
        "files": ", ".join(f"{name} ({size:,} bytes)" for name, size in found["files"].items()),
    }
    show.table("", lines)
    if found["card_unwritten"]:
        typer.echo("its card does not yet say what it must not be used for: write the last section of README.md")


def predicted(found: dict[str, Any]) -> None:
    """What was written, and which images could not be read."""
    named = {f"predicted {name}": f"{count:,}" for name, count in found["predicted"].items() if count}
    show.table("", {"file": found["out"], "images": f"{found['images']:,}", **named})
    for id, why in list(found["failed"].items())[:10]:
        typer.echo(f"not read: {id}: {why}")
    if len(found["failed"]) > 10:
        typer.echo(f"not read: {len(found['failed']) - 10:,} more")
    if left := found["not_taken"]:
        count = sum(left.values())
        typer.echo(f"{count:,} file{'s' * (count > 1)} not taken: {', '.join(left)}")
    if count := found["twice"]:
        typer.echo(f"{count:,} image{'s' * (count > 1)} given twice")


def exported(about: dict[str, Any]) -> None:
    """What was written, and how the file does beside its student; the gap last."""
    check = about["check"]
    flips, sizes, worst = check["flips"], check["batch_sizes"], check["cells"][0]
    low, high = worst["interval"]
    lines = {
        "export": about["out"],
        "file": ", ".join(f"{name} ({each['bytes']:,} bytes)" for name, each in about["files"].items()),
        "checked": f"{flips['rows']:,} test rows, in {about['runtime']['name']} {about['runtime']['version']}",
        "accuracy": "{:.2f} -> {:.2f}".format(*check["accuracy"]),
        "least recall": "{:.1f} -> {:.1f}".format(*check["least_recall"]),
        "predictions that differ": f"{flips['changed']:,} of {flips['rows']:,}",
        **{f"  {name}": f"{each['changed']:,} of {each['rows']:,}" for name, each in check["flips_by_group"].items()},
        "worst cell": f"{worst['cell']}: {worst['change']:+.1f} [{low:+.1f}, {high:+.1f}], {worst['rows']:,} rows",
        "alone and in a batch": f"{sizes['flips']['changed']:,} of {sizes['flips']['rows']:,} differ",
    }
    if about["calibration"]:
        lines["in 8 bits"] = f"{100 * about['calibration']['quantised_share']:.1f} % of the weights' bytes"
    if check["mean_deo"]:
        lines["mean-DEO"] = "{:.2f} -> {:.2f}".format(*check["mean_deo"])
    show.table("", lines)
    for reason in check["refusals"]:
        typer.echo(f"drift: {reason}")
    if about["input"]["kind"] == "features":
        typer.echo(f"it reads no image: its input are vectors of the teacher {about['run']['teacher']}")
