"""A run's student, asked for by what --student says."""

import pytest

from bird.errors import UsageError
from bird.student_bodies import own_student
from bird.students import build_student, named_student, student_files

NETS = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, classes))


class Wrong(Net): ...
"""


def written(folder, student):
    folder.mkdir()
    for name, data in student_files(student).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("name", "other"), [("tiny-convnet", "timm:test_resnet"), ("timm:test_resnet", "resnet18")])
def test_the_runs_own_name_is_taken_and_another_one_is_told_it(tmp_path, name, other):
    run = written(tmp_path / "run", build_student(name, classes=2, image_size=32))
    assert named_student(run, name).architecture == named_student(run).architecture == name
    with pytest.raises(UsageError, match=f"found {other}; wanted the run's student, which is {name}; leave it out"):
        named_student(run, other)


def test_a_module_of_ones_own_is_asked_for_by_its_name(tmp_path):
    file = tmp_path / "net.py"
    file.write_text(NETS)
    part = own_student(f"{file}:Net", [])
    run = written(tmp_path / "run", build_student(part.label, classes=2, image_size=32, part=part))
    assert named_student(run, f"{file}:Net").architecture == part.label
    with pytest.raises(UsageError, match=r"wanted the run's student, which is Net@.*; give net.py:Net$"):
        named_student(run, "tiny-convnet")
    with pytest.raises(UsageError, match=r"found Wrong of net.py.*; give net.py:Net$"):
        named_student(run, f"{file}:Wrong")
    file.write_text(NETS + "# a remark\n")
    with pytest.raises(UsageError, match="; bring back the source file as it was when the run was trained"):
        named_student(run, f"{file}:Net")
    with pytest.raises(UsageError, match=r"; give net.py:Net, from the source file as it was when"):
        named_student(run, f"{file}:Wrong")
