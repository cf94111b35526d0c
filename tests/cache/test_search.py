"""The nearest rows of a cache: exact, in a defined order, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from helpers import cachekit
from helpers.cachekit import FAILED, ROWS, made_up, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from bird_cache.errors import MissingCodecError, RequestError
from bird_cache.search import index_of, near_duplicates, nearest, nearest_to, similarity
from bird_cache.store import open_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    where = tmp_path_factory.mktemp("search") / "cache"
    cachekit.write(where)
    return open_cache(where)


def by_definition(queries, base, rows, k):
    """All pairs one after the other, feature by feature, as the page says; then by similarity and row."""
    found = []
    for x in queries.astype(float).tolist():
        scores = []
        for row in rows:
            y = base[row].astype(float).tolist()
            xy = xx = yy = 0.0
            for a, b in zip(x, y, strict=True):
                xy, xx, yy = xy + a * b, xx + a * a, yy + b * b
            scores.append((-min(1.0, max(-1.0, xy / (xx * yy) ** 0.5)), row))
        found.append(sorted(scores)[:k])
    return [[row for _, row in each] for each in found], [[-score for score, _ in each] for each in found]


@pytest.mark.parametrize("split", [None, "train", "test"])
@pytest.mark.parametrize("memory_bytes", [1 << 28, 1 << 14])
def test_it_is_the_definition_to_the_bit(cache, split, memory_bytes):
    base, samples = cache["penultimate"][:], cache.samples
    rows = [r for r in range(ROWS) if r not in FAILED and split in (None, samples.splits[r])]
    queries = base[[0, 11, 205, 599]]
    found = nearest(cache, queries, 7, split=split, memory_bytes=memory_bytes)
    expected_rows, expected = by_definition(queries, base, rows, 7)
    assert found.rows.tolist() == expected_rows
    assert found.similarity.tolist() == expected


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.sampled_from([1 << 28, 2000]))
def test_ties_go_by_row_whatever_the_blocks(seed, values, k, memory_bytes):
    """Vectors of few values: many are parallel, so that many similarities are equal to the last bit, or nearly."""
    rng = np.random.default_rng(seed)
    features = rng.integers(1, 1 + values, (60, 3)).astype(np.float32)
    features[rng.integers(0, 60, 20)] *= 3
    features[:, 0] += 1e-3 * (np.arange(60) % 2)  # no vector is constant
    store = InMemory(features)
    found = nearest(store, features[:5], k, memory_bytes=memory_bytes)
    expected_rows, expected = by_definition(features[:5], features, range(60), k)
    assert found.rows.tolist() == expected_rows
    assert found.similarity.tolist() == expected


class InMemory:
    """What the search asks of a cache, of an array."""

    path = "memory"

    def __init__(self, features):
        self.features, self.folder = features, type("Folder", (), {"local": None})

    def __contains__(self, layer):
        return layer == "penultimate"

    def __getitem__(self, layer):
        return self.features

    def require_complete(self):
        pass

    def usable(self, layers):
        return np.ones(len(self.features), bool)

    def vectors(self, layer, rows):
        return self.features[rows]


def test_equal_vectors_have_similarity_one_and_opposite_ones_minus_one():
    x = np.random.default_rng(0).standard_normal((50, 333)).astype(np.float32) * 1e3
    each = np.arange(50)
    assert (similarity(x, x, each, each) == 1).all()
    assert (similarity(x, -x, each, each) == -1).all()
    np.testing.assert_allclose(similarity(x, 7 * x, each, each), 1, atol=1e-7)


def test_neighbours_of_a_sample_by_its_id(cache):
    found = nearest_to(cache, ["sample-5", "sample-17"], 3)
    assert [*found] == ["sample-5", "sample-17"]
    base, good = cache["penultimate"][:], [row for row in range(ROWS) if row not in FAILED]
    for row, id in ((5, "sample-5"), (17, "sample-17")):
        rows, scores = by_definition(base[[row]], base, [each for each in good if each != row], 3)
        assert [each["row"] for each in found[id]] == rows[0]
        assert [each["similarity"] for each in found[id]] == scores[0]
        first = found[id][0]
        assert first["id"] == f"sample-{first['row']}"
        assert first["split"] == ("train", "meta", "test")[first["row"] % 3]
        assert first["cell"] == f"{'abc'[first['row'] % 3]}, {'gh'[first['row'] % 2]}"


def duplicated(where):
    """300 random rows, of which 12 of test are rows of train with noise, 3 of them of another class; 2 of meta likewise."""
    rng = np.random.default_rng(1)
    features = rng.standard_normal((300, 24)).astype(np.float32)
    labels, groups = np.arange(300) % 2, np.arange(300) // 2 % 2
    splits = ["train"] * 200 + ["meta"] * 40 + ["test"] * 60
    for place in range(12):
        features[240 + 4 * place] = features[4 * place + (place < 3)] * (1 + place) + 0.01 * rng.standard_normal(24)
    features[200] = features[100]
    features[201] = features[103] + 0.001
    made_up(where, labels, groups, splits, features, ("a", "b"), ("g", "h"))
    return open_cache(where)


@pytest.mark.parametrize("memory_bytes", [1 << 28, 1 << 14])
@pytest.mark.parametrize("approximate", [False, True])
def test_near_duplicates_across_splits_are_counted_by_cell(tmp_path, memory_bytes, approximate):
    if approximate:
        pytest.importorskip("usearch", reason="usearch is in the extra search")
    store = duplicated(tmp_path / "c")
    found = near_duplicates(store, 0.99, memory_bytes=memory_bytes, approximate=approximate)
    by_pair = {(each["of"], each["in"]): each for each in found["splits"]}
    assert [*by_pair] == [("meta", "train"), ("test", "train"), ("test", "meta")]
    test = by_pair["test", "train"]
    assert (test["rows"], test["near_duplicates"], test["of_another_class"], test["of_another_group"]) == (60, 12, 3, 0)
    assert sum(cell["near_duplicates"] for cell in test["cells"].values()) == 12
    assert test["cells"]["a, g"]["near_duplicates"] == 12
    assert test["cells"]["a, g"]["of_another_class"] == 3
    assert test["cells"]["b, h"]["near_duplicates"] == 0
    assert sum(cell["rows"] for cell in test["cells"].values()) == 60
    scores = [each["similarity"] for each in test["first"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 12
    assert {each["id"]: each["nearest"]["id"] for each in test["first"]}["s252"] == "s12"
    meta = by_pair["meta", "train"]
    assert (meta["near_duplicates"], meta["first"][0]["similarity"]) == (2, 1.0)
    assert meta["first"][0]["id"] == "s200"
    assert by_pair["test", "meta"]["near_duplicates"] == 0
    assert test["quantiles"]["0.5"] < 0.9 < test["quantiles"]["0.999"]
    assert len(near_duplicates(store, 0.99, listed=4)["splits"][1]["first"]) == 4


def test_an_index_gives_exact_similarities_and_leaves_the_sample_itself_out(cache):
    pytest.importorskip("usearch", reason="usearch is in the extra search")
    index = index_of(cache)
    assert len(index) == ROWS - len(FAILED)
    rows = np.array([0, 11, 205])
    queries = cache["penultimate"][rows]
    exact, found = nearest(cache, queries, 5, besides=rows), nearest(cache, queries, 5, besides=rows, index=index)
    assert not (found.rows == rows[:, None]).any()
    assert np.isin(found.rows, exact.rows).mean() > 0.8
    same = found.rows == exact.rows
    np.testing.assert_array_equal(found.similarity[same], exact.similarity[same])


def test_a_folder_is_as_good_as_an_open_cache_and_a_text_is_no_list(cache):
    assert nearest_to(cache.path, ["sample-9"], 3) == nearest_to(cache, ["sample-9"], 3)
    assert near_duplicates(cache.path, 0.99) == near_duplicates(cache, 0.99)
    with pytest.raises(RequestError, match=r"the text 'sample-9'; .*give \['sample-9'\]"):
        nearest_to(cache, "sample-9")


def test_without_usearch_the_remedy_is_told(cache, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(MissingCodecError, match=r"pip install 'bird-cache\[search\]'"):
        index_of(cache)


def test_fewer_rows_than_asked_for_are_marked(tmp_path):
    features = np.eye(4, 3, dtype=np.float32) + 0.1
    features[3] = [1, 2, 3]
    made_up(tmp_path / "c", [0] * 4, [0] * 4, ["train"] * 3 + ["test"], features, ("a",), ("g",))
    found = nearest(open_cache(tmp_path / "c"), features[3:], 5, split="train")
    assert found.rows.tolist() == [[2, 1, 0, -1, -1]]
    assert np.isnan(found.similarity[0, 3:]).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda c: nearest(c, np.ones((2, 9), np.float32)), "wanted float vectors of width 16"),
        (lambda c: nearest(c, np.ones((2, 16), int)), "queries of int64"),
        (lambda c: nearest(c, np.zeros((1, 16))), "NaN, infinite or zero"),
        (lambda c: nearest(c, np.full((1, 16), np.nan)), "NaN, infinite or zero"),
        (lambda c: nearest(c, vectors(0, 1)[:, 0], 0), "k: found 0"),
        (lambda c: nearest(c, vectors(0, 1)[:, 0], layer="logits"), "no layer 'logits'; wanted one of penultimate"),
        (lambda c: nearest(c, vectors(0, 1)[:, 0], split="val"), "no usable row of split 'val'"),
        (lambda c: nearest_to(c, ["sample-1", "x"]), "no vector of 'x'"),
        (lambda c: nearest_to(c, ["sample-7"]), "no vector of 'sample-7'"),
        (lambda c: near_duplicates(c, 98), "threshold: found 98"),
        (lambda c: near_duplicates(c, 0.9, layer="x"), "no layer 'x'"),
    ],
)
def test_what_cannot_be_searched_is_refused(cache, call, said):
    with pytest.raises(RequestError, match=said):
        call(cache)


def test_a_cache_of_one_split_is_refused(tmp_path):
    features = np.random.default_rng(0).standard_normal((9, 3))
    made_up(tmp_path / "c", [0] * 9, [0] * 9, ["train"] * 9, features, ("a",), ("g",))
    with pytest.raises(RequestError, match="rows of train alone; wanted two splits"):
        near_duplicates(open_cache(tmp_path / "c"), 0.9)


def test_memory_is_bounded(tmp_path):
    """Of 8,000 x 64 the vectors alone take 2 MB, all similarities 64 MB."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((8000, 64)).astype(np.float32)
    splits = ["train"] * 4000 + ["test"] * 4000
    store = open_cache(made_up(tmp_path / "c", [0] * 8000, [0] * 8000, splits, features, ("a",), ("g",)))
    near_duplicates(store, 0.9, memory_bytes=1 << 21)
    tracemalloc.start()
    near_duplicates(store, 0.9, memory_bytes=1 << 21)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, f"{peak:,} bytes"
