"""Groups that are known for the meta split alone: estimate the group of each train row from the teacher's features.

Labels of protected groups are scarce, and often may not be kept. `--groups-known meta` never looks at those of train. A
probe learns the group from the cached features of the meta rows, class by class, and its probabilities stand in for the
labels: methods that ask for a train row's group get the most probable one, `bird-offsets` the probabilities themselves.
Where groups of some train rows are unknown (-1: an empty cell of a table), the probe stands in for these alone.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from bird.errors import UsageError
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.teacher_head import features_only

__all__ = ["estimated_groups", "with_known_groups"]

FOLDS = 5
STRENGTH = 0.01
"""scikit-learn's C of the probe, whose inputs are standardised: some hundred rows, some hundred features"""


def with_known_groups(data: RunData, known: Literal["all", "meta"], method: str = "") -> RunData:
    """The data as a run of that method may see them: unknown groups of train rows are the probe's, and where groups are
    `known` for "meta" alone, those of all train rows. Raises UsageError where there are some and no cache (but for the
    baseline, which asks for none), or where meta has too few rows of a group."""
    meta, train = data.rows("meta"), data.rows("train")
    asked = train if known == "meta" else train[data.table.groups[train] < 0]
    if not len(asked) or (data.features is None and known == "all" and method == "baseline"):
        return data
    what = "--groups-known meta" if known == "meta" else f"{len(asked)} train rows without a group"
    if data.features is None:
        raise UsageError(
            where=what,
            found="no cache",
            wanted="a teacher's features, which the groups are read from",
            fix="use `bird distill --cache CACHE`",
        )
    counts = np.bincount(data.table.groups[meta], minlength=len(data.group_names))
    if counts.min() < 2 * FOLDS:
        lacking = data.group_names[int(counts.argmin())]
        raise UsageError(
            where=what,
            found=f"{counts.min()} meta rows of the group {lacking}",
            wanted=f"at least {2 * FOLDS} of each group, for the probe to learn from",
            fix="put more such rows into the meta split, or "
            + ("use --groups-known all" if known == "meta" else "leave out the rows without a group"),
        )
    vectors = _vectors(data)
    posterior = np.eye(len(data.group_names), dtype=np.float32)[data.table.groups]
    posterior[asked], accuracy = estimated_groups(
        vectors(meta), data.table.labels[meta], data.table.groups[meta], vectors(asked), data.table.labels[asked]
    )
    groups = data.table.groups.copy()
    groups[asked] = posterior[asked].argmax(1)
    return dataclasses.replace(
        data,
        table=dataclasses.replace(data.table, groups=groups),
        posterior=torch.from_numpy(posterior),
        estimated=len(asked),
        probe=accuracy,
    )


def estimated_groups(
    known: NDArray[np.floating[Any]],
    known_labels: NDArray[np.int64],
    known_groups: NDArray[np.int64],
    asked: NDArray[np.floating[Any]],
    asked_labels: NDArray[np.int64],
) -> tuple[NDArray[np.float32], float]:
    """P(group | features, class) of the asked rows (N, M), and how often the most probable group is right on known rows
    that the probe has not seen. A logistic regression for each class, calibrated on folds it was not fitted on (Platt 1999);
    where a class has too few known rows of some group, one regression for all such classes.
    """
    groups = int(known_groups.max()) + 1
    out, right = np.zeros((len(asked), groups), np.float32), 0.0
    rest: list[int] = []
    for label in np.unique(np.concatenate([known_labels, asked_labels])).tolist():
        counts = np.bincount(known_groups[known_labels == label], minlength=groups)
        if counts.min() < FOLDS:
            rest.append(label)
            continue
        right += _fit(known, known_groups, known_labels == label, asked, asked_labels == label, out)
    if rest:  # what they share is what the pooled probe can tell
        mine = np.isin(asked_labels, rest)
        every = np.ones(len(known), bool)
        share = _fit(known, known_groups, every, asked, mine, out) / len(known)
        right += share * int(np.isin(known_labels, rest).sum())
    return out, right / len(known)


def _fit(
    known: NDArray[np.floating[Any]],
    known_groups: NDArray[np.int64],
    use: NDArray[np.bool_],
    asked: NDArray[np.floating[Any]],
    mine: NDArray[np.bool_],
    out: NDArray[np.float32],
) -> float:
    """Fill `out` at `mine` from the known rows in `use`; how many of these a probe that had not seen them gets right."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        probe = CalibratedClassifierCV(plain, cv=folds, ensemble=False).fit(known[use], known_groups[use])
        found = cross_val_predict(plain, known[use], known_groups[use], cv=folds)
    if mine.any():
        out[mine] = 0.0
        out[np.ix_(mine, probe.classes_)] = probe.predict_proba(asked[mine])
    return float((found == known_groups[use]).sum())


def _vectors(data: RunData) -> Any:
    """A function from rows to their features (rows, d), of the deterministic view."""
    plain, device = features_only(data), torch.device("cpu")
    return lambda rows: np.concatenate(
        [plain.batch(part, device).inputs.numpy() for part in np.array_split(rows, max(1, len(rows) // 4096))]
    )
