"""Discovered labels on disk: what ``discover`` writes and training reads beside the labels there are.

A completed dataset is a folder with ``manifest.json`` and ``maps/<id>.npz``. An archive holds, for every task its image
has no label of, the discovered map under the task's name and its confidence (uint8, 255 is certain) under
``<task>.confidence``. Given labels stay where they are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from htt_lightning.data.batch import Arrays, MapTransform, to_target
from htt_lightning.errors import HTTError
from htt_lightning.io.files import atomic_path, is_outside
from htt_lightning.tasks import PseudoLabel, Task

FORMAT = 1
"""Version of the manifest."""

MAX_CONFIDENCE = 255
"""Confidence 1 on disk."""


class PseudoLabelStore:
    """The discovered labels of a dataset's training images.

    Args:
        folder: Where they are, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def manifest_path(self) -> Path:
        """What the folder holds and where it comes from."""
        return self.folder / "manifest.json"

    def path(self, name: str) -> Path:
        """The archive of an image.

        Raises:
            HTTError: Its id would lead out of the folder.
        """
        path = self.folder / "maps" / f"{name}.npz"
        if is_outside(path, self.folder):
            raise HTTError(f"Image id {name!r} leads out of {self.folder}, to {path}.")
        return path

    def manifest(self) -> dict[str, Any]:
        """The manifest as read.

        Raises:
            HTTError: It is missing or damaged.
        """
        try:
            manifest: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT or not isinstance(manifest["checkpoint"]["sha256"], str):
                raise ValueError(f"not a manifest of format {FORMAT}")
            if not all(isinstance(part, dict) for part in (manifest["dataset"]["tasks"], *manifest["images"].values())):
                raise ValueError("its tasks and images must be objects")
        except FileNotFoundError as error:
            raise HTTError(f"{self.folder} has no manifest.json; write it with the command discover.") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HTTError(f"{self.manifest_path} is damaged ({error}); write it again with discover.") from error
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest as a whole or not at all."""
        with atomic_path(self.manifest_path) as partial:
            partial.write_text(json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n", encoding="utf-8")

    def write(self, name: str, maps: Mapping[str, tuple[Task, np.ndarray, np.ndarray]]) -> None:
        """Write an image's archive as a whole or not at all.

        Args:
            name: The image's id.
            maps: By task name: the task, its discovered map as a dataset stores one, and the confidence ``h w``.
        """
        arrays: Arrays = {}
        for key, (task, label, confidence) in maps.items():
            arrays[key] = task.compress(label)
            arrays[ConfidenceMap(task).name] = np.rint(confidence * MAX_CONFIDENCE).astype(np.uint8)
        with atomic_path(self.path(name)) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def read(self, name: str, tasks: Sequence[Task], size: tuple[int, int] | None = None) -> Arrays:
        """Discovered maps, as a dataset stores labels, and confidences, float32 ``h w`` in [0, 1].

        Args:
            name: The image's id.
            tasks: The tasks wanted, of which those count that discover labels; for none, nothing is read.
            size: ``(h, w)`` that they must have; None for any.

        Returns:
            Arrays under the names of ``PseudoLabelMap`` and ``ConfidenceMap``.

        Raises:
            HTTError: The archive is missing or damaged, lacks a task, or holds what was not discovered for it.
        """
        path, arrays = self.path(name), Arrays()
        tasks = [task for task in tasks if task.supports_pseudo_labels]
        if not tasks:
            return arrays
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                for task in tasks:
                    stored, confidence = archive[task.name], archive[ConfidenceMap(task).name]
                    _check_archive(task, stored, confidence, size)
                    arrays[PseudoLabelMap(task).name] = task.decompress(stored)
                    arrays[ConfidenceMap(task).name] = confidence.astype(np.float32) / MAX_CONFIDENCE
        except Exception as error:  # a damaged archive fails in many ways
            raise HTTError(f"{path} is missing, damaged or lacks a task ({error}); run discover again.") from error
        return arrays

    def check(self, labels: Mapping[str, Sequence[str]], tasks: Sequence[Task], source: Mapping[str, Any]) -> None:
        """Raise an ``HTTError`` unless every image has what it lacks, before any training time is lost.

        Args:
            labels: Names of the tasks each image keeps its label of, by image id.
            tasks: The run's tasks.
            source: The ``fingerprint`` of the dataset.
        """
        manifest = self.manifest()
        differ = [key for key, value in source.items() if key != "tasks" and manifest["dataset"].get(key) != value]
        differ += [name for name, task in source["tasks"].items() if manifest["dataset"]["tasks"].get(name) != task]
        if differ:
            raise HTTError(f"{self.folder} was written for another dataset: its {', '.join(differ)} differ.")
        for name, given in labels.items():
            lacking = [task.name for task in tasks if task.name not in given and task.supports_pseudo_labels]
            for task in lacking:
                if manifest["images"].get(name, {}).get(task) != "pseudo_label":
                    raise HTTError(f"{self.folder} has no discovered {task} of image {name!r}; see data.labels.")
            if lacking and not self.path(name).is_file():
                raise HTTError(f"{self.path(name)} is missing; run discover again, it goes on where it stopped.")


def _check_archive(task: Task, stored: np.ndarray, confidence: np.ndarray, size: tuple[int, int] | None) -> None:
    """Raise a ``ValueError`` for arrays that ``write`` has not written for a task."""
    packed = task.compress(
        task.empty_target(1, 1) if task.field_channels is None else np.zeros_like(task.empty_target(1, 1))
    )
    height, width = size or stored.shape[:2]
    if (stored.dtype, stored.shape) != (packed.dtype, (height, width, *packed.shape[2:])):
        raise ValueError(f"{task.name} is {stored.dtype} {stored.shape}")
    if confidence.dtype != np.uint8 or confidence.shape != (height, width) or not confidence.size:
        raise ValueError(f"the confidence of {task.name} is {confidence.dtype} {confidence.shape}")
    if stored.max() >= len(task.class_names) if task.field_channels is None else not np.isfinite(stored).all():
        raise ValueError(f"{task.name} holds what is no value of it")


class PseudoLabelMap:
    """A discovered map in transforms: it moves as its task's given labels do.

    Args:
        task: Its task.
    """

    guides_crop = False

    def __init__(self, task: Task) -> None:
        self.task, self.name = task, f"{task.name}.pseudo_label"
        self.flip, self.rescale_values, self.empty_target = task.flip, task.rescale_values, task.empty_target

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Nothing to settle: a discovered map may well be all background."""
        return array


class ConfidenceMap:
    """The confidence in a discovered map: float32 ``h w``, 0 on padding.

    Args:
        task: Its task.
    """

    guides_crop = False

    def __init__(self, task: Task) -> None:
        self.name = f"{task.name}.confidence"

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror it left to right."""
        return np.ascontiguousarray(array[:, ::-1])

    def rescale_values(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Enlarging makes nothing more certain."""
        return array

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """No confidence."""
        return np.zeros((height, width), np.float32)

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Nothing to settle."""
        return array


def with_pseudo_label_maps(tasks: Sequence[Task]) -> list[MapTransform]:
    """Given labels, discovered maps and confidences of tasks, as transforms take them."""
    return [*tasks, *(PseudoLabelMap(task) for task in tasks), *(ConfidenceMap(task) for task in tasks)]


def to_pseudo_label(arrays: Arrays, task: Task, size: tuple[int, int]) -> PseudoLabel:
    """A transformed discovered map as tensors; where there is none, or padding, any label with confidence 0.

    Args:
        arrays: What the transforms have returned.
        task: The task.
        size: ``(h, w)`` of the transformed image.

    Returns:
        A target without missing values, and ``h w`` confidence.
    """
    label = arrays.get(PseudoLabelMap(task).name, task.empty_target(*size))
    confidence = arrays.get(ConfidenceMap(task).name)
    return PseudoLabel(
        to_target(label, task).nan_to_num(0),
        torch.zeros(size) if confidence is None else torch.from_numpy(np.ascontiguousarray(confidence)),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
