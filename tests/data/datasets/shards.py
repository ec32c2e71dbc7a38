"""Trees of ``.npy`` files as Parquet shards, in the schema of the Hugging Face hub."""

import numpy as np
import pyarrow as pa
from datasets import Array2D, Array3D, Dataset, Features
from pyarrow import parquet

NYUD_FOLDERS = {"image": "image", "segmentation": "label", "depth": "depth", "normal": "normal"}
CITYSCAPES_FOLDERS = {"image": "image", "segmentation": "label_7", "segmentation_19": "label_19", "depth": "depth"}


def rows_of(split_folder, folders=NYUD_FOLDERS):
    """The columns of a split: arrays ``c h w``, classes as int64 ``h w``."""
    columns = {column: [] for column in (*folders, "noise")}
    for index in range(len(list((split_folder / "image").iterdir()))):
        for column, folder in folders.items():
            array = np.load(split_folder / folder / f"{index}.npy")
            array = np.moveaxis(array, -1, 0).astype(np.float32) if array.ndim > 2 else array.astype(np.int64)
            columns[column].append(array)
        columns["noise"].append(np.zeros_like(columns["depth"][-1]))
    return columns


def write_shard(path, columns, as_lists=False):
    """Write columns of arrays: as features of ``datasets``, or as nested lists without its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if as_lists:
        parquet.write_table(pa.table({name: pa.array([a.tolist() for a in c]) for name, c in columns.items()}), path)
        return
    kinds = {2: Array2D, 3: Array3D}
    features = {name: kinds[c[0].ndim](c[0].shape, str(c[0].dtype)) for name, c in columns.items()}
    Dataset.from_dict(columns, features=Features(features)).to_parquet(path)


def write_shards(folder, columns, split, count, as_lists=False):
    """Write the rows in ``count`` shards, the last of which may have fewer."""
    size = -(-len(columns["image"]) // count)
    for number in range(count):
        part = {name: column[number * size : (number + 1) * size] for name, column in columns.items()}
        if as_lists:  # as pyarrow infers it: float64
            part = {name: [a.astype(np.float64) if a.dtype.kind == "f" else a for a in c] for name, c in part.items()}
        write_shard(folder / f"{split}-{number:05}-of-{count:05}.parquet", part, as_lists)
