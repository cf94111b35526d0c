"""Small tables of the paper."""

from bird_pipelines.study.tables.recipes import load_profile, load_recipe


def small(name):
    """The demo profile on fewer images and epochs."""
    recipe, _ = load_recipe(name)
    brief = {"epochs": 2, "warmup": 1, "batch_size": 64}
    changes = {"limit": 300, "run": brief, "image_run": brief, "teacher_run": {"epochs": 1, "batch_size": 64}}
    return load_profile("demo", recipe).model_copy(update=changes)
