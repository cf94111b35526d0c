"""A cache from vectors in memory, or from a function; and what contradicts itself."""

import numpy as np
import pytest
from helpers.cachekit import plan, samples, strings

from bird_cache import append, open_cache, write_cache
from bird_cache.errors import FeatureError, RequestError, StaleCacheError
from bird_cache.verify import verify
from bird_cache.writer import open_writer

ROWS, DIM = 3000, 12
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((ROWS, DIM)).astype(np.float32)


def given(**changed):
    number = np.arange(ROWS)
    return {
        "ids": [f"image-{n}" for n in number],
        "labels": np.where(number % 3 == 0, "cat", "dog"),
        "groups": np.where(number % 2 == 0, "gray", "colour"),
        "splits": strings([("test", "train", "meta", "train")[n % 4] for n in number]),
        "made_by": {"model": "mine", "weights": "sha256:1"},
        **changed,
    }


def as_given(where):
    """The cache's vectors in the order in which they were given."""
    cache = open_cache(where)
    place = {id: row for row, id in enumerate(cache.samples.ids.tolist())}
    return cache["penultimate"][[place[f"image-{n}"] for n in range(ROWS)]]


def test_what_is_written_is_read(tmp_path):
    manifest = write_cache(tmp_path / "c", VECTORS, **given())
    assert manifest.complete
    assert verify(tmp_path / "c").findings == []
    cache = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(as_given(tmp_path / "c"), VECTORS.astype(np.float16).astype(np.float32))
    assert cache.samples.splits.tolist() == ["train"] * 1500 + ["meta"] * 750 + ["test"] * 750
    plan = cache.manifest.plan
    assert (plan.class_names, plan.group_names) == (("cat", "dog"), ("colour", "gray"))
    first = cache.samples
    assert first.ids[0] == "image-1"
    assert plan.class_names[first.labels[0]] == "dog"
    assert plan.group_names[first.groups[0]] == "colour"
    assert plan.notes["teacher"] == "mine"


def test_a_function_is_asked_only_for_what_is_missing(tmp_path):
    asked = []

    def compute(rows):
        asked.extend(rows.tolist())
        if len(asked) > 2000 and not again:
            raise KeyboardInterrupt
        return VECTORS[rows]

    again = False
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "c", compute, **given())
    again, first = True, len(asked)
    write_cache(tmp_path / "c", compute, **given())
    assert first + len(asked[first:]) < 2 * ROWS
    assert len(asked) - first - 1 == ROWS - 1024  # but for one row that tells the width
    np.testing.assert_array_equal(as_given(tmp_path / "c"), VECTORS.astype(np.float16).astype(np.float32))
    asked.clear()
    write_cache(tmp_path / "c", compute, **given())
    assert len(asked) == 1


def test_numbers_with_names_failed_rows_and_unknown_groups(tmp_path):
    number = np.arange(ROWS)
    more = {"labels": number % 2, "groups": number % 3 - 1, "class_names": ["no", "yes"], "group_names": ["f", "m"]}
    more |= {"failed": {"image-5": "too dark"}, "dtype": "float32", "digests": [f"{n:032x}" for n in number]}
    write_cache(tmp_path / "c", VECTORS, **given(**more))
    cache = open_cache(tmp_path / "c")
    row = cache.samples.ids.tolist().index("image-5")
    assert cache.samples.status[row] == "too dark"
    assert np.isnan(cache["penultimate"][row]).all()
    assert cache.samples.digests[row] == f"{5:032x}"
    assert cache.info()["groups"]["yes, unknown"]["rows"] == 500
    assert open_cache(tmp_path / "c").manifest.plan.class_names == ("no", "yes")
    plain = given(labels=number % 2, groups=number % 2)
    write_cache(tmp_path / "d", VECTORS, **plain)
    assert open_cache(tmp_path / "d").manifest.plan.class_names == ("0", "1")


def test_lists_are_arrays_and_numbers_may_be_floats(tmp_path):
    first = write_cache(tmp_path / "c", VECTORS.astype(float).tolist(), **given())
    assert first.fingerprint == write_cache(tmp_path / "d", VECTORS.astype(float), **given()).fingerprint
    groups = np.arange(ROWS) % 3 - 1.0  # as pandas has integers of which some are missing
    write_cache(tmp_path / "e", VECTORS, **given(groups=groups, group_names=["nan", "f"]))
    assert open_cache(tmp_path / "e").info()["groups"]["cat, unknown"]["rows"] == 1000
    write_cache(tmp_path / "f", VECTORS, **given(groups=strings(["nan", "f"] * (ROWS // 2)), group_names=["nan", "f"]))
    assert open_cache(tmp_path / "f").manifest.plan.group_names == ("nan", "f")
    write_cache(tmp_path / "g", VECTORS, **given(groups=np.full(ROWS, -1)))
    assert open_cache(tmp_path / "g").manifest.plan.group_names == ()


def test_other_failed_samples_are_another_cache(tmp_path):
    plain = write_cache(tmp_path / "c", VECTORS, **given())
    assert "failed" not in plain.plan.causes
    assert write_cache(tmp_path / "c", VECTORS, **given(failed={})).fingerprint == plain.fingerprint
    with pytest.raises(StaleCacheError, match=r"found failed = absent; wanted failed = 1 ids, "):
        write_cache(tmp_path / "c", VECTORS, **given(failed={"image-5": "dark"}))
    write_cache(tmp_path / "d", VECTORS, **given(failed={"image-5": "dark"}))
    with pytest.raises(StaleCacheError, match=r"found failed = 1 ids, .*wanted failed = 2 ids, "):
        write_cache(tmp_path / "d", VECTORS, **given(failed={"image-5": "dark", "image-6": "dark"}))
    ids = [f"other-{n}" for n in range(ROWS)]
    write_cache(tmp_path / "e", VECTORS, **given(ids=ids))
    assert append(tmp_path / "d", tmp_path / "e", tmp_path / "both").rows == 2 * ROWS


def test_other_vectors_or_another_origin_are_another_cache(tmp_path):
    first = write_cache(tmp_path / "c", VECTORS, **given())
    with pytest.raises(StaleCacheError, match="made_by.weights = sha256:1.*sha256:2"):  # noqa: RUF043  # one pattern over two lines
        write_cache(tmp_path / "c", VECTORS, **given(made_by={"model": "mine", "weights": "sha256:2"}))
    with pytest.raises(StaleCacheError, match="vectors = "):
        write_cache(tmp_path / "c", VECTORS * 2, **given())
    assert write_cache(tmp_path / "d", VECTORS, **given()).fingerprint == first.fingerprint
    ids = [f"other-{n}" for n in range(ROWS)]
    write_cache(tmp_path / "e", -VECTORS, **given(ids=ids))
    assert append(tmp_path / "c", tmp_path / "e", tmp_path / "both").rows == 2 * ROWS


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": ["cat"]}, "1 labels"),
        ({"ids": ["a"] * ROWS}, "2,999 ids that are there twice"),
        ({"ids": list(range(ROWS))}, "ids such as .0, 1, 2.; wanted names in text"),
        ({"splits": ["val"] * ROWS}, "splits val; wanted train, meta or test"),
        ({"class_names": ["cat"]}, "labels such as dog; wanted numbers or names of cat"),
        ({"groups": np.full(ROWS, -2), "group_names": ["f"]}, "groups such as -2"),
        ({"labels": np.full(ROWS, -1), "class_names": ["f"]}, "labels such as -1"),
        ({"failed": {"image-5": "dark", "5": "dark"}}, "1 ids in failed that are not in ids: '5'"),
        ({"failed": ["image-5"]}, "failed that is no mapping"),
        ({"failed": {"image-5": "ok"}}, "failed without a reason: image-5"),
        ({"splits": None}, "no list of splits"),
        ({"ids": "image"}, "no list of ids"),
        ({"ids": None}, "no list of ids"),
        ({"made_by": "x"}, "made_by = 'x'; wanted names and JSON values"),
        ({"made_by": {"model": np.float32}}, "made_by that is not JSON"),
        ({"made_by": {"lr": float("nan")}}, "made_by that is not JSON"),
        ({"dtype": "int8"}, "dtype 'int8'; wanted one of float16"),
        ({"dtype": "int32"}, "dtype 'int32'"),
        ({"kind": "foo"}, "kind 'foo'; wanted one of penultimate"),
        (
            {"groups": [None, "a"] * (ROWS // 2)},
            "1,500 of 3,000 groups that are missing, such as None.*-1 means unknown",
        ),
        ({"groups": [float("nan"), "a"] * (ROWS // 2)}, "groups that are missing, such as nan"),
        ({"groups": [float("nan"), 1.0] * (ROWS // 2)}, "groups that are missing, such as nan"),
        ({"groups": ["", "a"] * (ROWS // 2)}, "groups that are missing, such as ''"),
        ({"labels": ["nan", "a"] * (ROWS // 2)}, "labels that are missing, such as 'nan'.*leave these samples out"),
        ({"labels": ["cat"] * ROWS}, "labels that are all cat; wanted two at least"),
        ({"groups": [0] * ROWS}, "groups that are all 0; wanted two at least"),
        ({"labels": np.arange(ROWS) % 201}, "201 labels; wanted at most 200"),
        ({"groups": np.arange(ROWS) * 10**12}, "groups; wanted at most 200"),
        ({"labels": [[1], [1, 2]] * (ROWS // 2)}, "labels that are no array"),
        ({"class_names": "cd"}, "names of labels = 'cd'; wanted a list"),
    ],
)
def test_samples_that_contradict_each_other_are_refused(tmp_path, changed, said):
    with pytest.raises(RequestError, match=said):
        write_cache(tmp_path / "c", VECTORS, **given(**changed))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("vectors", "error", "said"),
    [
        (VECTORS[:, 0], RequestError, "vectors of shape"),
        (np.full((ROWS, DIM), np.nan), FeatureError, "NaN"),
        (np.full((ROWS, DIM), 1.0), FeatureError, "constant"),
        (lambda rows: VECTORS[rows][: max(1, len(rows) - 1)], RequestError, "vectors of shape"),
        (np.concatenate([VECTORS, VECTORS]), RequestError, "6,000 vectors, 3,000 ids; wanted one vector an id"),
        (VECTORS[:-1], RequestError, "2,999 vectors, 3,000 ids"),
        (lambda rows: VECTORS, RequestError, "vectors of shape"),
        (VECTORS.astype(np.complex64), RequestError, "vectors of complex64; wanted real numbers"),
        (lambda rows: VECTORS[rows] * 1j, RequestError, "vectors of complex64"),
        (VECTORS.astype(str), RequestError, "vectors of <U"),
        (VECTORS.astype(object), RequestError, "vectors of object"),
        ([[1.0], [1.0, 2.0]], RequestError, "vectors that are no array"),
        (None, RequestError, "vectors of object"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path, vectors, error, said):
    with pytest.raises(error, match=said):
        write_cache(tmp_path / "c", vectors, **given())
    assert write_cache(tmp_path / "c", VECTORS, **given()).complete  # nothing of the refused ones is in the way
    assert verify(tmp_path / "c").findings == []


def test_what_is_committed_or_may_be_another_writers_stays(tmp_path):
    late = VECTORS.copy()
    late[-1] = np.nan  # test rows are stored last
    same = given(splits=["train"] * (ROWS - 1) + ["test"])
    with pytest.raises(FeatureError):
        write_cache(tmp_path / "c", late, **same)
    assert sorted(path.name for path in (tmp_path / "c" / "commits").iterdir()) == ["000000.json", "000001.json"]
    with pytest.raises(StaleCacheError, match="vectors = "):
        write_cache(tmp_path / "c", VECTORS, **same)
    with pytest.raises(InterruptedError), open_writer(tmp_path / "d", plan(), samples()):
        raise InterruptedError  # workers may have been told of this cache
    assert (tmp_path / "d" / "zarr.json").exists()
    with pytest.raises(InterruptedError), open_writer(tmp_path / "d", plan(), samples(), alone=True):
        raise InterruptedError  # it was begun by another
    assert (tmp_path / "d" / "zarr.json").exists()
