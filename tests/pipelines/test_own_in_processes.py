"""Parts of one's own where other processes work with them: `--processes`, `--jobs`, Ray."""

import pytest
from helpers.own_parts import NET, SQUARES
from helpers.shell import bird
from helpers.workers import bytes_of

from bird_pipelines.config import resolve
from bird_pipelines.study.places import trainer

PARTS = (
    SQUARES
    + NET
    + '''

class Fixed(Net):
    """A teacher that has the same weights in every process."""

    def __init__(self):
        super().__init__(2)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_((0.1 * torch.arange(weight.numel()) % 1 - 0.4).reshape(weight.shape))


def distant(student, teacher):
    return (student - teacher).square().mean(1)
'''
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(PARTS)
    return path


@pytest.fixture(scope="module")
def words(file):
    sizes = ("--shard-rows", 16, "--batch-size", 16, "--workers", 1, "--image-size", 16)
    return ("precompute", "--teacher", f"{file}:Fixed", "--dataset", f"{file}:Squares", *sizes)


@pytest.fixture(scope="module")
def cache(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "cache"
    bird(*words, "--out", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("engine", [(), ("--engine", "ray", "--actors", 2)])
def test_workers_import_an_own_teacher_and_an_own_data_set(words, cache, engine, tmp_path):
    if engine:
        pytest.importorskip("ray")
    bird(*words, "--out", tmp_path / "cache", *(engine or ("--processes", 2)))
    assert bytes_of(tmp_path / "cache") == bytes_of(cache)


@pytest.mark.slow
def test_tasks_of_ray_import_an_own_method(file, cache, tmp_path):
    pytest.importorskip("ray")
    found = []
    for engine in ("local", "ray"):
        given = {"student": "adapter", "method": f"bird+{file}:distant", "dataset": f"{file}:Squares", "cache": cache}
        short = {"epochs": 2, "warmup": 1, "batch_size": 16, "meta_per_cell": 2}
        config = resolve({**given, **short, "out": tmp_path / engine})
        with trainer(engine, None) as train:
            train([config])
        found.append((tmp_path / engine / "metrics-meta.json").read_text())
    assert found[0] == found[1]
