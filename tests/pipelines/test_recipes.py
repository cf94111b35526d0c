"""The recipes hold every row of the paper, with its hyperparameters; the plans do shared work once."""

from pathlib import Path

import pytest

from bird.errors import UsageError
from bird.methods import METHODS
from bird_pipelines.study.tables import published
from bird_pipelines.study.tables.recipes import NAMES, PROFILES, load_profile, load_recipe, select
from bird_pipelines.study.tables.steps import build_plan, needed

TABLES = [f"table{number}" for number in range(1, 8)]


def rows_of(name):
    return load_recipe(name)[0].rows


def plan_of(name, profile, tmp_path, seeds=2, only=(), **options):
    recipe, _ = load_recipe(name)
    rows = select(recipe, only)
    return build_plan(rows, load_profile(profile, recipe), range(seeds), tmp_path, tmp_path / "data", **options)


def test_every_printed_number_has_a_row_and_every_row_a_number():
    printed = {*published.results()}
    ours = {
        (recipe.table, row.block.dataset, row.block.teacher, row.block.student, row.label, metric)
        for recipe in (load_recipe(name)[0] for name in TABLES)
        for row in recipe.rows
        for metric in recipe.metrics
    }
    assert ours == printed


def test_hyperparameters_are_those_of_table_8():
    for name in TABLES:
        for row in rows_of(name):
            block = row.block
            found = {"lambda": block.lambda_, "warmup": block.warmup, "epochs": block.epochs}
            assert found == published.hyperparameters()[block.student, block.dataset]


def test_utkface_decays_its_rate_and_says_what_stays_open(tmp_path):
    """Times .1 every 10 of 50 epochs, students and the teachers trained here; a demo of 15 epochs stays constant."""
    for name in TABLES:
        blocks = load_recipe(name)[0].blocks
        assert {each.lr_schedule for each in blocks if each.dataset == "utkface"} <= {"step"}
        assert {each.lr_schedule for each in blocks if each.dataset != "utkface"} <= {"constant"}
    assert all("schedule" in " ".join(load_recipe(name)[0].open) for name in ("table2", "table4"))
    plan = plan_of("table2", "paper", tmp_path)
    trained = [config for step in plan.steps.values() for config in step.configs]
    assert {config.method for config in trained if config.source.dataset == "utkface"} >= {"baseline", "bird", "ad"}
    for config in trained:
        training = config.training
        steps = (10, 0.1) if config.source.dataset == "utkface" else (None, None)
        assert (training.lr_step_epochs, training.lr_gamma) == steps, config.place.out
    demo = [c for s in plan_of("table2", "demo", tmp_path).steps.values() for c in s.configs]
    assert {config.training.lr_schedule for config in demo} == {"constant"}


def test_every_row_is_compared_with_a_row_of_the_table():
    for name in TABLES:
        ids = [row.id for row in rows_of(name)]
        assert len(ids) == len({*ids})
        assert all(row.reference in ids for row in rows_of(name) if row.reference)
    pairs = {row.label: row.reference for row in rows_of("table5") if row.reference}
    assert {label: id.rsplit("/", 1)[1] for label, id in pairs.items()} == {
        "BIRD + FitNet": "fitnet",
        "BIRD + AT": "at",
        "BIRD + MFD": "mfd",
    }
    taught = [row for row in rows_of("table6") if row.block.teacher]
    assert all(row.reference == f"celeba/none/{row.block.student}/baseline" for row in taught)


def test_each_recipe_says_how_to_run_it_for_how_long_and_on_what():
    folder = Path(published.__file__).parent / "recipes"
    for name in NAMES:
        head = [line for line in (folder / f"{name}.toml").read_text().splitlines() if line.startswith("#")]
        assert f"bird reproduce {name}" in "\n".join(head)
        assert "Hours" in "\n".join(head)
        assert "ardware" in "\n".join(head)


def test_the_shipped_numbers_are_the_collected_ones():
    collected = Path(__file__).resolve().parents[3] / "shared" / "paper"
    if not collected.is_dir():
        pytest.skip("the collected numbers are not beside this checkout")
    shipped = Path(published.__file__).parent / "paper"
    for name in ("results.csv", "hyperparameters.csv"):
        assert (shipped / name).read_text().split() == (collected / name).read_text().split()


def test_the_headline_percentages():
    mean, largest, other = published.headlines("1")
    assert (round(mean.recomputed, 2), mean.follows) == (87.60, True)
    assert (round(largest.recomputed, 2), largest.follows) == (81.47, False)
    assert (round(other.recomputed, 2), other.follows) == (81.67, True)
    (five,) = published.headlines("5")
    assert (five.stated, round(five.recomputed, 2), five.follows) == (41.86, 48.84, False)
    assert published.reduction("1", "celeba", "flava", "mean_deo", "BIRD", "FitNet") == pytest.approx(90.485, abs=1e-3)


def test_shared_work_is_one_step(tmp_path):
    plan = plan_of("table1", "demo", tmp_path, seeds=5)
    kinds = [step.kind for step in plan.steps.values()]
    assert (kinds.count("teacher"), kinds.count("cache"), kinds.count("head")) == (3, 3, 3)
    order = list(plan.steps)
    assert all(order.index(first) < order.index(step.key) for step in plan.steps.values() for first in step.after)
    folders = [config.place.out for step in plan.steps.values() if step.kind == "runs" for config in step.configs]
    known = sum(row.method in METHODS for row in rows_of("table1"))
    assert len(folders) == len({*folders}) == 5 * known
    assert needed(plan) == {*plan.steps}
    for step in plan.steps.values():
        if step.kind == "runs":
            assert len({(config.source.cache, config.student) for config in step.configs}) == 1


def test_the_teacher_of_a_cnn_is_its_own_architecture_with_another_seed(tmp_path):
    plan = plan_of("table3", "paper", tmp_path)
    (teacher,) = (step for step in plan.steps.values() if step.kind == "teacher")
    (config,) = teacher.configs
    assert (config.student, config.method, config.training.epochs) == ("resnet18", "baseline", 100)
    runs = [config for step in plan.steps.values() if step.kind == "runs" for config in step.configs]
    assert config.training.seed not in {run.training.seed for run in runs}
    weights = {(run.weights.alpha, run.weights.tau, run.weights.lambda_, run.training.warmup) for run in runs}
    assert weights == {(0.5, 10.0, 0.2, 70)}


def test_runs_that_two_tables_share_have_one_folder(tmp_path):
    seven, two = plan_of("table7", "paper", tmp_path), plan_of("table2", "paper", tmp_path)
    of_bird = [plan.rows["celeba/resnet18/resnet18/bird"][0].place.out for plan in (seven, two)]
    assert of_bird[0] == of_bird[1]


def test_several_processes_get_a_step_a_method(tmp_path):
    plan = plan_of("table1", "demo", tmp_path, split_methods=True)
    runs = [step for step in plan.steps.values() if step.kind == "runs"]
    assert all(len({config.method for config in step.configs}) == 1 for step in runs)


def test_an_unknown_method_costs_its_own_rows_only(tmp_path, monkeypatch):
    recipe, _ = load_recipe("table7")
    monkeypatch.setitem(published.METHOD_OF, "BIRD w/o Meta", "no-such-method")
    plan = build_plan(recipe.rows, load_profile("demo", recipe), range(2), tmp_path)
    assert [*plan.errors] == ["celeba/resnet18/resnet18/bird-no-meta"]
    assert "no-such-method" in plan.errors["celeba/resnet18/resnet18/bird-no-meta"]
    assert len(plan.rows) == 2


def test_only_takes_ids_parts_and_patterns():
    recipe, _ = load_recipe("table1")
    assert [row.id for row in select(recipe, ["celeba/flava/flava/bird"])] == ["celeba/flava/flava/bird"]
    assert len(select(recipe, ["bird"])) == 3
    assert len(select(recipe, ["*/flava/*", "baseline"])) == 8
    with pytest.raises(UsageError, match="celeba/flava/flava/bird"):
        select(recipe, ["birds"])


def test_profiles_say_what_they_are():
    recipe, _ = load_recipe("table3")
    assert all(load_profile(name, recipe).about for name in PROFILES)
    with pytest.raises(UsageError, match="table3"):
        load_profile("cifar10s-local", load_recipe("table1")[0])
    with pytest.raises(UsageError, match="one of paper"):
        load_profile("real", recipe)
    with pytest.raises(UsageError, match="table1"):
        load_recipe("table9")


def test_the_paper_profile_takes_the_paper_s_weight_of_attention(tmp_path):
    """The paper gives 1e6 where the method's own code has 1e3; a demo and a budget keep the code's."""
    for profile, beta in (("paper", 1e6), ("demo", 1e3)):
        recipe = load_recipe("table3")[0]
        plan = build_plan(recipe.rows, load_profile(profile, recipe), range(1), tmp_path, tmp_path / "data")
        configs = [config for step in plan.steps.values() for config in step.configs if config.method == "at"]
        assert configs
        assert {config.weights.at_beta for config in configs} == {beta}
