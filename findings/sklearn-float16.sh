#!/usr/bin/env bash
# scikit-learn and NumPy on float16 features: which functions compute in more than half precision.
#
# Guessed before: numpy.linalg.norm gives inf where the squares add up past 65,504. scikit-learn casts up first, everywhere.
# Came out (scikit-learn 1.9.1, NumPy 2.4.6): normalize does not: a row of norm 300 becomes a row of zeros, without a warning; one
# of norm 150 is right. cosine_similarity of the same rows is right. StandardScaler is right, scale() of the same columns gives
# NaN, with warnings that the data have too large values. NumPy's mean of them is right, its var is inf, with a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" - <<'PY'
import warnings

import numpy as np
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler, normalize, scale

rows = np.full((2, 512), 13.26, np.float16)  # norms 300 and 150
rows[1] /= 2
columns = (300 + np.random.default_rng(0).normal(size=(3000, 4))).astype(np.float16)  # mean 300, deviation 1

kinds = {}


def called(name, function, *arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = np.asarray(function(*arguments, **options), np.float64)
    kinds[name] = sorted({one.category.__name__ for one in caught})
    print(f"{name}: {result.round(3).tolist()}, warnings: {kinds[name]}")
    return result


norms = called("numpy.linalg.norm", np.linalg.norm, rows, axis=1)
ones = called("norms of normalize(rows)", lambda: np.linalg.norm(normalize(rows).astype(np.float64), axis=1))
cosines = called("cosine_similarity", cosine_similarity, rows)
means = called("numpy.mean", np.mean, columns, axis=0)
variances = called("numpy.var", np.var, columns, axis=0)
standard = called("deviations of StandardScaler", lambda: StandardScaler().fit_transform(columns).astype(np.float64).std(0))
scaled = called("deviations of scale()", lambda: scale(columns).astype(np.float64).std(0))
assert np.isinf(norms[0]) and abs(norms[1] - 150) < 0.5
assert ones[0] == 0 and abs(ones[1] - 1) < 0.01 and kinds["norms of normalize(rows)"] == []
assert np.allclose(cosines, 1, atol=1e-3)
assert np.allclose(means, 300, atol=0.3) and np.isinf(variances).all()
assert np.allclose(standard, 1, atol=0.01) and np.isnan(scaled).all()
PY
