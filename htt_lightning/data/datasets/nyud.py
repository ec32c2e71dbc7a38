"""NYUD-v2 with 13 classes, in the ``.npy`` archive of MTAN (https://github.com/lorenmt/mtan) or from the hub.

Cite N. Silberman, D. Hoiem, P. Kohli and R. Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV
2012. The normals are those of D. Eigen and R. Fergus, ICCV 2015. The dataset was published for research without an
explicit license, and no part of it comes with this package.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from htt_lightning.data.datamodule import Split
from htt_lightning.data.datasets.file_dataset import FileDataModule, FileDataset
from htt_lightning.data.datasets.npy_tree import DEPTH, IMAGE, NORMALS, FileFormat, NpyTree, class_format
from htt_lightning.data.datasets.parquet import HubRepo, ParquetDataset, find_shards
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.masks.files import protocol_of
from htt_lightning.tasks import Depth, Normals, SemSeg, Task

CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip
"""The 13 classes in the order of their indices."""

REPO = HubRepo("tanganke/nyuv2", "b367b8b53c4dcefbcb4d9310b74976a63cc7f306")
"""The same images and labels in Parquet shards, 2.8 GB."""

CAMERA = PinholeCamera((518.86, 519.47), (325.58, 253.74), (480, 640))
"""Camera of the images as recorded, from the dataset's toolbox (https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html)."""

COLUMNS: Mapping[str, FileFormat] = MappingProxyType(
    {"image": IMAGE, "semseg": class_format("segmentation", len(CLASSES)), "depth": DEPTH, "normals": NORMALS}
)
"""Columns of the shards, whose values have the conventions of the archive."""


class NYUD(NpyTree):
    """One split of NYUD-v2 with the tasks semseg, depth (meters) and normals."""

    title = "NYUD-v2 with 13 classes"
    camera = CAMERA
    folder_name = "NYUDv2"
    num_images: ClassVar[Mapping[str, int]] = {"train": 795, "val": 654}
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "depth", "normals")
    expected_layout = """\
NYUDv2/
    train/                  795 samples, named by an integer
        image/0.npy ...     float h w 3, RGB in [0, 1]
        label/0.npy ...     float or integer h w, classes 0 to 12, -1 where missing
        depth/0.npy ...     float h w 1 or h w, meters, 0 where missing
        normal/0.npy ...    float h w 3, unit vectors, all zero where missing
    val/                    654 samples, the same four folders
Or a folder of the shards train-*.parquet and val-*.parquet, or `--data.root hub`, which downloads them."""

    def file_formats(self) -> Mapping[str, FileFormat]:
        """Return the formats of images, 13 classes, depth and normals."""
        return {**COLUMNS, "semseg": class_format("label", len(CLASSES))}


class NYUDDataModule(FileDataModule):
    """NYUD-v2 with 13 classes: 795 training and 654 validation images of 288 x 384.

    Args:
        root: Folder with ``train/`` and ``val/``, or the parent of ``NYUDv2/``; a folder of Parquet shards; or ``hub``,
            which downloads them from ``tanganke/nyuv2``.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks in the order of the published masks, with the published settings."""
        return [SemSeg(classes=CLASSES), depth_task(self.labels), Normals()]

    def open_split(self, split: Split, uniform_size: bool) -> FileDataset:
        """Open a split of the shards or of the tree."""
        if shards := find_shards(self.root, split, REPO):
            dataset = ParquetDataset(shards, COLUMNS, NYUD.num_images[split], uniform_size)
            dataset.camera = CAMERA
            return dataset
        return NYUD(self.root, split, uniform_size)


def depth_task(labels: str) -> Depth:
    """Return the depth task with the published settings, which depend on the label protocol or mask file."""
    return Depth(loss_weight=0.6, confidence_threshold=0.95 if protocol_of(labels) == "random-label" else 0.85)
