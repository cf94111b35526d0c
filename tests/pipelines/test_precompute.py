"""Phase one: what is cached is what the teacher says, whatever happens on the way.

One file over 400 lines: each fault of phase one is a short test, and they are read as a list.
"""

import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import xxhash
from helpers.images import BOMBS, REFUSED
from helpers.shell import bird, bird_json, exists, panel, stopped
from PIL import Image

import bird_pipelines
from bird.datasets import open_dataset
from bird.datasets.base import prepare
from bird.devices import threads
from bird.errors import UsageError
from bird.teachers import load_teacher
from bird.teachers.base import TorchTeacher, View
from bird.teachers.layers import Tap
from bird_cache.errors import FeatureError, NotACacheError, StaleCacheError
from bird_cache.store import open_cache
from bird_cache.verify import verify
from bird_pipelines.config import Stored, Work
from bird_pipelines.precomputing.extraction import precompute

KILLED = -signal.SIGKILL


def features_of(path):
    store = open_cache(path)
    return store.vectors("penultimate", np.arange(store.manifest.plan.rows))


def test_cached_equals_live(teacher, cache):
    """Cosine at least .999 per protected group, between what is stored and what the teacher says now."""
    store, dataset, live = open_cache(cache), open_dataset("digits-s", None), load_teacher(f"run:{teacher}")
    rows = np.arange(0, store.manifest.plan.rows, 7)
    pixels = torch.stack([live.preprocess(dataset.image(store.samples.ids[row])) for row in rows])
    said, stored = live.features(pixels), torch.from_numpy(store.vectors("penultimate", rows))
    cosine = torch.nn.functional.cosine_similarity(said, stored)
    groups = store.samples.groups[rows]
    assert {int(group) for group in groups} == {0, 1}
    for group in (0, 1):
        assert cosine[torch.from_numpy(groups == group)].min() >= 0.999


@pytest.mark.parametrize("beside", [True, False])
def test_any_number_of_workers_writes_the_same_cache(teacher, tmp_path, beside):
    """A teacher on the CPU runs in all of them, one that is elsewhere in one at a time; the process's threads stay."""
    data, live = open_dataset("digits-s", None), load_teacher(f"run:{teacher}")
    live.on_cpu = beside
    table = prepare(data, limit=120)
    with threads(2):
        for workers in (1, 3):
            work = Work(workers=workers, batch_size=16)
            precompute(live, data, table, tmp_path / str(workers), stored=Stored(shard_rows=40), work=work)
            assert torch.get_num_threads() == 2
    one, three = (features_of(tmp_path / str(workers)) for workers in (1, 3))
    np.testing.assert_allclose(one, three, rtol=1e-2, atol=1e-3)  # float16: sums are taken in another order
    assert open_cache(tmp_path / "1").manifest.fingerprint == open_cache(tmp_path / "3").manifest.fingerprint


def test_info_accounts_for_every_row(cache):
    info = bird_json("cache", "info", cache)
    assert info["complete"]
    assert info["rows"] == info["written"] == sum(cell["rows"] for cell in info["groups"].values())
    assert info["failed"] == 0
    assert info["layers"]["penultimate"]["shape"][0] == info["rows"]
    assert len(info["fingerprint"]) == 64
    assert "/" not in str(info["causes"]), "a path in what the fingerprint hashes"


@pytest.mark.slow
def test_killed_and_run_again(flags, cache, tmp_path):
    out = tmp_path / "killed"
    code, _ = stopped("precompute", *flags, "--out", out, when=exists(out / "commits" / "000001.json"))
    assert code == KILLED
    assert not open_cache(out).manifest.complete
    bird("cache", "verify", out, code=3)
    refused = bird("distill", "--cache", out, "--out", tmp_path / "run", code=3)
    assert "run the same `bird precompute` command again" in panel(refused)
    bird("precompute", *flags, "--out", out)
    bird("cache", "verify", out)
    assert np.array_equal(features_of(out), features_of(cache))
    assert open_cache(out).fingerprint == open_cache(cache).fingerprint


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(flags, tmp_path):
    out = tmp_path / "stopped"
    code, message = stopped(
        "precompute", *flags, "--out", out, when=exists(out / "commits" / "000000.json"), by=signal.SIGINT
    )
    assert code == 130
    assert "run the same command again to resume" in message
    bird("precompute", *flags, "--out", out)
    assert verify(out).findings == []


def test_another_teacher_is_refused_with_the_field_and_both_values(flags, cache):
    before = features_of(cache)
    done = bird("precompute", *flags, "--out", cache, "--dtype", "float32", code=3)
    assert "dtype = float16" in panel(done)
    assert "dtype = float32" in panel(done)
    assert np.array_equal(features_of(cache), before)


def picture_folder(folder, corrupt=(), count=60):
    """32-pixel JPEGs of two classes and two groups; those in `corrupt` are cut short."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for number in range(count):
        path = folder / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
        if number in corrupt:
            path.write_bytes(path.read_bytes()[:100])
        lines.append(f"{number}.jpg,{number % 2},{number // 2 % 2}")
    (folder / "samples.csv").write_text("\n".join(lines))


def test_a_corrupt_image_is_a_counted_row(teacher, tmp_path):
    picture_folder(tmp_path, corrupt=(3,))
    flags = (
        "--teacher",
        f"run:{teacher}",
        "--dataset",
        "table",
        "--data-root",
        tmp_path,
        "--out",
        tmp_path / "cache",
    )
    refused = bird("precompute", *flags, "--max-failed", "0.01", code=2)
    assert "3.jpg" in panel(refused)
    assert "1 of 60" in panel(refused)
    info = bird_json("precompute", *flags, "--max-failed", "0.1")
    assert (info["rows"], info["written"], info["failed"]) == (60, 59, 1)
    assert sum(cell["failed"] for cell in info["groups"].values()) == 1
    samples = open_cache(tmp_path / "cache").samples
    (row,) = np.flatnonzero(samples.status != "ok")
    assert samples.ids[row] == "3.jpg"
    assert np.isnan(features_of(tmp_path / "cache")[row]).all()
    bird("cache", "verify", tmp_path / "cache")
    bird("distill", "--cache", tmp_path / "cache", "--epochs", 1, "--out", tmp_path / "run")


def test_asking_again_does_not_get_past_max_failed(teacher, tmp_path):
    """What an earlier call has committed counts: 2 of 3 unusable images lie in the first shards."""
    picture_folder(tmp_path)
    for number in (3, 20, 40):
        (tmp_path / f"{number}.jpg").write_bytes((tmp_path / f"{number}.jpg").read_bytes()[:100] + bytes([number]))
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--out", tmp_path / "cache")
    small = ("--batch-size", 16, "--shard-rows", 16, "--workers", 1)
    for _ in range(4):
        assert "of 60 images undecodable" in panel(bird("precompute", *flags, *small, "--max-failed", 0.04, code=2))
    assert bird_json("precompute", *flags, *small, "--max-failed", 0.05)["failed"] == 3


def test_limit_keeps_the_proportions(cache):
    samples = open_cache(cache).samples
    assert {*samples.splits} == {"train", "meta", "test"}
    per_class = np.bincount(samples.labels)
    assert per_class.min() >= 0.8 * per_class.max()
    test = samples.splits == "test"
    assert abs((samples.groups[test] == 0).mean() - 0.5) < 0.02


# ---- images that cannot be used (fault 10), and those that are too large (fault 11) ------------------------------


def test_unusable_images_are_skipped_with_reason_and_hash_or_stop_the_run(teacher, tmp_path, record_property):
    """Every damaged or foreign image of the decoder's tests, in one data set."""
    bad = {name.replace(" ", "-").replace("/", "-"): make() for name, make in {**REFUSED, **BOMBS}.items()}
    picture_folder(tmp_path, count=200)
    lines = (tmp_path / "samples.csv").read_text()
    for number, (name, data) in enumerate(bad.items()):
        (tmp_path / f"{name}.jpg").write_bytes(data)
        lines += f"\n{name}.jpg,{number % 2},{number // 2 % 2}"
    (tmp_path / "samples.csv").write_text(lines)
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--out", tmp_path / "cache")
    assert "unusable" in panel(bird("precompute", *flags, "--on-error", "fail", code=2)).replace(
        "undecodable", "unusable"
    )
    info = bird_json("precompute", *flags, "--max-failed", "0.3")
    samples = open_cache(tmp_path / "cache").samples
    lost = np.flatnonzero(samples.status != "ok")
    left_out = {*samples.ids[lost].tolist(), *info["left_out"]}
    assert left_out == {f"{name}.jpg" for name in bad}
    for row in lost.tolist():
        data = bad[samples.ids[row].removesuffix(".jpg")]
        assert samples.digests[row] == xxhash.xxh3_128_hexdigest(data)
        assert len(samples.status[row]) > 5, "a reason"
    assert sum(cell["failed"] for cell in info["groups"].values()) == len(lost)
    assert verify(tmp_path / "cache").findings == []
    assert len(bad) >= 25
    record_property("10 unusable images", len(bad))


def test_the_size_of_images_is_a_setting(teacher, tmp_path):
    picture_folder(tmp_path)
    Image.fromarray(np.zeros((200, 200, 3), np.uint8)).save(tmp_path / "4.jpg")
    flags = ("--teacher", f"run:{teacher}", "--dataset", "table", "--data-root", tmp_path, "--max-failed", 0)
    text = panel(bird("precompute", *flags, "--out", tmp_path / "no", "--max-megapixels", "0.01", code=2))
    assert "4.jpg: 200 x 200 pixels" in text
    bird("precompute", *flags, "--out", tmp_path / "yes")


# ---- another state of the data set (fault 16) --------------------------------------------------------------------


def states(folder):
    """Six ways in which a data set changes: each edits the folder, and says how many images are new to a teacher."""

    def rows():
        return (folder / "samples.csv").read_text().splitlines()

    def write(lines):
        (folder / "samples.csv").write_text("\n".join(lines))

    def added():
        (folder / "new.jpg").write_bytes((folder.parent / "spare.jpg").read_bytes())
        write([*rows(), "new.jpg,0,0"])
        return 1

    def removed():
        write([line for line in rows() if not line.startswith("4.jpg")])
        return 0

    def replaced():
        (folder / "5.jpg").write_bytes((folder.parent / "spare.jpg").read_bytes())
        return 1

    def renamed():
        (folder / "6.jpg").rename(folder / "six.jpg")
        write([line.replace("6.jpg", "six.jpg") if line.startswith("6.jpg") else line for line in rows()])
        return 0

    def relabelled():
        write(
            [
                f"7.jpg,{1 - int(line.split(',')[1])},{line.split(',')[2]}" if line.startswith("7.") else line
                for line in rows()
            ]
        )
        return 0

    def nothing():
        return 0

    return [added, removed, replaced, renamed, relabelled, nothing]


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_only_what_a_changed_data_set_has_new_is_computed(teacher, tmp_path, monkeypatch, case, store, record_property):
    record_property("16 another data set", 1)
    folder = tmp_path / "images"
    folder.mkdir()
    picture_folder(folder)
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "spare.jpg")
    live = load_teacher(f"run:{teacher}")
    seen = []
    monkeypatch.setattr(type(live), "answer", counting(type(live).answer, seen))

    def cached(name, **given):
        data = open_dataset("table", folder)
        seen.clear()
        stored = Stored(store=store, shard_rows=16, views=1, **given)
        precompute(live, data, prepare(data), tmp_path / name, stored=stored, work=Work(workers=1))
        return sum(seen) // 2

    assert cached("old") == 60
    new = states(folder)[case]()
    if case < 5:
        with pytest.raises(StaleCacheError, match="dataset"):
            cached("old")
    assert cached("new", update=str(tmp_path / "old")) == new
    assert verify(tmp_path / "new").findings == []
    cached("whole")
    one, other = open_cache(tmp_path / "new"), open_cache(tmp_path / "whole")
    assert one.fingerprint == other.fingerprint
    every = np.arange(one.manifest.plan.rows)
    assert one.samples.ids.tolist() == other.samples.ids.tolist()
    np.testing.assert_array_equal(one.take("boxes", every), other.take("boxes", every))
    np.testing.assert_allclose(
        one.vectors("penultimate", every, 1), other.vectors("penultimate", every, 1), rtol=2e-3, atol=2e-3
    )


def test_an_update_wants_the_same_teacher(teacher, cache, tmp_path):
    live = load_teacher(f"run:{teacher}")
    data = open_dataset("digits-s", None)
    stored = Stored(update=str(cache), dtype="float32")
    with pytest.raises(StaleCacheError, match="dtype"):
        precompute(live, data, prepare(data, limit=300), tmp_path / "new", stored=stored)


def counting(answer, seen):
    def counted(self, pixels, layers):
        seen.append(len(pixels))
        return answer(self, pixels, layers)

    return counted


# ---- another teacher or preprocessing (fault 15) -----------------------------------------------------------------


def ulp(net):
    weight = net.weight.data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))


MUTATIONS = {
    "weights by one ulp": ({"change": ulp}, {}, "teacher.weights"),
    "size": ({"resize": 33}, {}, "preprocessing.resize"),
    "short edge or both": ({"resize": (32, 32)}, {}, "preprocessing.resize"),
    "crop": ({"crop": 28}, {}, "preprocessing.crop"),
    "interpolation": ({"interpolation": "bicubic"}, {}, "preprocessing.interpolation"),
    "resizer": ({"resizer": "pillow"}, {}, "preprocessing.resizer"),
    "mean": ({"mean": (0.5, 0.5, 0.5)}, {}, "preprocessing.mean"),
    "deviation": ({"std": (0.5, 0.5, 0.5)}, {}, "preprocessing.std"),
    "reading": ({"reading": "another layer"}, {}, "preprocessing.reading"),
    "dtype": ({}, {"dtype": "float32"}, "dtype"),
    "precision": ({}, {"precision": "bf16"}, "precision"),
    "views": ({}, {"views": 1}, "views"),
}


def small_teacher(change=lambda net: None, reading="output", **view):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 28)
    change(net)
    module = torch.nn.Sequential(net, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    given = {"resize": 32, **view}
    taps = {"penultimate": Tap("penultimate")}
    return TorchTeacher(
        "t", module, View(**given), taps=taps, device=torch.device("cpu"), precision="fp32", reading=reading
    )


@pytest.mark.parametrize(("teacher", "options", "field"), MUTATIONS.values(), ids=MUTATIONS)
def test_another_teacher_or_preprocessing_is_refused_by_its_field(tmp_path, teacher, options, field, record_property):
    record_property("15 another teacher or preprocessing", 1)
    data = open_dataset("digits-s", None)
    table = prepare(data, limit=40)
    work = Work(workers=1)
    precompute(small_teacher(), data, table, tmp_path / "c", work=work)
    precision = options.get("precision", "fp32")
    stored = Stored(**{name: value for name, value in options.items() if name != "precision"})
    with pytest.raises(StaleCacheError) as caught:
        precompute(small_teacher(**teacher), data, table, tmp_path / "c", stored=stored, work=work, precision=precision)
    assert caught.value.found.startswith(field)
    assert caught.value.wanted.startswith(field)
    assert caught.value.exit_code == 3
    assert verify(tmp_path / "c").findings == []


def test_a_mended_teacher_is_not_refused_for_what_the_broken_one_began(tmp_path):
    """It failed before its first shard was committed."""
    data = open_dataset("digits-s", None)
    table = prepare(data, limit=40)
    broken = small_teacher(change=lambda net: net.bias.data.fill_(np.nan))
    with pytest.raises(FeatureError):
        precompute(broken, data, table, tmp_path / "c", work=Work(workers=1))
    assert [path.name for path in (tmp_path / "c").iterdir()] == [".lock"]
    precompute(small_teacher(), data, table, tmp_path / "c", work=Work(workers=1))
    assert verify(tmp_path / "c").findings == []


# ---- the full counts of fault 2 ----------------------------------------------------------------------------------


@pytest.mark.torture
@pytest.mark.parametrize("store", ["zarr", "webdataset"])
def test_killed_at_random_in_full(flags, cache, tmp_path, store, record_property):
    """20 kills at random instants of a run with two decoders: what was committed is not touched again."""
    expected, kills, rng = features_of(cache), 0, random.Random(store)
    flags = (*flags[:-2], "--workers", 2, "--store", store)
    while kills < 20:
        out = tmp_path / f"{kills}"
        delay = rng.uniform(0, 1.5)
        begun = []

        def moment(out=out, delay=delay, begun=begun):
            if not begun and any(out.glob("*")):
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() - begun[0] > delay

        code, _ = stopped("precompute", *flags, "--out", out, when=moment)
        if code != KILLED:
            shutil.rmtree(out)
            continue
        kills += 1
        committed = {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "commits").glob("*.json")
        }
        bird("precompute", *flags, "--out", out)
        assert verify(out).findings == []
        assert np.array_equal(features_of(out), expected)
        for name, before in committed.items():
            path = out / "commits" / name
            assert (path.read_bytes(), path.stat().st_mtime_ns) == before, "a committed shard was computed again"
    record_property(f"2 kill -9 with a real teacher, {store}", kills)


def test_from_python_an_option_that_is_wrong_is_named(tmp_path):
    for wrong in ({"batchsize": 3}, {"batch_size": 0}, {"dtype": "int8"}):
        with pytest.raises(UsageError) as caught:
            bird_pipelines.precompute(teacher="onnx:x", dataset="digits-s", out=tmp_path / "cache", **wrong)
        assert caught.value.where == "--" + next(iter(wrong)).replace("_", "-")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("wrong", ["a file", "a folder", "slice", "update"])
def test_what_is_wrong_about_the_cache_is_said_before_the_teacher_is_opened(tmp_path, wrong):
    """A large teacher takes minutes to load; here there is none."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    given = {
        "a file": {"out": tmp_path / "file"},
        "a folder": {"out": tmp_path / "folder"},
        "slice": {"slice": "5/2"},
        "update": {"update": tmp_path / "nothing"},
    }[wrong]
    with pytest.raises((UsageError, NotACacheError), match=r"a file|notes\.txt|5/2|no such folder"):
        bird_pipelines.precompute(
            **{"teacher": f"onnx:{tmp_path / 'none.onnx'}", "dataset": "digits-s", "out": tmp_path / "cache", **given}
        )
    assert not (tmp_path / "cache").exists()
