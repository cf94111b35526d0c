"""What other readers of Zarr find in a cache, and what others may change in it. `make peers` asks those readers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from bird_cache import testing
from bird_cache.folders import open_folder
from bird_cache.manifest import Layer
from bird_cache.store import open_cache
from bird_cache.testing import LAYER, ROWS, example_plan, example_vectors, files_of, write_example
from bird_cache.verify import repair, verify
from bird_cache.writer import open_part
from bird_cache.zarr_layout import ZarrLayout, _described

CHUNK = range(32)


def all_failed(monkeypatch: pytest.MonkeyPatch, rows: range) -> None:
    monkeypatch.setattr(testing, "FAILED", {**testing.FAILED, **dict.fromkeys(rows, "undecodable")})


def add_layer(where: str) -> None:
    with open_part(
        where, "attention", {"attention.layer1": Layer(shape=(2, 3), dtype="float32", kind="attention")}, {}
    ) as it:
        for shard in it.pending():
            start, stop = it.plan.bounds(shard)
            it.write_shard(shard, {"attention.layer1": example_vectors(start, stop, (2, 3))}, {})
        it.finish()


def older(patch: pytest.MonkeyPatch) -> None:
    """What a cache was until here: no names of dimensions, no list of the layers."""
    patch.setattr(ZarrLayout, "describe", lambda self, plan: _described(plan, named=False))
    render = ZarrLayout.render
    patch.setattr(ZarrLayout, "render", lambda self, manifest, described=None, there=b"": render(self, manifest))


@pytest.mark.parametrize("rows", [CHUNK, range(64)])
def test_a_chunk_of_failed_rows_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: range) -> None:
    """So that a strict reader can tell failed from lost."""
    all_failed(monkeypatch, rows)
    write_example(str(tmp_path), example_plan("zarr"))
    data = (tmp_path / LAYER / "c" / "0" / "0" / "0").read_bytes()
    index = np.frombuffer(data[-4 - 2 * 16 : -4], "<u8").reshape(2, 2)
    assert (index != 2**64 - 1).all()
    assert np.isnan(zarr.open_group(tmp_path, mode="r")[LAYER][rows.start : rows.stop]).all()
    assert verify(tmp_path).findings == []


def test_dimensions_have_names_and_listing_gives_no_warning(tmp_path: Path) -> None:
    write_example(str(tmp_path), example_plan("zarr"))
    add_layer(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path, mode="r")
        members = dict(group.members())
    assert members[LAYER].metadata.dimension_names == ("row", "view", "feature")
    names = members["attention.layer1"].metadata.dimension_names
    assert names[:2] == ("row", "view")
    assert len({*names}) == 4  # of its own, or xarray takes them for the features
    assert {*group} == {LAYER, "attention.layer1"}


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # zarr says that it lists no arrays, and what it thinks of its own format
@pytest.mark.parametrize("from_before", [False, True])
def test_what_others_put_beside_the_manifest_is_no_damage(
    tmp_path: Path, from_before: bool, record_property: Callable[[str, object], None]
) -> None:
    record_property("24 what others write into the root", 4)
    where = str(tmp_path / "c")
    with pytest.MonkeyPatch.context() as patch:
        if from_before:
            older(patch)
        write_example(where, example_plan("zarr"))
    zarr.consolidate_metadata(where)
    assert verify(where).findings == []
    zarr.open_group(where, mode="a").attrs["note"] = {"é": [1.5, None]}
    assert verify(where).findings == []
    root = Path(where) / "zarr.json"
    root.write_text(json.dumps(json.loads(root.read_text()), separators=(",", ":")))  # any other writer's form
    assert verify(where).findings == []
    assert repair(where) == []
    add_layer(where)
    assert verify(where).findings == []
    assert zarr.open_group(where, mode="r").attrs["note"] == {"é": [1.5, None]}
    assert "attention.layer1" in zarr.open_group(where, mode="r")


@pytest.mark.parametrize("wrong", ["a key of its own", "a list that lies", "an older zarr_format"])
def test_what_would_mislead_a_reader_is_found_and_repaired(
    tmp_path: Path, wrong: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("24 what others write into the root", 1)
    where = str(tmp_path / "c")
    write_example(where, example_plan("zarr"))
    clean, root = files_of(where), Path(where) / "zarr.json"
    group = json.loads(root.read_text())
    if wrong == "a key of its own":
        group["extension"] = 1
    elif wrong == "a list that lies":
        group["consolidated_metadata"]["metadata"][LAYER]["fill_value"] = 0.0
    else:
        group["zarr_format"] = 2
    root.write_text(json.dumps(group, indent=2))
    assert len(verify(where).findings) == 1
    assert repair(where) == ["zarr.json written again"]
    assert files_of(where) == clean


def test_an_older_cache_opens_and_its_descriptions_are_repaired_as_they_were(tmp_path: Path) -> None:
    where, plan = str(tmp_path / "c"), example_plan("zarr")
    with pytest.MonkeyPatch.context() as patch:
        older(patch)
        write_example(where, plan)
    clean = files_of(where)
    assert verify(where).findings == []
    assert repair(where) == []
    open_folder(where).remove(f"{LAYER}/zarr.json")
    assert repair(where) == [f"{LAYER}/zarr.json written again"]
    assert files_of(where) == clean
    assert write_example(where, plan) == []
    assert open_cache(where).read(LAYER, 0, ROWS).shape == (ROWS, 2, 6)
