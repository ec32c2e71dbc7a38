"""Your own images and labels, declared in a config: where the files are and what their values mean."""

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.datamodule import Split
from htt_lightning.data.datasets.file_dataset import FileDataModule, FileDataset
from htt_lightning.data.datasets.label_files import LabelFiles, is_npy
from htt_lightning.data.datasets.npy_tree import IMAGE
from htt_lightning.data.datasets.parquet import HubRepo, ParquetDataset, match_shards
from htt_lightning.data.datasets.unmatched_files import image_id, stem, unmatched_images, unmatched_labels
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import ConfigError, DataError, HTTError, collect_errors, combine_errors
from htt_lightning.io.file_names import FileFinder, glob_files, nfc
from htt_lightning.io.files import is_outside
from htt_lightning.io.image_files import ImageFormat, size_of
from htt_lightning.io.images import read_photograph
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)


NPY_IMAGE = IMAGE._replace(dtype_kinds="uf", description="uint8 or float h w 3")


class ImageRecord(NamedTuple):
    """An image, its labels, and its location for messages: the path, or the line of the table."""

    image_id: str
    image: Path
    labels: dict[str, Path]
    location: str


class Folder(FileDataset):
    """One split of images and labels in a folder. Files are listed once and read when they are used.

    Training images without labels are left out. An image's id is the part of its path that the wildcards of the
    pattern match, from the first to the last, without the suffix; in a table, the image's path without the suffix.

    Args:
        root: The folder.
        split: ``train``, ``val`` or ``test``.
        images: Pattern of images relative to the root, with wildcards ``*``, ``?``, ``[...]`` and ``**``; or a CSV file
            with a row per image, whose path is in the column ``image``. An empty cell is a missing label.
        label_files: Label files of each task.
        uniform_size: True if ``check`` rejects images that differ in size.

    Raises:
        HTTError: The folder, images or labels are missing, or the table is invalid or names files outside the root.
    """

    def __init__(
        self, root: str | Path, split: Split, images: str, label_files: Sequence[LabelFiles], uniform_size: bool = True
    ) -> None:
        self._finder, self._split, self.uniform_size = FileFinder(), split, uniform_size
        self.root = self._finder.find(Path(root).expanduser()) or Path(root)
        if not self.root.is_dir():
            rule = "be an existing folder, which data.train and data.val are in"
            raise DataError(f"data.root must {rule}, got {self.root}. Check its path.", self.root)
        self.label_files = {files.task.name: files for files in label_files}
        is_table, errors = images.lower().endswith(".csv"), list[HTTError]()
        self._pattern = "" if is_table else images
        patterns: dict[str, str] = {}
        for task, files in self.label_files.items():
            if pattern := getattr(files, split):
                with collect_errors(errors):
                    _check_pattern(pattern, task, split, is_table)
                    patterns[task] = pattern
        self._label_patterns = {task: pattern for task, pattern in patterns.items() if "{id}" in pattern}
        find = self._read_table if is_table else self._find_images
        records = sorted(find(images, split, patterns, errors), key=lambda record: natural_key(record.image_id))
        locations = defaultdict[str, list[str]](list)
        for record in records:
            locations[record.image_id].append(record.location)
        errors += [
            DataError(f"{', '.join(same)} have the same id {name!r}. Keep or rename one.")
            for name, same in locations.items()
            if len(same) > 1
        ]
        for task, pattern in patterns.items() if not errors else ():
            if not any(task in record.labels for record in records):
                example = self.root / pattern.replace("{id}", records[0].image_id)
                place = example if "{id}" in pattern else f"the column {pattern!r}"
                errors.append(DataError(f"No {split} image has a label of {task}: looked for {place}."))
        if errors:
            raise combine_errors(errors)
        self._all_records = records
        self._records = [record for record in records if record.labels or split != "train"]
        if unlabeled := [record.image_id for record in records if not record.labels and split == "train"]:
            counts = f"{len(unlabeled)} of {len(records)}"
            logger.warning("Leaving out %s training images without labels (e.g. %r).", counts, unlabeled[0])
        self.ids = [record.image_id for record in self._records]

    def _find_images(
        self, pattern: str, split: Split, label_patterns: Mapping[str, str], errors: list[HTTError]
    ) -> list[ImageRecord]:
        """Find the images that match a pattern; errors about single images are appended."""
        pattern = _relative(pattern, f"data.{split}")
        if not re.search(r"[*?[]", pattern):
            raise ConfigError(f"data.{split} must have a wildcard, got {pattern!r}. For a folder write {pattern}/*")
        if not (paths := glob_files(pattern, self.root)):
            raise DataError(f"No image matches data.{split}: looked for {self.root / pattern}.")
        records = []
        for path in paths:
            name = image_id(nfc(Path(path).as_posix()), nfc(pattern))
            if not name or ".." in PurePosixPath(name).parts:
                message = f"data.{split} {pattern!r} gives {self.root / path} no id. Move its wildcards."
                errors.append(ConfigError(message))
                continue
            labels = {task: self.root / place.replace("{id}", name) for task, place in label_patterns.items()}
            existing = {task: found for task, label in labels.items() if (found := self._finder.find(label))}
            records.append(ImageRecord(name, self.root / path, existing, str(self.root / path)))
        return records

    def _read_table(
        self, table: str, _: Split, label_patterns: Mapping[str, str], errors: list[HTTError]
    ) -> list[ImageRecord]:
        """Read the images of a table; errors about single rows are appended."""
        path = self.root / table
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                columns = list(reader.fieldnames or [])
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{path} must be a CSV table ({error}).") from error
        columns_needed = [column for column in ("image", *label_patterns.values()) if "{id}" not in column]
        errors += [
            DataError(f"{path} must have one column {column!r}, got {', '.join(columns) or 'none'}.")
            for column in columns_needed
            if columns.count(column) != 1
        ]
        if not rows:
            errors.append(DataError(f"{path} lists no image."))
        records: list[ImageRecord] = []
        for line, row in rows if not errors else ():
            with collect_errors(errors):
                records.append(self._record(row, label_patterns, f"{path}, line {line}"))
        return records

    def _record(self, row: Mapping[str, Any], label_patterns: Mapping[str, str], location: str) -> ImageRecord:
        if None in row or None in row.values():
            raise DataError(f"{location} must have {len(row) - (None in row)} cells, one for each column.")
        cells = {key: cell.strip() for key, cell in row.items()}
        if not cells["image"]:
            raise DataError(f"{location} has no image. Name one, or delete the row.")
        image, name = self._resolve_inside_root(cells["image"], location), nfc(stem(cells["image"]))
        labels = {}
        for task, pattern in label_patterns.items():
            cell = pattern.replace("{id}", name) if "{id}" in pattern else cells[pattern]
            label = self._resolve_inside_root(cell, location)
            if cell and ("{id}" not in pattern or self._finder.find(label)):
                labels[task] = label
        return ImageRecord(name, image, labels, location)

    def _resolve_inside_root(self, cell: str, location: str) -> Path:
        path = self.root / _relative(cell, location)
        path = self._finder.find(path) or path
        if is_outside(path, self.root):
            raise DataError(f"{location}: {cell!r} must stay in {self.root}.")
        return path

    def warnings(self) -> list[str]:
        """Return warnings about files that the patterns do not match."""
        records = self._all_records
        ids, used = {one.image_id for one in records}, {p for one in records for p in (one.image, *one.labels.values())}
        found: list[Iterator[str]] = []
        if self._pattern:
            option = f"data.{self._split}"
            found.append(unmatched_images(self.root, option, _relative(self._pattern, option), ids, used))
        for task, pattern in self._label_patterns.items():
            labels = {one.image_id: one.labels.get(task) for one in records}
            shared = self.label_files[task].train == self.label_files[task].val
            found.append(unmatched_labels(self.root, task, _relative(pattern, task), labels, used, shared))
        return [*chain.from_iterable(found), *super().warnings()]

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images have a label of the task, bool ``n``."""
        return np.array([task in record.labels for record in self._records], np.bool_)

    def read_image(self, index: int) -> np.ndarray:
        """Read an RGB image ``h w 3``: uint8, or float32 in [0, 1] from a ``.npy`` file of floats."""
        path = self._records[index].image
        return NPY_IMAGE.read(path) if is_npy(path) else read_photograph(path)

    def image_path(self, index: int) -> Path:
        """Return the path of an image."""
        return self._records[index].image

    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""
        path = self._records[index].image
        height, width = NPY_IMAGE.open(path).shape[:2] if is_npy(path) else size_of(path, ImageFormat.ANY)
        return height, width

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, with missing pixels marked as ``Task`` defines it."""
        path = self._label_file(index, task)
        label = self.label_files[task].read(path)
        self.check_size(index, path, label.shape[:2])
        return label

    def check_label(self, index: int, task: str) -> None:
        """Check existence, header and size of a label's file."""
        path = self._label_file(index, task)
        self.check_size(index, path, self.label_files[task].size(path))

    def _label_file(self, index: int, task: str) -> Path:
        record = self._records[index]
        if task not in record.labels:
            raise DataError(f"{record.location} has no label of {task}. See data.label_files and data.labels.")
        return record.labels[task]


def _check_pattern(pattern: str, task: str, split: Split, is_table: bool) -> None:
    if "{id}" in pattern:
        _relative(pattern, f"data.label_files of {task}")
    elif not is_table:
        raise ConfigError(
            f"data.label_files of {task} must contain {{id}}, which stands for the image's id, got {pattern!r}. "
            f"Columns can be named only if data.{split} is a .csv file."
        )


def _relative(path: str, option: str) -> str:
    """Return a normalized path or pattern that stays in the root."""
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts:
        raise ConfigError(f"{option} must be relative to data.root and stay in it, got {path!r}.")
    return str(plain)


class FolderDataModule(FileDataModule):
    """Your own images and labels, of which any may be missing.

    Args:
        root: Folder that contains all files.
        train: Training images: a pattern relative to the root, such as ``train/images/*.jpg``; a ``.csv`` file with a
            row per image, see ``Folder``; or a pattern of ``.parquet`` files with an array per image and label.
        val: Validation images, in the same form.
        test: Test images, in the same form, which the command ``test`` scores; by default there are none.
        label_files: Label files of each task, and the meaning of their values.
        hub: Repository of ``.parquet`` files to download if ``root`` is ``hub``.
        image_column: Column of the images in ``.parquet`` files.
        labels: Label protocol or mask file, as in ``PartialLabelDataModule``; by default every existing label.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        train: str,
        val: str,
        label_files: list[LabelFiles],
        labels: str = "full",
        hub: HubRepo | None = None,
        image_column: str = "image",
        test: str | None = None,
        **kwargs: Any,
    ) -> None:
        names = [files.task.name for files in label_files]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"data.label_files must name each task once, got {', '.join(names) or 'none'}.")
        self.label_files, self.hub, self.image_column = label_files, hub, image_column
        self.images: dict[Split, str] = {"train": train, "val": val}
        if test:
            self.images["test"] = test
        if (labeled := [files.task.name for files in label_files if files.test]) and not test:
            raise ConfigError(f"data.test must name the images of data.label_files {labeled[0]}, test, got null.")
        if test and not labeled:
            raise ConfigError(f"data.label_files must name the test labels of a task for data.test {test!r}, got none.")
        super().__init__(root, labels=labels, **kwargs)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits whose images are declared."""
        return tuple(self.images)

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks of ``label_files``, in their order."""
        return [files.task for files in self.label_files]

    def open_split(self, split: Split, uniform_size: bool) -> FileDataset:
        """List the files of a split, or open its shards."""
        if self.images[split].endswith(".parquet"):
            shards = match_shards(self.root, _relative(self.images[split], f"data.{split}"), self.hub)
            formats = {"image": NPY_IMAGE._replace(folder=self.image_column)}
            for files in self.label_files:
                if column := getattr(files, split):
                    formats[files.task.name] = files.column_format(column)
            return ParquetDataset(shards, formats, uniform_size=uniform_size)
        return Folder(self.root, split, self.images[split], self.label_files, uniform_size)
