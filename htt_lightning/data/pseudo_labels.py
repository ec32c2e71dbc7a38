"""Pseudo-labels on disk: the command ``discover`` writes them, training reads them.

A store is a folder with ``manifest.json`` and ``maps/<id>.npz``. The manifest has the origin of each label. The archive
of an image holds its labels that are discovered or from outside: the map under the task's name and its confidence
(uint8, 255 is 1) under ``<task>.confidence``. The manifest names the pseudo-labels that a person has rejected. Training
does without them.
"""

import json
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import torch

from htt_lightning.data.batch import Arrays, MapTransform, to_target
from htt_lightning.data.origin import Origin
from htt_lightning.errors import ConfigError, DataError
from htt_lightning.io.files import atomic_path, is_outside, write_text
from htt_lightning.tasks import PseudoLabel, Task

FORMAT = 2
"""Version of the manifest."""

MAX_CONFIDENCE = 255
"""Confidence 1 on disk."""


class PseudoLabelStore:
    """The pseudo-labels of a dataset's training images in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest_path = folder, folder / "manifest.json"

    def path(self, name: str) -> Path:
        """Return the path of an image's archive; raise a ``DataError`` if the id points outside the folder."""
        path = self.folder / "maps" / f"{name}.npz"
        if is_outside(path, self.folder):
            raise DataError(f"The image id must stay in {self.folder}, got {name!r} for {path}.")
        return path

    def manifest(self) -> dict[str, Any]:
        """Read the manifest, as ``write_manifest`` describes it."""
        try:
            manifest: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            checkpoint = manifest["checkpoint"]
            if manifest["format"] != FORMAT or not (checkpoint is None or isinstance(checkpoint["sha256"], str)):
                raise ValueError(f"not a manifest of format {FORMAT}")
            teachers = manifest.get("teachers", {}).values()
            parts = (manifest["dataset"]["tasks"], *manifest["images"].values(), *teachers)
            if not all(isinstance(part, dict) for part in parts):
                raise ValueError("its tasks, images and teachers must be objects")
            for name, origins in manifest["images"].items():
                manifest["images"][name] = {task: Origin(origin) for task, origin in origins.items()}
            rejected = manifest.get("rejected", {}).values()
            if not all(isinstance(tasks, list) and all(isinstance(task, str) for task in tasks) for tasks in rejected):
                raise ValueError("its rejected labels must be lists of tasks by image")
        except FileNotFoundError as error:
            message = f"data.pseudo_labels must be a folder with manifest.json, got {self.folder}. Run discover first."
            raise DataError(message, missing_path=self.manifest_path) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.manifest_path} is corrupt ({error}). Run discover again.") from error
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest.

        Args:
            manifest: ``dataset`` (a fingerprint), ``checkpoint`` (of the network that made them, or null), ``images``
                (by id and task the origin of the label) and perhaps ``teachers`` (those from outside, by task) and
                ``rejected`` (by id the tasks whose pseudo-label is left out).
        """
        write_text(self.manifest_path, json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n")

    def rejected(self) -> dict[str, list[str]]:
        """Read the tasks whose pseudo-label is rejected, by image id; a folder without manifest has none."""
        return self.manifest().get("rejected", {}) if self.manifest_path.is_file() else {}

    def summary(self, images: Container[str] | None = None, tasks: Container[str] | None = None) -> str:
        """Count the pseudo-labels that are not rejected by task, in one line, and the rejected ones in another.

        The first line counts those of the images and tasks of a run; by default of all.
        """
        manifest = self.manifest()
        usable = {name: own for name, own in usable_origins(manifest).items() if images is None or name in images}
        counts = Counter(task for own in usable.values() for task in own if tasks is None or task in tasks)
        rejected = sum(map(len, manifest.get("rejected", {}).values()))
        used = f"Pseudo-labels of {self.folder}: {', '.join(f'{task} {n}' for task, n in counts.items()) or 'none'}"
        return used + (f"\n{rejected} rejected pseudo-labels of {self.folder} are left out." if rejected else "")

    def set_rejected(self, name: str, task: str, rejected: bool = True) -> None:
        """Reject an image's pseudo-label in the manifest, so that training does without it, or keep it again.

        Raises:
            ConfigError: The image has no pseudo-label of the task.
        """
        manifest = self.manifest()
        if task not in stored_tasks(manifest["images"].get(name, {})):
            raise ConfigError(f"Only a pseudo-label of {self.folder} can be rejected, got {task} of image {name!r}.")
        images: dict[str, list[str]] = manifest.pop("rejected", {})
        tasks = {*images.pop(name, []), task} if rejected else {*images.pop(name, [])} - {task}
        images |= {name: sorted(tasks)} if tasks else {}
        self.write_manifest(manifest | ({"rejected": images} if images else {}))

    def write(self, name: str, maps: Mapping[str, tuple[Task, np.ndarray, np.ndarray]]) -> None:
        """Write an image's archive: by task the ``Task``, a label as datasets return it, and its confidence ``h w``."""
        arrays: Arrays = {}
        for key, (task, label, confidence) in maps.items():
            arrays[key] = task.compress(label)
            arrays[ConfidenceMap(task).name] = np.rint(confidence * MAX_CONFIDENCE).astype(np.uint8)
        # numpy's own compression takes more than twice as long for files of the same size.
        with atomic_path(self.path(name)) as partial, ZipFile(partial, "w", ZIP_DEFLATED, compresslevel=1) as archive:
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)

    def read(self, name: str, tasks: Sequence[Task], size: tuple[int, int] | None = None) -> Arrays:
        """Read labels and confidences of an image, named as ``PseudoLabelMap`` and ``ConfidenceMap``.

        Tasks without pseudo-labels are left out. Labels must have the height and width ``size``, if it is given.
        """
        arrays = Arrays()
        tasks = [task for task in tasks if task.supports_pseudo_labels]
        if not tasks:
            return arrays
        with self._open_archive(name) as archive:
            for task in tasks:
                stored, confidence = archive[task.name], archive[ConfidenceMap(task).name]
                _check_archive(task, stored, confidence, size)
                arrays[PseudoLabelMap(task).name] = task.decompress(stored)
                arrays[ConfidenceMap(task).name] = confidence.astype(np.float32) / MAX_CONFIDENCE
        return arrays

    def mean_confidences(self, name: str, tasks: Sequence[str]) -> dict[str, float]:
        """Read the mean confidences in [0, 1] of an image's pseudo-labels, by the name of their task."""
        with self._open_archive(name) as archive:
            return {task: archive[f"{task}.confidence"].mean() / MAX_CONFIDENCE for task in tasks}

    @contextmanager
    def _open_archive(self, name: str) -> Iterator[Mapping[str, np.ndarray]]:
        """Open an image's archive; any error in reading it becomes a ``DataError`` that names the file."""
        path = self.path(name)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                yield archive
        except Exception as error:  # corrupt archives raise errors of many types
            raise DataError(f"{path} is missing or corrupt ({error}). Run discover again.") from error

    def check(self, labels: Mapping[str, Collection[str]], tasks: Sequence[Task], dataset: Mapping[str, Any]) -> None:
        """Raise a ``DataError`` if the store is of another dataset or lacks a pseudo-label.

        Args:
            labels: Names of the tasks with a given or derived label, by image id.
            tasks: Tasks of the run.
            dataset: ``fingerprint`` of the dataset.
        """
        manifest = self.manifest()
        rejected, stored = manifest.get("rejected", {}), manifest["dataset"]
        stored_names = pseudo_label_tasks(manifest)
        tasks = [task for task in tasks if task.name in stored_names]
        changed = [key for key, value in dataset.items() if key != "tasks" and stored.get(key) != value]
        changed += [name for name, task in dataset["tasks"].items() if stored["tasks"].get(name) != task]
        if changed:
            advice = "Give the options of data that discover had, or run discover again into another folder."
            raise DataError(f"{self.folder} must be of this dataset, but {', '.join(changed)} differ. {advice}")
        for name, labeled in labels.items():
            missing = [task.name for task in tasks if task.name not in labeled]
            stored_labels = stored_tasks(manifest["images"].get(name, {}))
            for task in missing:
                if task not in stored_labels:
                    advice = "See data.labels and data.derive."
                    raise DataError(f"{self.folder} has no pseudo-label of {task} for image {name!r}. {advice}")
            if {*missing} - {*rejected.get(name, ())} and not self.path(name).is_file():
                raise DataError(f"{self.path(name)} is missing. Run discover again; it resumes where it stopped.")


def pseudo_label_tasks(manifest: Mapping[str, Any]) -> set[str]:
    """Return the tasks that have pseudo-labels, by a manifest; labels of others stay missing."""
    return {task for origins in manifest["images"].values() for task in stored_tasks(origins)}


def usable_origins(manifest: Mapping[str, Any]) -> dict[str, dict[str, Origin]]:
    """Return the origins of the pseudo-labels that are not rejected, by image id and task, by a manifest."""
    rejected = manifest.get("rejected", {})
    return {
        name: {task: origins[task] for task in stored_tasks(origins) if task not in rejected.get(name, ())}
        for name, origins in manifest["images"].items()
    }


def stored_tasks(origins: Mapping[str, Origin]) -> list[str]:
    """Return the tasks of an image, by their origins, whose pseudo-label its archive holds."""
    return [task for task, origin in origins.items() if origin.is_stored]


def _check_archive(task: Task, stored: np.ndarray, confidence: np.ndarray, size: tuple[int, int] | None) -> None:
    empty = task.empty_target(1, 1)
    expected = task.compress(empty if task.field_channels is None else np.zeros_like(empty))
    height, width = size or stored.shape[:2]
    if (stored.dtype, stored.shape) != (expected.dtype, (height, width, *expected.shape[2:])):
        raise ValueError(f"{task.name} is {stored.dtype} {stored.shape}")
    if confidence.dtype != np.uint8 or confidence.shape != (height, width) or not confidence.size:
        raise ValueError(f"the confidence of {task.name} is {confidence.dtype} {confidence.shape}")
    if stored.max() >= len(task.class_names) if task.field_channels is None else not np.isfinite(stored).all():
        raise ValueError(f"{task.name} has values that are not allowed")


class PseudoLabelMap:
    """A pseudo-label in transforms, transformed like the labels of its task."""

    guides_crop = False

    def __init__(self, task: Task) -> None:
        self.name = f"{task.name}.pseudo_label"
        self.flip, self.rescale_values, self.empty_target = task.flip, task.rescale_values, task.empty_target

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Return the map itself; unlike a label it may be all background."""
        return array


class ConfidenceMap(PseudoLabelMap):
    """The confidence of a pseudo-label in transforms: float32 ``h w`` in [0, 1], 0 on padding."""

    def __init__(self, task: Task) -> None:
        self.name = f"{task.name}.confidence"

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Flip left to right."""
        return np.ascontiguousarray(array[:, ::-1])

    def rescale_values(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Return the map itself."""
        return array

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """Return a confidence of 0."""
        return np.zeros((height, width), np.float32)


def with_pseudo_label_maps(tasks: Sequence[Task]) -> list[MapTransform]:
    """Return the labels, pseudo-labels and confidences of tasks, as transforms take them."""
    return [*tasks, *(PseudoLabelMap(task) for task in tasks), *(ConfidenceMap(task) for task in tasks)]


def to_pseudo_label(arrays: Arrays, task: Task, size: tuple[int, int]) -> PseudoLabel:
    """Convert a transformed pseudo-label without missing pixels to tensors; without one, the confidence is 0."""
    label = arrays.get(PseudoLabelMap(task).name, np.zeros_like(task.empty_target(*size)))
    confidence = arrays.get(ConfidenceMap(task).name, np.zeros(size, np.float32))
    return PseudoLabel(to_target(label, task).nan_to_num(0), torch.from_numpy(np.ascontiguousarray(confidence)))
