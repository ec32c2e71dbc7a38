"""A look at the first labels of a dataset before training: the doubts of ``htt check``, without reading everything."""

from collections.abc import Mapping, Sequence

from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.label_statistics import LabelStatistics, label_statistics, label_warnings
from htt_lightning.tasks import Task

NUM_IMAGES = 3
"""Number of images, and of labels of each task, that are read."""


def first_look(dataset: DenseDataset, tasks: Sequence[Task], labels: Mapping[str, Sequence[str]]) -> list[str]:
    """Read the first images and labels of a run, and return sentences about what may be wrong with them.

    Args:
        dataset: The split.
        tasks: Tasks of the run.
        labels: Names of the tasks whose labels will be used, by image id; other labels are not touched.

    Raises:
        HTTError: One of these files cannot be read.
    """
    position = {name: index for index, name in enumerate(dataset.ids)}
    for name in list(labels)[:NUM_IMAGES]:
        dataset.image(position[name])  # notices are given by the reader
    warnings = []
    for task in tasks:
        found, names = LabelStatistics(), [name for name, kept in labels.items() if task.name in kept][:NUM_IMAGES]
        for name in names:
            found.add(label_statistics(task, dataset.label(position[name], task.name)))
        texts = label_warnings(task, found, is_sample=True)
        warnings += [f"{task.name}, first {len(names)} labels: {text}" for text in texts]
    return warnings
