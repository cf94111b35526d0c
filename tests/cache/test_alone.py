"""bird-cache by itself: what importing and reading load, and what its distribution says."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import cachekit

ROOT = Path(__file__).resolve().parents[2]
WANTED_S = 0.2


def loaded_by(code, of):
    """Which of some packages a fresh process has loaded after `code`."""
    said = f"{code}\nimport sys; print(*sorted({{*{of!r}}} & {{*sys.modules}}))"
    return subprocess.run([sys.executable, "-c", said], check=True, capture_output=True, text=True).stdout.split()


def test_importing_loads_nothing_heavy():
    heavy = [
        "torch",
        "numpy",
        "zarr",
        "pyarrow",
        "pandas",
        "pydantic",
        "obstore",
        "webdataset",
        "bird",
        "bird_pipelines",
    ]
    assert loaded_by("import bird_cache", heavy) == []


def test_reading_loads_neither_torch_nor_zarr_nor_pandas(tmp_path):
    cachekit.write(tmp_path / "cache")
    code = (
        f"import bird_cache; print(bird_cache.open_cache({str(tmp_path / 'cache')!r}).read('penultimate', 0, 9).shape)"
    )
    assert loaded_by(code, ["torch", "zarr", "pandas", "bird", "bird_pipelines"]) == ["(9,", "1,", "16)"]


def test_importing_takes_a_moment():
    """The least of some runs, in processor time: this machine may have other work. bench/startup.py has the wall time."""

    def seconds(code):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    pairs = [(seconds("import bird_cache"), seconds("pass")) for _ in range(5)]
    least = min(ours for ours, _ in pairs)
    assert least < WANTED_S, f"{least:.2f} s; a bare interpreter: {min(bare for _, bare in pairs):.2f} s"


def test_every_public_name_is_there():
    import bird_cache

    for name in bird_cache.__all__:
        assert getattr(bird_cache, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        bird_cache.nothing  # noqa: B018  # the look-up is the test


def test_the_two_distributions_fit():
    ours, theirs = (tomllib.loads((ROOT / path).read_text()) for path in ("cache/pyproject.toml", "pyproject.toml"))
    assert ours["project"]["version"] == theirs["project"]["version"]
    assert f"bird-cache=={ours['project']['version']}" in theirs["project"]["dependencies"]
    assert "torch" not in str(ours["project"]["dependencies"])
    assert (ROOT / "cache/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    shipped = theirs["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert not [each for each in shipped if each.startswith("cache")]
