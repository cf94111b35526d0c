"""An export goes to a hub when that is asked for: the real client, over HTTP, to a hub on loopback."""

import json
import shutil
import subprocess
import zipfile

import pytest
from helpers.hub_uploads import READS, WRITES, Uploads
from helpers.shell import BIRD, bird, panel

import bird_pipelines
from bird.errors import HubError, RunError, UsageError
from bird_pipelines.cli import app
from bird_pipelines.config import resolve
from bird_pipelines.distilling.training import distill
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.push import push

NAME = "someone/student"
# huggingface_hub 2.4 gives git-lfs uploads to httpx2 in its old form
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


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
def client(hub, tmp_path, monkeypatch):
    """huggingface_hub in this process, with this hub and a token that may write."""
    from huggingface_hub import constants

    told = {
        "ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }
    for name, value in told.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", WRITES)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return monkeypatch


def test_the_command_sends_an_export_whole_in_one_commit_to_a_private_repository(hub, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "notes.pkl").write_bytes(b"\x80")
    (copy / ".env").write_text("secret")
    environment = hub.environment(tmp_path / "home", HF_HUB_DISABLE_XET="1", HF_TOKEN=WRITES)
    done = subprocess.run(
        [*BIRD, "push", copy, NAME, "--json"], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(done.stdout)
    assert hub.private == {NAME: True}
    assert found["url"] == f"{hub.endpoint}/{NAME}"
    assert found["commit"] == hub.heads[NAME]
    assert len(hub.commits[NAME]) == 2  # the empty one, and this
    sent = hub.commits[NAME][hub.heads[NAME]]
    assert sent == {name: (exported / name).read_bytes() for name in ("README.md", "student.json", "student.pt2")}
    assert hub.cards == [(exported / "README.md").read_text()]
    assert found["card_unwritten"]


def test_a_second_push_goes_to_a_branch_and_the_card_is_sent_as_it_was_written(hub, client, exported, tmp_path, capsys):
    first = bird_pipelines.push(exported, NAME)
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "README.md").write_text("---\n---\n# mine\n")
    app(["push", str(copy), NAME, "--revision", "second"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "those with access to it" in said
    assert "does not yet say" not in said
    assert hub.heads[NAME] == first["commit"]
    assert hub.commits[NAME][hub.branches[NAME, "second"]]["README.md"] == b"---\n---\n# mine\n"


def test_what_everybody_can_read_is_written_only_if_that_is_said(hub, client, exported):
    push(exported, NAME, public=True)
    assert hub.private == {NAME: False}
    head = hub.heads[NAME]
    with pytest.raises(UsageError, match=r"everybody can read.*say --public"):
        push(exported, NAME)
    assert hub.heads[NAME] == head
    assert not push(exported, NAME, public=True, revision="two")["private"]


REFUSED = {
    "no token": (None, UsageError, "found no token"),
    "an unknown one": ("hf_unknown", HubError, "a token that the hub does not know"),
    "one that only reads": (READS, HubError, "a token without the right to write there"),
}


@pytest.mark.parametrize(("token", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_a_token_that_is_missing_or_refused_is_told_and_nothing_is_there(hub, client, exported, token, kind, said):
    client.delenv("HF_TOKEN") if token is None else client.setenv("HF_TOKEN", token)
    with pytest.raises(kind, match=rf"{said}.*hf auth login"):
        push(exported, NAME)
    assert hub.commits == {}


def test_without_a_network_it_says_so_at_once(hub, client, exported):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(HubError, match="no answer"):
        push(exported, NAME)


def test_a_hub_that_breaks_down_is_told(hub, client, exported):
    hub.down = True
    with pytest.raises(HubError, match="the answer 500"):
        push(exported, NAME)


def test_the_exit_codes(exported, tmp_path):
    assert (UsageError.exit_code, HubError.exit_code) == (2, 1)
    assert "OWNER/NAME" in panel(bird("push", exported, "student", code=2))


def test_what_is_no_export_or_no_longer_that_export_stays_here(run, exported, tmp_path):
    with pytest.raises(UsageError, match=r"found a run folder.*bird export \S*run OUT, then push OUT"):
        push(run, NAME)
    with pytest.raises(UsageError, match="found no export"):
        push(tmp_path, NAME)
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "student.pt2").write_bytes(b"another")
    with pytest.raises(RunError, match="another sha256"):
        push(copy, NAME)
    about = json.loads((copy / "student.json").read_text())
    for name in ("weights.pkl", "../run/student.safetensors"):
        (copy / "student.json").write_text(json.dumps(about | {"files": {name: {"sha256": ""}}}))
        with pytest.raises(UsageError, match="files of this folder"):
            push(copy, NAME)


@pytest.mark.parametrize("name", ["student", "a/b/c", "some one/student"])
def test_a_name_is_an_owner_and_a_name(hub, client, exported, name):
    with pytest.raises(UsageError, match="OWNER/NAME"):
        push(exported, name)
    assert hub.log == []


def test_an_export_sends_nothing(hub, client, run, tmp_path):
    """The hub is there, and there is a token; nobody asks it anything."""
    export(run, tmp_path / "out", "pt2", rows=20)
    assert hub.log == []


def test_a_program_holds_no_pickle(exported):
    """torch puts the example inputs into the file, and torch.export.load would unpickle them."""
    with zipfile.ZipFile(exported / "student.pt2") as archive:
        inputs = [name for name in archive.namelist() if "sample_inputs" in name]
        assert len(inputs) == 1
        assert archive.read(inputs[0]) == b""
