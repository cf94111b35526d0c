#!/usr/bin/env bash
# numcodecs: decoding into an array that is shorter, or longer, than what was encoded.
#
# Guessed before: PCodec refuses it, as Zstd does.
# Came out (numcodecs 0.16.6, pcodec 1.1.0): Zstd refuses a shorter array by a ValueError. PCodec fills a shorter one with the
# first numbers and says nothing. Into a longer one both write what there is and leave the rest as it was, in silence. pcodec
# itself returns what it has done (n_processed, finished), which numcodecs does not pass on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numcodecs==0.16.6 pcodec==1.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from numcodecs.pcodec import PCodec
from numcodecs.zstd import Zstd
from pcodec import standalone

numbers = np.arange(1, 101, dtype=np.float32)


def decoded(codec, length):
    """How many numbers arrive in an array of -1 of that length, or the error's name."""
    out = np.full(length, -1, np.float32)
    try:
        codec.decode(codec.encode(numbers), out=out)
    except Exception as error:
        return type(error).__name__
    assert np.array_equal(out[out != -1], numbers[: (out != -1).sum()])
    return int((out != -1).sum())


found = {(codec.codec_id, length): decoded(codec, length) for codec in (Zstd(), PCodec()) for length in (100, 50, 150)}
for (name, length), said in found.items():
    print(f"{name}, 100 numbers into {length}: {said}")
progress = standalone.simple_decompress_into(PCodec().encode(numbers), np.empty(50, np.float32))
print(f"pcodec itself, into 50: {progress.n_processed} done, finished: {progress.finished}")
assert found == {
    ("zstd", 100): 100,
    ("zstd", 50): "ValueError",
    ("zstd", 150): 100,
    ("pcodec", 100): 100,
    ("pcodec", 50): 50,
    ("pcodec", 150): 100,
}
assert (progress.n_processed, progress.finished) == (50, False)
PY
