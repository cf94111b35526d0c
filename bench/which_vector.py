"""Which vector each family of teachers gives, beside its own library's: writes the table of docs/which-vector.md.

    python bench/which_vector.py

Tiny models with random weights in the formats that the libraries publish (tests/helpers/family_table.py), on two photographs
and a small part of one.
"""

import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.family_libraries import compare  # noqa: E402  # after the path is set
from helpers.family_table import FAMILIES, REFUSED  # noqa: E402  # after the path is set

from bird.errors import TeacherError  # noqa: E402  # after the path is set
from bird.teachers import load_teacher  # noqa: E402  # after the path is set

PAGE = ROOT / "docs" / "which-vector.md"
LIBRARIES = ("transformers", "timm", "open_clip_torch", "torchvision", "torch", "pillow")
BEGIN, END = "<!-- families -->", "<!-- end -->"


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "| family | teacher | vector | kind | further layers | seen by | pixels | vectors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            row = compare(name, family, Path(folder))
        vectors = min(cosine for layer, cosine in row.cosines.items() if layer != "pixels")
        lines.append(f"{row.stable()} {row.cosines['pixels']:.6f} | {vectors:.6f} |")
        print(lines[-1], flush=True)
    lines += ["", "| refused | because |", "|---|---|"]
    for name, family in REFUSED.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                load_teacher(family.spec, weights=family.make(Path(folder)), device="cpu")
            except TeacherError as error:
                lines.append(f"| {name} | found {error.found}; wanted {error.wanted} |")
    versions = ", ".join(f"{each} {version(each)}" for each in LIBRARIES)
    told = f"`python bench/which_vector.py`: {len(FAMILIES)} families right, {len(REFUSED)} refused; {versions}."
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{told}\n\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
