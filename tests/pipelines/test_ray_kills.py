"""Actors and nodes of a real Ray of two nodes are killed, or stopped, while they write a cache."""

import contextlib
import pickle
import random
import threading
import time

import psutil
import pytest
from helpers import cachekit, light_workers
from helpers.ray_nodes import ports, two_nodes
from helpers.workers import bytes_of, kill

from bird_cache.verify import verify
from bird_cache.writer import open_writer
from bird_pipelines.config import resolve_precompute
from bird_pipelines.precomputing.engines import coordinator, ray_actors
from bird_pipelines.precomputing.engines.base import Order
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.precomputing.engines.ray_actors import RayActors

pytest.importorskip("ray", reason="ray is not installed (pip install bird-distill[ray])")

ROWS = 3200
PLAN = cachekit.plan(ROWS, shard_rows=64)  # fifty shards


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two processors each, of which this process is a driver."""
    import ray

    for module in (cachekit, light_workers):
        ray.cloudpickle.register_pickle_by_value(module)
    there = two_nodes()
    ray.init(address=there.address, logging_level="ERROR", log_to_driver=False)
    yield there
    ray.shutdown()
    there.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one writer writes."""
    where = tmp_path_factory.mktemp("alone") / "cache"
    cachekit.write(where, PLAN, ROWS)
    return bytes_of(where)


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(ray_actors, "RemoteWorker", light_workers.LightWorker)


def actors():
    """The processes of actors: Ray names them so."""
    found = []
    for process in psutil.Process().children(recursive=True):  # of this test's Ray, not of another's
        with contextlib.suppress(psutil.Error):
            if "ray::LightWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def write(where, disturb, count=4):
    """Write the cache by actors; `disturb(shards done)` is called after each shard. Returns the seconds that it took."""
    flags = {"teacher": "onnx:none", "dataset": "digits-s", "out": where, "engine": "ray", "actors": count}
    began, done = time.monotonic(), []

    def advance(rows):
        done.append(rows)
        disturb(len(done))

    with open_writer(where, PLAN, cachekit.samples(ROWS)) as writer:
        asked = pickle.dumps(resolve_precompute(flags))
        order = Order(asked, PLAN.fingerprint, "", writer.pending(), 1.0, 1, str(where.parent))
        with RayActors(order) as workers:
            Coordinator(writer, workers, advance, 1.0).run(lambda: False)
        writer.finish()
    assert sum(done) == ROWS
    assert verify(where).findings == []
    return time.monotonic() - began


def killing(at, rng):
    """Kill an actor at each of these numbers of shards, within the next fraction of a second; and the list of the killed."""
    killed = []

    def disturb(done):
        if done in at:

            def strike():
                time.sleep(rng.uniform(0, 2 * light_workers.SECONDS))
                if there := actors():
                    killed.append(rng.choice(there).pid)
                    kill(killed[-1])

            threading.Thread(target=strike).start()

    return disturb, killed


@pytest.mark.slow
def test_an_actor_is_killed(cluster, alone, tmp_path, record_property):
    disturb, killed = killing({5}, random.Random(0))
    write(tmp_path / "cache", disturb)
    assert len(killed) == 1
    assert bytes_of(tmp_path / "cache") == alone
    record_property("35 workers of one cache killed", 1)


@pytest.mark.slow
def test_a_stopped_actor_costs_nothing_but_time(cluster, alone, tmp_path):
    """It is not dead: nobody notices. Its shard is given to another."""
    stopped = []

    def stop(done):
        if done == 5:
            stopped.append(actors()[0])
            stopped[0].suspend()

    write(tmp_path / "cache", stop)
    kill(stopped[0].pid)
    assert bytes_of(tmp_path / "cache") == alone


@pytest.mark.torture
def test_a_stopped_actor_is_given_up(cluster, alone, tmp_path, monkeypatch):
    """Where no other is there to take its shard."""
    monkeypatch.setattr(coordinator, "SILENT_SECONDS", 20.0)
    stopped = []

    def stop(done):
        if done == 45:
            stopped.append(actors()[0])
            stopped[0].suspend()

    write(tmp_path / "cache", stop, count=1)
    kill(stopped[0].pid)
    assert bytes_of(tmp_path / "cache") == alone


@pytest.mark.torture
def test_actors_killed_in_full(cluster, alone, tmp_path, record_property):
    """20 kills of actors at random instants."""
    kills, rng = 0, random.Random(1)
    for number in range(4):
        disturb, killed = killing({5, 14, 23, 32, 41}, rng)
        write(tmp_path / f"{number}", disturb)
        assert bytes_of(tmp_path / f"{number}") == alone
        kills += len(killed)
    assert kills >= 19
    record_property("35 workers of one cache killed", kills)


@pytest.mark.torture
def test_nodes_killed_in_full(cluster, alone, tmp_path, record_property):
    """5 kills of a whole node, with its actors."""
    rng = random.Random(2)
    for number in range(5):
        at = rng.randrange(5, 40)

        def disturb(done, at=at):
            if done == at:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
                cluster.add_node(num_cpus=2, **ports())

        write(tmp_path / f"{number}", disturb)
        assert bytes_of(tmp_path / f"{number}") == alone
    record_property("35 workers of one cache killed", 5)
