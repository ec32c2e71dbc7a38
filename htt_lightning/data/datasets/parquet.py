"""Datasets in Parquet shards, as the Hugging Face hub publishes them, with one image per row.

The library ``datasets`` writes the columns of the shards into its cache once, from where rows are memory-mapped.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from htt_lightning.data.datamodule import Split
from htt_lightning.data.datasets.file_dataset import FileDataset
from htt_lightning.data.datasets.npy_tree import FileFormat
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import ConfigError, DataError, HTTError, collect_errors, combine_errors, missing_extra
from htt_lightning.io.progress import track

HUB = "hub"
"""Value of ``data.root`` that stands for the repository on the Hugging Face hub."""

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "test")}
"""Beginnings of the names of a split's shards; the first that a folder has counts."""

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\b")
_KINDS = {"b": "boolean", "f": "float", "i": "integer", "u": "unsigned integer"}


@dataclass(frozen=True)
class HubRepo:
    """Dataset repository on the Hugging Face hub.

    Args:
        repo: Name of the repository, such as ``tanganke/nyuv2``.
        revision: Commit, tag or branch to read.
    """

    repo: str
    revision: str

    def download(self, patterns: Sequence[str]) -> Path:
        """Download files, unless they are in the cache of the hub's client; return the folder of the repository."""
        from huggingface_hub import snapshot_download

        import_datasets()  # fails before the download
        try:
            folder = snapshot_download(
                self.repo, repo_type="dataset", revision=self.revision, allow_patterns=list(patterns)
            )
        except Exception as error:  # clients of the hub raise many types
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise DataError(
                f"data.root {HUB} must reach the dataset {self.repo} on the Hugging Face hub, got {reason}; or set "
                f"data.root to a folder with its .parquet files of revision {self.revision}."
            ) from error
        if (commit := Path(folder).name) != self.revision:
            rank_zero_warn(
                f"{self.repo} is read at {self.revision}, which can change. Today that is commit {commit}; set "
                "data.revision (data.hub.revision for folder.yaml) to it to repeat the run on the same data."
            )
        return Path(folder)


def import_datasets() -> Any:
    """Import the library ``datasets``, which takes a second."""
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("Reading .parquet files needs datasets", "hub") from error
    return datasets


def find_shards(root: str, split: Split, repo: HubRepo) -> list[Path]:
    """Find the shards of a split in order, in a folder or its subfolder ``data``; ``hub`` downloads the repository.

    A folder without a Parquet file has none.

    Raises:
        DataError: The repository cannot be downloaded, or shards are missing.
    """
    names = SPLIT_NAMES[split]
    patterns = [f"*{name}-*.parquet" for name in names]
    folder = repo.download(patterns) if root == HUB else Path(root).expanduser()
    found = list(folder.glob("[!.]*.parquet")) or list(folder.glob("data/[!.]*.parquet"))
    found.sort(key=lambda path: natural_key(path.name))
    if not found and root != HUB:
        return []
    for name in names:
        if shards := [path for path in found if re.match(rf"{name}[-.]", path.name)]:
            _check_numbers(shards)
            return shards
    expected = " or ".join(f"{name}-*.parquet" for name in names)
    got = ", ".join(path.name for path in found[:3]) or "none"
    raise DataError(f"{folder} must have shards {expected}, got {got}. Download them from {repo.repo}.")


def match_shards(root: str, pattern: str, repo: HubRepo | None) -> list[Path]:
    """Find the shards that match a pattern in order, in a folder or, if ``root`` is ``hub``, in the repository.

    Raises:
        HTTError: No repository is named, it cannot be downloaded, or shards are missing.
    """
    if root == HUB and repo is None:
        raise ConfigError("data.hub must name the repository if data.root is hub, got null. Set repo and revision.")
    folder = repo.download([pattern]) if root == HUB and repo else Path(root).expanduser()
    shards = sorted(folder.glob(pattern), key=lambda path: natural_key(path.name))
    if not shards:
        raise DataError(f"{folder} must have files {pattern}, got none.", missing_path=folder / pattern)
    _check_numbers(shards)
    return shards


def _check_numbers(shards: Sequence[Path]) -> None:
    """Raise an error unless each number of shards named ``-00000-of-00008`` is there once."""
    numbers = [(int(match[1]), int(match[2])) for path in shards if (match := _NUMBERED.search(path.name))]
    if not numbers:
        return
    total, folder = numbers[-1][1], shards[0].parent
    if sorted(numbers) != [(number, total) for number in range(total)] or len(numbers) < len(shards):
        start = shards[-1].name.partition("-")[0]
        known = {number for number, of in numbers if of == total}
        absent = [f"{start}-{number:05}-of-{total:05}" for number in range(total) if number not in known]
        problem = f"{', '.join(absent[:3])} missing" if absent else f"{len(shards)} files"
        raise DataError(
            f"{folder} must have each of the {total} shards of {start} once, got {problem}. Download them again."
        )


class ParquetDataset(FileDataset):
    """One split in Parquet shards. Ids are the numbers of the rows, from ``0``, through all shards.

    Images and labels are nested lists ``c h w`` or ``h w``. A label is read from its own column alone.

    Args:
        shards: Paths in the order of the rows.
        formats: Formats of the image (``image``) and of each task's labels; ``folder`` is the name of the column.
        published: Number of published images.
        uniform_size: True if ``check`` rejects images that differ in size.

    Raises:
        HTTError: A shard is corrupt, a column is missing or has another type, or ``datasets`` is not installed.
    """

    restore_hint = "Download the shards again"

    def __init__(
        self,
        shards: Sequence[Path],
        formats: Mapping[str, FileFormat],
        published: int | None = None,
        uniform_size: bool = True,
    ) -> None:
        import_datasets()
        self.shards, self.formats = list(shards), dict(formats)
        self.published, self.uniform_size = published, uniform_size
        counts, errors = list[int](), list[HTTError]()
        for path in self.shards:
            with collect_errors(errors):
                counts.append(_check_shard(path, self.formats))
        if errors:
            raise combine_errors(errors)
        self._starts = [0, *accumulate(counts)]
        self.ids = [str(row) for row in range(self._starts[-1])]
        names = dict.fromkeys(column.folder for column in self.formats.values())
        tables = [_open_shard(path, names) for path in track(self.shards, f"Opening {len(shards)} shards")]
        self._columns = {
            key: [table.select_columns([column.folder]).with_format("arrow") for table in tables]
            for key, column in self.formats.items()
        }

    def read_image(self, index: int) -> np.ndarray:
        """Read an RGB image, float32 ``h w 3`` in [0, 1]."""
        return self._decode(index, "image", *self._values(index, "image"))

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, with missing pixels marked as ``Task`` defines it."""
        return self._decode(index, task, *self._label_values(index, task))

    def read_size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, from the lengths of its lists."""
        height, width = self._values(index, "image")[1][-2:]
        return height, width

    def check_label(self, index: int, task: str) -> None:
        """Check the shape of a label, from the lengths of its lists."""
        self._label_values(index, task)

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images have a label of the task: all if there is a column for it, else none."""
        return np.full(len(self.ids), task in self.formats)

    def location(self, index: int, key: str = "image") -> str:
        """Return shard, row and column of an image or label."""
        shard, row = self._locate(index)
        return f"{self.shards[shard]}, row {row}, column {self.formats[key].folder!r},"

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _label_values(self, index: int, task: str) -> tuple[Any, tuple[int, ...]]:
        if task not in self.formats:
            raise ConfigError(f"The task of a label must be in {', '.join(self.formats)}, got {task}.")
        values, shape = self._values(index, task)
        self.check_size(index, self.location(index, task), shape[-2:])
        return values, shape

    def _decode(self, index: int, key: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
        stored = values.to_numpy(zero_copy_only=False).reshape(shape)
        stored = np.ascontiguousarray(np.moveaxis(stored, 0, -1)) if len(shape) > 2 else stored
        return self.formats[key].decode(self.location(index, key), stored)

    def _values(self, index: int, key: str) -> tuple[Any, tuple[int, ...]]:
        """Return the values of a row as a flat arrow array, not yet read from disk, and their shape."""
        shard, row = self._locate(index)
        values, shape = _flatten(self._columns[key][shard][row].column(0).chunk(0))
        channel_shapes = self.formats[key].channel_shapes
        if len(shape) < 2 or shape[:-2] not in channel_shapes or not all(shape):
            expected, got = _description(self.formats[key]), shape or "lists of several lengths or nulls"
            raise DataError(f"{self.location(index, key)} must be {expected}, got {got}. Download it again.")
        return values, shape


def _check_shard(path: Path, formats: Mapping[str, FileFormat]) -> int:
    """Check the columns of a shard, and return its number of rows; no value is read."""
    from pyarrow import parquet, types

    try:
        footer = parquet.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
    except Exception as error:  # corrupt footers raise errors of many types
        raise DataError(f"{path} is corrupt or no Parquet file ({error}). Download it again.") from error
    for column in formats.values():
        if column.folder not in schema.names:
            found = ", ".join(schema.names)
            raise DataError(f"{path} must have a column {column.folder!r}, got {found}. Download it again.")
        kind, depth = _storage(schema.field(column.folder).type), 0
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind, depth = _storage(kind.value_type), depth + 1
        is_number = types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)
        is_valid = is_number and np.dtype(kind.to_pandas_dtype()).kind in column.dtype_kinds
        if not is_valid or depth not in {2 + len(shape) for shape in column.channel_shapes}:
            raise DataError(
                f"{path}, column {column.folder!r}, must be {_description(column)}, got {kind} in lists of depth "
                f"{depth}. Download it again."
            )
    return int(footer.num_rows)


def _description(column: FileFormat) -> str:
    shapes = (" ".join([*map(str, channels), "h w"]) for channels in column.channel_shapes)
    kinds = column.dtype_kinds.replace("u", "") if "i" in column.dtype_kinds else column.dtype_kinds
    return f"{' or '.join(_KINDS[kind] for kind in kinds)} {' or '.join(shapes)}"


def _open_shard(path: Path, columns: Iterable[str]) -> Any:
    """Memory-map the columns of a shard, which are written to the cache of ``datasets`` at the first call."""
    datasets = import_datasets()
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.Dataset.from_parquet(str(path), columns=list(columns))
    except Exception as error:  # many types, also of a full disk
        cause = error.__cause__ or error
        raise DataError(f"{path} cannot be read ({cause}). Free space on the disk, or download it again.") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _storage(kind: Any) -> Any:
    """Return the type by which an extension type is stored, or any other type itself."""
    return getattr(kind, "storage_type", kind)


def _flatten(row: Any) -> tuple[Any, tuple[int, ...]]:
    """Flatten an array of one nested list to its values; the shape is empty if lists differ in length or have nulls."""
    row, shape = getattr(row, "storage", row), list[int]()
    while row.type.num_fields:
        is_fixed = hasattr(row.type, "list_size")
        lengths = np.array([row.type.list_size]) if is_fixed else np.diff(row.offsets.to_numpy())
        if row.null_count or not len(lengths) or (lengths != lengths[0]).any():
            return row, ()
        shape.append(int(lengths[0]))
        row = row.flatten()
    return row, () if row.null_count else tuple(shape)
