#!/usr/bin/env bash
# statsmodels: a comparison that has no p-value, and an interval of an empty cell.
#
# Guessed before: NaN in, NaN out, in that place alone; an interval of 0 of 0 is NaN, or [0, 1].
# Came out (statsmodels 0.15.0, scipy 1.17.1): of the p-values .001, .02, NaN, .03 Holm counts the NaN as a fourth test, so only one is
# rejected at .05 where without it all three are. fdr_bh says that three are rejected and gives NaN for all four corrected
# p-values; simes-hochberg rejects one and hommel none, with four NaN as well. Nothing warns. For 0 hits of 0 there are three
# answers: NaN (normal, wilson, beta), [0, 1] (agresti_coull, binom_test) and [.0015, .9985] (jeffreys).
# scipy's false_discovery_control refuses a NaN.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6 pandas==3.1.1
cat >"$folder/none.py" <<'PY'
import warnings
from math import nan

import numpy as np
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

METHODS = ("bonferroni", "holm", "simes-hochberg", "hommel", "fdr_bh")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    corrected = {name: multipletests([0.001, 0.02, nan, 0.03], method=name)[:2] for name in METHODS}
    without = {name: multipletests([0.001, 0.02, 0.03], method=name)[:2] for name in METHODS}
for name, (rejected, values) in corrected.items():
    print(f"{name}: rejected {rejected.tolist()}, corrected {values.round(4).tolist()}; without the NaN {without[name][0].tolist()}")
with np.errstate(all="ignore"):
    kinds = ("normal", "wilson", "beta", "agresti_coull", "binom_test", "jeffreys")
    intervals = {name: tuple(round(float(end), 4) for end in proportion_confint(0, 0, method=name)) for name in kinds}
print("0 of 0:", intervals)
try:
    refused = str(false_discovery_control([0.001, 0.02, nan, 0.03]))
except ValueError as error:
    refused = f"ValueError: {error}"
print("scipy:", refused)
assert not caught, [str(one.message) for one in caught]
assert corrected["holm"][0].tolist() == [True, False, False, False] and without["holm"][0].tolist() == [True, True, True]
assert corrected["fdr_bh"][0].tolist() == [True, True, False, True]
assert all(np.isnan(corrected[name][1]).all() for name in ("fdr_bh", "simes-hochberg", "hommel"))
assert not corrected["hommel"][0].any()
assert all(np.isnan(intervals[name]).all() for name in ("normal", "wilson", "beta"))
assert intervals["agresti_coull"] == intervals["binom_test"] == (0.0, 1.0)
assert intervals["jeffreys"] == (0.0015, 0.9985)
assert refused.startswith("ValueError")
PY
"$folder/venv/bin/python" "$folder/none.py"
