"""The tests that need a GPU (`pytest -m gpu`), and how each ended."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Xml
from pathlib import Path

from results import save


def outcome(case):
    """Of a junit test case."""
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return f"{kind}: {(found.get('message') or '').splitlines()[0][:160] if found.get('message') else ''}"
    return "passed"


def figure(case):
    """What a test has measured, such as its largest error."""
    return ", ".join(f"{each.get('name')} {float(each.get('value')):.4g}" for each in case.iter("property"))


def main():
    """Run them, keep one row a test, and leave with pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Another release of a library may warn of other things: that is no failure here.
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--durations=6"]
        options += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, "tests/gpu"], check=False)
        cases = [*Xml.parse(report).iter("testcase")] if report.exists() else []
    rows = [
        {"test": case.get("name"), "outcome": outcome(case), "figure": figure(case), "s": float(case.get("time", 0))}
        for case in cases
    ]
    passed = sum(row["outcome"] == "passed" for row in rows)
    save("gpu-tests", f"`pytest -m gpu`: {passed} of {len(rows)} passed.", ["test", "outcome", "figure", "s"], rows)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
