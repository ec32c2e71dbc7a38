"""Datasets that keep every image and label in files of their own, and their datamodules."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset, check_in_parallel
from htt_lightning.errors import DataError, HTTError, combine_errors


class FileDataset(DenseDataset):
    """One split of a dataset whose images and labels are files, which are read when they are used.

    Attributes:
        uniform_size: True if ``check`` rejects images that differ in size.
    """

    uniform_size: bool = True
    _last_size: tuple[int, tuple[int, int]] | None = None

    @abstractmethod
    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file.

        Args:
            index: Position in ``ids``.
        """

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, kept for the labels that are read next."""
        last = self._last_size  # read once, as other threads may replace it
        if last is None or last[0] != index:
            self._last_size = last = index, self.read_size(index)
        return last[1]

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """Return the path of an image.

        Args:
            index: Position in ``ids``.
        """

    @abstractmethod
    def check_label(self, index: int, task: str) -> None:
        """Check that the files of a label exist and have valid headers; nothing is decoded.

        Args:
            index: Position in ``ids``.
            task: Name of the task.

        Raises:
            HTTError: A file is missing or corrupt.
        """

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Check that the files of a run exist and have valid headers; nothing is decoded.

        Args:
            labels: Names of the tasks whose labels will be used, by image id; other labels are not touched.

        Raises:
            HTTError: Files are missing or corrupt, or images differ in size although ``uniform_size`` is set. The
                message names three problems and shows the expected layout where files are missing.
        """
        positions = {image_id: index for index, image_id in enumerate(self.ids)}
        sizes: dict[str, tuple[int, int]] = {}

        def check_files(image_id: str) -> None:
            index, errors = positions[image_id], list[HTTError]()
            try:
                sizes[image_id] = self.size(index)
            except HTTError as error:
                errors.append(error)
            for task in labels[image_id]:
                try:
                    self.check_label(index, task)
                except HTTError as error:
                    errors.append(error)
            if errors:
                raise combine_errors(errors)

        errors = check_in_parallel(labels, check_files)
        if self.uniform_size and sizes:
            first = next(image_id for image_id in labels if image_id in sizes)
            errors += [
                DataError(
                    f"{self.image_path(positions[image_id])} must have the size {sizes[first]} of the image {first!r}, "
                    f"got {sizes[image_id]}. Set data.image_size or data.augment.crop."
                )
                for image_id in labels
                if sizes.get(image_id, sizes[first]) != sizes[first]
            ]
        if errors:
            raise combine_errors(errors, expected_layout=self.expected_layout)


class FileDataModule(PartialLabelDataModule):
    """Datamodule of a dataset in a folder, whose splits are opened once per run.

    Args:
        root: Folder of the dataset.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        self.root = root
        self._datasets: dict[Split, FileDataset] = {}
        super().__init__(**kwargs)

    @abstractmethod
    def open_split(self, split: Split, uniform_size: bool) -> FileDataset:
        """Open a split.

        Args:
            split: ``train`` or ``val``.
            uniform_size: True if ``check`` must reject images that differ in size.

        Raises:
            HTTError: The split is missing or invalid.
        """

    def build_dataset(self, split: Split) -> FileDataset:
        """Return a split, which is opened at the first call."""
        if split not in self._datasets:
            self._datasets[split] = self.open_split(split, self.requires_uniform_size(split))
        return self._datasets[split]
