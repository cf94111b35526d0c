"""What a cache keeps, and what the commands say, of how its teacher compares with its own library."""

import io
import json

import numpy as np
import pytest
import torch
from helpers.families import HALF, VIT, VIT_VIEW, processor, save_folder, square
from helpers.family_libraries import cosine, torchvision
from helpers.shell import bird, bird_json, panel
from PIL import Image

import bird_pipelines
from bird.errors import UsageError
from bird_cache.errors import StaleCacheError
from bird_cache.store import open_cache
from bird_pipelines.cli.catalogue import catalogue, one_teacher
from bird_pipelines.precomputing.caches import compare_with_teacher

SIZES = [(90, 70), (64, 64), (70, 90), (120, 64)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """PNG files of four sizes, of two classes and two groups."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    lines = ["path,label,group"]
    for number in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(SIZES[number % 4], Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{number % 2},{number // 2 % 2}")
    (folder / "samples.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT as the hub has one."""
    return save_folder(lambda T: T.ViTModel(T.ViTConfig(**VIT)), VIT_VIEW, tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def vit_cache(photos, vit, tmp_path_factory):
    """Its cache, of the command itself."""
    where = tmp_path_factory.mktemp("cache") / "c"
    flags = ("--teacher", "hf:a/vit", "--weights", vit, "--dataset", "table", "--data-root", photos, "--out", where)
    said = bird_json("precompute", *flags, "--dry-run")
    assert said["images"] == 24
    assert said["reading"] == "pooler_output"
    assert said["view"].startswith("ours, equal to transformers' ViTImageProcessor")
    assert not where.exists()
    bird("precompute", *flags)
    return where


def test_a_cache_keeps_what_was_compared_and_info_shows_it(vit_cache):
    notes = bird_json("cache", "info", vit_cache)["notes"]
    assert "penultimate cosine 1.0000000" in notes["vector"]
    assert "transformers 5" in notes["libraries"]
    shown = bird("cache", "info", vit_cache).stdout
    assert "ours, equal to transformers' ViTImageProcessor" in shown
    assert "libraries" in shown
    causes = open_cache(vit_cache).manifest.plan.causes
    assert causes["teacher"]["config"]["num_attention_heads"] == VIT["num_attention_heads"]
    assert "libraries" not in str(causes), "a version in what the fingerprint hashes"


def test_verify_compares_with_the_library_again(vit_cache, vit, photos):
    live = bird_json(
        "cache", "verify", vit_cache, "--teacher", "hf:a/vit", "--weights", vit, "--data-root", photos, "--sample", 8
    )["live"]
    assert live["findings"] == []
    assert "penultimate cosine" in live["proof"]["vector"]


def test_the_same_tensors_with_other_heads_do_not_mix_in_one_cache(vit_cache, photos, tmp_path):
    other = save_folder(
        lambda T: T.ViTModel(T.ViTConfig(**{**VIT, "num_attention_heads": 2})), VIT_VIEW, tmp_path / "v"
    )
    where = {"dataset": "table", "data_root": photos, "weights": other, "teacher": "hf:a/vit"}
    with pytest.raises(StaleCacheError) as error:
        bird_pipelines.precompute(out=vit_cache, **where)
    assert "teacher.config.num_attention_heads = 4" in error.value.found
    with pytest.raises(StaleCacheError) as error:
        bird_pipelines.precompute(out=tmp_path / "new", update=str(vit_cache), **where)
    assert "num_attention_heads" in str(error.value)
    with pytest.raises(StaleCacheError) as error:
        compare(vit_cache, "hf:a/vit", other, photos)
    assert "teacher.config.num_attention_heads = 2 now" in error.value.found


def compare(cache, teacher, weights, photos):
    return compare_with_teacher(
        str(cache), teacher, 4, data_root=photos, weights=weights, image_size=None, device="cpu"
    )


def test_verify_names_the_view_that_is_another_today(photos, tmp_path):
    family = torchvision("shufflenet_v2_x0_5")
    weights, where = family.make(tmp_path), tmp_path / "c"
    bird_pipelines.precompute(
        teacher=family.spec, weights=weights, dataset="table", data_root=photos, out=where, image_size=64
    )
    assert "--image-size" in open_cache(where).manifest.plan.notes["assumed"]
    with pytest.raises(StaleCacheError) as error:
        compare(where, family.spec, weights, photos)
    assert "preprocessing.crop = 224 now" in error.value.found
    assert "preprocessing.crop = 64" in error.value.wanted


def test_a_cache_from_before_configurations_were_recorded_still_opens(vit_cache, vit, photos, monkeypatch):
    """Its causes have no teacher.config: nothing is compared that is not there."""
    store = open_cache(vit_cache)
    teacher = {name: value for name, value in store.manifest.plan.causes["teacher"].items() if name != "config"}
    older = store.manifest.plan.model_copy(
        update={"causes": {**store.manifest.plan.causes, "teacher": teacher}, "notes": {}}
    )
    store.manifest = store.manifest.model_copy(update={"plan": older})
    monkeypatch.setattr("bird_pipelines.precomputing.caches.open_cache", lambda path: store)
    assert compare(vit_cache, "hf:a/vit", vit, photos)["findings"] == []


# ---- views whose shape is the photo's ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dpt(tmp_path_factory):
    """A processor that keeps a photo's proportions."""
    rules = processor("DPTImageProcessor", HALF, size=square(64), keep_aspect_ratio=True, ensure_multiple_of=16)
    return save_folder(lambda T: T.DPTModel(T.DPTConfig(**VIT)), rules, tmp_path_factory.mktemp("dpt"))


def test_photos_of_several_shapes_are_what_the_library_says_one_by_one(dpt, photos, tmp_path):
    import transformers

    out = tmp_path / "c"
    bird_pipelines.precompute(
        teacher="hf:a/dpt", weights=dpt, dataset="table", data_root=photos, out=out, dtype="float32", batch_size=7
    )
    cache = open_cache(out)
    model = transformers.AutoModel.from_pretrained(dpt).eval()
    see = transformers.AutoImageProcessor.from_pretrained(dpt)
    shapes = set()
    for row, id in enumerate(cache.samples.ids):
        photo = Image.open(io.BytesIO((photos / id).read_bytes())).convert("RGB")
        given = see(images=photo, return_tensors="pt")
        shapes.add(tuple(given["pixel_values"].shape))
        with torch.inference_mode():
            said = model(**given).pooler_output
        assert cosine(torch.from_numpy(cache.vectors("penultimate", np.array([row]))), said) > 0.9999
    assert len(shapes) == 4
    assert cache.manifest.plan.notes["view"].startswith("transformers' DPTImageProcessor itself")


def test_stored_crops_are_refused_before_anything_is_written(dpt, photos, tmp_path):
    with pytest.raises(UsageError) as error:
        bird_pipelines.precompute(
            teacher="hf:a/dpt", weights=dpt, dataset="table", data_root=photos, out=tmp_path / "c", views=2
        )
    assert error.value.where == "--views"
    assert not (tmp_path / "c").exists()


# ---- one teacher, listed ----------------------------------------------------------------------------------------


def test_list_says_which_vector_one_teacher_gives(vit, teacher):
    told = json.loads(bird("list", "teachers", "hf:a/vit", "--weights", vit, "--json").stdout)
    assert told["reading"] == "pooler_output"
    assert told["layers"].startswith("penultimate 32 (penultimate), cls 32 (token)")
    mine = one_teacher(f"run:{teacher}", None, None, "cpu")
    assert "the view that students are evaluated on" in mine["view"]
    assert "cosine 1.0000000" in mine["vector"]
    assert list(catalogue("students", "resnet18")) == ["resnet18"]
    assert "did you mean" in panel(bird("list", "students", "resnet19", code=2))
