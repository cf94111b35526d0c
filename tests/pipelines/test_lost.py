"""What was lost of each cell stands beside its gap."""

import json

from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.marks import lost_of_cells
from bird_pipelines.reporting.report import write_report

INFO = {
    "failed": {"c0, g1": 2},
    "accounted": {
        "listed": 60,
        "left_out": [
            {"reason": "missing file", "cell": "c0, g1", "split": "", "rows": 28},
            {"reason": "conflicting copy", "cell": "c1, g0", "split": "test", "rows": 1},
        ],
    },
    "cells": {"train": {"c0, g0": 10, "c0, g1": 6, "c1, g0": 5}, "test": {"c0, g1": 4, "c1, g0": 4}},
}


def test_the_share_of_each_cell_that_was_lost(record_property):
    record_property("32 rows left out", 1)
    assert lost_of_cells(INFO) == ["c0, g1: 30 of 40 (75 %)", "c1, g0: 1 of 10 (10 %)"]
    assert lost_of_cells({**INFO, "cells": None}) == []  # an older record
    assert lost_of_cells({**INFO, "failed": {}, "accounted": {"left_out": []}}) == []


def test_the_report_says_it_beside_the_gaps(cache, tmp_path, record_property):
    record_property("32 rows left out", 1)
    out = tmp_path / "run"
    settings = {"cache": str(cache), "dataset": "digits-s", "student": "adapter", "method": "baseline", "epochs": 1}
    info = distill(resolve({**settings, "out": out}))
    assert sum(sum(each.values()) for each in info["cells"].values()) == sum(info["rows"].values())
    record = json.loads((out / "run.json").read_text())
    cell = next(iter(record["cells"]["train"]))
    record["accounted"] = {
        "listed": 500,
        "left_out": [{"reason": "missing file", "cell": cell, "split": "", "rows": 7}],
    }
    (out / "run.json").write_text(json.dumps(record))
    page = write_report([out], tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"of what was listed: {lost_of_cells(record)[0]}" in page
