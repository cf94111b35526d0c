"""Rows dropped, chosen and added: a new cache in a new place, and the earlier one as it was."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
from helpers import cachekit
from helpers.cachekit import FAILED, ROWS, strings

from bird_cache import testing
from bird_cache.errors import IncompleteCacheError, RequestError, StaleCacheError
from bird_cache.generations import append, drop, subset
from bird_cache.manifest import Layer
from bird_cache.samples import PENDING, Samples
from bird_cache.store import open_cache
from bird_cache.testing import VIEWS, example_plan, files_of, write_example
from bird_cache.verify import verify
from bird_cache.writer import open_part, open_writer

GONE = [3, 7, 64, 70, 71, 149]  # some of them failed rows, of several shards
IDS = [f"é/sample.{row}" for row in GONE]
STAY = [row for row in range(testing.ROWS) if row not in GONE]


def with_layer(where):
    """An added layer in an example, with failed rows of its own."""
    with open_part(where, "head", {"logits": Layer(shape=(3,), dtype="float32", kind="logits")}, {"w": "x"}) as writer:
        for shard in writer.pending():
            start, stop = writer.plan.bounds(shard)
            lost = {row: "no answer" for row in (5, 70) if start <= row < stop}
            writer.write_shard(shard, {"logits": testing.example_vectors(start, stop, (3,)) + 2}, lost)
        writer.finish()


@pytest.fixture(params=["zarr", "webdataset"])
def example(request, tmp_path):
    write_example(str(tmp_path / "old"), example_plan(request.param))
    with_layer(tmp_path / "old")
    return tmp_path / "old"


def same_rows(new, old, rows):
    """Whether the rows of `new` are these rows of `old`, in every bit and word."""
    assert len(new) == len(rows)
    assert {*new.manifest.layers()} == {*old.manifest.layers()}
    for layer in old.manifest.layers():
        found, expected = new.read(layer, 0, len(new)), old.read(layer, 0, len(old))[rows]
        np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))
    for name in ("ids", "labels", "groups", "splits", "digests", "status"):
        np.testing.assert_array_equal(getattr(new.samples, name), getattr(old.samples, name)[rows])
    np.testing.assert_array_equal(new.usable(["logits"]), old.usable(["logits"])[rows])


def test_dropped_rows_are_gone_and_all_else_is_as_it_was(example, tmp_path):
    before = files_of(example)
    made = drop(example, tmp_path / "new", IDS)
    old, new = open_cache(example), open_cache(tmp_path / "new")
    assert verify(tmp_path / "new").findings == []
    same_rows(new, old, STAY)
    if new.manifest.plan.images:
        images = [new.sources(row // testing.SHARD)[row % testing.SHARD] for row in range(len(new))]
        good = [row for row in range(len(new)) if new.samples.status[row] == "ok"]
        assert [images[row] for row in good] == [testing.example_image(STAY[row]) for row in good]
    assert files_of(example) == before
    assert made.fingerprint == new.fingerprint != old.fingerprint == made.earlier
    assert (made.rows_before, made.rows) == (150, 144)
    assert new.manifest.plan.causes["generation"]["by"] == "drop"
    assert new.manifest.plan.causes["generation"]["from"] == [old.fingerprint]
    assert new.manifest.parts["head"].causes["generation"]["from"] == [old.manifest.parts["head"].fingerprint]
    assert sum(made.changed.values()) == len(GONE)
    # what is gone is accounted for by class, group and split
    lost = {(each.label, each.group, each.split): each.rows for each in new.manifest.plan.left_out}
    assert sum(lost.values()) == len(GONE)
    assert lost == {(row % 3, row % 2, ("train", "meta", "test")[row % 3]): n for row, n in counted(GONE)}
    assert new.info()["accounted"]["listed"] == 150


def counted(rows):
    """One row of each (class, group, split) of the example, and how many of `rows` there are of it."""
    cells = {}
    for row in rows:
        cells.setdefault(row % 6, []).append(row)
    return [(mine[0], len(mine)) for mine in cells.values()]


def test_the_bytes_of_dropped_rows_are_nowhere_in_the_new_cache(example, tmp_path):
    """Neither vectors nor names, digests nor images: in no file, nor in the table's columns, which are compressed."""
    drop(example, tmp_path / "new", IDS)
    old, new = open_cache(example), open_cache(tmp_path / "new")
    traces = []
    for row in GONE:
        if row not in testing.FAILED:
            traces += [view.tobytes() for view in old.read("penultimate", row, row + 1)[0]]
            traces += [view.tobytes() for view in old.read("logits", row, row + 1)[0] if np.isfinite(view).all()]
        if (image := testing.example_image(row)) is not None and f"image {row}".encode() * 2 in image:
            traces.append(image)
        traces += [f'"{old.samples.ids[row]}"'.encode(), old.samples.digests[row].encode()]
    assert len(traces) > 3 * len(GONE)
    before, after = (b"\0".join(files_of(where).values()) for where in (example, tmp_path / "new"))
    assert not [trace for trace in traces if trace in after]
    in_old = [trace for trace in traces if trace in before]
    assert len(in_old) >= 2 * VIEWS * 3  # the vectors, at least, are found where they are
    assert not {*new.samples.ids.tolist()} & {*IDS}
    assert not {*new.samples.digests.tolist()} & {old.samples.digests[row] for row in GONE}


def test_the_same_call_again_changes_nothing(example, tmp_path):
    made = drop(example, tmp_path / "new", IDS)
    before = files_of(tmp_path / "new")
    assert drop(example, tmp_path / "new", IDS) == made
    assert files_of(tmp_path / "new") == before
    with pytest.raises(StaleCacheError, match=r"generation\.identity"):
        drop(example, tmp_path / "new", IDS[:-1])
    assert files_of(tmp_path / "new") == before


@pytest.mark.parametrize("given", [{"ids": "sample-3"}, {"splits": "train"}, {"classes": "a"}, {"groups": "g"}])
def test_a_text_is_no_list(example, tmp_path, given):
    with pytest.raises(RequestError, match=r"found the text '.*'; wanted a list of .*; give \['"):
        subset(example, tmp_path / "new", **given)
    assert not (tmp_path / "new").exists()


def test_a_generation_of_a_generation(example, tmp_path):
    drop(example, tmp_path / "one", IDS[:3])
    drop(tmp_path / "one", tmp_path / "two", IDS[3:])
    drop(example, tmp_path / "both", IDS)
    two, both = open_cache(tmp_path / "two"), open_cache(tmp_path / "both")
    same_rows(two, open_cache(example), STAY)
    assert verify(tmp_path / "two").findings == []
    assert two.fingerprint != both.fingerprint
    assert sorted(two.manifest.plan.left_out, key=str) == sorted(both.manifest.plan.left_out, key=str)


def test_a_subset_by_split_class_group_and_id(example, tmp_path):
    old = open_cache(example)
    made = subset(example, tmp_path / "train", splits=["train"])
    same_rows(open_cache(tmp_path / "train"), old, [row for row in range(150) if row % 3 == 0])
    assert sorted(made.emptied) == sorted(f"{s}: {c}, {g}" for s, c in (("meta", "b"), ("test", "c")) for g in "gh")
    subset(example, tmp_path / "cell", classes=["b", "c"], groups=["h"])
    same_rows(open_cache(tmp_path / "cell"), old, [row for row in range(150) if row % 3 and row % 2])
    subset(example, tmp_path / "some", ids=IDS, splits=["meta", "test"])
    same_rows(open_cache(tmp_path / "some"), old, [row for row in GONE if row % 3])
    for name in ("train", "cell", "some"):
        assert verify(tmp_path / name).findings == []
    lost = open_cache(tmp_path / "some").manifest.plan.left_out
    assert {each.reason for each in lost} == {"not in the subset"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda old, new: drop(old, new, ["nobody", "é/sample.3"]), "no row of 1 of 2 ids: 'nobody'"),
        (lambda old, new: drop(old, new, []), "no id"),
        (lambda old, new: drop(old, new, [f"é/sample.{row}" for row in range(150)]), "all its 150 rows"),
        (
            lambda old, new: drop(old, new, [f"é/sample.{row}" for row in range(150) if row not in testing.FAILED]),
            "every vector of its 150 rows",
        ),
        (lambda old, new: subset(old, new, splits=["trian"]), "no split 'trian'; wanted some of meta, test, train"),
        (lambda old, new: subset(old, new, classes=["dog"]), "no class 'dog'; wanted some of a, b, c"),
        (lambda old, new: subset(old, new, groups=[]), "no group named"),
        (lambda old, new: subset(old, new), "no row to be left out"),
        (lambda old, new: subset(old, new, splits=["train"], classes=["b"]), "all its 150 rows"),
        (lambda old, new: drop(old, old, IDS), "the earlier cache; wanted another place"),
        (lambda old, new: drop(old, old / "new", IDS), "the earlier cache; wanted another place"),
        (lambda old, new: drop(old, new.parent / "x" / ".." / "old", IDS), "the earlier cache"),
        (lambda old, new: drop(old, f"file://{old}", IDS), "the earlier cache"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(tmp_path, call, said):
    old, new = tmp_path / "old", tmp_path / "new"
    write_example(str(old), example_plan("zarr"))
    before = files_of(old)
    with pytest.raises(RequestError, match=said):
        call(old, new)
    assert files_of(old) == before
    assert not new.exists()


def test_an_unfinished_cache_is_refused(tmp_path):
    with open_writer(tmp_path / "old", example_plan("zarr"), testing.example_samples()):
        pass
    with pytest.raises(IncompleteCacheError):
        drop(tmp_path / "old", tmp_path / "new", IDS)


# ---- a kill -----------------------------------------------------------------------------------------------------------


def killed(old, new, at_call):
    """Runs in a process of its own, which ends at system call number `at_call`."""
    count = 0

    def wrap(call):
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return counted

    for name in cachekit.CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    drop(old, new, [f"sample-{row}" for row in range(0, ROWS, 9)])


def test_a_killed_one_is_resumed_or_begun_again_by_the_same_call(tmp_path):
    old, gone = tmp_path / "old", [f"sample-{row}" for row in range(0, ROWS, 9)]
    cachekit.write(old)
    before = files_of(old)
    drop(old, tmp_path / "whole", gone)
    expected, calls = files_of(tmp_path / "whole"), 0
    context = multiprocessing.get_context("fork")
    for at_call in range(1, 200, 5):
        new = tmp_path / f"killed-{at_call}"
        child = context.Process(target=killed, args=(old, new, at_call))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        assert files_of(old) == before
        drop(old, new, gone)
        assert files_of(new) == expected
        calls = at_call
    assert calls > 20


# ---- added rows ---------------------------------------------------------------------------------------------------------


def more(where, rows=60, first=ROWS, plan=None, **changed):
    """A cache of further samples of the same teacher."""
    number = np.arange(first, first + rows)
    columns = {
        "ids": strings([f"sample-{row}" for row in number]),
        "labels": number % 3,
        "groups": number % 2,
        "splits": strings([("test", "train", "meta")[row % 3] for row in number]),
        "digests": strings([f"{row:032x}" for row in number]),
        "status": strings([PENDING] * rows),
    } | changed
    plan = plan or cachekit.plan(rows)
    with open_writer(where, plan, Samples(*columns.values())) as writer:
        for shard in writer.pending():
            start, stop = plan.bounds(shard)
            lost = {start: "undecodable"} if shard == 0 else {}
            writer.write_shard(shard, {"penultimate": cachekit.vectors(first + start, first + stop)}, lost)
        writer.finish()
    return where


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    where = tmp_path_factory.mktemp("base") / "old"
    cachekit.write(where)
    return where


def test_added_rows_come_after_the_others_of_their_split(tmp_path, base):
    other = more(tmp_path / "more")
    before = files_of(base), files_of(other)
    made = append(base, other, tmp_path / "new")
    assert (files_of(base), files_of(other)) == before
    assert verify(tmp_path / "new").findings == []
    old, added, new = (open_cache(path) for path in (base, other, tmp_path / "new"))
    expected = []
    for split in ("train", "meta", "test"):
        for store in (old, added):
            expected += store.samples.ids[store.samples.splits == split].tolist()
    assert new.samples.ids.tolist() == expected
    for store in (old, added):  # every row is what it was, on its side
        place = {id: row for row, id in enumerate(new.samples.ids.tolist())}
        rows = np.array([place[id] for id in store.samples.ids.tolist()])
        np.testing.assert_array_equal(
            new.take("penultimate", rows).view(np.uint8), store.read("penultimate", 0, len(store)).view(np.uint8)
        )
        for name in ("labels", "groups", "splits", "digests", "status"):
            np.testing.assert_array_equal(getattr(new.samples, name)[rows], getattr(store.samples, name))
    assert (made.rows_before, made.rows, sum(made.changed.values())) == (ROWS, ROWS + 60, 60)
    assert new.manifest.summary.failed == len(FAILED) + 1
    assert new.manifest.plan.causes["generation"]["from"] == [old.fingerprint, added.fingerprint]


def test_what_was_dropped_can_be_added_again(tmp_path, base):
    gone = [f"sample-{row}" for row in range(100, 160)]
    drop(base, tmp_path / "less", gone)
    subset(base, tmp_path / "part", ids=gone)
    append(tmp_path / "less", tmp_path / "part", tmp_path / "new")
    new, old = open_cache(tmp_path / "new"), open_cache(base)
    place = {id: row for row, id in enumerate(old.samples.ids.tolist())}
    rows = np.array([place[id] for id in new.samples.ids.tolist()])
    assert sorted(rows.tolist()) == [*range(ROWS)]
    np.testing.assert_array_equal(new["penultimate"][:], old["penultimate"][rows])
    assert verify(tmp_path / "new").findings == []


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"plan": cachekit.plan(60, teacher={"weights": "sha256:2"})}, StaleCacheError, "teacher.weights = sha256:2"),
        ({"plan": cachekit.plan(60, dtype="float32")}, StaleCacheError, "dtype = float32"),
        ({"plan": cachekit.plan(60).model_copy(update={"class_names": ("a", "b", "d")})}, StaleCacheError, "classes"),
        ({"first": ROWS - 2}, RequestError, "2 ids that .* has too: 'sample-598', 'sample-599'"),
        (
            {"digests": strings([f"{row:032x}" for row in range(1, 61)])},
            RequestError,
            "60 images that .* has in another split",
        ),
    ],
    ids=["another teacher", "another dtype", "other classes", "the same ids", "images on two sides"],
)
def test_what_does_not_fit_is_not_added(tmp_path, base, changed, error, said):
    other = more(tmp_path / "more", **changed)
    with pytest.raises(error, match=said):
        append(base, other, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_added_layers_that_only_one_has_are_left_out_and_named(tmp_path):
    for name in ("one", "two"):
        write_example(str(tmp_path / name), example_plan("webdataset"))
    with_layer(tmp_path / "one")
    subset(tmp_path / "one", tmp_path / "a", splits=["train"])
    subset(tmp_path / "one", tmp_path / "b", splits=["test"])
    subset(tmp_path / "two", tmp_path / "c", splits=["test"])
    assert append(tmp_path / "a", tmp_path / "b", tmp_path / "ab").layers_left_out == ()
    assert append(tmp_path / "a", tmp_path / "c", tmp_path / "ac").layers_left_out == ("logits",)
    assert "logits" in open_cache(tmp_path / "ab")
    assert "logits" not in open_cache(tmp_path / "ac")
    assert verify(tmp_path / "ab").findings == verify(tmp_path / "ac").findings == []
    whole = open_cache(tmp_path / "ab")
    assert whole.sources(0)[1] == testing.example_image(3)
