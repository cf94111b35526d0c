"""A cache from a service: killed, resumed, and no image paid for twice."""

from collections import Counter

import numpy as np
import pytest
from helpers.service import FAULTS, Peer, truth
from helpers.shell import bird, bird_json, panel, stopped

from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.errors import TeacherError
from bird.teachers.canaries import canary_images, twin_images
from bird.teachers.service import open_service
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.precomputing.extraction import precompute
from bird_pipelines.precomputing.paid import payload

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
    again = peer.asked - Counter(sent) - Counter([*canary_images(), *sum(twin_images(), ())] * 100)
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


QUICK = {"attempts": 9, "longest_wait": 0.02, "timeout": 0.5}


def filled(peer, out, protocol="openai", count=200, **quick):
    """A cache of `count` images from a service that is not patient; returns its vectors and what was asked for."""
    dataset = open_dataset("digits-s")
    table = prepare(dataset, limit=count, keep_conflicts=False, max_problem_share=0.0, workers=1)
    service = open_service(f"http+{protocol}://{peer.host}/m", **QUICK | quick)
    precompute(
        service,
        dataset,
        table,
        out,
        dtype="float32",
        precision="fp32",
        batch_size=16,
        workers=1,
        shard_rows=64,
        max_failed=0.0,
    )
    assert verify(out).findings == []
    store = open_cache(out)
    sent = [payload(id, dataset.read(id), dataset.image(id)) for id in store.samples.ids]
    return store.vectors("penultimate", np.arange(count)), sent


@pytest.mark.parametrize(("protocol", "most"), [("openai", 1.4), ("kserve", 1.5)])
def test_a_cache_from_a_faulty_service_is_that_from_a_sound_one(tmp_path, protocol, most):
    # Where answers carry no index, a permuted or doubled one cannot be told: that protocol's servers answer in order.
    faults = FAULTS if protocol == "openai" else [fault for fault in FAULTS if fault not in ("permuted", "doubled")]
    with Peer() as peer:
        sound, _ = filled(peer, tmp_path / "sound", protocol)
    with Peer(rate=0.3, seed=3, faults=faults) as peer:
        found, sent = filled(peer, tmp_path / "faulty", protocol)
    np.testing.assert_array_equal(found, sound)
    assert sum(peer.asked[image] for image in sent) <= most * len(sent)


def test_an_outage_stops_the_run_which_goes_on_later(tmp_path):
    out = tmp_path / "cache"
    with Peer() as peer:
        peer.stop_after = 7
        with pytest.raises(TeacherError, match="status 503") as caught:
            filled(peer, out, attempts=2)
        assert caught.value.exit_code == 4
        peer.stop_after, before = None, peer.asked.copy()
        vectors, sent = filled(peer, out)
    assert sum(before[image] for image in sent) == 5 * 16
    assert [peer.asked[image] for image in sent] == [1] * len(sent), "answers from before the outage are kept"
    np.testing.assert_array_equal(vectors, np.stack([truth(image) for image in sent]))


@pytest.mark.parametrize(("status", "said"), [(302, "a redirect"), (401, "status 401"), (400, "status 400")])
def test_refusals_have_an_exit_code(tmp_path, status, said):
    with Peer(status=status) as peer:
        command = ("precompute", "--teacher", f"http+openai://{peer.host}/m", *DATA, "--out", tmp_path / "cache")
        assert said in panel(bird(*command, code=4))


def test_images_that_are_refused_count_as_failed(tmp_path):
    with Peer() as peer:
        _, sent = filled(peer, tmp_path / "sound")
        peer.poison, peer.poisoned = sent[70], 400
        command = ("precompute", "--teacher", f"http+openai://{peer.host}/m", *DATA, "--out", tmp_path / "cache")
        assert "the service gave no vector" in panel(bird(*command, "--on-error", "fail", code=2))
        bird(*command, "--max-failed", 0.01)
    assert verify(tmp_path / "cache").findings == []
    store = open_cache(tmp_path / "cache")
    assert np.flatnonzero(~store.usable(["penultimate"])).tolist() == [70]
