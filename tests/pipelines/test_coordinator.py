"""Who gets which shard: workers that are lost, slow, silent or wrong. An engine of threads writes a real small cache."""

import threading
import time
from collections import Counter

import pytest
from helpers.cachekit import lost, plan, samples, vectors

from bird.errors import RunError, TeacherError
from bird_cache.errors import StorageError
from bird_cache.verify import verify
from bird_cache.worker import open_worker
from bird_cache.writer import open_writer
from bird_pipelines.precomputing.engines import coordinator
from bird_pipelines.precomputing.engines.base import Ended, Silence, Workers
from bird_pipelines.precomputing.engines.coordinator import Coordinator
from bird_pipelines.progress import Interrupted

PLAN = plan(shard_rows=64)  # ten shards
HANGS = 60.0


class Threads(Workers):
    """Workers that do what `behave(shard, how often it was given)` says: None writes the shard, a number waits so many
    seconds first, an error is what the worker raises, a text how it is lost; "lies" says that it wrote what it did not. A
    worker that waits for HANGS seconds gives no sign for `silent` seconds, the others always do. The first `unborn` workers
    hang while they open their teacher, and `still` of those that take their places."""

    def __init__(self, where, count, behave, share=1, unborn=0, still=0, silent=1e6):
        self.where, self.count, self.behave, self.share = where, count, behave, share
        self.given, self.running, self.done, self.gave_up = Counter(), {}, [], []
        self.number, self.still, self.silent, self.threads = 0, still, silent, []
        self.closed = threading.Event()
        self.unborn, self.hanging = {-1 - number for number in range(unborn)}, set()

    @classmethod
    def require(cls, asked):
        """It is always there."""

    def free(self):
        return self.count - len(self.running) - len(self.unborn)

    def call(self, shards):
        self.number += 1
        self.running[self.number] = time.monotonic()
        behaviour = [(shard, self.behave(shard, self.given[shard])) for shard in shards]
        self.given.update(shards)
        self.hanging |= {self.number for _, how in behaviour if how == HANGS}
        self.threads.append(threading.Thread(target=self.work, args=(self.number, behaviour), daemon=True))
        self.threads[-1].start()
        return self.number

    def work(self, number, behaviour):
        writer = open_worker(self.where, PLAN.fingerprint)
        for shard, how in behaviour:
            if isinstance(how, Exception):
                return self.done.append(Ended(number, how))
            if isinstance(how, str) and how != "lies":
                return self.done.append(Ended(number, lost=how))
            if self.closed.wait(how if isinstance(how, float) else 0):
                return None
            start, stop = PLAN.bounds(shard)
            if how != "lies":
                writer.write_shard(shard, {"penultimate": vectors(start, stop)}, lost(start, stop))
        return self.done.append(Ended(number, seconds=time.monotonic() - self.running.get(number, time.monotonic())))

    def wait(self, seconds):
        time.sleep(0.01)
        done, self.done = self.done, []
        done = [each for each in done if each.call in self.running]
        for each in done:
            del self.running[each.call]
        return done

    def age(self, call):
        return time.monotonic() - self.running[call]

    def silences(self):
        loading = {number: Silence(self.silent, False) for number in self.unborn}
        silence = {number: self.silent if number in self.hanging else 0.0 for number in self.running}
        return loading | {number: Silence(seconds, number > 1) for number, seconds in silence.items()}

    def give_up(self, worker):
        self.gave_up.append(worker)
        if worker in self.running:
            del self.running[worker]
            return worker
        if self.still:
            self.still -= 1
        else:
            self.unborn.remove(worker)
        return None

    def close(self):
        self.closed.set()
        self.running.clear()
        for thread in self.threads:  # none writes into the folder of a test that has ended
            thread.join()


def coordinate(where, behave=lambda *_: None, count=3, share=1, max_failed=1.0, stop=lambda: False, **hanging):
    """Write the example cache by workers; returns them, and how many rows were counted."""
    counted = []
    with open_writer(where, PLAN, samples()) as writer:
        with Threads(where, count, behave, share, **hanging) as workers:
            Coordinator(writer, workers, counted.append, max_failed).run(stop)
        writer.finish()
    assert verify(where).findings == []
    return workers, sum(counted)


def bytes_of(where):
    return {path: path.read_bytes() for path in sorted(where.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The bytes of the same cache by one writer."""
    where = tmp_path_factory.mktemp("alone")
    with open_writer(where, PLAN, samples()) as writer:
        for shard in writer.pending():
            start, stop = PLAN.bounds(shard)
            writer.write_shard(shard, {"penultimate": vectors(start, stop)}, lost(start, stop))
        writer.finish()
    return {path.relative_to(where): data for path, data in bytes_of(where).items()}


@pytest.mark.parametrize("share", [1, 4])
def test_workers_write_what_one_writer_writes(tmp_path, alone, share):
    workers, counted = coordinate(tmp_path, share=share)
    assert {path.relative_to(tmp_path): data for path, data in bytes_of(tmp_path).items()} == alone
    assert counted == PLAN.rows
    assert set(workers.given.values()) == {1}


def test_the_shards_of_a_lost_worker_go_back(tmp_path, alone):
    workers, counted = coordinate(tmp_path, lambda shard, times: "killed" if shard in (2, 5) and times < 2 else None)
    assert {path.relative_to(tmp_path): data for path, data in bytes_of(tmp_path).items()} == alone
    assert counted == PLAN.rows
    assert workers.given[2] == workers.given[5] == 3


def test_of_a_lost_worker_only_what_it_did_not_commit_goes_back(tmp_path):
    workers, _ = coordinate(tmp_path, lambda shard, times: "killed" if shard == 2 and not times else None, share=5)
    assert [workers.given[shard] for shard in range(5)] == [1, 1, 2, 2, 2]


def test_a_shard_that_fails_three_times_ends_the_run_and_is_named(tmp_path):
    with pytest.raises(RunError, match=r"shard 4 \(rows 256\.\.319\).*out of memory"):
        coordinate(tmp_path, lambda shard, times: "out of memory" if shard == 4 else None, count=1)
    workers, counted = coordinate(tmp_path)
    assert 4 in workers.given
    assert 0 not in workers.given
    assert counted == PLAN.rows - 64 * 4, "what was committed before is kept"


def test_an_error_of_ours_ends_the_run_at_once(tmp_path):
    error = TeacherError(where="teacher", found="nonsense", wanted="sense", fix="look")
    with pytest.raises(TeacherError) as caught:
        coordinate(tmp_path, lambda shard, times: error if shard == 1 else None, count=1)
    assert caught.value is error


def test_any_other_error_counts_as_a_failure(tmp_path):
    with pytest.raises(RunError, match=r"shard 1 .*ZeroDivisionError: by nothing"):
        coordinate(tmp_path, lambda shard, times: ZeroDivisionError("by nothing") if shard == 1 else None)


def test_a_slow_shard_is_given_to_a_second_worker(tmp_path):
    """Once half is done; whoever is first wins, and nobody waits for the other."""
    began = time.monotonic()
    workers, counted = coordinate(tmp_path, lambda shard, times: 50.0 if shard == 3 and not times else 0.05)
    assert time.monotonic() - began < 20
    assert workers.given[3] == 2
    assert counted == PLAN.rows


@pytest.mark.parametrize("at", [0, 3])
def test_a_worker_that_hangs_is_replaced_also_at_the_first_shard(tmp_path, capsys, at):
    workers, counted = coordinate(tmp_path, lambda shard, times: HANGS if shard == at and not times else None, count=1)
    assert workers.gave_up == [at + 1]
    assert counted == PLAN.rows
    assert f"shard {at} " in capsys.readouterr().err, "it is told"


@pytest.mark.parametrize(("at", "silent"), [(0, 1700.0), (3, 500.0)])
def test_a_worker_has_time(tmp_path, at, silent):
    """More for its teacher and its first batch than for the others."""
    rounds = iter(range(20))
    with (
        open_writer(tmp_path, PLAN, samples()) as writer,
        Threads(tmp_path, 1, lambda shard, times: HANGS if shard == at else None, silent=silent) as workers,
    ):
        its = Coordinator(writer, workers, lambda *_: None, 1.0)
        with pytest.raises(Interrupted):
            its.run(lambda: workers.given[at] > 0 and next(rounds, None) is None)
    assert workers.gave_up == []
    assert workers.given[at] == 1


def test_a_shard_at_which_every_worker_hangs_ends_the_run(tmp_path):
    with pytest.raises(RunError, match=r"shard 0 .*3 failures.* no sign in 600 s from a worker at its next batch"):
        coordinate(tmp_path, lambda shard, times: HANGS if shard == 0 else None, count=1)


def test_a_worker_that_hangs_with_its_teacher_is_replaced(tmp_path):
    workers, counted = coordinate(tmp_path, count=1, unborn=1, still=1)
    assert workers.gave_up == [-1, -1]
    assert counted == PLAN.rows


def test_workers_that_all_hang_with_their_teachers_end_the_run(tmp_path):
    with pytest.raises(RunError, match=r"before it has begun.*no sign in 1,800 s from a worker at its teacher"):
        coordinate(tmp_path, count=2, unborn=2, still=9)


def test_a_host_whose_workers_never_begin_ends_nothing_while_others_work(tmp_path):
    workers, counted = coordinate(tmp_path, lambda *_: 0.05, count=2, unborn=1, still=10**6)
    assert len(workers.gave_up) > 3
    assert counted == PLAN.rows


def test_a_worker_whose_receipts_are_not_seen_writes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator, "SEEN_SECONDS", 0.2)
    monkeypatch.setattr(coordinator, "LOOK_SECONDS", 0.05)
    with pytest.raises(StorageError, match="no receipt of shard 0"):
        coordinate(tmp_path, lambda shard, times: "lies" if shard == 0 else None)


def test_what_others_commit_counts_and_is_not_done_again(tmp_path):
    """Another process writes the last shards meanwhile."""

    def other(shard, times):
        if shard == 0:
            writer = open_worker(tmp_path, PLAN.fingerprint)
            for mine in (8, 9):
                start, stop = PLAN.bounds(mine)
                writer.write_shard(mine, {"penultimate": vectors(start, stop)}, lost(start, stop))

    workers, counted = coordinate(tmp_path, other, count=1)
    assert counted == PLAN.rows
    assert {8, 9}.isdisjoint(workers.given)


def test_an_interrupted_coordinator_keeps_what_is_committed(tmp_path):
    asked = iter([False] * 30)
    with pytest.raises(Interrupted):
        coordinate(tmp_path, lambda shard, times: 0.05, count=1, stop=lambda: next(asked, True))
    workers, _ = coordinate(tmp_path)
    assert 0 not in workers.given
