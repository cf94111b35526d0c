"""Which vector is it: every family beside its own library, pixels and vectors; or a refusal that fits. None in silence."""

from pathlib import Path

import pytest
from helpers.family_libraries import compare
from helpers.family_table import FAMILIES, REFUSED

from bird.errors import TeacherError
from bird.teachers import load_teacher

SAME = 0.9999
PAGE = Path(__file__).resolve().parents[2] / "docs" / "which-vector.md"


@pytest.fixture(autouse=True)
def own_tags(monkeypatch):
    """What a test adds to open_clip's table of tags is gone after it."""
    from open_clip import pretrained

    monkeypatch.setattr(pretrained, "_PRETRAINED", dict(pretrained._PRETRAINED))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_its_own_librarys_vector(name, tmp_path, capfd):
    row = compare(name, FAMILIES[name], tmp_path)
    assert {"pixels", "penultimate"} <= {*row.cosines}
    assert all(cosine >= SAME for cosine in row.cosines.values()), row.cosines
    assert row.stable() in PAGE.read_text(), "run bench/which_vector.py"
    assert "randomly" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_vector_is_refused_with_what_to_do(name, tmp_path):
    family = REFUSED[name]
    with pytest.raises(TeacherError) as error:
        load_teacher(family.spec, weights=family.make(tmp_path), device="cpu")
    assert all((error.value.where, error.value.found, error.value.wanted, error.value.fix))
    assert all(word in str(error.value) for word in family.words), str(error.value)


def test_there_are_enough_of_them():
    assert len(FAMILIES) >= 50
    assert len(FAMILIES) >= 0.8 * (len(FAMILIES) + len(REFUSED))
