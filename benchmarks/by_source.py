"""Two collections of rendered scenes that differ in style, each labeled for tasks of its own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from htt_lightning.data import LabelMask, MixedDataModule, SyntheticDataModule

BY_SOURCE = "by-source"
LABELED_TASKS = {"day": ("semseg", "human_parts", "saliency"), "night": ("normals", "edges", "depth")}
"""Tasks with labels by style, as if people had annotated one collection and sensors had recorded the other."""


@dataclass(frozen=True)
class Sources:
    """Both collections, with half of the training and validation scenes each.

    Attributes:
        out: Folder of the study.
        images: Number of training scenes.
        val_images: Number of validation scenes, which keep the labels of all tasks.
        size: Height and width in pixels.
        seed: Seed of the first collection; the next one has no room of it.
    """

    out: Path
    images: int
    val_images: int
    size: tuple[int, int]
    seed: int

    @property
    def mask(self) -> Path:
        """Return the file with the labels that training images keep."""
        return self.out / "masks" / f"{BY_SOURCE}-{self.images}.json"

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Return the arguments of ``SyntheticDataModule`` for every collection."""
        shared = {"labels": "full", "image_size": self.size, "cache": str(self.out / "scenes"), "num_workers": 0}
        return [
            {
                "train_images": (self.images + 1 - number) // 2,
                "val_images": (self.val_images + 1 - number) // 2,
                "scene_seed": self.seed + 10 * number,
                "style": style,
                **shared,
            }
            for number, style in enumerate(LABELED_TASKS)
        ]

    def words(self, full: bool) -> list[str]:
        """Return the arguments of ``htt`` for both collections, with all labels or those of the mask."""
        parts = [{"class_path": "SyntheticDataModule", "init_args": part} for part in self.parts]
        words = ["--data", "MixedDataModule", "--data.image_size", json.dumps(self.size)]
        return [*words, "--data.datasets", json.dumps(parts), "--data.labels", "full" if full else str(self.mask)]

    def datamodule(self, **options: Any) -> MixedDataModule:
        """Build the datamodule that these arguments describe."""
        return MixedDataModule([SyntheticDataModule(**part) for part in self.parts], self.size, **options)

    def prepare(self, workers: int) -> None:
        """Render the scenes and write the mask."""
        data = self.datamodule()
        for part in data.datasets:
            part.num_workers = workers
            part.prepare_data()
        source, tasks = data.build_dataset("train"), data.canonical_tasks
        labeled = list(LABELED_TASKS.values())
        own = np.array([[task in labeled[int(name.partition("/")[0])] for task in tasks] for name in source.ids])
        mask = LabelMask(tasks, tuple(source.ids), own & source.label_availability(tasks), BY_SOURCE)
        mask.save(self.mask)
