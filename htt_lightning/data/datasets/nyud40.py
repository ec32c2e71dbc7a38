"""NYUD-v2 with 40 classes, in the image archive of ATRC (https://github.com/brdav/atrc) and InvPT.

Cite N. Silberman, D. Hoiem, P. Kohli and R. Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV
2012; the 40 classes are those of S. Gupta, P. Arbelaez and J. Malik, CVPR 2013. The dataset was published for research
without an explicit license, and no part of it comes with this package.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from htt_lightning.data.datamodule import Split
from htt_lightning.data.datasets.file_dataset import FileDataModule
from htt_lightning.data.datasets.id_list import IdListDataset
from htt_lightning.data.datasets.npy_tree import DEPTH
from htt_lightning.data.datasets.nyud import CAMERA as FULL_CAMERA
from htt_lightning.data.datasets.nyud import depth_task
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import DataError
from htt_lightning.io.image_files import ImageFormat, size_of
from htt_lightning.io.images import read_index, read_normals
from htt_lightning.tasks import Edges, Normals, SemSeg, Task
from htt_lightning.tasks.base import IGNORE_INDEX

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
"""The 40 classes in the order of their indices."""


CAMERA = PinholeCamera(FULL_CAMERA.focal_length, (FULL_CAMERA.center[0] - 40, FULL_CAMERA.center[1] - 44), (425, 560))
"""Camera of the images, the usual crop of 425 x 560 without the white border of the recorded ones."""


class NYUD40(IdListDataset):
    """One split of NYUD-v2 with the tasks semseg, depth, normals and edges."""

    title = "NYUD-v2 with 40 classes"
    camera = CAMERA
    folder_name = "NYUDv2"
    id_list_path = "gt_sets/{split}.txt"
    num_images: ClassVar[Mapping[str, int]] = {"train": 795, "val": 654}
    expected_layout = """\
NYUDv2/
    gt_sets/train.txt       795 image ids, one a line
    gt_sets/val.txt         654
    images/<id>.png         RGB
    segmentation/<id>.png   classes 1 to 40, 0 where missing
    depth/<id>.npy          float h w, meters, 0 where missing
    normals/<id>.png        RGB, 2 * color / 255 - 1
    edge/<id>.png           255 on edges, else 0"""
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "depth", "normals", "edges")

    def image_path(self, index: int) -> Path:
        """Return the path of an image, a PNG file."""
        return self.folder / "images" / f"{self.ids[index]}.png"

    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """Read a task's map; ``label`` resizes it to its image."""
        path = self._label_file(name, task)
        if task == "depth":
            return DEPTH.read(path)
        if task == "normals":
            return read_normals(path, size)
        stored = read_index(path)
        if task == "edges":
            if (invalid := stored[(stored != 0) & (stored != 255)]).size:
                raise DataError(f"{path} must be 255 on edges and 0 elsewhere, got {invalid[0]}.")
            return stored // 255
        if (highest := stored.max()) > len(CLASSES):
            raise DataError(f"{path} must have classes 1 to {len(CLASSES)}, or 0 where missing, got {highest}.")
        return np.where(stored > 0, stored - 1, IGNORE_INDEX).astype(np.uint8)

    def check_label(self, index: int, task: str) -> None:
        """Check the header of a label's file."""
        path = self._label_file(self.ids[index], task)
        if task == "depth":
            height, width = DEPTH.open(path).shape[:2]
        else:
            height, width = size_of(path, ImageFormat.NORMALS if task == "normals" else ImageFormat.INDEX)
        self.check_turn(index, path, (height, width))

    def _label_file(self, name: str, task: str) -> Path:
        folder = {"semseg": "segmentation", "edges": "edge"}.get(task, task)
        return self.folder / folder / f"{name}.{'npy' if task == 'depth' else 'png'}"


class NYUD40DataModule(FileDataModule):
    """NYUD-v2 with 40 classes: 795 training and 654 validation images of 425 x 560.

    Args:
        root: Folder with ``gt_sets/`` and ``images/``, or the parent of ``NYUDv2/``.
        augment: Training augmentation; by default with crops of 448 x 576, which is the size of evaluation as well.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        augment: AugmentConfig | None = AugmentConfig(crop=(448, 576)),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, augment=augment, **kwargs)

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks in canonical order, with the settings of 13 classes, and of PASCAL for edges."""
        edges = Edges(loss_weight=50, confidence_threshold=0.99, tolerance=0.011)
        return [SemSeg(classes=CLASSES), depth_task(self.labels), Normals(), edges]

    def open_split(self, split: Split, uniform_size: bool) -> NYUD40:
        """Open a split of the tree."""
        return NYUD40(self.root, split, uniform_size)
