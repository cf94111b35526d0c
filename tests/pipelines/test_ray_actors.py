"""`--engine ray` on a real Ray of two nodes on this machine."""

import contextlib
import signal
import socket
import sys
import time

import psutil
import pytest
from helpers.ray_nodes import two_nodes
from helpers.shell import bird, panel
from helpers.workers import begun, bytes_of, ended, full_disk, kill, moved, order_for, receipts, start, until

from bird_cache.errors import StaleCacheError, StorageError
from bird_cache.store import open_cache
from bird_cache.writer import open_writer
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.precomputing.engines.ray_actors import RayActors, pulse_of

pytest.importorskip("ray", reason="ray is not installed (pip install bird-distill[ray])")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two processors each."""
    there = two_nodes()
    yield there
    there.shutdown()


@pytest.fixture
def inside(cluster):
    """This process as a driver of the cluster."""
    import ray

    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


def actors():
    """The processes of actors: Ray names them so, once their teacher is being opened or they write."""
    found = []
    for process in psutil.Process().children(recursive=True):  # of this test's Ray, not of another's
        with contextlib.suppress(psutil.Error):
            if "RemoteWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def by_ray(flags, where, cluster, count=4):
    return start(
        "precompute", *flags, "--out", where, "--engine", "ray", "--address", cluster.address, "--actors", count
    )


@pytest.mark.slow
def test_actors_on_two_nodes_write_what_one_process_writes_even_if_one_is_killed(flags, expected, cluster, tmp_path):
    where = tmp_path / "cache"
    process = by_ray(flags, where, cluster)
    assert until(lambda: receipts(where) >= 1, process), process.communicate()[1]
    kill(actors()[0].pid)
    ended(process)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_actor_ends_the_run_and_loses_nothing(flags, expected, cluster, tmp_path):
    where = tmp_path / "cache"
    process = by_ray(flags, where, cluster)
    assert until(actors, process), process.communicate()[1]
    full_disk(actors()[0].pid)
    said = ended(process, 1)
    assert said.count("╭") == 1
    for part in ("StorageError", "worker on", "File too large while writing 131,096 bytes", "make room"):
        assert part in said
    bird("precompute", *flags, "--out", where)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_what_ray_began_one_process_finishes_and_the_other_way_round(flags, expected, cluster, tmp_path):
    where = tmp_path / "cache"
    process = by_ray(flags, where, cluster, 1)
    assert until(lambda: receipts(where) >= 2, process), process.communicate()[1]
    process.send_signal(signal.SIGINT)
    assert "resume" in ended(process, 130)
    assert until(lambda: not actors(), seconds=60)
    kept = receipts(where)
    assert 2 <= kept < 7
    bird("precompute", *flags, "--out", where)
    assert bytes_of(where) == expected
    where = tmp_path / "other"
    begun(flags, where)
    process = by_ray(flags, where, cluster)
    ended(process)
    assert bytes_of(where) == expected


@pytest.mark.slow
def test_an_error_of_an_actor_arrives_as_itself(flags, teacher, inside, tmp_path, monkeypatch):
    """A worker with other weights, and one that does not see the folder: nothing is written."""
    from bird_pipelines.config import resolve
    from bird_pipelines.distilling.training import distill

    other, where = tmp_path / "other", tmp_path / "cache"
    there = {"dataset": "digits-s", "student": "shufflenetv2", "method": "baseline", "limit": 60}
    distill(resolve({**there, "epochs": 1, "batch_size": 32, "seed": 1, "out": other}))
    before, asked = begun(flags, where), {"limit": 400, "engine": "ray", "actors": 2}
    with pytest.raises(StaleCacheError, match=r"worker on .*teacher\.weights"):
        coordinate(where, order_for(where, other, **asked))
    order = order_for(where, teacher, **asked)
    with pytest.raises(StorageError, match=r"worker on .*all hosts share"):
        coordinate(where, moved(order, tmp_path / "elsewhere"))
    assert bytes_of(where) == before
    assert coordinate(where, order) > 0, "no sign of a batch"
    assert receipts(where) == 7


def coordinate(where, order):
    store = open_cache(where)
    with open_writer(where, store.manifest.plan, store.samples) as writer, RayActors(order) as workers:
        Coordinator(writer, workers, lambda *_: None, 0.01).run(lambda: False)
        return sum(workers.ray.get([pulse_of(actor.handle) for actor in workers.actors]))


def test_an_address_that_does_not_answer_is_said_in_seconds(flags, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    where = ("--out", tmp_path / "cache", "--engine", "ray", "--address")
    assert address in panel(bird("precompute", *flags, *where, address, code=2))
    assert "no HOST:PORT" in panel(bird("precompute", *flags, *where, "head", code=2))
    assert time.monotonic() - began < 60
    assert not (tmp_path / "cache").exists()


def test_auto_is_what_ray_means_by_it(tmp_path, monkeypatch):
    """RAY_ADDRESS comes first; then the cluster that `ray start` joined last, whose file is where Ray puts it."""
    import bird_pipelines
    from bird.errors import UsageError

    asked = {"teacher": "onnx:x", "dataset": "digits-s", "out": tmp_path / "cache", "engine": "ray"}
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match=r"--address auto.*127\.0\.0\.1:9: Connection refused"):
        bird_pipelines.precompute(**asked, address="auto")
    with pytest.raises(UsageError, match=r"RAY_ADDRESS=127\.0\.0\.1:9"):
        bird_pipelines.precompute(**asked)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # the heads of other tests on this machine
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UsageError, match="no cluster that this machine belongs to"):
        bird_pipelines.precompute(**asked, address="auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:9\n")
    with pytest.raises(UsageError, match=r"--address auto.*127\.0\.0\.1:9: Connection refused"):
        bird_pipelines.precompute(**asked, address="auto")


@pytest.mark.slow
def test_what_answers_but_is_no_ray_is_said_within_a_minute(tmp_path):
    """A dashboard's port, for example. `ray.init` alone tries it for a quarter of an hour."""
    import bird_pipelines
    from bird.errors import UsageError

    began = time.monotonic()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        asked = {"teacher": "onnx:x", "dataset": "digits-s", "out": tmp_path / "cache", "engine": "ray"}
        with pytest.raises(UsageError, match="something answers, but not as a Ray does"):
            bird_pipelines.precompute(**asked, address=address)
    assert time.monotonic() - began < 100
    assert not (tmp_path / "cache").exists()


def test_without_ray_one_line_says_which_extra(flags, tmp_path, monkeypatch, capsys):
    import bird_pipelines
    from bird.errors import UsageError

    for package, engine in (("ray", "ray"), ("submitit", "slurm")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match=rf"bird-distill\[{engine}\]"):
            bird_pipelines.precompute(teacher="onnx:x", dataset="digits-s", out=tmp_path / "cache", engine=engine)
