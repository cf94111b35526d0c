"""What other programs read of a cache. Runs in an environment of theirs, without this project:

python readers.py READER CACHE    one line of JSON; "table READER" reads a cache that is one Parquet file
"""

import glob
import json
import os
import sys
import warnings

os.environ["WDS_SECURE"] = "1"


def tars(cache):
    """The shards of a WebDataset cache."""
    return sorted(glob.glob(os.path.join(cache, "*.tar")))


def by_webdataset(cache):
    """Rows by to_tuple, and by batches of it."""
    import webdataset

    fields = ("jpg", "penultimate.npy", "json")
    plain = webdataset.WebDataset(tars(cache), shardshuffle=False).to_tuple(*fields)
    batches = webdataset.WebDataset(tars(cache), shardshuffle=False).decode().to_tuple(*fields[1:]).batched(16)
    keys = [sample["__key__"] for sample in webdataset.WebDataset(tars(cache), shardshuffle=False)]
    return {"rows": [sum(1 for _ in plain), sum(len(each[0]) for each in batches)], "keys": keys}


def by_datasets(cache):
    """Rows with an image, made at once and streamed."""
    import datasets

    found = []
    for streaming in (False, True):
        given = {"data_files": {"train": tars(cache)}, "split": "train", "cache_dir": f"{cache}-datasets"}
        rows = list(datasets.load_dataset("webdataset", streaming=streaming, **given))
        found.append(sum(row.get("jpg") is not None for row in rows))
    return {"rows": found, "keys": [row["__key__"] for row in rows]}


def by_ray(cache):
    """Rows of ray.data."""
    import ray

    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    rows = ray.data.read_webdataset(tars(cache)).take_all()
    return {"rows": [sum(row["jpg"] is not None for row in rows)], "keys": [row["__key__"] for row in rows]}


def by_tensorstore(cache):
    """Failed rows, where a missing chunk would be an error."""
    import numpy as np
    import tensorstore

    store = {"driver": "file", "path": f"{cache}/penultimate"}
    spec = {"driver": "zarr3", "kvstore": store, "fill_missing_data_reads": False}
    array = tensorstore.open(spec, open=True, read=True).result()
    values = array.read().result()
    return {"failed": np.flatnonzero(np.isnan(values[:, 0, 0])).tolist(), "dimensions": [*array.domain.labels]}


def by_zarr(cache):
    """The same, and that listing gives no warning. Before 3.3 zarr cannot be strict."""
    import numpy as np
    import zarr

    warnings.simplefilter("error")
    strict = tuple(map(int, zarr.__version__.split(".")[:2])) >= (3, 3)
    if strict:
        zarr.config.set({"array.read_missing_chunks": False})
    array = dict(zarr.open_group(cache, mode="r").members())["penultimate"]
    failed = np.flatnonzero(np.isnan(array[:, 0, 0])).tolist()
    return {"failed": failed, "dimensions": [*array.metadata.dimension_names], "strict": strict}


def by_xarray(cache):
    """The same, of the group as a data set."""
    import numpy as np
    import xarray

    warnings.simplefilter("error")
    opened = xarray.open_zarr(cache)
    values = opened["penultimate"].values
    failed = np.flatnonzero(np.isnan(values[:, 0, 0])).tolist()
    return {"failed": failed, "dimensions": [*opened["penultimate"].dims], "layers": sorted(opened.data_vars)}


def bits(values):
    """float16 vectors as whole numbers, to be compared to the bit."""
    import numpy as np

    return np.asarray(values, np.float16).view(np.uint16).tolist()


def table_by_pandas(table):
    """A cache as one Parquet file: the vectors' bits, ids and names."""
    import numpy as np
    import pandas

    frame = pandas.read_parquet(table)
    return {"bits": bits(np.stack(frame["penultimate"])), "ids": [*frame["id"]], "classes": [*frame["class_name"]]}


def table_by_duckdb(table):
    """The same."""
    import duckdb

    rows = duckdb.sql(f"select penultimate, id, class_name from '{table}' order by row").fetchall()
    vectors, ids, classes = zip(*rows, strict=True)
    return {"bits": bits(vectors), "ids": ids, "classes": classes}


def table_by_polars(table):
    """The same; a polars list column has its own kind of float16."""
    import polars

    frame = polars.read_parquet(table)
    ids, classes = frame["id"].to_list(), frame["class_name"].to_list()
    return {"bits": bits(frame["penultimate"].to_list()), "ids": ids, "classes": classes}


def table_by_datasets(table):
    """The same, by Hugging Face datasets, made at once and streamed."""
    import datasets

    found = []
    for streaming in (False, True):
        given = {"data_files": {"train": table}, "split": "train", "cache_dir": f"{table}-datasets"}
        rows = list(datasets.load_dataset("parquet", streaming=streaming, **given))
        columns = {"ids": [row["id"] for row in rows], "classes": [row["class_name"] for row in rows]}
        found.append({"bits": bits([row["penultimate"] for row in rows]), **columns})
    assert found[0] == found[1]
    return found[0]


def table_by_lance(table):
    """The same, by way of a Lance data set."""
    import lance
    import pyarrow.parquet

    lance.write_dataset(pyarrow.parquet.read_table(table), f"{table}.lance")
    found = lance.dataset(f"{table}.lance").to_table()
    vectors = found["penultimate"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(found), -1)
    return {"bits": bits(flat), "ids": found["id"].to_pylist(), "classes": found["class_name"].to_pylist()}


READERS = {
    "table pandas": table_by_pandas,
    "table duckdb": table_by_duckdb,
    "table polars": table_by_polars,
    "table datasets": table_by_datasets,
    "table pylance": table_by_lance,
    "webdataset": by_webdataset,
    "datasets": by_datasets,
    "ray": by_ray,
    "tensorstore": by_tensorstore,
    "zarr": by_zarr,
    "xarray": by_xarray,
}

if __name__ == "__main__":
    from importlib.metadata import version

    answer = READERS[sys.argv[1]](sys.argv[2])
    print(json.dumps({"version": version(sys.argv[1].split()[-1]), **answer}))
