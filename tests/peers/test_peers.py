"""Our client against servers that others wrote: Infinity (OpenAI's protocol) and MLServer (KServe's), each in an
environment of its own. `make peers` installs and names them:

    BIRD_INFINITY   the program infinity_emb        BIRD_MLSERVER   the program mlserver
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.shell import bird, bird_json, panel, stopped
from peers import models
from peers.servers import Proxy, free_port, images_in, server

from bird.datasets import open_dataset
from bird.teachers.protocols import KServe, OpenAI
from bird.teachers.service import canary_images, open_service
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.precomputing.paid import payload

pytestmark = pytest.mark.peers
LIMIT, BATCH = 96, 16
DATA = ("--dataset", "digits-s", "--limit", LIMIT, "--shard-rows", 32, "--batch-size", BATCH, "--dtype", "float32")
HERE = Path(__file__).parent


def program(variable):
    """The program that an environment variable names. Skips without it."""
    named = os.environ.get(variable)
    if not named or not Path(named).is_file():
        pytest.skip(f"{variable} names no program: run `make peers`")
    return named


@pytest.fixture(scope="session")
def infinity(tmp_path_factory):
    """Infinity serving a random tiny CLIP, behind a counting proxy; and the CLIP's folder."""
    run, folder = program("BIRD_INFINITY"), tmp_path_factory.mktemp("infinity")
    clip, port = folder / "clip", free_port()
    clip.mkdir()
    models.write_clip(clip)
    flags = ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
    named = ["--model-id", clip, "--served-model-name", "clip", "--host", "127.0.0.1", "--port", port]
    ready, log = f"http://127.0.0.1:{port}/health", folder / "log"
    with server([run, "v2", *named, *flags], ready, log), Proxy(port) as proxy:
        yield proxy, clip


@pytest.fixture(scope="session")
def mlserver(tmp_path_factory):
    """MLServer serving an ONNX network, as `pixels` (FP32) and as `encoded` (BYTES); and the network's file."""
    run, folder = program("BIRD_MLSERVER"), tmp_path_factory.mktemp("mlserver")
    network, port = folder / "network.onnx", free_port()
    models.write_onnx(network)
    serve_onnx(folder / "pixels", network, {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, *sides()]})
    serve_onnx(folder / "encoded", network, {"name": "image", "datatype": "BYTES", "shape": [-1, 1]})
    with mlserver_at(run, folder, port), Proxy(port) as proxy:
        yield proxy, network


def serve_onnx(folder, network, given):
    """Describe a network to MLServer."""
    folder.mkdir()
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, size]} for name, size in (("features", 16), ("logits", 10))
    ]
    described = {
        "name": folder.name,
        "implementation": "onnx_runtime.OnnxRuntime",
        "inputs": [given],
        "outputs": outputs,
    }
    described["parameters"] = {"uri": str(network)}
    (folder / "model-settings.json").write_text(json.dumps(described))


def mlserver_at(run, folder, port):
    """MLServer over the models in `folder`."""
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
    return server(
        [run, "start", folder], f"http://127.0.0.1:{port}/v2/health/ready", folder / "log", PYTHONPATH=str(HERE)
    )


def sides():
    """Height and width of the data set's images."""
    dataset = open_dataset("digits-s")
    return dataset.image(dataset.listing().ids[0]).shape[:2]


def samples(store):
    """The images of a cache, decoded, and what is sent of each."""
    dataset = open_dataset("digits-s")
    images = [dataset.image(id) for id in store.samples.ids]
    return images, [payload(id, dataset.read(id), image) for id, image in zip(store.samples.ids, images, strict=True)]


def cosines(first, second):
    """Cosine of each pair of rows."""
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def features(out):
    """All vectors of a sound, finished cache."""
    assert verify(out).findings == []
    store = open_cache(out)
    return store, store.vectors("penultimate", np.arange(LIMIT))


def killed_and_resumed(proxy, teacher, out, names):
    """SIGKILL in the middle, then the same command again. Returns the cache's vectors and how many images (of `names`)
    were asked for more than once."""
    command = ("precompute", "--teacher", teacher, *DATA, "--out", out)
    proxy.reset()

    def counted():
        return sum(proxy.asked[name] for name in names)

    code, _ = stopped(*command, "--requests-per-minute", 120, when=lambda: counted() > LIMIT // 2)
    assert code == -9
    assert LIMIT // 2 < counted() < LIMIT
    bird(*command)
    assert all(proxy.asked[name] >= 1 for name in names)
    again = sum(proxy.asked[name] - 1 for name in names)
    assert again <= BATCH, "only the batch in flight may be asked for twice"
    assert set(proxy.statuses) == {200}
    return features(out)[1], again


def test_infinity_gives_the_vectors_of_the_same_clip(infinity, tmp_path):
    proxy, clip = infinity
    proxy.reset()
    bird("precompute", "--teacher", f"http+openai://{proxy.host}/clip", *DATA, "--out", tmp_path / "cache")
    store, found = features(tmp_path / "cache")
    assert store.manifest.plan.layers["penultimate"].kind == "projection_l2", "Infinity normalises"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    images, sent = samples(store)
    expected = models.clip_vectors(clip, images)
    same = cosines(found, expected)
    others = cosines(found, np.roll(expected, 1, axis=0))
    print(f"infinity: cosine >= {same.min():.7f}; of unlike images >= {others.min():.4f}; {proxy.requests} requests")
    assert same.min() >= 0.999
    assert others.min() < 0.99, "vectors so alike say nothing about the order"
    named = images_in(OpenAI("clip").request(sent)[1])
    assert [proxy.asked[name] for name in named] == [1] * LIMIT


def test_infinity_killed_and_resumed(infinity, tmp_path):
    proxy, _ = infinity
    teacher = f"http+openai://{proxy.host}/clip"
    bird("precompute", "--teacher", teacher, *DATA, "--out", tmp_path / "whole")
    store, whole = features(tmp_path / "whole")
    named = images_in(OpenAI("clip").request(samples(store)[1])[1])
    found, again = killed_and_resumed(proxy, teacher, tmp_path / "killed", named)
    equal = np.array_equal(found, whole)
    print(f"infinity, killed and resumed: {again} images asked for again; bit-equal: {equal}")
    assert cosines(found, whole).min() >= 0.999999


def test_infinity_refuses_one_image_and_the_rest_is_kept(infinity):
    proxy, _ = infinity
    service = open_service(f"http+openai://{proxy.host}/clip")
    good = canary_images()
    vectors, failed = service.embed([*good[:3], b"\xff\xd8\xff\xe0 no picture", *good[3:]])
    assert list(failed) == [3]
    np.testing.assert_allclose(np.delete(vectors, 3, axis=0), service.canaries, atol=1e-5)


def test_infinity_without_such_a_model(infinity, tmp_path):
    proxy, _ = infinity
    done = bird("precompute", "--teacher", f"http+openai://{proxy.host}/other", *DATA, "--out", tmp_path / "c", code=4)
    assert "lists other models: clip" in panel(done), "it answers for any name when it has one model"


@pytest.mark.parametrize("model", ["pixels", "encoded"])
@pytest.mark.parametrize("output", ["", "logits"])
def test_mlserver_gives_the_vectors_of_the_same_network(mlserver, tmp_path, model, output):
    proxy, network = mlserver
    proxy.reset()
    asked = f"?output={output}" if output else ""
    kind = ("--kind", "logits" if output else "penultimate")
    teacher = f"http+kserve://{proxy.host}/{model}{asked}"
    bird("precompute", "--teacher", teacher, *kind, *DATA, "--out", tmp_path / "cache")
    store, found = features(tmp_path / "cache")
    images, _ = samples(store)
    expected = models.onnx_vectors(network, images, output or "features")
    same = cosines(found, expected)
    print(f"mlserver {model} {output}: cosine >= {same.min():.7f}, equal: {np.array_equal(found, expected)}")
    assert found.shape == expected.shape
    assert same.min() >= 0.9999
    assert cosines(found, np.roll(expected, 1, axis=0)).min() < 0.999
    assert set(proxy.statuses) == {200}


@pytest.mark.parametrize("model", ["pixels", "encoded"])
def test_mlserver_killed_and_resumed(mlserver, tmp_path, model):
    proxy, _ = mlserver
    teacher = f"http+kserve://{proxy.host}/{model}"
    bird("precompute", "--teacher", teacher, *DATA, "--out", tmp_path / "whole")
    store, whole = features(tmp_path / "whole")
    protocol = KServe(model, open_description(proxy, model), None, None)
    named = images_in(protocol.request(samples(store)[1])[1])
    found, again = killed_and_resumed(proxy, teacher, tmp_path / "killed", named)
    print(f"mlserver {model}, killed and resumed: {again} images asked for again")
    np.testing.assert_array_equal(found, whole)


def open_description(proxy, model):
    """What the server says of a model."""
    import urllib.request

    with urllib.request.urlopen(f"http://{proxy.host}/v2/models/{model}") as response:
        return json.load(response)


def test_mlserver_without_such_a_model(mlserver, tmp_path):
    proxy, _ = mlserver
    done = bird("precompute", "--teacher", f"http+kserve://{proxy.host}/other", *DATA, "--out", tmp_path / "c", code=4)
    assert "no description of the model (status 404)" in panel(done)


def test_mlserver_dry_run_tells_what_pixels_cost(mlserver, tmp_path):
    proxy, _ = mlserver
    flags = (*DATA, "--out", tmp_path / "cache", "--dry-run")
    small = bird_json("precompute", "--teacher", f"http+kserve://{proxy.host}/encoded", *flags)
    large = bird_json("precompute", "--teacher", f"http+kserve://{proxy.host}/pixels", *flags)
    assert large["megabytes"] > small["megabytes"]
