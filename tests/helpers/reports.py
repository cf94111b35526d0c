"""Synthetic run folders for tests of the report, and what reads a page: a parser, and a real browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from bird.measuring.metrics import assess

CLASSES = [
    "plane",
    "car",
    "<script>alert(1)</script>",
    "cat $x_",
    "日本",
    "dog",
    "frog",
    "horse",
    "ship",
    "a very long class name indeed",
]
GROUPS = ["colour", "gray & 50 %"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EPOCHS, WARMUP = 15, 5


def metrics(seed, accuracy, gap, classes=10, rows=2000):
    """Metrics of a classifier with the given accuracy and gap between the two groups."""
    rng = np.random.default_rng(seed)
    cell = np.concatenate([np.arange(2 * classes), rng.integers(2 * classes, size=rows)])
    labels, groups = cell // 2, cell % 2
    right = rng.random(len(cell)) < accuracy - gap * (labels + 1) / classes * groups
    predictions = np.where(right, labels, rng.integers(classes, size=len(cell)))
    scores = rng.random((len(cell), classes))
    scores[np.arange(len(cell)), predictions] += 0.5
    return assess(labels, groups, predictions, scores, classes, 2, replicates=200).as_json()


def curve(gated, seed=0):
    """One line an epoch, as `bird distill` writes them."""
    rng = np.random.default_rng(seed)
    for epoch in range(1, EPOCHS + 1):
        warm, fade = epoch <= WARMUP, np.exp(-epoch / 6)
        line = {"epoch": epoch, "step": 100 * epoch, "seconds": 2.5 * epoch, "gate": None}
        line |= {
            "loss": 1 + fade,
            "ce": 0.8 + fade,
            "distance": 0.5 * fade + 0.1,
            "bias": None,
            "meta_bias": None,
        }
        line["meta"] = {"accuracy": 70 - 40 * fade + rng.normal(), "mean_deo": 30 - epoch + rng.normal()}
        if gated:
            values = 1 / (1 + np.exp(-rng.normal(0.5, 0.1 + 0.1 * epoch, 512)))
            line["gate"] = {"counts": np.histogram(values, 50, (0, 1))[0].tolist()}
            line |= {} if warm else {"bias": 3 * fade + 0.5, "meta_bias": 3 * fade + 0.7}
        yield line


def make_run(folder, method="bird", seed=0, *, accuracy=0.7, gap=0.25, complete=True, test=True, **changes):
    """A synthetic run folder."""
    folder.mkdir(parents=True)
    config = {
        "method": method,
        "student": "adapter",
        "seed": seed,
        "dataset": "cifar10s",
        "teacher": "clip-vit-b32",
    }
    config |= {
        "lambda": 0.03,
        "alpha": 0.9,
        "epochs": EPOCHS,
        "warmup": WARMUP,
        "batch_size": 128,
        "lr": 1e-3,
    }
    config |= {"limit": None, "dataset_settings": {}, **changes}
    info = {
        "complete": complete,
        "config": config,
        "fingerprint": "3f1c9a7be2d04c55",
        "class_names": CLASSES,
        "group_names": GROUPS,
        "seconds": 37.4,
        "time_shares": {"data": 0.1, "forward": 0.2, "meta": 0.3, "backward": 0.25, "other": 0.15},
        "rows": {"train": 45000, "meta": 5000, "test": 2020},
        "failed": {"plane x colour": 3},
        "view_policy": "cached features of one deterministic view; the student reads no image",
        "versions": {"torch": "2.14.1", "numpy": "2.4.6"},
    }
    (folder / "run.json").write_text(json.dumps(info))
    lines = [json.dumps(line) + "\n" for line in curve(method == "bird", seed)]
    (folder / "curve.jsonl").write_text("".join(lines))
    (folder / "metrics-meta.json").write_text(json.dumps({"error": "no rows of class 3 x group 1"}))
    if test:
        (folder / "metrics-test.json").write_text(json.dumps(metrics(seed, accuracy, gap)))
    return folder


class Reader(HTMLParser):
    """Text, headings and links of a page; fails where a tag is closed that is not open."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.text, self.links, self.ids, self.tags = [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "srcset", "action") if name in values]
        self.ids += [values["id"]] if "id" in values else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page.read_text())
    reader.close()
    assert reader.open == []
    return reader


def text_of(page):
    return re.sub(r"\s+", " ", " ".join(read(page).text))


def browser():
    """A headless browser on this machine, or skip (fail if BIRD_REQUIRE_BROWSER=1)."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    say = pytest.fail if os.environ.get("BIRD_REQUIRE_BROWSER") == "1" else pytest.skip
    return say(f"no browser: none of {', '.join(BROWSERS)} on PATH")


def browse(page, profile, *arguments):
    """Open `page` in a fresh headless browser that has no network, and return what it prints."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
    command = [browser(), *flags, *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()
