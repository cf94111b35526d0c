"""What half precision and 8 bits do to students, by cells: every file beside its student, on the test rows.

    python bench/exports.py RUN... [--rows 20000] [--over-seeds] [--openvino]

With --over-seeds the runs of one architecture are one line a file: means over the runs, [lowest, highest]. With --openvino
two of the files are run in OpenVINO instead of onnxruntime.

int8 is onnxruntime's: `by channel` is what `bird export --precision int8` writes; the others are beside it to compare.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from bird_pipelines.distilling.evaluate import open_run
from bird_pipelines.shipping.check import check, check_rows, refusals
from bird_pipelines.shipping.formats import FORMATS, open_onnx
from bird_pipelines.shipping.openvino import open_openvino
from bird_pipelines.shipping.quantise import BATCH, calibration_rows, static_int8

CALIBRATE = 512


def batches(data, rows):
    for start in range(0, len(rows), BATCH):
        yield data.batch(rows[start : start + BATCH], torch.device("cpu")).inputs.numpy()


def by_tensor(source, target, calibration):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(calibration)

        def get_next(self):
            return next(({"image": each} for each in self.left), None)

    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(str(source), str(target), Reader(), quant_format=QuantFormat.QDQ, **kinds)


def dynamic(source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(target), weight_type=QuantType.QUInt8)


def variants(student, data, folder):
    """Name -> file."""
    whole = folder / "fp32.onnx"
    FORMATS["onnx"].write(student, whole, False)
    yield "fp32", whole
    half = folder / "fp16.onnx"
    FORMATS["onnx"].write(student, half, True)
    yield "fp16", half
    balanced, meta = calibration_rows(data, CALIBRATE), data.rows("meta")
    one_group = np.random.default_rng(0).permutation(meta[data.table.groups[meta] == 0])[: len(balanced)]
    for name, work in {
        "int8, static, by channel, balanced": lambda to: static_int8(whole, to, batches(data, balanced)),
        "int8, static, by tensor, balanced": lambda to: by_tensor(whole, to, batches(data, balanced)),
        f"int8, static, by channel, only {data.group_names[0]}": lambda to: static_int8(
            whole, to, batches(data, one_group)
        ),
        "int8, dynamic": lambda to: dynamic(whole, to),
    }.items():
        target = folder / "int8.onnx"
        work(target)
        yield name, target


def in_onnxruntime(student, data, folder):
    """Name, file, and the file in its runtime."""
    for name, path in variants(student, data, folder):
        yield name, path, open_onnx(path)


def in_openvino(student, data, folder):
    """The same of what OpenVINO may be asked for."""
    for name, path in variants(student, data, folder):
        if name == "fp32":
            for compute in ("fp32", "bf16"):
                yield f"{name}, OpenVINO in {compute}", path, open_openvino(path, compute)
        if name == "int8, static, by channel, balanced":
            yield f"{name}, OpenVINO", path, open_openvino(path, "fp32")
            return


def line_of(name, size, checked):
    """A file beside its student, in words."""
    found, worst = checked.drift, checked.drift.cells[0]
    low, high = worst.interval
    return (
        f"{name} ({size:.2f} MB)",
        "{:.2f} -> {:.2f}".format(*found.accuracy),
        f"{worst.change:+.1f} [{low:+.1f}, {high:+.1f}] ({worst.cell})",
        f"{found.flips.percent:.2f} %",
        f"{checked.batch_flips.changed} of {checked.batch_flips.rows}",
        "{:.2f} -> {:.2f}".format(*found.mean_deo),
        "no: " + refusals(checked)[0] if refusals(checked) else "yes",
    )


def line_over_seeds(name, every):
    """One file of several students, in words."""
    accepted = sum(not refusals(each) for each in every)
    return (
        name,
        ranged([each.drift.accuracy[1] - each.drift.accuracy[0] for each in every], "+.2f"),
        ranged([each.drift.cells[0].change for each in every], "+.1f"),
        ranged([each.drift.flips.percent for each in every], ".2f"),
        ranged([each.batch_flips.changed for each in every], ".1f"),
        ranged([each.drift.mean_deo[1] - each.drift.mean_deo[0] for each in every], "+.2f"),
        f"{accepted} of {len(every)}",
    )


def ranged(values, form):
    """Mean, lowest and highest."""
    return f"{np.mean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--over-seeds", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    given = parser.parse_args()
    print("| student | file | accuracy | worst cell | flips | batch flips | mean-DEO | accepted |\n" + "|---" * 8 + "|")
    together = {}
    for run in given.runs:
        student, data, _ = open_run(run)
        rows = check_rows(data, given.rows)
        folder = Path(tempfile.mkdtemp())
        files = in_openvino if given.openvino else in_onnxruntime
        for name, path, runtime in files(student, data, folder):
            checked = check(student, runtime, data, rows, 64)
            if given.over_seeds:
                together.setdefault((student.architecture, name), []).append(checked)
            else:
                cells = line_of(name, path.stat().st_size / 1e6, checked)
                print(f"| {' | '.join((student.architecture, *cells))} |", flush=True)
        shutil.rmtree(folder)
    for (architecture, name), every in together.items():
        print(f"| {' | '.join((architecture, *line_over_seeds(name, every)))} |", flush=True)


if __name__ == "__main__":
    main()
