"""Parts of one's own where a second command meets them: a Teacher, caches of own data, `bird tune`, registered names."""

import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.own_parts import NET, SQUARES

import bird_pipelines
from bird.errors import TeacherError, UsageError
from bird.teachers.base import Teacher
from bird.teachers.layers import LayerSpec
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.cli import app
from bird_pipelines.precomputing.caches import compare_with_teacher

TEACHERS = '''
from bird.teachers.base import Teacher
from bird.teachers.layers import LayerSpec


class Corners(Teacher):
    """Means of the corners of an image, in two layers; no torch module, a view of its own."""

    name, dim, feature_kind, weights_digest, on_cpu = "corners", 12, "penultimate", "sha256:none", True
    preprocessing = {"view": "8 x 8, nearest"}
    layers = {"penultimate": LayerSpec((12,), "penultimate"), "maps.1": LayerSpec((3, 2, 2), "maps")}

    def preprocess(self, image, box=None):
        rows, columns = (np.linspace(0, size - 1, 8).round().astype(int) for size in image.shape[:2])
        return torch.from_numpy(np.ascontiguousarray(image[rows][:, columns].transpose(2, 0, 1)))

    def normalise(self, views):
        return views.float() / 255

    def answer(self, views, layers):
        maps = nn.functional.avg_pool2d(self.normalise(views), 4)
        return {"penultimate": maps.flatten(1), "maps.1": maps}


class Restless(Corners):
    """Its answer follows from chance."""

    def answer(self, views, layers):
        return {name: value + torch.rand(()) for name, value in super().answer(views, layers).items()}


def distant(student, teacher):
    return (student - teacher).square().mean(1)
'''
METHOD = """
from bird.methods import Method


class Plain(Method):
    features = True

    def step(self, learner, batch, meta_batch, *, warm):
        loss = nn.functional.cross_entropy(learner.model(batch.inputs).logits, batch.labels)
        learner.descend(loss)
        return {"loss": loss.detach()}
"""
PARTS = SQUARES + NET + TEACHERS + METHOD
SHORT = {"epochs": 2, "warmup": 1, "batch_size": 16, "meta_per_cell": 2}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "mine.py"
    file.write_text(PARTS)
    return file


@pytest.fixture(scope="module")
def cache(parts, tmp_path_factory):
    """Vectors of an own teacher over own data."""
    out = tmp_path_factory.mktemp("all-own") / "cache"
    flags = {"teacher": f"{parts}:Corners", "dataset": f"{parts}:Squares", "layers": "penultimate,maps"}
    bird_pipelines.precompute(**flags, out=out, workers=1)
    return out


def imported(file):
    """What the file defines, as objects in Python."""
    names = {"__name__": "mine"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    return names


def test_a_teacher_of_the_protocol_writes_what_it_answers(cache, parts):
    names, store = imported(parts), open_cache(cache)
    teacher, squares = names["Corners"](), names["Squares"]()
    views = torch.stack([teacher.preprocess(squares[n]["image"]) for n in range(8)])
    rows = [store.samples.ids.tolist().index(f"item-{n:02d}") for n in range(8)]
    expected = teacher.answer(views, ("penultimate",))["penultimate"].numpy()
    np.testing.assert_array_equal(
        np.asarray(store["penultimate"][:])[rows].astype(np.float16), expected.astype(np.float16)
    )
    assert store.info()["layers"].keys() >= {"penultimate", "maps.1"}
    assert (
        store.manifest.plan.notes["teacher"].startswith("Corners@") or "corners" in store.manifest.plan.notes["teacher"]
    )


def test_the_same_teacher_as_an_object_in_python_is_the_same_cause(cache, parts, tmp_path):
    names = imported(parts)
    info = bird_pipelines.precompute(
        teacher=names["Corners"](), dataset=f"{parts}:Squares", out=tmp_path / "cache", workers=1
    )
    assert info["complete"]
    assert np.array_equal(open_cache(tmp_path / "cache")["penultimate"][:], open_cache(cache)["penultimate"][:])
    with pytest.raises(TeacherError, match="depends on chance"):
        bird_pipelines.precompute(
            teacher=f"{parts}:Restless", dataset=f"{parts}:Squares", out=tmp_path / "other", workers=1
        )
    with pytest.raises(UsageError, match="--image-size"):
        bird_pipelines.precompute(
            teacher=f"{parts}:Corners", dataset=f"{parts}:Squares", out=tmp_path / "other", image_size=32
        )
    assert not (tmp_path / "other").exists()


def test_what_a_teacher_of_the_protocol_lacks_is_named(parts, tmp_path):
    class Half(Teacher):
        name, layers = "half", {"penultimate": LayerSpec((3,), "penultimate")}

        def preprocess(self, image, box=None):
            return torch.zeros(3, 8, 8)

        def normalise(self, views):
            return views

        def answer(self, views, layers):
            return {"penultimate": views.mean((2, 3))}

    with pytest.raises(TeacherError, match="no dim, feature_kind, weights_digest, preprocessing, on_cpu"):
        bird_pipelines.precompute(teacher=Half(), dataset=f"{parts}:Squares", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def asked(capsys, *words):
    """What the command line says as JSON, without a process of its own."""
    capsys.readouterr()
    app([*map(str, words), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_a_cache_of_own_parts_is_shown_verified_and_compared_with_its_teacher(cache, parts, capsys):
    info = asked(capsys, "cache", "info", cache)
    assert info["notes"]["code"].startswith("Corners of mine.py, sha256")
    assert asked(capsys, "cache", "verify", cache)["sound"]
    with pytest.raises(UsageError, match=r"--dataset FILE\.py:Squares"):
        asked(capsys, "cache", "verify", cache, "--teacher", f"{parts}:Corners")
    again = ("--teacher", f"{parts}:Corners", "--dataset", f"{parts}:Squares", "--sample", 16)
    live = asked(capsys, "cache", "verify", cache, *again)["live"]
    assert live["compared"] == 16
    assert min(each["cosine_min"] for each in live["cells"].values()) > 0.9999


def test_a_changed_file_is_another_teacher_and_another_data_set(cache, parts, tmp_path):
    changed = tmp_path / "mine.py"
    changed.write_text(parts.read_text() + "# a remark\n")
    given = {"sample": 8, "data_root": None}
    with pytest.raises(StaleCacheError, match=r"teacher\.config\.own\.sha256"):
        compare_with_teacher(str(cache), f"{changed}:Corners", dataset=f"{parts}:Squares", **given)
    with pytest.raises(StaleCacheError, match=r"Squares@.*from an unchanged file"):
        compare_with_teacher(str(cache), f"{parts}:Corners", dataset=f"{changed}:Squares", **given)
    found = compare_with_teacher(str(cache), f"{parts}:Corners", dataset=f"{parts}:Squares", **given)
    assert found["findings"] == []


def members(folder):
    """The files in the shards of a cache."""
    found = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            found += tar.getnames()
    return found


def test_a_cache_of_own_data_is_converted_with_its_images_if_the_data_are_given(cache, parts, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--dataset FILE\.py:Squares"):
        asked(capsys, "cache", "convert", cache, tmp_path / "tars")
    asked(capsys, "cache", "convert", cache, tmp_path / "bare", "--no-images")
    asked(capsys, "cache", "convert", cache, tmp_path / "tars", "--dataset", f"{parts}:Squares")
    one, other, bare = (open_cache(each) for each in (cache, tmp_path / "tars", tmp_path / "bare"))
    for store in (other, bare):
        assert np.array_equal(one["penultimate"][:], store["penultimate"][:])
        assert store.manifest.plan.causes == one.manifest.plan.causes
    assert len(members(tmp_path / "tars")) == len(members(tmp_path / "bare")) + len(one.samples.ids)
    assert asked(capsys, "cache", "verify", tmp_path / "tars")["sound"]
    asked(capsys, "cache", "convert", tmp_path / "tars", tmp_path / "back")
    assert np.array_equal(open_cache(tmp_path / "back")["maps.1"][:], one["maps.1"][:])


@pytest.mark.parametrize("form", ["bird+{}:distant", "{}:distant"])
def test_the_weights_of_bird_around_an_own_loss_are_tuned(cache, parts, tmp_path, form):
    small = {"trials": 2, "per_round": 2, "seeds": 1, "final_seeds": 1, "drop": 100.0}
    found = bird_pipelines.tune(cache=cache, out=tmp_path / "study", method=form.format(parts), **small, **SHORT)
    assert found["method"].startswith("bird+distant@")
    assert {*found["chosen"]["setting"]} == {"lambda", "alpha", "mu2"}
    plain = json.loads((tmp_path / "study" / "baseline" / "000-0" / "run.json").read_text())["config"]
    assert plain["method"] == "baseline"
    assert "own" not in plain
    ours = json.loads((tmp_path / "study" / "final" / "0" / "run.json").read_text())["config"]
    assert ours["own"]["method"]["attribute"] == "bird+distant"
    again = bird_pipelines.tune(cache=cache, out=tmp_path / "study", method=form.format(parts), **small, **SHORT)
    assert again == found


def test_a_whole_method_of_ones_own_has_nothing_that_could_be_tuned(cache, parts, tmp_path):
    with pytest.raises(UsageError, match="a Method of your own, whose weights are not known here"):
        bird_pipelines.tune(cache=cache, out=tmp_path / "study", method=f"{parts}:Plain")
    assert not (tmp_path / "study").exists()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package that registers all four kinds, as pip leaves it."""
    site = tmp_path / "site"
    info = site / "birdparts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: birdparts\nVersion: 1.0\n")
    kinds = {"student": "Net", "teacher": "Corners", "method": "Plain", "dataset": "Squares"}
    lines = [f"[bird.{kind}s]\nmy-{kind} = birdparts_of_test:{name}\n" for kind, name in kinds.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (site / "birdparts_of_test.py").write_text(PARTS)
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("birdparts_of_test", None)


def test_registered_names_of_all_four_kinds_go_the_whole_way(installed, tmp_path):
    info = bird_pipelines.precompute(teacher="my-teacher", dataset="my-dataset", out=tmp_path / "cache", workers=1)
    assert info["complete"]
    given = {"cache": tmp_path / "cache", "student": "my-student", "method": "my-method", "dataset": "my-dataset"}
    run = bird_pipelines.distill(**given, out=tmp_path / "run", **SHORT)
    assert run["config"]["student"].startswith("Net@")
    assert run["config"]["method"].startswith("Plain@")
    assert run["config"]["dataset"].startswith("Squares@")
    with pytest.raises(UsageError, match=r"FILE.py:Net|birdparts_of_test.py:Net"):
        bird_pipelines.evaluate(tmp_path / "run", dataset="my-dataset")
    scores = bird_pipelines.evaluate(tmp_path / "run", student="my-student", dataset="my-dataset")
    assert scores["n"] == run["rows"]["test"]
    with pytest.raises(UsageError, match="did you mean my-dataset"):
        bird_pipelines.precompute(teacher="my-teacher", dataset="my-datset", out=tmp_path / "x")
    with pytest.raises((TeacherError, UsageError), match="did you mean my-teacher"):
        bird_pipelines.precompute(teacher="my-teachr", dataset="my-dataset", out=tmp_path / "x")
