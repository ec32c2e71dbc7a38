"""Review of a completed dataset: its images by confidence, panels of their labels, and rejections."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock

import numpy as np

from htt_lightning.callbacks.panel import PanelEntry, draw_label, draw_map, draw_panel, task_legend, to_uint8
from htt_lightning.data.batch import Arrays, to_chw_tensor, to_target
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import ConfidenceMap, PseudoLabelMap, PseudoLabelStore, pseudo_label_tasks
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resize
from htt_lightning.io.progress import track
from htt_lightning.tasks.colormap import heatmap

Cells = dict[str, np.ndarray | str]
"""Drawn maps by task; a text stands for a map that there is not."""


class Review:
    """Images of a completed dataset with given, discovered and true labels.

    Args:
        store: Folder that the command ``discover`` has written.
        datamodule: Dataset that it was written for.

    Attributes:
        tasks: Tasks of the dataset that have pseudo-labels in the folder.
        confidences: Mean confidence of each discovered label, by image id and task.

    Raises:
        HTTError: The folder is of another dataset, or files are missing or corrupt.
    """

    def __init__(self, store: PseudoLabelStore, datamodule: PartialLabelDataModule) -> None:
        self.store, self.image_size = store, datamodule.image_size
        self.dataset, self.derived = datamodule.build_dataset("train"), datamodule.derived
        self.origins = datamodule.origins_per_image(self.dataset)
        store.check(self.origins, datamodule.tasks, datamodule.fingerprint())
        manifest = store.manifest()
        stored, self._stored = pseudo_label_tasks(manifest), manifest["images"]
        self.tasks = [task for task in datamodule.tasks if task.name in stored]
        self._indices = {name: index for index, name in enumerate(self.dataset.ids)}
        self._available = {task.name: self.dataset.available(task.name) for task in self.tasks}
        self._rejected, self._lock = manifest.get("rejected", {}), Lock()
        self.confidences = self._read_confidences()

    def order(self, task: str | None = None) -> list[str]:
        """Sort the ids of the images with discovered labels by mean confidence, lowest first.

        Args:
            task: Task whose labels count; by default the mean over an image's labels does.
        """
        found = {
            name: values[task] if task else sum(values.values()) / len(values)
            for name, values in self.confidences.items()
            if not task or task in values
        }
        return sorted(found, key=found.__getitem__)

    def is_rejected(self, name: str, task: str) -> bool:
        """Return whether a discovered label is rejected."""
        return task in self._rejected.get(name, ())

    @property
    def num_rejected(self) -> int:
        """The number of rejected labels."""
        return sum(map(len, self._rejected.values()))

    def set_rejected(self, name: str, task: str, rejected: bool) -> None:
        """Reject a discovered label or keep it again, in the manifest of the completed dataset."""
        with self._lock:  # one click after another, as each rewrites the manifest
            self.store.set_rejected(name, task, rejected)
            self._rejected = self.store.rejected()

    def draw(self, name: str) -> np.ndarray:
        """Draw an image beside its given, discovered and true labels and the confidences, uint8 ``h w 3``."""
        index = self._indices[name]
        image = self.dataset.image(index)
        size = self.image_size or (image.shape[0], image.shape[1])
        picture = to_uint8(to_chw_tensor(resize(image, size)))
        given = [task for task, origin in self.origins[name].items() if origin is Origin.GIVEN]
        labels = {task: self.dataset.label(index, task) for task in given}
        rows = {"given": dict.fromkeys((task.name for task in self.tasks), "no label") | self._draw(labels, size)}
        if self.derived.derivations:
            derived = self.derived.derive(labels, self.dataset.camera_of(index), self.image_size)
            rows["derived"] = self._origin_cells(name) | self._draw(derived, size)
        rows |= {**self._discovered(name), "true": self._true(name, size)}
        legend = task_legend(self.tasks, [PanelEntry(name, picture, [*rows.items()])])
        headers = {task.name: task.name + self._remark(name, task.name) for task in self.tasks}
        headed = [(title, {headers[task]: cell for task, cell in row.items()}) for title, row in rows.items()]
        return draw_panel([PanelEntry(f"image {name}", picture, headed)], legend)

    def _remark(self, name: str, task: str) -> str:
        """Return what the header of a task says of its pseudo-label."""
        is_outside = self._stored[name].get(task) is Origin.OUTSIDE
        return " (from outside)" * is_outside + " (rejected)" * self.is_rejected(name, task)

    def _read_confidences(self) -> dict[str, dict[str, float]]:
        discovered = {
            name: [task.name for task in self.tasks if task.name not in origins]
            for name, origins in self.origins.items()
            if self.store.path(name).is_file()
        }
        discovered = {name: tasks for name, tasks in discovered.items() if tasks}
        with ThreadPoolExecutor() as pool:
            values = pool.map(self.store.mean_confidences, discovered, discovered.values())
            title = f"Reading the confidences of {len(discovered)} images"
            return dict(zip(discovered, track(values, title, len(discovered)), strict=True))

    def _origin_cells(self, name: str) -> Cells:
        """Return the origin of each label of an image before discovery, or that there is none."""
        return {task.name: str(self.origins[name].get(task.name, "no label")) for task in self.tasks}

    def _true(self, name: str, size: tuple[int, int]) -> Cells:
        """Draw the labels that the mask hides from training, where the dataset has them."""
        cells, index = Cells(), self._indices[name]
        for task in self.tasks:
            is_given = self.origins[name].get(task.name) is Origin.GIVEN
            cells[task.name] = "given" if is_given else "no label"
            if not is_given and self._available[task.name][index]:
                with suppress(HTTError):  # a hidden label need not exist
                    cells |= self._draw({task.name: self.dataset.label(index, task.name)}, size)
        return cells

    def _discovered(self, name: str) -> dict[str, Cells]:
        """Draw the discovered labels and their confidences."""
        missing = [task for task in self.tasks if task.name not in self.origins[name]]
        arrays = self.store.read(name, missing)
        labels = self._origin_cells(name)
        confidences = labels.copy()
        for task in missing:
            labels[task.name] = draw_map(task, to_target(arrays[PseudoLabelMap(task).name], task))
            confidence = to_chw_tensor(arrays[ConfidenceMap(task).name])
            confidences[task.name] = to_uint8(heatmap(confidence)[0])
        return {"discovered": labels, "confidence": confidences}

    def _draw(self, labels: Arrays, size: tuple[int, int]) -> Cells:
        return {task.name: draw_label(task, labels[task.name], size) for task in self.tasks if task.name in labels}


def describe(review: Review, name: str, place: int, count: int) -> str:
    """Describe an image in Markdown: its place in the order, and the confidence of its discovered labels."""
    values: Mapping[str, float] = review.confidences[name]
    words = [
        f"{task} {value:.2f}" + " (rejected)" * review.is_rejected(name, task)
        for task, value in sorted(values.items(), key=lambda item: item[1])
    ]
    return (
        f"**{place + 1} of {count}** · mean confidence of discovered labels: {', '.join(words)} · "
        f"{review.num_rejected} rejected in all images"
    )
