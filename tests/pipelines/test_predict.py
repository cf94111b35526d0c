"""A student is asked about images: the pixels of training, in every kind of table, from a run and from an export."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.shell import bird, bird_json, distilled, panel
from PIL import Image

import bird_pipelines
from bird.datasets import open_dataset
from bird.errors import DataError, RunError, UsageError
from bird.images import decode_image
from bird.student_views import center_view, unit_range
from bird.students import load_student
from bird_cache.errors import StorageError
from bird_pipelines.cli.shipping import predicted
from bird_pipelines.config import resolve
from bird_pipelines.distilling.evaluate import evaluate, open_run
from bird_pipelines.distilling.training import distill
from bird_pipelines.shipping.export import export
from bird_pipelines.shipping.pictures import pictures
from bird_pipelines.shipping.predict import Model, answers, predict

SIDES = [(32, 32), (50, 40), (33, 64), (200, 90)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of several sizes and kinds, with a table of them: two classes by tint, two groups."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for row in range(80):
        width, height = SIDES[row % 4]
        tint = np.array([[90, 0, 0], [0, 0, 90]][row // 2 % 2])
        image = Image.fromarray(np.clip(rng.integers(0, 160, (height, width, 3)) + tint, 0, 255).astype(np.uint8))
        name = f"{row:02d}.{('jpg', 'png', 'webp')[row % 3]}"
        image.save(root / name)
        split = ("train", "train", "meta", "test", "test")[row // 4 % 5]
        lines.append(f"{name},{('no', 'yes')[row // 2 % 2]},{'ab'[row % 2]},{split}")
    (root / "samples.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "run"
    settings = {"image_size": 32}
    flags = {"dataset": "table", "data_root": data, "dataset_settings": settings, "student": "tiny-resnet", "epochs": 4}
    distill(resolve({**flags, "method": "baseline", "batch_size": 16, "out": folder}))
    return folder


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra [export])")
    export(run, out := tmp_path_factory.mktemp("shipped") / "out")
    return out


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_pixels_are_those_of_training_to_the_bit(run, data):
    """What the student is asked with is, byte for byte, what `RunData` gave it."""
    _, held, _ = open_run(run)
    asked = []

    def keep(pixels):
        asked.append(pixels)
        return np.zeros((len(pixels), 2), np.float32)

    found = [each for each in pictures([data]) if each.id.endswith(tuple(held.table.ids.tolist()))]
    names = [
        id for batch in answers(Model(keep, ("no", "yes"), 32, 65535), found, batch=7, workers=2) for id in batch[0]
    ]
    places = {id: row for row, id in enumerate(held.table.ids.tolist())}
    rows = np.array([places[name.rpartition("/")[2]] for name in names])
    assert len(names) == 80
    expected = held.batch(rows, torch.device("cpu")).inputs.numpy()
    np.testing.assert_array_equal(np.concatenate(asked), expected)


def test_a_folder_from_a_run_as_csv(run, data, tmp_path):
    found = bird_json("predict", run, data, "--out", tmp_path / "out.csv")
    rows = rows_of(tmp_path / "out.csv")
    assert found["images"] == len(rows) == 80
    assert list(rows[0]) == ["id", "predicted", "p_no", "p_yes"]
    student = load_student(run)
    for row in rows[:6]:
        path = data / row["id"].rpartition("/")[2]
        view = center_view(decode_image(path.read_bytes(), "x"), 32)
        logits = student(unit_range(view[None])).logits.double()
        np.testing.assert_allclose(
            [float(row["p_no"]), float(row["p_yes"])], torch.softmax(logits, 1)[0].numpy(), rtol=1e-4
        )
        assert row["predicted"] == ("no", "yes")[logits.argmax().item()]


def test_the_run_and_its_export_say_the_same_and_need_no_more_than_their_folder(run, shipped, data, tmp_path):
    shutil.copytree(shipped, tmp_path / "elsewhere")
    for model, name in ((run, "run.json"), (tmp_path / "elsewhere", "export.json")):
        bird("predict", model, data / "samples.csv", "--out", tmp_path / name, "--batch", 9)
    one, two = (json.loads((tmp_path / name).read_text())["predictions"] for name in ("run.json", "export.json"))
    assert [each["id"] for each in one] == [
        line.split(",")[0] for line in (data / "samples.csv").read_text().split()[1:]
    ]
    assert [each["predicted"] for each in one] == [each["predicted"] for each in two]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_allclose([*first["probabilities"].values()], [*second["probabilities"].values()], atol=1e-5)


def test_images_inside_a_parquet_table_to_a_parquet_table(run, data, tmp_path):
    files = sorted(data.glob("*.png"))
    held = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pq.write_table(pa.table({"id": [path.stem for path in files], "image": held}), tmp_path / "in.parquet")
    predict(run, [tmp_path / "in.parquet"], tmp_path / "out.parquet")
    predict(run, files, tmp_path / "files.csv")
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert table["id"] == [path.stem for path in files]
    assert table["predicted"] == [row["predicted"] for row in rows_of(tmp_path / "files.csv")]
    assert table["p_yes"] == [float(row["p_yes"]) for row in rows_of(tmp_path / "files.csv")]


def test_unreadable_images_are_named_and_above_a_share_fatal(run, data, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted(data.glob("*.jpg"))[:9]:
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 10 images that cannot be read.*broken.jpg"):
        predict(run, [folder], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    found = predict(run, [folder], tmp_path / "out.csv", max_failed=0.2, batch=2)
    assert [*found["failed"]] == [str(folder / "broken.jpg")]
    assert len(rows_of(tmp_path / "out.csv")) == found["images"] == 9
    done = bird("predict", run, folder, "--out", tmp_path / "out.csv", "--max-failed", "0.2")
    assert "not read" in done.stdout


def test_sixteen_bits_are_read_with_the_white_level_of_the_data_set(tmp_path):
    """A run on images of 12 bits reads new ones as it read those."""
    rng, lines = np.random.default_rng(0), ["path,label,group"]
    for row in range(40):
        gray = rng.integers(0, 2000, (16, 16)) + 2000 * (row // 2 % 2)
        Image.fromarray(gray.astype(np.uint16)).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{row // 2 % 2},{row % 2}")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    settings = {"image_size": 16, "white_level": 4095}
    flags = {"dataset": "table", "data_root": tmp_path, "dataset_settings": settings, "student": "tiny-resnet"}
    distill(resolve({**flags, "method": "baseline", "epochs": 1, "batch_size": 16, "out": tmp_path / "run"}))
    predict(tmp_path / "run", [tmp_path / "3.png"], tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["predictions"][0]["probabilities"]
    image = open_dataset("table", tmp_path, **settings).image("3.png")
    logits = load_student(tmp_path / "run")(unit_range(center_view(image, 16)[None])).logits
    np.testing.assert_allclose([*found.values()], torch.softmax(logits, 1)[0].numpy(), rtol=1e-4)


def test_misuse_is_told(run, shipped, data, cache, tmp_path):
    image = data / "01.png"
    assert "out.txt" in panel(bird("predict", run, image, "--out", tmp_path / "out.txt", code=2))
    assert "student.json" in panel(bird("predict", data, image, "--out", tmp_path / "out.csv", code=2))
    with pytest.raises(DataError, match="no file or folder"):
        predict(run, [tmp_path / "absent.png"], tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        predict(run, [tmp_path / "empty"], tmp_path / "out.csv")
    (tmp_path / "in.csv").write_text("file\n1.png\n")
    with pytest.raises(DataError, match="a column path"):
        predict(run, [tmp_path / "in.csv"], tmp_path / "out.csv")
    (tmp_path / "in.csv").write_text("path;id\n1.png;1\n")
    with pytest.raises(DataError, match="with commas in the place of ';'"):
        predict(run, [tmp_path / "in.csv"], tmp_path / "out.csv")
    copy = shutil.copytree(shipped, tmp_path / "damaged")
    (copy / "student.onnx").write_bytes(b"no graph")
    with pytest.raises(RunError, match="another sha256"):
        predict(copy, [image], tmp_path / "out.csv")
    distilled(cache, tmp_path / "adapter", epochs=1)
    with pytest.raises(UsageError, match="reads no image"):
        predict(tmp_path / "adapter", [image], tmp_path / "out.csv")
    export(run, tmp_path / "pt2", "pt2")
    with pytest.raises(UsageError, match="an export --to pt2"):
        predict(tmp_path / "pt2", [image], tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_place_that_cannot_be_written_is_told_before_the_student_is_asked(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr("bird_pipelines.shipping.predict.answers", None)  # would fail otherwise
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    for out, said in (("folder.csv", "Is a directory"), ("file/out.csv", "a part of the path is a file")):
        with pytest.raises(StorageError, match=said):
            predict(run, [data / "01.png"], tmp_path / out)
    monkeypatch.undo()
    predict(run, [data / "01.png"], tmp_path / "new" / "out.csv")
    assert (tmp_path / "new" / "out.csv").exists()


def test_names_with_commas_and_quotes_survive(run, data, tmp_path):
    shutil.copy(data / "01.png", tmp_path / 'a "b", c.png')
    predict(run, [tmp_path / 'a "b", c.png'], tmp_path / "out.csv")
    assert next(csv.reader(io.StringIO((tmp_path / "out.csv").read_text().split("\n", 1)[1])))[0].endswith(
        'a "b", c.png'
    )


def test_answers_about_a_table_are_audited(run, data, tmp_path, monkeypatch):
    """As docs/shipping.md shows it."""
    pytest.importorskip("pandas")
    page = (Path(__file__).resolve().parents[2] / "docs" / "shipping.md").read_text()
    joins = page.split("## From predictions to an audit")[1].split("```python")[1].split("```")[0]
    shutil.copytree(data, tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    predict(run, [Path("samples.csv")], Path("answers.csv"))
    exec(joins, {})
    found = bird_pipelines.audit("predictions.csv", scores=["p_no", "p_yes"])
    told = [row["predicted"] for row in rows_of(Path("answers.csv"))]
    truth = [row["label"] for row in rows_of(Path("samples.csv"))]
    right = np.mean([one == two for one, two in zip(told, truth, strict=True)])
    assert found["groups"]["group"]["summary"]["accuracy"]["value"] == pytest.approx(100 * right)


def test_what_is_no_image_or_not_taken_or_given_twice_is_told(run, data, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no image in 1 file; .*notes\.txt: bytes of no known") as caught:
        predict(run, [tmp_path / "notes.txt"], tmp_path / "out.csv")
    assert "max-failed" not in str(caught.value)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("01.png", "04.png"):
        shutil.copy(data / name, folder)
        Image.open(data / name).save(folder / f"{name}.gif")
    Image.open(data / "01.png").save(folder / "one.TIFF")
    (folder / ".hidden").touch()
    inputs = [folder, folder / "01.png", folder / ".." / "in" / "04.png"]
    found = predict(run, inputs, tmp_path / "out.csv")
    assert found["not_taken"] == {".gif": 2, ".tiff": 1}
    assert found["twice"] == 2
    predicted(found)
    said = capsys.readouterr().out
    assert "3 files not taken: .gif, .tiff\n2 images given twice" in said
    plain = predict(run, [data / "01.png"], tmp_path / "out.csv")
    predicted(plain)
    assert "twice" not in (said := capsys.readouterr().out)
    assert "not taken" not in said


def test_a_folder_of_seeds_names_a_run(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "seeds" / "seed-3")
    (tmp_path / "seeds" / "seeds.json").write_text("{}")
    for ask in (
        lambda: evaluate(tmp_path / "seeds"),
        lambda: export(tmp_path / "seeds", tmp_path / "out", "pt2"),
        lambda: predict(tmp_path / "seeds", [data / "01.png"], tmp_path / "out.csv"),
        lambda: bird_pipelines.open_run(tmp_path / "seeds"),
    ):
        with pytest.raises(RunError) as caught:
            ask()
        assert caught.value.fix.endswith(str(tmp_path / "seeds" / "seed-3"))
