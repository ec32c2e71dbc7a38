"""Cityscapes with 7 or 19 classes and inverse depth, as the npy archive of MTAN holds it (protocol.md 1.4).

Cite M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. The data set has its
own licence, which allows research and asks for registration; no part of it comes with this package.
``EXPECTED_LAYOUT`` shows the expected files. The release of the method has no working Cityscapes configuration: its
class count, bins and thresholds are used here, everything else is this library's.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import dataset_folder
from htt_lightning.data.datasets import npy_tree
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import InverseDepth, SemSeg, Task

CLASSES: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        7: ("flat", "construction", "object", "nature", "sky", "human", "vehicle"),
        19: (
            "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
            "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
        ),
    }
)  # fmt: skip
"""Class names in the order of their indices: categories, or train ids (protocol.md 1.4)."""

EXPECTED_LAYOUT = """\
cityscapes/
    train/                  2975 samples, named by an integer
        image/0.npy ...     float h w 3, RGB in [0, 1]
        label_7/0.npy ...   float or integer h w, classes 0 to 6, -1 where missing; label/ will do as well
        label_19/0.npy ...  float or integer h w, classes 0 to 18, -1 where missing
        depth/0.npy ...     float h w 1 or h w, inverse depth, 0 where missing
    val/                    500 samples, the same folders
Of the two folders of classes, the one that data.classes names is enough."""
"""The expected folders and files."""

PUBLISHED = {"train": 2975, "val": 500}
"""Number of images by split."""


class Cityscapes(npy_tree.NpyTree):
    """One split of Cityscapes with the tasks semseg and depth, which is inverse depth (protocol.md 1.4).

    Args:
        root: The folder ``cityscapes``, or the one that holds it.
        split: ``train`` or ``val``.
        classes: 7 or 19.
        uniform_size: Whether ``check`` refuses images of different sizes.
    """

    def __init__(self, root: str | Path, split: str, classes: Literal[7, 19] = 7, uniform_size: bool = True) -> None:
        title, home, labels = f"Cityscapes with {classes} classes", "cityscapes", f"label_{classes}"
        folder = dataset_folder(title, root, home, split, EXPECTED_LAYOUT) / split
        if classes == 7 and (folder / "label").is_dir() and not (folder / labels).is_dir():
            labels = "label"
        formats = {
            "image": npy_tree.image_format("image"),
            "semseg": npy_tree.class_format(labels, classes),
            "depth": npy_tree.depth_format("depth"),
        }
        super().__init__(title, root, home, split, formats, EXPECTED_LAYOUT, PUBLISHED, uniform_size)


class CityscapesDataModule(PartialLabelDataModule):
    """Cityscapes, 2975 training and 500 validation images of 128 x 256 (protocol.md 1.4).

    Args:
        root: Folder with ``train/`` and ``val/``, or the one that holds ``cityscapes/``.
        classes: 7 or 19.
        **kwargs: See ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        classes: Literal[7, 19] = 7,
        **kwargs: Any,
    ) -> None:
        if classes not in CLASSES:
            raise ConfigError(f"data.classes must be 7 or 19, got {classes}.")
        self.root, self.classes = root, classes
        super().__init__(**kwargs)

    def dataset_tasks(self) -> list[Task]:
        """In the order of the published mask's columns, with the released bins and thresholds (method.md 4)."""
        return [
            SemSeg(classes=CLASSES[self.classes], confidence_threshold=0.95),
            InverseDepth(confidence_threshold=0.95),
        ]

    def build_dataset(self, split: Split) -> Cityscapes:
        """A split of the tree."""
        return Cityscapes(self.root, split, self.classes, uniform_size=self.requires_uniform_size(split))
