"""More layers and stored views, from the command line to the student."""

import numpy as np
import pytest
import torch
from helpers.shell import bird, bird_json, distilled, panel

from bird.datasets import open_dataset
from bird.stored_views import view_of
from bird.teachers import load_teacher
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import read as read_run


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_a_layer_is_added_to_a_finished_cache(cache, flags, teacher, tmp_path, store):
    where = tmp_path / "cache"
    command = ("precompute", *flags, "--out", where, "--store", store)
    bird(*command)
    before = open_cache(where)
    bird(*command, "--layers", "penultimate,attention")
    bird(*command, "--layers", "penultimate,attention,logits")
    bird(*command)
    after = open_cache(where)
    assert after.fingerprint == before.fingerprint
    assert len(after.manifest.parts) == 2
    np.testing.assert_array_equal(after.read("penultimate", 0, 400), before.read("penultimate", 0, 400))
    assert verify(where).findings == []
    live, dataset = load_teacher(f"run:{teacher}"), open_dataset("digits-s")
    rows = np.arange(100, 110)
    pixels = torch.stack([live.preprocess(dataset.image(after.samples.ids[row])) for row in rows])
    for layer, values in live.answer(pixels, ("attention.stage3", "logits")).items():
        np.testing.assert_allclose(after.vectors(layer, rows), values.numpy(), rtol=5e-3, atol=5e-3)
    assert "attention.stage3" in panel(bird(*command, "--layers", "attentoin", code=2))
    run = distilled(where, tmp_path / "run", method="bkd", epochs=1)
    assert run["logits_fingerprint"] == after.manifest.parts["added-2"].fingerprint


@pytest.fixture(scope="module")
def views(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("views") / "cache"
    bird("precompute", *flags, "--out", folder, "--views", 2)
    return folder


def test_stored_views_are_what_the_teacher_says_of_their_crops(views, cache, teacher):
    store = open_cache(views)
    assert verify(views).findings == []
    assert store.manifest.plan.views == 3
    rows = np.arange(50, 60)
    np.testing.assert_array_equal(store.vectors("penultimate", rows), open_cache(cache).vectors("penultimate", rows))
    live, dataset = load_teacher(f"run:{teacher}"), open_dataset("digits-s")
    boxes = store.take("boxes", rows)
    assert not boxes[:, 0].any()
    for view in (1, 2):
        pixels = [
            live.preprocess(dataset.image(store.samples.ids[r]), b[view]) for r, b in zip(rows, boxes, strict=True)
        ]
        expected = live.features(torch.stack(pixels)).numpy()
        np.testing.assert_allclose(store.vectors("penultimate", rows, view), expected, rtol=5e-3, atol=5e-3)


def test_the_student_gets_the_image_of_the_crop_whose_vector_it_is_taught(views):
    given = {"dataset": "digits-s", "student": "shufflenetv2", "method": "fitnet", "cache": views, "out": "unused"}
    data = read_run(resolve(given))
    store, dataset = open_cache(views), open_dataset("digits-s")
    rows, stored = np.array([5, 9, 200]), np.array([2, 1, 0])
    batch = data.batch(rows, torch.device("cpu"), stored=stored, moments=(torch.tensor(0.0), torch.tensor(1.0)))
    ids = data.table.ids[rows]
    for position, (id, view) in enumerate(zip(ids, stored, strict=True)):
        row = int(np.flatnonzero(store.samples.ids == id)[0])
        box = store.take("boxes", np.array([row]))[0, view]
        assert torch.equal(batch.inputs[position], view_of(dataset.image(id), box, data.image_size).float() / 255)
        vector = store.vectors("penultimate", np.array([row]), int(view))[0]
        np.testing.assert_array_equal(batch.teacher[position].numpy(), vector)


def test_students_of_both_kinds_learn_from_views_and_the_run_says_so(views, cache, tmp_path):
    run = distilled(views, tmp_path / "adapter", epochs=1)
    assert "one of 2 stored random views" in run["view_policy"]
    run = distilled(views, tmp_path / "image", student="shufflenetv2", method="fitnet", epochs=1)
    assert "the student sees the same crop and flip" in run["view_policy"]
    info = bird_json("cache", "info", views)
    assert info["causes"]["views"]["count"] == 2
    assert info["fingerprint"] != open_cache(cache).fingerprint
