"""Install what is missing, and the project, into a folder of its own: python bench/gpu/install.py SITE WHEELS"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

OLDEST_TORCH = (2, 10)


def missing(wheel):
    """Whether a wheel's package is not here, or older."""
    name, wanted = wheel.name.split("-")[:2]
    try:
        return Version(version(name)) < Version(wanted)
    except PackageNotFoundError:
        return True


def pip(site, *what):
    """Install without a network, and without what it needs in turn."""
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    options += ["--disable-pip-version-check", "--root-user-action", "ignore", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *what], check=True)


def main():
    """The wheels first: among them is what builds the project."""
    site, wheels = sys.argv[1], sys.argv[2]
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; wanted 3.11 to 3.13: set PYTHON")
    if tuple(int(part) for part in version("torch").split(".")[:2]) < OLDEST_TORCH:
        sys.exit(f"torch {version('torch')} is here; wanted 2.10 or newer")
    if found := [str(wheel) for wheel in sorted(Path(wheels).glob("*.whl")) if missing(wheel)] if wheels else []:
        pip(site, *found)
    pip(site, "--no-build-isolation", "./cache", ".")


if __name__ == "__main__":
    main()
