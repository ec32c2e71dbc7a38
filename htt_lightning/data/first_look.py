"""Warnings about the first images and labels of a run, as ``htt check`` gives them for all."""

from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.data.label_statistics import LabelStatistics, label_statistics, label_warnings
from htt_lightning.errors import DataError

NUM_IMAGES = 3
"""Number of images, and of labels of each task, that are read."""


def first_look(images: PartialLabelDataset) -> list[str]:
    """Read the first images and labels of a run, and return sentences about what may be wrong with them.

    Args:
        images: The split with the labels that the run keeps; others are not touched.

    Raises:
        HTTError: One of these files cannot be read.
    """
    for index, _ in images.items[:NUM_IMAGES]:
        images.dataset.image(index)  # the reader gives notices
    warnings = []
    for task in images.tasks:
        found, labeled = LabelStatistics(), [index for index, kept in images.items if task.name in kept][:NUM_IMAGES]
        arrays = [images.dataset.label(index, task.name) for index in labeled]
        try:
            for array in arrays:
                found.add(label_statistics(task, array))
        except DataError as error:  # a map of an unusual type, which training may still take
            warnings.append(f"{task.name}: {error.message}")
        texts = label_warnings(task, found, is_sample=True)
        warnings += [f"{task.name}, first {len(labeled)} labels: {text}" for text in texts]
    return warnings
