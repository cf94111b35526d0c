#!/usr/bin/env bash
# DuckDB and NaN in a Parquet file that another program wrote: which rows a question about NaN finds.
#
# Guessed before: pyarrow leaves NaN out of the statistics of a row group. DuckDB says that NaN is greater than all numbers. It
# knows both, so a file gives what a table of the same rows gives.
# Came out (DuckDB 2.0.1, pyarrow 26.0.1): in the file, isnan(score) is false for every row, also where it is only selected, and
# score = 'nan' finds none; `not isfinite(score)` finds both NaN. `score > .5` finds a NaN or does not, by the greatest number
# of its row group. Of a list of float16, isnan(vector[1]) is right where it is selected, and finds none in a WHERE. In a table,
# and with read_parquet(..., can_have_nan=true), all is found. can_have_nan is false by default since duckdb #17883 (2025), for
# speed; that isnan() takes it at its word is what was not expected.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cat >"$folder/nan.py" <<'PY'
from math import nan

import duckdb
import pyarrow as pa
import pyarrow.parquet as parquet

scores = [0.1, nan, 0.4, 0.3, 0.9, nan, 0.2, 0.3]
vectors = pa.array([[score] for score in scores], pa.list_(pa.float32())).cast(pa.list_(pa.float16()))
rows = pa.table({"id": list(range(8)), "score": pa.array(scores, pa.float32()), "vector": vectors})
for size in (8, 4):
    parquet.write_table(rows, f"groups-of-{size}.parquet", row_group_size=size)
connection = duckdb.connect()
connection.execute("create table loaded as select * from 'groups-of-4.parquet'").fetchall()


def ids(source, condition):
    return [row[0] for row in connection.execute(f"select id from {source} where {condition} order by id").fetchall()]


def found(source):
    selected = connection.execute(f"select isnan(score), isnan(vector[1]) from {source} order by id").fetchall()
    return {
        "isnan selected": [number for number, (is_nan, _) in enumerate(selected) if is_nan],
        "isnan(vector[1]) selected": [number for number, (_, is_nan) in enumerate(selected) if is_nan],
        "where isnan(vector[1])": ids(source, "isnan(vector[1])"),
        "where isnan": ids(source, "isnan(score)"),
        "where = nan": ids(source, "score = 'nan'::float"),
        "where not isfinite": ids(source, "not isfinite(score)"),
        "where > .5": ids(source, "score > .5"),
    }


whole = {
    "isnan selected": [1, 5],
    "isnan(vector[1]) selected": [1, 5],
    "where isnan(vector[1])": [1, 5],
    "where isnan": [1, 5],
    "where = nan": [1, 5],
    "where not isfinite": [1, 5],
    "where > .5": [1, 4, 5],
}
none = {"isnan selected": [], "where isnan": [], "where = nan": [], "where isnan(vector[1])": []}
wanted = {
    "loaded": whole,
    "'groups-of-8.parquet'": whole | none,
    "'groups-of-4.parquet'": whole | none | {"where > .5": [4, 5]},
    "read_parquet('groups-of-4.parquet', can_have_nan=true)": whole,
}
came_out = {source: found(source) for source in wanted}
for source, answers in came_out.items():
    print(f"{source}: {answers}")
assert came_out == wanted
PY
cd "$folder" && "$folder/venv/bin/python" nan.py
