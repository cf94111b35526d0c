"""Our caches, read by the programs that people read such formats with. `make peers` installs them and names their Python:

BIRD_READERS    the Python of an environment with tests/peers/requirements-readers.txt
"""

import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bird_cache import open_cache, testing, to_parquet
from bird_cache.manifest import Layer
from bird_cache.testing import ROWS, example_plan, example_vectors, write_example
from bird_cache.writer import open_part

pytestmark = pytest.mark.peers
FAILED = {**dict.fromkeys(range(32), "undecodable"), 70: "no such file", 149: "undecodable"}
"""the whole first chunk of the first shard, which thus begins with failed rows; and some more"""
GOOD = [row for row in range(ROWS) if row not in FAILED]


def picture(row):
    """A small JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (row, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """The same cache in both stores, with a layer that was added later."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "FAILED", FAILED)
        patch.setattr(testing, "example_image", picture)
        for store in ("zarr", "webdataset"):
            write_example(str(folder / store), example_plan(store))
    spec = {"logits": Layer(shape=(3,), dtype="float32", kind="logits")}
    with open_part(folder / "zarr", "head", spec, {}) as writer:
        for shard in writer.pending():
            start, stop = writer.plan.bounds(shard)
            writer.write_shard(shard, {"logits": example_vectors(start, stop, (3,))}, {})
        writer.finish()
    return folder


def read_by(reader, cache):
    """What a reader finds."""
    python = os.environ.get("BIRD_READERS", "")
    if not Path(python).is_file():
        pytest.skip("BIRD_READERS names no Python: run `make peers`")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": ""}
    command = [python, Path(__file__).with_name("readers.py"), reader, cache]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{reader} {found['version']}")
    return found


@pytest.mark.parametrize("reader", ["webdataset", "datasets", "ray"])
def test_readers_of_tars_get_every_row_that_has_a_vector(caches, reader):
    found = read_by(reader, caches / "webdataset")
    assert {*found["rows"]} == {len(GOOD)}
    assert sorted(found["keys"]) == [f"{row:09d}" for row in GOOD]


@pytest.mark.parametrize("reader", ["tensorstore", "zarr", "xarray"])
def test_strict_readers_of_zarr_tell_failed_from_lost(caches, reader):
    found = read_by(reader, caches / "zarr")
    assert found["failed"] == sorted(FAILED)
    assert found["dimensions"] == ["row", "view", "feature"]
    assert found.get("layers", ["logits", "penultimate"]) == ["logits", "penultimate"]


@pytest.mark.parametrize("reader", ["pandas", "duckdb", "polars", "datasets", "pylance"])
def test_readers_of_tables_get_every_bit(caches, tmp_path, reader):
    to_parquet(caches / "zarr", tmp_path / "cache.parquet", ["penultimate"])
    found, cache = read_by(f"table {reader}", tmp_path / "cache.parquet"), open_cache(caches / "zarr")
    stored = cache.read("penultimate", 0, ROWS)[:, 0]
    np.testing.assert_array_equal(np.array(found["bits"], np.uint16), stored.view(np.uint16))
    assert found["ids"] == cache.samples.ids.tolist()
    assert found["classes"] == [cache.manifest.plan.class_names[number] for number in cache.samples.labels]
