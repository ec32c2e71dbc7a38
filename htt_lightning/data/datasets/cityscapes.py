"""Cityscapes with 7 or 19 classes and inverse depth, in the ``.npy`` archive of MTAN or from the hub.

The archive is that of https://github.com/lorenmt/mtan.

Cite M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. The dataset has its
own license, which allows research and asks for registration; no part of it comes with this package. Class count, bins
and thresholds are those of the official release, which has no working configuration for Cityscapes.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from htt_lightning.data.datamodule import Split
from htt_lightning.data.datasets.file_dataset import FileDataModule, FileDataset
from htt_lightning.data.datasets.npy_tree import DEPTH, IMAGE, FileFormat, NpyTree, class_format
from htt_lightning.data.datasets.parquet import HubRepo, ParquetDataset, find_shards
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
"""Class names in the order of their indices: categories, or train ids."""

REPO = "tanganke/cityscapes"
"""The same images and labels in Parquet shards; no commit of it is pinned."""

SEGMENTATION: Mapping[int, str] = MappingProxyType({7: "segmentation", 19: "segmentation_19"})
"""Column of the Parquet shards by number of classes."""


class Cityscapes(NpyTree):
    """One split of Cityscapes with the tasks semseg and depth, which is inverse depth.

    Args:
        root: The folder ``cityscapes``, or its parent.
        split: ``train`` or ``val``.
        classes: Number of classes, 7 or 19.
        uniform_size: True if ``check`` rejects images that differ in size.
    """

    folder_name = "cityscapes"
    num_images: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "depth")
    expected_layout = """\
cityscapes/
    train/                  2975 samples, named by an integer
        image/0.npy ...     float h w 3, RGB in [0, 1]
        label_7/0.npy ...   float or integer h w, classes 0 to 6, -1 where missing; label/ will do as well
        label_19/0.npy ...  float or integer h w, classes 0 to 18, -1 where missing
        depth/0.npy ...     float h w 1 or h w, inverse depth, 0 where missing
    val/                    500 samples, the same folders
Of the two folders of classes, the one that data.classes names is enough.
Or a folder of the shards train-*.parquet and val-*.parquet, or `--data.root hub`, which downloads them."""

    def __init__(self, root: str | Path, split: str, classes: Literal[7, 19] = 7, uniform_size: bool = True) -> None:
        self.classes, self.title = classes, f"Cityscapes with {classes} classes"
        super().__init__(root, split, uniform_size)

    def file_formats(self) -> Mapping[str, FileFormat]:
        """Return the formats of images, classes and inverse depth."""
        labels = f"label_{self.classes}"
        if self.classes == 7 and (self.folder / "label").is_dir() and not (self.folder / labels).is_dir():
            labels = "label"
        return {"image": IMAGE, "semseg": class_format(labels, self.classes), "depth": DEPTH}


class CityscapesDataModule(FileDataModule):
    """Cityscapes: 2975 training and 500 validation images of 128 x 256.

    Args:
        root: Folder with ``train/`` and ``val/``, or the parent of ``cityscapes/``; a folder of Parquet shards; or
            ``hub``, which downloads them from ``tanganke/cityscapes``.
        classes: Number of classes, 7 or 19.
        revision: Commit of ``tanganke/cityscapes`` to read. None is fixed: the default is the branch ``main``, which
            can change, and a warning names its commit.
        **kwargs: Arguments of ``PartialLabelDataModule``.

    Raises:
        ConfigError: ``classes`` is another number.
    """

    def __init__(self, root: str, classes: Literal[7, 19] = 7, revision: str = "main", **kwargs: Any) -> None:
        if classes not in CLASSES:
            raise ConfigError(f"data.classes must be 7 or 19, got {classes}.")
        self.classes, self.repo = classes, HubRepo(REPO, revision)
        super().__init__(root, **kwargs)

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks in the order of the published mask, with the released bins and thresholds."""
        semseg = SemSeg(classes=CLASSES[self.classes], confidence_threshold=0.95)
        return [semseg, InverseDepth(confidence_threshold=0.95)]

    def open_split(self, split: Split, uniform_size: bool) -> FileDataset:
        """Open a split of the shards or of the tree."""
        if shards := find_shards(self.root, split, self.repo):
            columns = {"image": IMAGE, "semseg": class_format(SEGMENTATION[self.classes], self.classes), "depth": DEPTH}
            return ParquetDataset(shards, columns, Cityscapes.num_images[split], uniform_size)
        return Cityscapes(self.root, split, self.classes, uniform_size)
