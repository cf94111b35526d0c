"""The download path, run for once: the real clients of the hub against one on loopback, in processes of their own."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.hub import Hub
from safetensors.torch import save_file

from bird.teachers import load_teacher

BIRD = "from bird_pipelines.cli import main; main()"
LOAD = """
import json, sys, time
from bird.errors import BirdError
from bird.teachers import load_teacher
for spec in sys.argv[1:]:
    began = time.monotonic()
    try:
        teacher = load_teacher(spec)
        told = {"weights": teacher.weights_digest, "notes": dict(teacher.notes)}
    except BirdError as error:
        told = {"error": type(error).__name__, "found": error.found, "fix": error.fix}
    print(json.dumps({**told, "seconds": time.monotonic() - began}))
"""
CLIP = """
import open_clip
from open_clip import pretrained
open_clip.add_model_config(sys.argv.pop(1))
pretrained._PRETRAINED["bird-tiny-hub"] = {"tag": {"hf_hub": "someone/tiny-clip/"}, "gone": {"hf_hub": "someone/bare/"}}
"""
PROCESSOR = {
    "size": {"height": 32, "width": 32},
    "resample": 2,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}
CHUNK = 10 * 2**20  # what the hub's client takes at once: it goes on from a multiple of it


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def vit(folder, seed=0, inner=32):
    """A ViT of one layer as transformers saves it; 13 MB with `inner` 32,768."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": inner}
    torch.manual_seed(seed)
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def process(hub, home, code, *args, **environment):
    """A finished process of `code` with this hub."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=hub.environment(home, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def loaded(hub, home, *specs, code=LOAD, **environment):
    """What a process says that loads teachers."""
    done = process(hub, home, code, *specs, **environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def order(out, teacher="hf:someone/tiny-vit"):
    return ("precompute", "--teacher", teacher, "--dataset", "digits-s", "--limit", 40, "--out", out)


def told(done, code=0):
    """The object on stdout, or the error panel on one line."""
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else " ".join(line.strip("│ ") for line in done.stderr.splitlines())


@pytest.mark.slow
def test_a_download_is_resumed_recorded_and_kept(hub, tmp_path):
    """The whole way: cut and resumed, noted, offline, and a revision that changed."""
    home, out = tmp_path / "home", tmp_path / "cache"
    first = hub.push("someone/tiny-vit", vit(tmp_path / "first", 1, inner=32768))
    hub.cut["model.safetensors"] = CHUNK + 100_000
    plan = told(process(hub, home, BIRD, *order(out), "--dry-run", "--json"))
    assert plan["revision"] == f"someone/tiny-vit@{first}"
    fetched = [(wanted, status) for method, wanted, status in hub.asked("model.safetensors") if method == "GET"]
    assert fetched == [(None, 200), (f"bytes={CHUNK}-", 206)]
    known = {"/api/models/someone/tiny-vit", *hub.commits["someone/tiny-vit"][first], "processor_config.json"}
    assert {name for _, name, _, _ in hub.log} <= known, "nothing else is asked of the hub"

    hub.log.clear()
    info = told(process(hub, home, BIRD, *order(out), "--json", HF_HUB_OFFLINE="1"))
    assert info["complete"]
    assert info["notes"]["revision"] == f"someone/tiny-vit@{first}"
    assert hub.log == []

    second = hub.push("someone/tiny-vit", vit(tmp_path / "second", 2))
    panel = told(process(hub, home, BIRD, *order(out)), 3)
    assert f"vectors by the weights of someone/tiny-vit@{first}" in panel
    assert f"those of someone/tiny-vit@{second}" in panel
    panel = told(process(hub, home, BIRD, "cache", "verify", out, "--teacher", "hf:someone/tiny-vit"), 3)
    assert first in panel
    assert second in panel
    earlier = order(out, f"hf:someone/tiny-vit@{first}")
    assert told(process(hub, home, BIRD, *earlier, "--json"))["complete"]


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_half(hub, tmp_path):
    """The client begins that file anew; files that were whole are not asked for again."""
    folder = vit(tmp_path / "vit", inner=32768)
    hub.push("someone/tiny-vit", folder)
    hub.hold["model.safetensors"] = CHUNK + 100_000
    environment = hub.environment(tmp_path / "home")
    arguments = [sys.executable, "-c", LOAD, "hf:someone/tiny-vit"]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        assert hub.held.wait(240)
        killed.send_signal(signal.SIGKILL)
    hub.log.clear()
    (found,) = loaded(hub, tmp_path / "home", "hf:someone/tiny-vit")
    assert found["weights"] == load_teacher("hf:someone/tiny-vit", weights=folder).weights_digest
    assert "GET" not in {method for method, _, _ in hub.asked("config.json")}


@pytest.mark.slow
def test_what_cannot_be_had_is_told(hub, tmp_path):
    folder = vit(tmp_path / "vit")
    hub.push("someone/tiny-vit", folder)
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    bare = hub.push("someone/bare", folder)
    names = ["hf:someone/nothing", "hf:someone/tiny-vit@v2", "hf:someone/bare"]
    repository, revision, file = loaded(hub, tmp_path / "home", *names)
    assert {each["error"] for each in (repository, revision, file)} == {"MissingWeightsError"}
    assert repository["found"] == "no repository someone/nothing, or a private one"
    assert revision["found"] == "no revision v2 of someone/tiny-vit"
    assert file["found"].startswith(f"someone/bare@{bare} without model.safetensors")
    assert "pytorch_model.bin" in file["found"]
    asked = {name for _, name, _, _ in hub.log}
    assert not any(word in name for name in asked for word in ("commits", "discussions", "agent")), asked
    assert "pytorch_model.bin" not in asked, "a pickle is not even fetched"


@pytest.mark.slow
def test_nobody_there_is_told_soon(hub, tmp_path):
    hub.push("someone/tiny-vit", vit(tmp_path / "vit"))
    (there,) = loaded(hub, tmp_path / "home", "hf:someone/tiny-vit")
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    again, never = loaded(hub, tmp_path / "home", "hf:someone/tiny-vit", "hf:someone/other", **gone)
    assert again["weights"] == there["weights"], "what is here is used"
    assert again["notes"] == there["notes"]
    assert "nobody answers at http://127.0.0.1:9" in never["found"]
    assert never["seconds"] < 10


@pytest.mark.slow
def test_open_clip_downloads(hub, tmp_path):
    import open_clip

    tower = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    configs, weights = tmp_path / "configs", tmp_path / "clip"
    configs.mkdir()
    weights.mkdir()
    config = {"embed_dim": 24, "vision_cfg": tower, "text_cfg": text}
    (configs / "bird-tiny-hub.json").write_text(json.dumps(config))
    open_clip.add_model_config(configs)
    state = open_clip.create_model("bird-tiny-hub", load_weights=False, pretrained_text=False).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, weights / "open_clip_model.safetensors")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("moved")
    commit, bare = hub.push("someone/tiny-clip", weights), hub.push("someone/bare", tmp_path / "bare")
    code = LOAD.replace("for spec", CLIP + "for spec", 1)
    names = (configs, "open_clip:bird-tiny-hub/tag", "open_clip:bird-tiny-hub/gone")
    there, gone = loaded(hub, tmp_path / "home", *names, code=code)
    assert there["notes"]["revision"] == f"someone/tiny-clip@{commit}"
    own = load_teacher("open_clip:bird-tiny-hub/none", weights=weights / "open_clip_model.safetensors")
    assert there["weights"] == own.weights_digest
    wanted = "open_clip_model.safetensors or open_clip_pytorch_model.bin"
    assert gone["found"] == f"someone/bare@{bare} without {wanted}"
    hub.log.clear()
    (offline,) = loaded(hub, tmp_path / "home", *names[:2], code=code, HF_HUB_OFFLINE="1")
    assert offline["weights"] == own.weights_digest
    assert hub.log == []


@pytest.mark.slow
def test_timm_downloads(hub, tmp_path):
    import timm

    name, folder = "test_resnet.r160_in1k", tmp_path / "timm"
    folder.mkdir()
    save_file(timm.create_model(name, pretrained=False).state_dict(), folder / "model.safetensors")
    commit = hub.push(f"timm/{name}", folder)
    there, gone = loaded(hub, tmp_path / "home", f"timm:{name}", "timm:test_vit.r160_in1k")
    assert there["notes"]["revision"] == f"timm/{name}@{commit}"
    own = load_teacher(f"timm:{name}", weights=folder / "model.safetensors")
    assert there["weights"] == own.weights_digest
    assert [status for method, _, status in hub.asked("model.safetensors") if method == "GET"] == [200]
    assert gone["error"] == "MissingWeightsError"
    assert gone["found"] == "no repository timm/test_vit.r160_in1k, or a private one"
    hub.log.clear()
    (offline,) = loaded(hub, tmp_path / "home", f"timm:{name}", HF_HUB_OFFLINE="1")
    assert offline["weights"] == own.weights_digest
    assert hub.log == []
