"""README.md of an exported student: what it is, how it did by group, how to run it, what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bird.images import WHITE
from bird.measuring.drift import wilson
from bird.measuring.metrics import gap_floors
from bird_pipelines.marks import MARK, with_caveats

__all__ = ["UNWRITTEN", "card"]

SHOWN = 40  # cells
UNWRITTEN = "(Whoever ships this student writes here what it was not made for, and on whom it was not tried.)"
NAMES = {"accuracy": "accuracy", "f1_macro": "macro F1", "auroc": "AUROC", "mean_deo": "mean-DEO", "max_deo": "max-DEO"}


def card(about: Mapping[str, Any], metrics: Mapping[str, Any], snippet: str) -> str:
    """The text, from student.json and the run's test metrics."""
    return "\n".join(
        [
            *_header(about),
            f"# {about['architecture']}, {about['to']}, {about['precision']}",
            "",
            _what(about),
            "## How to run it",
            "",
            *_how(about),
            "",
            "```python",
            snippet.strip(),
            "```",
            "",
            "## Results on the test rows",
            "",
            *_results(about, metrics),
            "",
            "## The check of this file",
            "",
            *_check(about),
            "",
            "## What it must not be used for",
            "",
            UNWRITTEN,
            "",
        ]
    )


def _header(about: Mapping[str, Any]) -> list[str]:
    """What a hub reads of a card."""
    library = ["library_name: timm"] if about["to"] == "hf" else []
    task = ["pipeline_tag: image-classification"] if about["input"]["kind"] == "image" else []
    return ["---", *library, *task, f"tags: [knowledge-distillation, {about['to']}]", "---", ""]


def _what(about: Mapping[str, Any]) -> str:
    run = about["run"]
    lines = [
        f"- classes, in the order of the logits: {', '.join(about['class_names'])}",
        f"- groups that it was judged by: {', '.join(about['group_names'])}. It does not read the group.",
        f"- data set: {run['dataset']}, {_settings(run['dataset_settings'])}rows {_named(run['rows'])}",
        f"- method: {run['method']}, {run['epochs']} epoch{'s' * (run['epochs'] != 1)}, seed {run['seed']}",
        f"- teacher: {run['teacher'] or 'none'}",
        f"- fingerprint of the cache that it learned from: {about['cache_fingerprint'] or 'none'}",
    ]
    return "\n".join([*lines, ""])


def _how(about: Mapping[str, Any]) -> list[str]:
    recipe, file = about["input"], about["file"]
    if recipe["kind"] == "features":
        return [
            f"`{file}` reads no image. Its input `{recipe['name']}` are the vectors of this teacher:",
            f"{about['run']['teacher']}; float32, {_shape(recipe)}, as they are: the normalisation is inside.",
            "Every new image needs that teacher first.",
        ]
    return [
        *_own_code(about),
        f"Input `{recipe['name']}`: {recipe['dtype']}, {_shape(recipe)}.",
        f"Decode: {recipe['decode']}. Resize: {recipe['resize']}. Crop: {recipe['crop']}.",
        f"In gray images of 16 bits, {recipe.get('white_level', WHITE):,} and brighter becomes 255.",
        f"Range: {recipe['range']}. Normalisation: {recipe['normalisation']}.",
        "Pillow's resize differs by 1 of 255 in some pixels from that of training; `bird predict` makes the same pixels.",
    ]


def _own_code(about: Mapping[str, Any]) -> list[str]:
    """What to give to build a network of somebody's own, whose weights alone are in the folder."""
    network = about["network"]
    if about["to"] != "torch" or network["library"] != "own":
        return []
    given = ", ".join(f"{name}={value}" for name, value in (network["arguments"] or {}).items())
    made = (
        f"called with {given or 'nothing'}" if network["arguments"] is not None else "the module as it was handed over"
    )
    return [
        f"`{about['file']}` holds weights alone. To run it, give the code of the network again: `{network['name']}` of",
        f"{network['file']} (sha256 {network['sha256']}), {made}. No code is in this folder.",
        "",
    ]


def _results(about: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    metrics = with_caveats(raw, about["class_names"])
    if "confusion" not in metrics:
        return [f"Not evaluated: {metrics.get('error', 'no metrics')}"]
    counts = np.asarray(metrics["confusion"], dtype=np.int64)
    found = [
        f"Of the student in its run folder, x100, 95 % intervals, {int(counts.sum()):,} rows. A gap's floor is what equal"
    ]
    found += ["recalls would show with so few rows. These numbers describe this sample; they promise nothing.", ""]
    found += ["| | value | interval | floor |", "|---|---|---|---|"]
    for name, said in NAMES.items():
        floor = metrics["deo_floor"].get(name.removesuffix("_deo")) if name.endswith("_deo") else None
        found.append(
            f"| {said} | {_number(metrics[name])} | {_interval(metrics['intervals'].get(name))} | {_number(floor, '')} |"
        )
    if metrics.get("trivial"):
        found += ["", f"**{MARK}**, whose gap says nothing: {metrics['trivial']}"]
    return [*found, "", *_by_group(counts, about["group_names"]), "", *_by_cell(counts, about)]


def _by_group(counts: Any, names: Sequence[str]) -> list[str]:
    found = ["| group | rows | accuracy | interval | least recall of a class |", "|---|---|---|---|---|"]
    for group, name in enumerate(names):
        inside = counts[:, group]
        rows, right = int(inside.sum()), int(np.trace(inside))
        if not rows:
            continue
        least = (np.diag(inside) / np.maximum(inside.sum(1), 1))[inside.sum(1) > 0].min()
        low, high = wilson(right, rows)
        found.append(
            f"| {name} | {rows:,} | {100 * right / rows:.1f} | {100 * low:.1f} to {100 * high:.1f} | {100 * least:.1f} |"
        )
    return found


def _by_cell(counts: Any, about: Mapping[str, Any]) -> list[str]:
    """Recall of each cell, the largest gaps first."""
    shares = np.einsum("cmc->cm", counts) / np.maximum(counts.sum(2), 1)
    full = (counts.sum(2) > 0).all() and counts.shape[1] > 1
    floors = gap_floors(counts) if full else [None] * len(counts)
    groups = about["group_names"]
    found = [
        f"| class | {' | '.join(f'recall, {name}' for name in groups)} | gap | floor |",
        "|---" * (len(groups) + 3) + "|",
    ]
    order = np.argsort(-np.ptp(shares, axis=1), kind="stable")[: max(1, SHOWN // len(groups))]
    for label in order.tolist():
        cells = []
        for group in range(len(groups)):
            rows, right = int(counts[label, group].sum()), int(counts[label, group, label])
            ends = [100 * end for end in wilson(right, rows)] if rows else None
            cells.append(f"{100 * right / rows:.1f} [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "n/a: no rows")
        gap = f"{100 * np.ptp(shares[label]):.1f} | {_number(floors[label])}" if full else "n/a | n/a"
        found.append(f"| {about['class_names'][label]} | {' | '.join(cells)} | {gap} |")
    if len(order) < len(counts):
        found += ["", f"The {len(order)} classes with the largest gaps, of {len(counts)}."]
    return found


def _check(about: Mapping[str, Any]) -> list[str]:
    check = about["check"]
    before, after = check["accuracy"]
    flips, worst, sizes = check["flips"], check["cells"][0], check["batch_sizes"]
    groups = [f"{name} {each['changed']:,} of {each['rows']:,}" for name, each in check["flips_by_group"].items()]
    runtime = about["runtime"]
    device = f", {runtime['device']}," if "device" in runtime else ""
    lines = [
        f"`{about['file']}` was run by {runtime['name']} {runtime['version']}{device} "
        f"on {flips['rows']:,} test rows beside the student:",
        "",
        f"- precision: {about['effective_precision']}",
        f"- accuracy {before:.2f} -> {after:.2f}; least recall of a cell "
        f"{check['least_recall'][0]:.1f} -> {check['least_recall'][1]:.1f}",
        f"- predictions that differ: {flips['changed']:,} of {flips['rows']:,} ({'; '.join(groups)})",
        f"- the cell that loses most: {worst['cell']}, recall {worst['before']:.1f} -> {worst['after']:.1f}, change "
        f"{worst['change']:+.1f} [{worst['interval'][0]:+.1f}, {worst['interval'][1]:+.1f}] on {worst['rows']:,} rows",
        f"- predictions that depend on the batch (alone or in {sizes['largest']}): {sizes['flips']['changed']:,} of "
        f"{sizes['flips']['rows']:,}",
    ]
    if check["mean_deo"]:
        lines.append(
            f"- mean-DEO {check['mean_deo'][0]:.2f} -> {check['mean_deo'][1]:.2f} (never to be read without the lines above)"
        )
    if about["calibration"]:
        share = 100 * about["calibration"]["quantised_share"]
        lines.append(
            f"- {share:.1f} % of the bytes of the weights are held in 8 bits; "
            f"calibrated on {len(about['calibration']['ids'])} meta rows, as evenly from the cells as these allow"
        )
    if check["refusals"]:
        lines += ["", f"**It drifted, and was exported with --allow-drift**: {'; '.join(check['refusals'])}."]
    return lines


def _settings(settings: Mapping[str, Any] | None) -> str:
    return f"{_named(settings)}, " if settings else ""


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in values.items()
    )


def _shape(recipe: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, recipe['shape']))})"


def _number(value: Any, missing: str = "n/a") -> str:
    return missing if value is None else f"{value:.1f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "n/a" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"
