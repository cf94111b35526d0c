"""A cache from a service: killed, resumed, and no image paid for twice."""

from collections import Counter

import numpy as np
from helpers.service import Peer, truth
from helpers.shell import bird, bird_json, panel, stopped

from bird.datasets import open_dataset
from bird.teachers.service import canary_images
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.paid import payload

DATA = ("--dataset", "digits-s", "--limit", 200, "--shard-rows", 64, "--batch-size", 16, "--dtype", "float32")


def test_an_interrupted_run_never_pays_twice(tmp_path):
    with Peer() as peer:
        teacher, out = f"http+openai://{peer.host}/m", tmp_path / "cache"
        command = ("precompute", "--teacher", teacher, *DATA, "--out", out)
        planned = bird_json(*command, "--dry-run", "--price-per-1000", 2)
        assert (planned["images"], planned["cost"]) == (200, 0.4)
        assert not out.exists()
        peer.asked.clear()
        code, _ = stopped(*command, "--requests-per-minute", 600, when=lambda: len(peer.asked) > 90)
        assert code == -9
        kept = len(list((out / "answers").glob("0*.npy")))
        assert kept or (out / "commits").exists()
        bird(*command)
    store, dataset = open_cache(out), open_dataset("digits-s")
    sent = [payload(id, dataset.read(id), dataset.image(id)) for id in store.samples.ids]
    again = peer.asked - Counter(sent) - Counter(canary_images() * 100)
    assert again.total() <= 16, "at most the batch in flight is asked for again"
    assert verify(out).findings == []
    expected = np.stack([truth(image) for image in sent])
    np.testing.assert_array_equal(store.vectors("penultimate", np.arange(200)), expected)
    assert store.manifest.plan.layers["penultimate"].kind == "projection"
    assert [path.name for path in (out / "answers").iterdir()] == ["canaries.npy"]


def test_another_model_stops_the_run_and_keeps_what_is_committed(tmp_path):
    with Peer() as peer:
        command = ("precompute", "--teacher", f"http+openai://{peer.host}/m", *DATA, "--out", tmp_path / "c")
        stopped(*command, "--requests-per-minute", 600, when=lambda: any((tmp_path / "c").glob("commits/0*.json")))
        peer.salt = 5
        assert "other vectors" in panel(bird(*command, code=4))
        peer.salt = 0
        bird(*command)
    assert verify(tmp_path / "c").findings == []
