#!/usr/bin/env bash
# What works on this machine's GPU, and how fast: one command, no network, at most 8 minutes.
#
#   bench/gpu.sh [OUT]                       results as JSON in OUT (default out/gpu), a short table last
#   WHEELS=wheels-gpu bench/gpu.sh OUT       packages that are missing or older are taken from that folder (`make wheels-gpu` fills it)
#   DEVICE=cpu SMALL=1 bench/gpu.sh OUT      the same stages, small, on a CPU: so that this script is tested where no GPU is
#
# It wants a python with torch 2.10 or newer (PYTHON=, Python 3.11 to 3.13). It installs into OUT/site alone. Each stage has a
# budget; one that fails or runs over it does not stop the others. Exit code: 0 if all went well, else 1.
# To keep what it found: copy OUT/gpu-*.json to bench/results, then `python bench/results.py`.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-out/gpu}
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
PYTHON=${PYTHON:-python3}
export BIRD_DEVICE=${DEVICE:-cuda} BIRD_SMALL=${SMALL:-} BIRD_RESULTS=$OUT PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export PYTHONPATH="$OUT/site:$PWD/bench:$PWD/bench/gpu${PYTHONPATH:+:$PYTHONPATH}"
slack=1
[ "$BIRD_DEVICE" = cpu ] && slack=6 && export OMP_NUM_THREADS=1 # a CPU may have other work
log=$OUT/log.txt
: >"$log"

"$PYTHON" bench/gpu/install.py "$OUT/site" "${WHEELS:-}" >>"$log" 2>&1 || { tail -n 5 "$log"; echo "gpu.sh: nothing could be installed: $log"; exit 1; }

failed=0
stage() { # name, seconds, command: its output goes to the log, its outcome to OUT/stages.tsv
  local name=$1 budget=$2 began=$SECONDS rc
  shift 2
  echo "== $name" >>"$log"
  timeout --kill-after=10 $((budget * slack)) "$@" >>"$log" 2>&1
  rc=$?
  [ $rc = 0 ] || failed=1
  [ $rc = 124 ] || [ $rc = 137 ] && rc="over its budget"
  printf '%s\t%s\t%s\n' "$name" "$((SECONDS - began))" "$rc" >>"$OUT/stages.tsv"
}
: >"$OUT/stages.tsv"
stage machine 20 "$PYTHON" bench/gpu/machine.py
stage tests 160 "$PYTHON" bench/gpu/suite.py
stage step 120 "$PYTHON" bench/gpu/steps.py
stage precompute 120 "$PYTHON" bench/gpu/features.py
stage grid 60 "$PYTHON" bench/gpu/grid_of_table1.py
"$PYTHON" bench/gpu/summary.py "$OUT" || failed=1
exit $failed
