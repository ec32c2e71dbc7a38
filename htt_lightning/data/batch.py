"""Samples, batches, and the conversion of numpy maps to tensors; ``default_collate`` of torch stacks samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from htt_lightning.data.origin import NO_LABEL, Origin
from htt_lightning.tasks import Task

Arrays = dict[str, np.ndarray]
"""An image (``image``, RGB ``h w 3``, uint8 or float32 in [0, 1]) and one map per labeled task."""

Batch = dict[str, Any]
"""Collated samples.

- ``image``: float32 ``b 3 h w``, RGB in [0, 1].
- One target per task: int64 ``b h w``, or float32 ``b c h w``; entirely missing where an image is not labeled.
- ``labeled``: bool ``b`` by task. ``valid``: bool ``b h w``, False on padding. ``id``: list of image ids.
- ``origin``: int64 ``b`` by task, the ``Origin.code`` of the label, -1 without one. ``labeled`` is True for given and
  derived labels. ``label_weights``: float32 ``b`` by task, the weight of the label by its origin, if there are weights.
- ``labeled_indices`` and ``unlabeled_indices``: indices into the batch by task, added by the datamodule.
- ``pseudo_labels``: a ``PseudoLabel`` by task, if the datamodule reads them; those of labeled images do not count.
"""


class MapTransform(Protocol):
    """The part of a ``Task`` that transforms use."""

    @property
    def name(self) -> str:
        """Key of the map."""

    @property
    def guides_crop(self) -> bool:
        """Whether the map guides the choice of crops."""

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Flip a map and its values left to right."""

    def rescale_values(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Adapt the values of a map to its enlargement."""

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """Return a map that is entirely missing."""

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Finish a transformed map."""


class SampleIndex(NamedTuple):
    """Item of a sampler, with the epoch of the augmentation; an image that only pads a rank's share is unlabeled."""

    dataset_index: int
    epoch: int = 0
    is_padding: bool = False


def to_sample(arrays: Arrays, valid: np.ndarray, tasks: Sequence[Task], name: str) -> Batch:
    """Convert the arrays of one image to a batch without its batch axis; unlabeled tasks get a missing target."""
    height, width = valid.shape
    pixels = to_chw_tensor(arrays["image"])
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
    """Convert a map to a target: int64 ``h w`` for index maps, float32 ``c h w`` for fields."""
    if task.field_channels is None:
        return torch.from_numpy(array.astype(np.int64))
    return to_chw_tensor(np.asarray(array, np.float32))


def to_chw_tensor(array: np.ndarray) -> Tensor:
    """Copy an array ``h w`` or ``h w c`` to a tensor ``c h w``."""
    if array.ndim == 2:
        return torch.from_numpy(array[None].copy())
    channels = np.empty((array.shape[2], *array.shape[:2]), array.dtype)
    cv2.split(array, list(channels))  # several times faster than numpy's transposed copy
    return torch.from_numpy(channels)


def label_weights(batch: Batch, task: str) -> Tensor:
    """Return the weights ``b`` of the labels of a task by their origin, 1 without weights."""
    if "label_weights" in batch:
        return cast(Tensor, batch["label_weights"][task])
    return torch.ones_like(batch["labeled"][task], dtype=torch.float32)


def origin_of(batch: Batch, task: str, index: int) -> Origin | None:
    """Return the origin of the label of an image in a batch; None without a label, or in a batch without origins."""
    code = int(batch["origin"][task][index]) if "origin" in batch else NO_LABEL
    return None if code == NO_LABEL else [*Origin][code]


def labeled_indices(batch: Batch) -> dict[str, Tensor]:
    """Return the indices of the labeled images of a batch, by task: those that the loader found, if it did."""
    return batch.get("labeled_indices") or {task: labeled.nonzero()[:, 0] for task, labeled in batch["labeled"].items()}


def unlabeled_indices(batch: Batch) -> dict[str, Tensor]:
    """Return the indices of the unlabeled images of a batch, by task: those that the loader found, if it did."""
    return batch.get("unlabeled_indices") or {
        task: (~labeled).nonzero()[:, 0] for task, labeled in batch["labeled"].items()
    }


def unpadded_window(valid: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of an image without its padding, from bool ``h w``."""
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
