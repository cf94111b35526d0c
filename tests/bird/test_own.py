"""References to code: what they resolve to, what identifies it, and the errors."""

import hashlib
import pickle
import subprocess
import sys
from functools import partial

import pytest

from bird.errors import UsageError, nearest
from bird.methods.own import own_method
from bird.own import find, is_reference, registered, wrong_part

SOURCE = "class Net:\n    class Small: ...\n\nnet = Net()\nbuild = Net\n"


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package that registers a student, as pip leaves it."""
    site = tmp_path / "site"
    info = site / "birdnets-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: birdnets\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bird.students]\nsmallnet = birdnets_of_test:Net\n")
    (site / "birdnets_of_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("birdnets_of_test", None)


def test_a_file_gives_the_object_its_name_and_the_digest_of_its_source(net):
    part = find("student", f"{net}:Net")
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    assert part.value().__class__.__name__ == "Net"
    assert part.record() == {"attribute": "Net", "file": "net.py", "sha256": digest}
    assert find("student", f"{net}:Net").value is part.value
    assert find("student", f"{net}:Net.Small").value is part.value.Small
    assert find("student", f"{net}:net").sha256 == digest


def test_a_changed_file_is_executed_again_and_is_another_part(net):
    before = find("student", f"{net}:Net")
    net.write_text(SOURCE + "late = 1\n")
    after = find("student", f"{net}:Net")
    assert before.identity() != after.identity()
    assert find("student", f"{net}:late").value == 1


def test_a_module_is_found_in_the_current_folder_and_no_path_is_left_behind(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    net.rename(net.parent / "net_in_cwd.py")
    before = [*sys.path]
    part = find("student", "net_in_cwd:Net")
    assert part.file == "net_in_cwd.py"
    assert sys.path == before
    assert find("student", part.value).record() == part.record()  # the same, handed over in Python


def test_the_source_is_that_of_the_file_that_defines_it(net, monkeypatch):
    monkeypatch.chdir(net.parent)
    (net.parent / "front.py").write_text(
        "from functools import partial\nfrom net import Net, net\nmade = partial(Net)\n"
    )
    assert find("student", "front.py:Net").file == "net.py"
    assert find("student", "front.py:made").file == "front.py"
    assert find("student", "front.py:net").file == "front.py"
    sys.modules.pop("net")


def test_an_object_without_source_is_said_to_have_none():
    assert find("method", len).record() == {"attribute": "len", "file": None, "sha256": None}
    assert find("method", len).label == "len@unknown"
    assert find("method", partial(len)).attribute == "partial"


def test_installed_packages_register_names(installed):
    assert registered("student") == {"smallnet": "birdnets_of_test:Net of birdnets"}
    assert "birdnets_of_test" not in sys.modules
    assert find("student", "smallnet").file == "birdnets_of_test.py"
    with pytest.raises(UsageError, match="did you mean smallnet"):
        find("student", "smalnet", ["resnet18"])


def test_no_label_is_a_reference(net):
    assert not is_reference(find("student", f"{net}:Net").label)
    assert is_reference("net.py:Net")
    assert is_reference("a.b:c.d")
    assert not any(map(is_reference, ["resnet18", "open_clip:ViT-B-32/openai", "net.py", "run:out/run", "a:b:c"]))


@pytest.mark.parametrize(
    ("source", "attribute", "told"),
    [
        ("import not_here_at_all", "Net", "does not import .ModuleNotFoundError: No module named 'not_here_at_all'"),
        ("1 / 0", "Net", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "Net", "SyntaxError"),
        ("raise SystemExit(3)", "Net", "SystemExit: 3"),
        ("class Network: ...", "Netwerk", "no attribute Netwerk.*did you mean Network"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(net, source, attribute, told):
    net.write_text(source)
    modules = {*sys.modules}
    with pytest.raises(UsageError, match=told):
        find("student", f"{net}:{attribute}")
    assert attribute == "Netwerk" or {*sys.modules} == modules


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        find("teacher", f"{tmp_path / 'none.py'}:f")
    with pytest.raises(UsageError, match="no module named nowhere_of_test"):
        find("teacher", "nowhere_of_test.sub:f")
    with pytest.raises(UsageError, match=r"one of resnet18; or package.module:attribute, file.py:attribute"):
        find("student", "rasnet", ["resnet18"])
    assert "the function find" in str(wrong_part(find("student", find), "a module of torch"))


def test_a_file_without_a_name_is_told_its_names(net):
    net.write_text("import numpy as np\nclass Net: ...\ndef make(): ...\ndef _hidden(): ...\n")
    with pytest.raises(UsageError, match=rf"write {net}:NAME; the file defines Net, make$"):
        find("student", str(net))
    with pytest.raises(UsageError, match=rf"write {net}:NAME; the file defines Net, make$"):
        find("student", f"{net}:")
    assert find("student", f"{net}:Net").attribute == "Net"


def test_what_a_file_defines_is_shown_before_what_it_imports(net):
    net.write_text("import numpy as np\nfrom pathlib import Path\nclass DS: ...\nclass NoneG: ...\n")
    with pytest.raises(UsageError, match="an attribute that is there: DS, NoneG;"):
        find("dataset", f"{net}:Zzz")
    with pytest.raises(UsageError, match="an attribute that is there: NoneG, DS; did you mean NoneG"):
        find("dataset", f"{net}:NoneGG")


def test_two_letters_in_the_wrong_order_are_the_nearest_name():
    assert nearest("lable", ["table", "label", "group"]) == ["label"]


LOSS = """
def loss(student, teacher):
    return (student - teacher).abs().mean()
"""
IN_ANOTHER_PROCESS = """
import pickle, sys
from bird.errors import BirdError
try:
    print([part.label for part in pickle.loads(sys.stdin.buffer.read())])
except BirdError as error:
    print(error.found)
"""


def in_another_process(parts, folder):
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    done = subprocess.run(command, input=pickle.dumps(parts), cwd=folder, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_another_process_imports_the_code_before_it_meets_the_part(net, tmp_path, monkeypatch):
    """Of a file, of a module in the current folder, and around a loss."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses_in_cwd.py").write_text(LOSS)
    parts = [
        find("student", "net.py:Net.Small"),
        find("student", f"{net}:net"),
        own_method("bird+losses_in_cwd:loss", ()),
        own_method("losses_in_cwd.py:loss", ()),
    ]
    assert in_another_process(parts, "/") == str([part.label for part in parts])


def test_another_process_refuses_other_code(net):
    part = find("student", f"{net}:Net")
    net.write_text(SOURCE + "late = 1\n")
    assert in_another_process([part], "/") == "other code"
    net.unlink()
    assert in_another_process([part], "/") == "No such file or directory"
