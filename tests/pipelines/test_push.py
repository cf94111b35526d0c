"""An export goes to a hub when that is asked for: the real client, over HTTP, to a hub on loopback."""

import json
import shutil
import subprocess
import zipfile

import pytest
from helpers.hub_uploads import READS, WRITES, Uploads
from helpers.shell import BIRD, bird, panel

from bird.errors import UsageError
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.push import push

NAME = "someone/student"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    flags = {"dataset": "digits-s", "student": "tiny-convnet", "method": "baseline", "epochs": 1, "limit": 200}
    distill(resolve({**flags, "batch_size": 32, "out": folder}))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A torch program: it needs no extra."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(run, folder, "pt2", rows=50)
    return folder


@pytest.fixture
def hub():
    with Uploads() as hub:
        yield hub


@pytest.fixture
def pushed(hub, tmp_path):
    """`bird push ...` in a process of its own with this hub."""

    def run_it(*args, code=0, token=WRITES, **more):
        known = {} if token is None else {"HF_TOKEN": token}
        environment = hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1", **known, **more)
        command = [*BIRD, "push", *map(str, args)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return run_it


def test_an_export_goes_up_whole_in_one_commit_to_a_private_repository(hub, pushed, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "notes.pkl").write_bytes(b"\x80")
    (copy / ".env").write_text("secret")
    found = json.loads(pushed(copy, NAME, "--json").stdout)
    assert hub.private == {NAME: True}
    assert found["url"] == f"{hub.endpoint}/{NAME}"
    assert found["commit"] == hub.heads[NAME]
    assert len(hub.commits[NAME]) == 2  # the empty one, and this
    sent = hub.commits[NAME][hub.heads[NAME]]
    assert sent == {name: (exported / name).read_bytes() for name in ("README.md", "student.json", "student.pt2")}
    assert hub.cards == [(exported / "README.md").read_text()]
    assert found["card_unwritten"]

    (copy / "README.md").write_text("---\n---\n# mine\n")
    again = pushed(copy, NAME, "--revision", "second")
    assert "those with access to it" in again.stdout
    assert "does not yet say" not in again.stdout
    assert hub.heads[NAME] == found["commit"]
    assert hub.commits[NAME][hub.branches[NAME, "second"]]["README.md"] == b"---\n---\n# mine\n"


def test_what_everybody_can_read_is_written_only_if_that_is_said(hub, pushed, exported):
    pushed(exported, NAME, "--public")
    assert hub.private == {NAME: False}
    head = hub.heads[NAME]
    assert "--public" in panel(pushed(exported, NAME, code=2))
    assert hub.heads[NAME] == head
    assert "everybody" in pushed(exported, NAME, "--public", "--revision", "two").stdout


REFUSED = {
    "no token": (None, 2, "found: no token"),
    "an unknown one": ("hf_unknown", 1, "a token that the hub does not know"),
    "one that only reads": (READS, 1, "a token without the right to write there"),
}


@pytest.mark.parametrize(("token", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_a_token_that_is_missing_or_refused_is_told_and_nothing_is_there(hub, pushed, exported, token, code, said):
    told = panel(pushed(exported, NAME, code=code, token=token))
    assert said in told
    assert "hf auth login" in told
    assert hub.commits == {}


def test_without_a_network_one_panel_says_so(hub, pushed, exported):
    hub.server.shutdown()
    hub.server.server_close()
    assert "no answer" in panel(pushed(exported, NAME, code=1))


def test_a_hub_that_breaks_down_is_told(hub, pushed, exported):
    hub.down = True
    assert "the answer 500" in panel(pushed(exported, NAME, code=1))


def test_what_is_no_export_or_no_longer_that_export_stays_here(run, exported, tmp_path):
    told = panel(bird("push", run, NAME, code=2))
    assert "found: a run folder" in told
    assert f"bird export {run} OUT, then push OUT" in told
    assert "no export" in panel(bird("push", tmp_path, NAME, code=2))
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "student.pt2").write_bytes(b"another")
    assert "another sha256 than student.json records" in panel(bird("push", copy, NAME, code=1))
    about = json.loads((copy / "student.json").read_text())
    for name in ("weights.pkl", "../run/student.safetensors"):
        (copy / "student.json").write_text(json.dumps(about | {"files": {name: {"sha256": ""}}}))
        with pytest.raises(UsageError, match="files of this folder"):
            push(copy, NAME)


@pytest.mark.parametrize("name", ["student", "a/b/c", "some one/student"])
def test_a_name_is_an_owner_and_a_name(pushed, exported, name):
    assert "OWNER/NAME" in panel(pushed(exported, name, code=2))


def test_export_and_predict_send_nothing(hub, run, tmp_path):
    """The hub is there, and there is a token; nobody asks it anything."""
    environment = hub.environment(tmp_path / "home", HF_TOKEN=WRITES)
    command = [*BIRD, "export", str(run), str(tmp_path / "out"), "--to", "pt2", "--check-rows", "20"]
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=200)
    assert hub.log == []


def test_a_program_holds_no_pickle(exported):
    """torch puts the example inputs into the file, and torch.export.load would unpickle them."""
    with zipfile.ZipFile(exported / "student.pt2") as archive:
        inputs = [name for name in archive.namelist() if "sample_inputs" in name]
        assert len(inputs) == 1
        assert archive.read(inputs[0]) == b""
