"""Fit of teachers from outside to the labels that training images keep."""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.dataset import DenseDataset, PartialLabelDataset
from htt_lightning.data.transforms import EvalTransform
from htt_lightning.discovery.outside.alignment import fit_alignment
from htt_lightning.discovery.outside.axes import check_axes
from htt_lightning.discovery.outside.hub import HubTeacher
from htt_lightning.discovery.outside.maps import ImageSizes, MapTeacher
from htt_lightning.discovery.outside.options import TeacherOptions
from htt_lightning.discovery.outside.teacher import OutsideTeacher
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.arrays import resize
from htt_lightning.io.progress import track
from htt_lightning.tasks import Depth, Task

MAX_IMAGES, MAX_PIXELS = 100, 4000
"""Largest numbers of images, and of pixels of each, that a fit reads."""


def build_teachers(options: Mapping[str, TeacherOptions], tasks: Sequence[Task]) -> dict[str, OutsideTeacher]:
    """Build the teachers of tasks by name."""
    known, teachers = {task.name: task for task in tasks}, dict[str, OutsideTeacher]()
    for name, each in options.items():
        if name not in known:
            raise ConfigError(f"--teachers must name tasks of the run, got {name!r}.{did_you_mean(name, known)}")
        if not each:
            raise ConfigError(f"--teachers must have options of {name}, got null. Write {{{name}: {{maps: FOLDER}}}}.")
        teachers[name] = (HubTeacher if each.hub else MapTeacher)(known[name], each)
    return teachers


def image_sizes(datamodule: PartialLabelDataModule, dataset: DenseDataset, index: int) -> ImageSizes:
    """Return the sizes of an image and of the maps that training reads for it."""
    stored = dataset.size(index)
    return ImageSizes(stored, datamodule.image_size or stored)


def fit_to_given_labels(teacher: OutsideTeacher, datamodule: PartialLabelDataModule) -> str:
    """Align a teacher of depth with given labels, or check the axes of one of normals.

    Only labels that the label mask keeps are read.

    Returns:
        Sentence on the fit; empty for other tasks, which need none.

    Raises:
        DataError: The teacher cannot be aligned, or other axes fit.
    """
    if isinstance(teacher.task, Depth):
        values, labels = _compare(teacher, datamodule)
        method: Any = teacher.options.alignment or "scale_shift"
        teacher.alignment = fit_alignment(values, labels, method, teacher.is_inverse, teacher.option)
        return teacher.alignment.summary
    if teacher.axes is None:
        return ""
    angle = check_axes(teacher.axes, *_compare(teacher, datamodule), teacher.option)
    return "too few given normals to compare with" if np.isnan(angle) else f"{angle:.1f} degrees off in the median"


def _compare(teacher: OutsideTeacher, datamodule: PartialLabelDataModule) -> tuple[np.ndarray, np.ndarray]:
    """Read the teacher's values and the given labels of some pixels of images whose label of the task is given."""
    task, dataset = teacher.task, datamodule.build_dataset("train")
    given = [name for name, tasks in datamodule.labels_per_image("train", dataset).items() if task.name in tasks]
    if isinstance(teacher, MapTeacher):
        given = [name for name in given if teacher.files.find(name)]
    chosen = given[:: -(-len(given) // MAX_IMAGES) or 1]
    labels = dict.fromkeys(chosen, (task.name,))
    samples = PartialLabelDataset(dataset, [task], labels, EvalTransform([task], None), datamodule.image_size)
    empty = np.zeros((0, 3)[: task.field_channels], np.float32)
    pairs = [(empty, empty)]
    for place in track(range(len(chosen)), f"Comparing {task.name} with {len(chosen)} given labels", len(chosen)):
        name, index = chosen[place], samples.items[place][0]
        if isinstance(teacher, HubTeacher):
            sample = samples[place]
            label = np.moveaxis(sample[task.name].numpy(), 0, -1)
            values, _ = teacher.predict([sample["image"]])[0]
        else:  # which reads no image
            assert isinstance(teacher, MapTeacher)
            sizes = image_sizes(datamodule, dataset, index)
            label = resize(dataset.label(index, task.name), sizes.maps, "nearest")
            values, _ = teacher.read(name, sizes)
        values, label = values.reshape(-1, *empty.shape[1:]), label.reshape(-1, *empty.shape[1:])
        known = np.isfinite(values) & np.isfinite(label)
        pixels = np.flatnonzero(known if known.ndim == 1 else known[:, 0])
        if len(pixels) > MAX_PIXELS:  # a permutation of all takes as long as to read the map
            pixels = pixels[np.random.default_rng(crc32(name.encode())).integers(len(pixels), size=MAX_PIXELS)]
        pairs.append((values[pixels], label[pixels]))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
