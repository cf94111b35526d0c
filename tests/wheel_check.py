"""Build the wheel, install it into an environment outside the checkout, and run it from there.

The new environment borrows this one's third-party packages through a .pth file, so that nothing heavy is installed twice.
Run by `make wheel`; exits non-zero with a message if anything but the three packages lands in site-packages.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"bird", "bird_cache", "bird_pipelines"}


def main():
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        wheel = built(box)
        use(box, installed(box, wheel))
    print(f"{wheel.name}: {sorted(PACKAGES)} and nothing else; runs outside the checkout")


def built(box):
    """The wheel, with the three packages, their data and nothing else."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(box), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = box.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    data = {name for name in names if not name.endswith(".py")}
    unexpected = {root for root in roots - PACKAGES if not root.endswith(".dist-info")}
    assert not unexpected, f"unexpected in the wheel: {sorted(unexpected)}"
    assert roots >= PACKAGES, f"missing from the wheel: {sorted(PACKAGES - roots)}"
    assert "bird_pipelines/reporting/templates/report.html.j2" in data, (
        "the report's template is missing from the wheel"
    )
    for name in ("recipes/table1.toml", "recipes/profiles.toml", "paper/results.csv", "paper/hyperparameters.csv"):
        assert f"bird_pipelines/study/tables/{name}" in data, f"{name} is missing from the wheel"
    return wheel


def installed(box, wheel):
    """The interpreter of a new environment that has the wheel."""
    venv.create(box / "env", with_pip=True)
    python = box / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, cwd=box)
    path = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", path], text=True).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def use(box, python):
    """Both phases, from a teacher to a report."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def bird(words):
        command = [str(python.with_name("bird")), *words.split()]
        return subprocess.run(command, check=True, cwd=box, env=environment, capture_output=True, text=True).stdout

    where = (
        "import bird, bird_cache, bird_pipelines; print(bird.__file__, bird_cache.__file__, bird_pipelines.__file__)"
    )
    found = subprocess.check_output([python, "-c", where], text=True, cwd=box, env=environment).split()
    assert all(str(box) in path for path in found), f"imported from elsewhere: {found}"
    assert json.loads(bird("doctor --json"))["checks"] == {"cache": "ok", "feedback": "ok"}
    bird("train --dataset digits-s --student shufflenetv2 --limit 400 --epochs 1 --out teacher")
    bird("precompute --teacher run:teacher --dataset digits-s --limit 400 --out cache")
    bird("distill --cache cache --epochs 2 --out run --json")
    bird("report run --out report.html")
    assert (box / "report.html").stat().st_size > 10_000


if __name__ == "__main__":
    main()
