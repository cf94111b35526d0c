"""Images and cached features together against the same images alone.

    python bench/joint.py [--images 512] [--rounds 7] [--threads 1]

Random JPEG files of CelebA's size behind the data set "table", 64 px for the student, random 512-wide vectors in the
cache. Both sides decode every image anew with two threads and make the same batches, order and random views:
- training: a run's own batches (`RunData.batch`, what `bird distill` trains on), with the teacher's vectors,
  standardised, and without;
- stream: `FeatureStream(images=...)`, which checks every sample's id and digest, against the same loader asked for the
  same ids.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from precompute import write_images
from results import paired, save
from synthetic import run_data

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.student_views import draw_views
from bird_cache.manifest import Layer, Plan
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.writer import open_writer
from bird_pipelines.distilling.images import Images
from bird_pipelines.distilling.vectors import features_of
from bird_pipelines.precomputing.plan import samples_of

BATCH, SIZE, WIDTH, DECODERS = 64, 64, 512, 2


def write_cache(folder, table):
    plan = Plan(
        causes={"bench": "joint"},
        layers={"penultimate": Layer(shape=(WIDTH,), dtype="float16", kind="penultimate")},
        rows=len(table),
        shard_rows=256,
        chunk_rows=256,
        class_names=("0", "1"),
        group_names=("0", "1"),
    )
    rng = np.random.default_rng(0)
    with open_writer(folder, plan, samples_of(table)) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            writer.write_shard(
                shard, {"penultimate": rng.standard_normal((stop - start, 1, WIDTH)).astype(np.float32)}, {}
            )
        writer.finish()


class Fresh(Images):
    """Images that are decoded each time, as where they do not fit in memory."""

    def __init__(self, *given):
        super().__init__(*given)
        self._held = None


def train_epoch(data, moments, number):
    rng = np.random.default_rng(number)
    rows = rng.permutation(data.rows("train"))
    for start in range(0, len(rows), BATCH):
        mine = rows[start : start + BATCH]
        data.batch(mine, torch.device("cpu"), views=draw_views(rng, len(mine), SIZE, True), moments=moments)


def rate(work, count):
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def measured(name, with_features, without, count, rounds):
    """One line of the table: images a second of both, who is first alternates."""
    both, images_only = [], []
    for number in range(rounds + 1):
        order = (with_features, without) if number % 2 else (without, with_features)
        found = {work: rate(lambda work=work, number=number: work(number), count) for work in order}
        if number:
            both.append(found[with_features])
            images_only.append(found[without])
    return {
        "what": name,
        "images alone, images/s": statistics.median(images_only),
        "with features": statistics.median(both),
        "ratio": paired(both, images_only),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        (box / "images").mkdir()
        write_images(box / "images", options.images)
        dataset = open_dataset("table", box / "images")
        table = prepare(dataset)
        write_cache(box / "cache", table)
        store = open_cache(box / "cache")
        images = Fresh(dataset, table, SIZE, DECODERS)
        two = ("0", "1")
        alone = run_data(table, class_names=two, group_names=two, image_size=SIZE, images=images)
        joint = dataclasses.replace(alone, features=features_of(store, np.arange(len(table)), 1e9))
        place = {id: row for row, id in enumerate(table.ids.tolist())}

        def given(ids):
            rows = np.array([place[id] for id in ids])
            return ids, table.digests[rows].tolist(), images.get(rows)

        stream = FeatureStream(store, "train", batch_size=BATCH, images=given, widen=False)
        bare = FeatureStream(store, "train", batch_size=BATCH, widen=False)

        def images_alone(number):
            for ids in [batch.ids.tolist() for batch in bare.epoch(number)]:
                given(ids)

        def together(number):
            for batch in stream.epoch(number):
                torch.from_numpy(batch.features["penultimate"]).float()

        moments = joint.moments()
        pairs = {
            "training batches": (lambda n: train_epoch(joint, moments, n), lambda n: train_epoch(alone, None, n)),
            "stream": (together, images_alone),
        }
        count = len(alone.rows("train"))
        rows = [measured(name, *pair, count, options.rounds) for name, pair in pairs.items()]
    notes = [
        f"{count} JPEG files of 178 x 218 pixels, decoded each epoch by {DECODERS} threads to {SIZE} px, batch {BATCH}, "
        f"{WIDTH}-wide float16 vectors, {options.rounds} rounds, who is first alternates. Wanted: .98."
    ]
    columns = ("what", "images alone, images/s", "with features", "ratio")
    save("joint", "Images and cached features together, over the same images alone.", columns, rows, notes)


if __name__ == "__main__":
    main()
