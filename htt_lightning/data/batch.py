"""What travels from a dataset to the network."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from htt_lightning.tasks import PseudoLabel, Task

Arrays = dict[str, np.ndarray]
"""One image as read: ``image`` (uint8, or float32 in [0, 1]; ``h w 3`` RGB) and one map per task it is labelled for."""

Batch = dict[str, Any]
"""A collated batch: ``image``, one map per task, ``labeled``, ``valid`` and ``id`` (contracts.md, Batch).

On its way to the device a datamodule adds ``labeled_indices`` and ``unlabeled_indices`` by task. With pseudo-labels on
disk also ``pseudo_labels``: a ``PseudoLabel`` by task, of which the unlabeled images count.
"""


class MapTransform(Protocol):
    """What transforms have to know about a map: every ``Task`` does for its own."""

    @property
    def name(self) -> str:
        """Key of the map."""

    @property
    def guides_crop(self) -> bool:
        """Whether it steers the choice of crops."""

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror it left to right."""

    def rescale_values(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Correct its values after enlarging."""

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """A map of nothing."""

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Last word on it."""


class SampleIndex(NamedTuple):
    """One item of a sampler. The epoch rides along, so that augmentation never depends on the worker that does it.

    Attributes:
        dataset_index: In the dataset.
        epoch: Epoch the image is drawn for.
        is_padding: True for an image that only fills up a rank's share of an evaluation: it counts as unlabelled.
    """

    dataset_index: int
    epoch: int = 0
    is_padding: bool = False


def to_sample(arrays: Arrays, valid: np.ndarray, tasks: Sequence[Task], name: str) -> Batch:
    """Turn one image's arrays into tensors; tasks without an array become entirely missing.

    Args:
        arrays: Image and labelled maps, all ``h w``.
        valid: bool ``h w``, False on padding.
        tasks: The run's tasks.
        name: The image's id.

    Returns:
        A batch without its batch axis.
    """
    image = arrays["image"]
    height, width = image.shape[:2]
    pixels = to_chw_tensor(image)
    sample: Batch = {
        "image": pixels / 255 if pixels.dtype == torch.uint8 else pixels.float(),
        "labeled": {task.name: torch.tensor(task.name in arrays) for task in tasks},
        "valid": torch.from_numpy(valid),
        "id": name,
    }
    for task in tasks:
        array = arrays.get(task.name)
        sample[task.name] = to_target(task.empty_target(height, width) if array is None else array, task)
    return sample


def to_target(array: np.ndarray, task: Task) -> Tensor:
    """A numpy map as a batch holds it: int64 ``h w`` or float32 ``c h w``."""
    if task.field_channels is None:
        return torch.from_numpy(array.astype(np.int64))
    return to_chw_tensor(np.asarray(array, np.float32))


def to_chw_tensor(array: np.ndarray) -> Tensor:
    """An array ``h w`` or ``h w c`` as a new tensor ``c h w``."""
    if array.ndim == 2:
        return torch.from_numpy(array[None].copy())
    apart = np.empty((array.shape[2], *array.shape[:2]), array.dtype)
    cv2.split(array, list(apart))  # several times as quick as numpy's transposed copy
    return torch.from_numpy(apart)


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack samples of one size into a batch."""
    first = samples[0]
    nested = ("labeled", "pseudo_labels", "id")
    batch: Batch = {key: torch.stack([s[key] for s in samples]) for key in first if key not in nested}
    batch["labeled"] = {task: torch.stack([s["labeled"][task] for s in samples]) for task in first["labeled"]}
    if "pseudo_labels" in first:
        pairs = {task: [s["pseudo_labels"][task] for s in samples] for task in first["pseudo_labels"]}
        batch["pseudo_labels"] = {
            task: PseudoLabel(*map(torch.stack, zip(*pair, strict=True))) for task, pair in pairs.items()
        }
    batch["id"] = [s["id"] for s in samples]
    return batch


def labeled_indices(batch: Batch) -> dict[str, Tensor]:
    """Positions of the labelled images in a batch, by task."""
    return {task: labeled.nonzero()[:, 0] for task, labeled in batch["labeled"].items()}


def unlabeled_indices(batch: Batch) -> dict[str, Tensor]:
    """Positions of the images in a batch that lack the label, by task."""
    return {task: (~labeled).nonzero()[:, 0] for task, labeled in batch["labeled"].items()}
