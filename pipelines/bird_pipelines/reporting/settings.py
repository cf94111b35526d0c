"""Which settings of a run decide anything for its method, and how a page writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["SHOWN", "plain", "settings_that_matter", "unread"]

# Settings that the page shows elsewhere than among the settings.
SHOWN = ("method", "seed", "fingerprint")

BIRDS = ("bird", "bird-no-meta", "bird+fitnet", "bird+at", "bird+mfd")
PLUS = ("bird-plus", "bird-plus-no-meta")
OFFSETS = ("bird-offsets", "bird-offsets-no-meta")
FEEDBACK = tuple(name for name in (*BIRDS, *PLUS, *OFFSETS) if not name.endswith("-no-meta"))
# A setting that is not named here matters to every method (bird.methods.Hyperparameters says who reads which).
READ_BY: Mapping[str, tuple[str, ...]] = {
    "lambda": BIRDS,
    "alpha": ("bkd", *BIRDS, *PLUS, *OFFSETS),
    "tau": ("bkd",),
    "mu1": FEEDBACK,
    "mu2": FEEDBACK,
    "warmup": (*BIRDS, *PLUS, *OFFSETS),
    "fitnet_weight": ("fitnet",),
    "at_beta": ("at", "bird+at"),
    "mfd_weight": ("mfd", "bird+mfd"),
    "ad_weight": ("ad",),
    "ad_lr": ("ad",),
    "ad_every": ("ad",),
    "dro_step": ("group-dro",),
    "balance": OFFSETS,
    "offsets_from": OFFSETS,
    "shrink": OFFSETS,
    "pool": OFFSETS,
    "learn_alpha": OFFSETS,
    "soft_max": (*BIRDS, *PLUS, *OFFSETS),
    "feedback_every": FEEDBACK,
    "feedback_through": FEEDBACK,
    "meta_per_cell": FEEDBACK,
    "head_epochs": ("bkd",),
    "head": ("bkd",),
}
KNOWN = {*FEEDBACK, *BIRDS, *PLUS, *OFFSETS, *(name for names in READ_BY.values() for name in names)}
PLAIN = {"baseline", "reweight", "domain-independent"}


def settings_that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's settings, those that its method reads: all of them for a method that is not ours."""
    method = settings.get("method")
    if method not in KNOWN | PLAIN:
        return dict(settings)
    return {name: value for name, value in settings.items() if name not in READ_BY or method in READ_BY[name]}


def unread(method: str, names: Iterable[str]) -> list[str]:
    """Of the named settings, those that a method of ours does not read."""
    known = names if method in KNOWN | PLAIN else ()
    return [name for name in known if name in READ_BY and method not in READ_BY[name]]


def plain(value: object) -> str:
    """A setting as a reader writes it."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
