"""A scikit-learn classifier that is trained by any of the methods: an adapter on vectors, with groups that `fit` is told.

    from bird_pipelines.sklearn import BirdClassifier

    model = BirdClassifier(method="bird-offsets").fit(X, y, groups=groups)
    model.predict_proba(X_new)                    # no group is asked for

The vectors are those of a frozen network (`open_cache(PATH).vectors("penultimate", rows)` reads them from a cache), or any
table of numbers. They are the teacher's features and the student's input at once, as for `bird distill --student adapter`.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_random_state, column_or_1d, validate_data

from bird.datasets.base import SampleTable
from bird.devices import choose_device, threads
from bird_pipelines.config import RunConfig, resolve
from bird_pipelines.distilling.data import RunData
from bird_pipelines.distilling.training import Trainer

__all__ = ["BirdClassifier"]


@final
class BirdClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Linear(d, d) that starts as the identity, ReLU, Linear(d, classes), trained by `method` on standardised vectors.

    - `method`: a name of `bird list methods` that needs no images (not at, bird+at).
    - `lambda_o` weighs L_o, `alpha` the distance against cross-entropy; None: the method's default.
    - `meta_fraction` of the rows of each (class, group) cell are the meta split, which the feedback of BIRD is computed on.
      The others are trained on.
    - `options`: other options of `bird distill` by name, such as {"lr_schedule": "cosine", "early_stop": 5}.
    - `random_state`: an int, or None or a RandomState from which a seed is drawn. It decides the split, the initial weights
      and the order of the samples.
    - `verbose`: show the progress on stderr.

    After `fit`: `classes_`, `groups_` (sorted), `student_` (a `bird.students.Student`), `n_features_in_`.

    `fit` without `groups` puts all rows into one group: then no loss compares groups, and bird is distillation through a
    fixed gate. A fitted classifier never reads a group. `bird_pipelines.audit` measures the gaps of its predictions.
    """

    def __init__(
        self,
        method: str = "bird",
        *,
        epochs: int = 30,
        batch_size: int = 64,
        lr: float = 1e-2,
        lambda_o: float | None = None,
        alpha: float | None = None,
        meta_fraction: float = 0.1,
        options: Mapping[str, Any] | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.lambda_o = lambda_o
        self.alpha = alpha
        self.meta_fraction = meta_fraction
        self.options = options
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> BirdClassifier:
        """Train on vectors X (rows, d), classes y (rows,) and protected groups (rows,).

        Raises ValueError for arrays that do not fit, UsageError for an option that is unknown or out of range,
        EmptyCellError for a method that needs a row in every (class, group) cell where one has none.
        """
        vectors: NDArray[np.float32]
        vectors, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of two classes or more; there is one class")
        told: NDArray[Any] = np.zeros(len(vectors), np.int64) if groups is None else column_or_1d(groups)
        if len(told) != len(vectors):
            raise ValueError(f"{len(told)} groups for {len(vectors)} rows")
        self.groups_, cells = np.unique(told, return_inverse=True)
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        splits = _splits(labels * len(self.groups_) + cells, self.meta_fraction, int(seed))
        ids = np.arange(len(vectors)).astype(str)
        table = SampleTable(ids, labels.astype(np.int64), cells.astype(np.int64), splits, ids)
        data = _data(vectors, table, self.classes_, self.groups_)
        told_to = sys.stderr if self.verbose else io.StringIO()
        with tempfile.TemporaryDirectory() as folder, threads(1), contextlib.redirect_stderr(told_to):
            trainer = Trainer(self._config(Path(folder), int(seed)), data)
            trainer.run()
            trainer.take_best()
        self.student_ = trainer.learner.student.eval()
        return self

    def predict_proba(self, X: ArrayLike) -> Float[NDArray[np.float64], "rows classes"]:
        """The probability of each class, in the order of `classes_`. Raises NotFittedError before `fit`."""
        check_is_fitted(self, "student_")
        vectors = torch.from_numpy(np.ascontiguousarray(validate_data(self, X, dtype=np.float32, reset=False)))
        device = choose_device(self.device)
        with torch.inference_mode():
            logits = self.student_.to(device)(vectors.to(device)).logits
        scores: NDArray[np.float64] = torch.softmax(logits.double().cpu(), 1).numpy()
        return scores

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class of the highest probability."""
        scores = self.predict_proba(X)  # first, since it says whether `fit` was called
        found: NDArray[Any] = self.classes_[scores.argmax(1)]
        return found

    def _config(self, folder: Path, seed: int) -> RunConfig:
        """The run that `fit` is, in a folder for its checkpoints."""
        own = {"method": self.method, "epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        own |= {"lambda": self.lambda_o, "alpha": self.alpha, "device": self.device, "seed": seed, "out": folder}
        return resolve({**own, **(self.options or {}), "dataset": "table", "student": "adapter"})


def _splits(cells: NDArray[np.int64], fraction: float, seed: int) -> NDArray[Any]:
    """ "train" or "meta" for each row: the fraction of each cell with two rows or more, and one row at least."""
    splits = np.full(len(cells), "train", dtype="<U5")
    rng = np.random.default_rng(seed)
    for cell in np.unique(cells).tolist():
        rows = np.flatnonzero(cells == cell)
        if len(rows) > 1:
            splits[rng.choice(rows, max(1, round(fraction * len(rows))), replace=False)] = "meta"
    return splits


def _data(X: NDArray[np.float32], table: SampleTable, classes: NDArray[Any], groups: NDArray[Any]) -> RunData:
    """The arrays as a run reads them."""
    return RunData(
        table=table,
        class_names=tuple(map(str, classes)),
        group_names=tuple(map(str, groups)),
        image_size=0,
        flip=False,
        images=None,
        features=torch.from_numpy(np.ascontiguousarray(X)),
        logits=None,
        logits_fingerprint=None,
        stages=None,
        boxes=None,
        fingerprint=None,
        teacher=None,
        failed={},
    )
