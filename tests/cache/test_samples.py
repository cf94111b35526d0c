"""The sample table on disk: any row groups give the same table, no fault of it is silent, and no row costs much memory."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cachekit import ROWS, plan, samples, strings, write
from hypothesis import given, settings
from hypothesis import strategies as st

from bird_cache.errors import DamagedCacheError
from bird_cache.files import canonical_json, digest
from bird_cache.samples import Samples
from bird_cache.store import open_cache
from bird_cache.stream import FeatureStream
from bird_cache.table import GROUP_ROWS
from bird_cache.verify import verify

TEXT = ("id", "split", "digest", "status")


def table_of(rows=ROWS, **columns):
    """The table of the small cache, by nothing of ours."""
    made = samples(rows)
    given = {"row": np.arange(rows), "id": made.ids, "label": made.labels, "group": made.groups}
    given |= {"split": made.splits, "digest": made.digests, "status": made.status}
    return pa.table(given | columns)


def written(path, table, **settings):
    pq.write_table(table, path, **settings)
    return path


NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=20)
NUMBERS = st.integers(-(2**40), 2**40) | st.integers(-300, 300)


@settings(max_examples=100, deadline=None)
@given(NAMES, st.integers(1, 7), st.booleans(), st.data())
def test_whatever_the_row_groups_it_is_the_same_table(tmp_path_factory, names, group_rows, in_memory, data):
    """Older caches have one row group, ours many; identity is that of the canonical JSON, which is older than either."""
    count = len(names)
    numbers = data.draw(st.lists(NUMBERS, min_size=count, max_size=count))
    table = table_of(count, id=names, label=numbers, group=numbers[::-1], split=names[::-1], status=names)
    path = written(tmp_path_factory.mktemp("table") / "t.parquet", table, row_group_size=group_rows)
    found = Samples.from_parquet(path.read_bytes() if in_memory else path)
    columns = [table[name].to_pylist() for name in ("id", "label", "group", "split", "digest")]
    assert found.identity() == digest(canonical_json(columns))
    start, stop = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count + 3))))
    assert found.ids_digest(start, stop) == digest(canonical_json(names[start:stop]))
    for name in TEXT:
        assert found.text(name, start, stop) == table[name].to_pylist()[start:stop]
    picked = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1))))
    assert found.pick("id", picked).to_pylist() == [names[row] for row in picked]
    assert found.numbers("label", picked).tolist() == [numbers[row] for row in picked]
    assert found.having("split", names[0]).tolist() == [name == names[0] for name in names[::-1]]
    assert found.counts("split") == {name: names.count(name) for name in names}
    for whole, name in ((found.ids, "id"), (found.labels, "label"), (found.groups, "group"), (found.status, "status")):
        assert whole.tolist() == table[name].to_pylist()
    again = Samples.from_parquet(found.to_parquet())
    assert (again.identity(), again.status.tolist()) == (found.identity(), names)


def test_new_files_have_row_groups_of_bounded_size_and_any_reader_reads_them(tmp_path):
    rows = 2 * GROUP_ROWS + 5
    (tmp_path / "t.parquet").write_bytes(samples(rows).to_parquet())
    metadata = pq.read_metadata(tmp_path / "t.parquet")
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [GROUP_ROWS, GROUP_ROWS, 5]
    assert pq.read_table(tmp_path / "t.parquet").equals(table_of(rows))
    from_file = Samples.from_parquet(tmp_path / "t.parquet")
    assert from_file.to_parquet() == samples(rows).to_parquet(), "the same bytes, wherever the rows were held"


FAULTS = {
    "rows that begin at one": {"row": np.arange(1, ROWS + 1)},
    "rows swapped": {"row": [1, 0, *range(2, ROWS)]},
    "a row of text": {"row": [str(row) for row in range(ROWS)]},
    "a label missing": {"label": [None, *range(1, ROWS)]},
    "labels of fractions": {"label": np.arange(ROWS) / 2},
    "an id missing": {"id": [*map(str, range(1, ROWS)), None]},
    "ids of numbers": {"id": np.arange(ROWS)},
    "a split missing": {"split": [None, *["train"] * (ROWS - 1)]},
    "a status missing": {"status": [*["ok"] * (ROWS - 1), None]},
    "a status that is a number": {"status": np.arange(ROWS)},
    "a null among the words": {
        "split": pa.DictionaryArray.from_arrays(np.arange(ROWS) % 2, pa.array(["train", None])).cast(pa.string())
    },
}


@pytest.mark.parametrize("groups", [7, ROWS])
@pytest.mark.parametrize("columns", FAULTS.values(), ids=FAULTS)
def test_a_table_of_another_shape_is_refused(tmp_path, columns, groups):
    path = written(tmp_path / "t.parquet", table_of(**columns), row_group_size=groups)
    for source in (path, path.read_bytes()):
        with pytest.raises(ValueError):
            Samples.from_parquet(source)


def test_a_column_too_few_or_another_file_is_refused(tmp_path):
    whole = table_of()
    for name in whole.column_names:
        with pytest.raises(ValueError):
            Samples.from_parquet(written(tmp_path / "t.parquet", whole.drop_columns([name])))
    for data in (b"", b"PAR1", b"PAR1" * 100, (tmp_path / "t.parquet").read_bytes()[:-9]):
        with pytest.raises(ValueError):
            Samples.from_parquet(data)


@pytest.fixture
def many_groups(tmp_path, monkeypatch):
    """A cache whose table has row groups of 7 rows, and shards that begin inside of them."""
    monkeypatch.setattr("bird_cache.samples.GROUP_ROWS", 7)
    write(tmp_path / "cache", plan(shard_rows=32, chunk_rows=16))
    assert pq.read_metadata(tmp_path / "cache" / "samples.parquet").num_row_groups == -(-ROWS // 7)
    return tmp_path / "cache"


@pytest.fixture
def one_group(tmp_path):
    """A cache as older versions wrote it: its table has one row group, and the manifest's record is of that file."""
    write(tmp_path / "cache", plan(shard_rows=32, chunk_rows=16))
    rewrite_table(tmp_path / "cache")
    return tmp_path / "cache"


def rewrite_table(cache):
    from bird_cache.folders import open_folder
    from bird_cache.store import read_manifest
    from bird_cache.writer import record_of

    table = pq.read_table(cache / "samples.parquet")
    written(cache / "samples.parquet", table, compression="zstd")
    layout, manifest = read_manifest(open_folder(cache))
    kept = [record for record in manifest.files if record.path != "samples.parquet"]
    record = record_of("samples.parquet", (cache / "samples.parquet").read_bytes())
    manifest = manifest.model_copy(update={"files": (record, *kept)})
    (cache / layout.manifest_path).write_bytes(layout.render(manifest.checked()))


@pytest.mark.parametrize("memory", [4608, 1 << 30])
@pytest.mark.parametrize("kind", ["many_groups", "one_group"])
def test_a_stream_delivers_the_id_of_every_row(request, kind, memory):
    store = open_cache(request.getfixturevalue(kind))
    digests = {f"sample-{row}": f"{row:032x}" for row in range(ROWS)}
    stream = FeatureStream(
        store,
        "train",
        batch_size=48,
        memory_bytes=memory,
        window=2,
        images=lambda ids: (ids, [digests[id] for id in ids], ids),
    )
    for epoch in range(2):
        for batch in stream.epoch(epoch):
            assert batch.ids.tolist() == batch.images == [f"sample-{row}" for row in batch.rows.tolist()]
            assert batch.labels.tolist() == (batch.rows % 3).tolist()
            assert batch.labels.dtype == batch.groups.dtype == np.int64
    assert verify(store.path).findings == []


def test_a_table_that_changes_while_it_is_open_is_found(many_groups):
    """Nothing of ours writes in place: this did, after the cache was opened and found to be sound."""
    store = open_cache(many_groups)
    other = samples()
    other.ids[[40, 41]] = strings(["sample-41", "sample-40"])
    groups = pq.read_metadata(many_groups / "samples.parquet").row_group(0).num_rows
    table = pq.read_table(many_groups / "samples.parquet").set_column(1, "id", pa.array(other.ids))
    with open(many_groups / "samples.parquet", "r+b") as file:
        pq.write_table(table, file, compression="zstd", row_group_size=groups)
    with pytest.raises(DamagedCacheError, match="altered"):
        store.samples.text("id", 0, ROWS)
    with pytest.raises(DamagedCacheError):
        open_cache(many_groups)


MEMORY = """
import sys
from pathlib import Path
from bird_cache.samples import Samples

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

Samples.from_parquet(Path(sys.argv[1]))
before = peak()
found = Samples.from_parquet(Path(sys.argv[2]))
print(peak() - before, len(found))
"""


@pytest.mark.parametrize(("groups", "bound"), [("ours", 24), ("one", 64)])
def test_opening_a_large_table_takes_a_few_bytes_a_row(tmp_path, groups, bound):
    """4 are held; the rest, of a million rows, are Arrow's buffers, and of one large row group a column as it is
    compressed. Both are far less than the 200 that the table takes in Arrow."""
    rows = 1_000_000
    written(tmp_path / "small.parquet", table_of())
    (tmp_path / "large.parquet").write_bytes(samples(rows).to_parquet())
    if groups == "one":
        written(tmp_path / "large.parquet", pq.read_table(tmp_path / "large.parquet"), row_group_size=rows)
    command = [sys.executable, "-c", MEMORY, tmp_path / "small.parquet", tmp_path / "large.parquet"]
    grown, found = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert found == rows
    assert grown < bound * rows, f"{grown / rows:.1f} bytes a row"
