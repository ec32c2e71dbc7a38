"""Datasets that keep every image and label in files of their own."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from htt_lightning.data.dataset import DenseDataset, check_in_parallel
from htt_lightning.errors import DataError, HTTError, combine_errors


class FileDataset(DenseDataset):
    """One split of a dataset whose images and labels are files, which are read when they are used.

    Attributes:
        uniform_size: True if ``check`` rejects images that differ in size.
    """

    uniform_size: bool = True

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
