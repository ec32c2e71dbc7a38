"""Your own images and labels, declared in a config: where the files lie and what the values in them mean."""

import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from itertools import pairwise
from os.path import lexists
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset, check_each, refuse_other_size
from htt_lightning.data.datasets.label_files import LabelFiles, is_npy, read_npy
from htt_lightning.data.datasets.npy_tree import TOLERANCE, floats
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import HTTError, raise_or_collect, several, sound, tolerated
from htt_lightning.io.files import is_outside
from htt_lightning.io.images import ImageFormat, read_rgb, size_of
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """An image, the labels it has, and what to call it in messages."""

    name: str
    image: Path
    labels: dict[str, Path]
    where: str


class Folder(DenseDataset):
    """One split of images and labels in a folder. Files are listed once, and read when they are asked for.

    Training images without any label are left out. An image's id is what the wildcards of the pattern stand for, from
    the first to the last, without the file's suffix; in a table, the image's path without it.

    Args:
        root: The folder.
        split: ``train`` or ``val``.
        images: A pattern of images relative to the root, with wildcards ``*``, ``?``, ``[...]`` and ``**``; or a CSV
            file with a row for each image, whose path is in the column ``image``. An empty cell is a missing label.
        maps: Labels by task.
        one_size: Whether ``check`` refuses images of different sizes.

    Raises:
        HTTError: There is no such folder, image or label, or the table is broken or names files outside the root.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split,
        images: str,
        maps: Sequence[LabelFiles],
        one_size: bool = True,
    ) -> None:
        self.root, self.one_size = Path(root).expanduser(), one_size
        if not self.root.is_dir():
            problem = "is a file and no folder" if self.root.exists() else "is no folder"
            raise HTTError(
                f"data.root {self.root} {problem}; name the one that data.train and data.val are relative to"
            )
        self.maps = {files.task.name: files for files in maps}
        is_table = images.endswith(".csv")
        places: dict[str, str] = {}
        for task, files in self.maps.items():
            with tolerated():
                if place := files.val if split == "val" else files.train:
                    places[task] = _place(place, task, split, is_table)
        listed = list(self._rows(images, places) if is_table else self._matches(images, split, places))
        entries = sorted(listed, key=lambda entry: natural_key(entry.name))
        for one, other in list(pairwise(entries)):
            if one.name == other.name:
                entries.remove(other)
                raise_or_collect(
                    HTTError(f"{one.where} and {other.where} have the same id {one.name!r}; keep or rename one")
                )
        for task, place in places.items() if entries else ():
            if not any(task in entry.labels for entry in entries):
                looked = self.root / _labelled(place, entries[0].name) if "{id}" in place else f"the column {place!r}"
                raise_or_collect(HTTError(f"No {split} image has a label of {task}: looked for {looked} and the like"))
        # Where files are not found, images that seem to have no label are read as well.
        self._entries = [entry for entry in entries if entry.labels or split == "val" or not sound()]
        if left := [entry.name for entry in entries if not entry.labels and split == "train" and sound()]:
            logger.warning(
                "%d of %d training images have no label and are left out, such as %r.", len(left), len(entries), left[0]
            )
        self.ids = [entry.name for entry in self._entries]

    def _matches(self, pattern: str, split: Split, places: Mapping[str, str]) -> Iterator[Entry]:
        pattern = _relative(pattern, f"data.{split}")
        if not re.search(r"[*?[]", pattern):
            raise HTTError(f"data.{split} {pattern!r} has no wildcard; for a folder of images write {pattern}/*")
        found = glob(pattern, root_dir=self.root, recursive=True)  # noqa: PTH207  # Path's finds hidden files as well
        paths = [path for path in found if not (self.root / path).is_dir()]  # a link to nowhere is an image lost
        if not paths:
            raise HTTError(f"No image matches data.{split}: looked for {self.root / pattern}")
        for path in paths:
            name = identify(Path(path).as_posix(), pattern)
            if not name or ".." in PurePosixPath(name).parts:
                wrong = f"data.{split} {pattern!r} gives {self.root / path} no id; shift its wildcards"
                raise_or_collect(HTTError(wrong))
                continue
            labels = {task: self.root / _labelled(place, name) for task, place in places.items()}
            there = {task: label for task, label in labels.items() if lexists(label)}
            yield Entry(name, self.root / path, there, str(self.root / path))

    def _rows(self, table: str, places: dict[str, str]) -> Iterator[Entry]:
        """The images of a table; tasks of which it cannot tell what has a label are taken out of ``places``."""
        path = self.root / table
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                columns = list(reader.fieldnames or [])
                rows = [(reader.line_num, row) for row in reader]
        except (OSError, ValueError, csv.Error) as error:
            raise HTTError(f"{path} cannot be read as a table ({error})") from error
        for task, column in {"": "image", **places}.items():
            if "{id}" not in column and columns.count(column) != 1:
                wrong = HTTError(f"{path} needs one column {column!r}; it has {', '.join(columns) or 'none'}")
                if not task:
                    raise wrong
                raise_or_collect(wrong)
                del places[task]
        if not rows:
            raise HTTError(f"{path} lists no image")
        errors = []
        for line, row in rows:
            try:
                yield self._entry(row, places, f"{path}, line {line}")
            except HTTError as error:
                errors.append(error)
        if errors:
            raise_or_collect(several(errors))
            places.clear()  # those rows may have had the labels of any task

    def _entry(self, row: Mapping[str, Any], places: Mapping[str, str], where: str) -> Entry:
        if None in row or None in row.values():
            raise HTTError(f"{where}: expected {len(row) - (None in row)} cells, one for each column")
        cells = {key: cell.strip() for key, cell in row.items()}
        if not cells["image"]:
            raise HTTError(f"{where}: the cell of its image is empty; name one, or delete the row")
        image, name = self._inside(cells["image"], where), _stem(cells["image"])
        labels = {}
        for task, place in places.items():
            cell = _labelled(place, name) if "{id}" in place else cells[place]
            label = self._inside(cell, where)
            if cell and ("{id}" not in place or lexists(label)):
                labels[task] = label
        return Entry(name, image, labels, where)

    def _inside(self, cell: str, where: str) -> Path:
        """A file that a table names, which must not lead out of the root."""
        path = self.root / _relative(cell, where)
        if is_outside(path, self.root):
            raise HTTError(f"{where}: {cell!r} leads out of {self.root}")
        return path

    def available(self, task: str) -> NDArray[np.bool_]:
        """Which images have a label of the task, bool ``n``."""
        return np.array([task in entry.labels for entry in self._entries], np.bool_)

    def image(self, index: int) -> np.ndarray:
        """RGB image ``h w 3``: uint8, or float32 in [0, 1] from a ``.npy`` file of floats.

        Raises:
            HTTError: The file is missing or broken, or holds no such image.
        """
        path = self._entries[index].image
        if not is_npy(path):
            return read_rgb(path, ImageFormat.ANY)
        stored = read_npy(path)
        if stored.shape[2:] != (3,) or not (stored.dtype == np.uint8 or stored.dtype.kind == "f"):
            raise HTTError(f"{path} is {stored.dtype} {stored.shape}; an image must be uint8 or float, h w 3")
        if stored.dtype == np.uint8:
            return np.array(stored)
        image = floats(stored)
        if not (image.min() >= -TOLERANCE and image.max() <= 1 + TOLERANCE):  # written so that NaN fails
            raise HTTError(f"{path} holds colours from {image.min():g} to {image.max():g}; they must lie in [0, 1]")
        return image.clip(0, 1, out=image)

    def image_file(self, index: int) -> Path:
        """Where an image lies."""
        return self._entries[index].image

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image; its pixels are not read."""
        path = self._entries[index].image
        if not is_npy(path):
            return size_of(path, ImageFormat.ANY)
        height, width = read_npy(path).shape[:2]
        return height, width

    def label(self, index: int, task: str) -> np.ndarray:
        """One task's map, with missing pixels marked as ``tasks.base.Task`` describes it.

        Raises:
            HTTError: The image has no such label, or its file is broken (see ``LabelFiles``) or has another size than
                the image.
        """
        entry = self._entries[index]
        if task not in entry.labels:
            raise HTTError(f"{entry.where} has no label of {task}; see data.maps and data.labels")
        path = entry.labels[task]
        label = self.maps[task].read(path)
        if label.shape[:2] != (size := self.size(index)):
            raise HTTError(f"{path} is {label.shape[:2]}, but its image {entry.image} {size}; prepare the two again")
        return label

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Read every file that will be used, in parallel. Hidden labels are not touched.

        Args:
            labels: Names of the tasks whose labels will be used, by image id.

        Raises:
            HTTError: Files are missing or broken, hold wrong values or differ in size: the message names three.
        """
        positions = {name: index for index, name in enumerate(self.ids)}

        def look(name: str) -> None:
            index = positions[name]
            height, width = self.image(index).shape[:2]
            if self.one_size:
                refuse_other_size(self._entries[index].image, (height, width), first)
            for task in labels[name]:
                self.label(index, task)

        first = self.size(positions[next(iter(labels))])
        check_each(labels, look)


def identify(path: str, pattern: str) -> str:
    """What a pattern's wildcards stand for in a path, from the first to the last, without the suffix of either."""
    pattern, name = _stem(pattern), _stem(path)
    wild = [match.start() for match in re.finditer(r"[*?\[\]]", pattern)]
    start, end = (wild[0], wild[-1] + 1) if wild else (len(pattern), len(pattern))
    return name.removeprefix(pattern[:start]).removesuffix(pattern[end:]).strip("/")


def _stem(path: str) -> str:
    """A path without its suffix, in the form that paths have in ids."""
    plain = PurePosixPath(path)
    return str(plain).removesuffix(plain.suffix)


def _place(place: str, task: str, split: Split, is_table: bool) -> str:
    """Where the labels of a task are, if they can be there."""
    if "{id}" in place:
        _relative(place, f"data.maps of {task}")
    elif not is_table:
        raise HTTError(
            f"data.maps of {task}: {place!r} lacks {{id}}, which stands for the image's id; it can be a column "
            f"only where data.{split} is a .csv file"
        )
    return place


def _labelled(place: str, name: str) -> str:
    return place.replace("{id}", name)


def _relative(path: str, where: str) -> str:
    """A path or pattern in its shortest form, unless it leads out of the root."""
    plain = PurePosixPath(path)
    if plain.is_absolute() or ".." in plain.parts:
        raise HTTError(f"{where}: {path!r} must be relative to data.root and stay in it")
    return str(plain)


class FolderDataModule(PartialLabelDataModule):
    """Your own images and labels; a label that is not there is a missing one.

    Args:
        root: The folder that all files are in.
        train: Training images: a pattern relative to the root, such as ``train/images/*.jpg``, or a ``.csv`` file
            with a row per image, see ``Folder``.
        val: Validation images, likewise.
        maps: Where the labels of each task are, and what their values mean.
        labels: As in ``PartialLabelDataModule``; by default every label there is.
        **kwargs: See ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        train: str,
        val: str,
        maps: list[LabelFiles],
        labels: str = "full",
        **kwargs: Any,
    ) -> None:
        names = [files.task.name for files in maps]
        if not names or len(set(names)) < len(names):
            raise HTTError(
                f"data.maps must name each task once, and at least one; it names {', '.join(names) or 'none'}."
            )
        self.root, self.maps = root, maps
        self.images: dict[Split, str] = {"train": train, "val": val}
        self._listed: dict[Split, Folder] = {}
        super().__init__(labels=labels, **kwargs)

    def dataset_tasks(self) -> list[Task]:
        """In the order of ``maps``."""
        return [files.task for files in self.maps]

    def source(self, split: Split) -> Folder:
        """A split, whose files are listed once: a run sees the same ones from beginning to end."""
        if split in self._listed:
            return self._listed[split]
        source = Folder(self.root, split, self.images[split], self.maps, self.requires_uniform_size(split))
        if sound():
            self._listed[split] = source
        return source
