"""Build both wheels, install them into an environment outside the checkout, and run them from there.

The new environment borrows this one's third-party packages through a .pth file, so that nothing heavy is installed twice.
Run by `make wheel`; exits non-zero with a message if anything but the three packages lands in site-packages, or lands twice.
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
WHEELS = {"bird_cache": (ROOT / "cache", {"bird_cache"}), "bird_distill": (ROOT, {"bird", "bird_pipelines"})}
"""each distribution: the folder that it is built from, and the packages in it"""
DATA = {
    "bird_cache": ("py.typed",),
    "bird_pipelines": (
        "reporting/templates/report.html.j2",
        "study/tables/recipes/table1.toml",
        "study/tables/recipes/profiles.toml",
        "study/tables/paper/results.csv",
        "study/tables/paper/hyperparameters.csv",
    ),
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder)
        wheels = [built(box, name, *of) for name, of in WHEELS.items()]
        use(box, installed(box, wheels))
    for wheel, (_, packages) in zip(wheels, WHEELS.values(), strict=True):
        print(f"{wheel.name}: {sorted(packages)} and nothing else; runs outside the checkout")


def built(box, name, source, packages):
    """The wheel of a distribution, with its packages, their data, its licence and nothing else."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(box), str(source)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = box.glob(f"{name}-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    unexpected = {root for root in roots - packages if not root.endswith(".dist-info")}
    assert not unexpected, f"unexpected in {wheel.name}: {sorted(unexpected)}"
    assert roots >= packages, f"missing from {wheel.name}: {sorted(packages - roots)}"
    assert any(name.endswith("/licenses/LICENSE") for name in names), f"no licence in {wheel.name}"
    missing = [f"{root}/{file}" for root in sorted(packages) for file in DATA.get(root, ())]
    missing = [file for file in missing if file not in names]
    assert not missing, f"missing from {wheel.name}: {missing}"
    return wheel


def installed(box, wheels):
    """The interpreter of a new environment that has the wheels."""
    venv.create(box / "env", with_pip=True)
    python = box / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *wheels], check=True, cwd=box)
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
