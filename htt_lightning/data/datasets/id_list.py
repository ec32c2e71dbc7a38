"""Datasets whose folders hold one file per image id, and text files that list the ids of a split."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np

from htt_lightning.data.dataset import DenseDataset, check_each, dataset_folder, refuse_other_size
from htt_lightning.data.masks.label_mask import natural_sort
from htt_lightning.errors import HTTError, raise_or_collect, several
from htt_lightning.io.arrays import resized
from htt_lightning.io.images import read_rgb, size_of


class IdListDataset(DenseDataset):
    """One split of such a dataset; a subclass says which files there are and reads them.

    Files are read when they are asked for.

    Args:
        root: The dataset's own folder, or the one that holds it.
        split: ``train`` or ``val``.
        one_size: Whether ``check`` refuses images of different sizes.

    Raises:
        HTTError: There is no such split, or the file that lists it is missing or empty, lists what is no image id or
            lists one twice.
    """

    title: ClassVar[str]
    """The dataset's name, for messages."""
    home: ClassVar[str]
    """The dataset's own folder."""
    listing: ClassVar[str]
    """The file in it that lists a split, which it names ``{split}``."""
    counts: ClassVar[Mapping[str, int]]
    """Number of images as published, by split."""
    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks there are labels for."""

    def __init__(self, root: str | Path, split: str, one_size: bool = True) -> None:
        self.folder = dataset_folder(self.title, root, self.home, split, self.tree)
        self.split, self.one_size, self.published = split, one_size, self.counts[split]
        self.ids = list(natural_sort(self._listed(self.folder / self.listing.format(split=split))))
        self._sized: tuple[str, tuple[int, int]] | None = None  # the image asked for last

    def _listed(self, path: Path) -> list[str]:
        """The ids that a file lists, one a line."""
        try:
            ids = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            raise HTTError(
                f"{path} is missing; data.root must be, or hold, the folder {self.home}",
                missing=path,
                trees=[self.tree],
            ) from None
        except (OSError, ValueError) as error:
            raise HTTError(f"{path} is no list of image ids ({error}); unpack the dataset again") from error
        if not ids:
            raise HTTError(f"{path} lists no image; unpack the dataset again")
        known = dict.fromkeys(name for name in ids if set(name) <= WORD and len(name) <= LONGEST)
        problems = [f"{name[:LONGEST]!r}, which is no image id" for name in ids if name not in known]
        problems += [f"{name!r} twice" for name, count in Counter(ids).items() if count > 1]
        if problems:
            raise_or_collect(several([HTTError(f"{path} lists {text}; unpack the dataset again") for text in problems]))
        return list(known)

    @abstractmethod
    def image_path(self, name: str) -> Path:
        """Where an image lies.

        Args:
            name: Its id.
        """

    @abstractmethod
    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """A task's map as ``label`` returns it, but of the size of its image or as it is stored.

        Args:
            name: The image's id.
            task: The task's name.
            size: Height and width of the image.
        """

    @abstractmethod
    def look(self, name: str, task: str) -> None:
        """Look at a label's files, as far as that is cheap.

        Args:
            name: The image's id.
            task: The task's name.

        Raises:
            HTTError: Something is wrong with them.
        """

    def image(self, index: int) -> np.ndarray:
        """RGB image, uint8 ``h w 3``.

        Raises:
            HTTError: The file is missing, truncated or no picture.
        """
        name = self.ids[index]
        image = read_rgb(self.image_path(name))
        self._sized = name, (image.shape[0], image.shape[1])
        return image

    def image_file(self, index: int) -> Path:
        """Where an image lies."""
        return self.image_path(self.ids[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image; only its file's ends are read."""
        return self._size(self.ids[index])

    def label(self, index: int, task: str) -> np.ndarray:
        """One task's map at the size of its image, to which nearest neighbour brings what is stored at another.

        Args:
            index: Position in ``ids``.
            task: Its name; the map is as ``tasks.base.Task`` describes it.

        Raises:
            HTTError: There is no such task, or a file is missing or damaged or holds values that it must not.
        """
        if task not in self.tasks:
            raise HTTError(f"{self.title} has no labels for {task}; choose from {', '.join(self.tasks)}")
        name = self.ids[index]
        try:
            size = self._size(name)
        except HTTError:
            self.look(name, task)  # its own fault comes first: that of the image is found with the image
            raise
        return resized(self.read(name, task, size), size, smooth=False)

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Look at every file that will be used, as far as that is cheap; hidden labels are not touched.

        Args:
            labels: Names of the tasks whose labels will be used, by image id.

        Raises:
            HTTError: Files are missing, broken or hold wrong values, or images differ in size: the message names three
                of them.
        """
        first: tuple[int, int] | None = None
        if self.one_size and labels:
            with suppress(HTTError):  # raised again below, and with the tree
                first = self._size(next(iter(labels)))

        def look(name: str) -> None:
            size = self._size(name)
            if first:
                refuse_other_size(self.image_path(name), size, first)
            for task in labels[name]:
                self.look(name, task)

        check_each(labels, look, self.tree)

    def _size(self, name: str) -> tuple[int, int]:
        known = self._sized  # one object: threads that look at files together cannot mix two up
        if known is None or known[0] != name:
            self._sized = known = name, size_of(self.image_path(name))
        return known[1]


WORD = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-")
"""Characters of image ids, which become parts of paths."""

LONGEST = 128
"""Number of them at most."""
