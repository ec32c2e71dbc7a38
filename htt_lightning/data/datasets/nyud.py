"""NYUD-v2 with 13 classes, as the npy archive of MTAN holds it (protocol.md 1.2).

Cite N. Silberman, D. Hoiem, P. Kohli and R. Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV
2012. The normals are those of D. Eigen and R. Fergus, ICCV 2015. The data set was published for research without an
explicit licence, and no part of it comes with this package. ``EXPECTED_LAYOUT`` shows the expected files.
"""

from pathlib import Path
from typing import Any

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.datasets import npy_tree
from htt_lightning.data.masks.files import protocol_of
from htt_lightning.tasks import Depth, Normals, SemSeg, Task

CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip
"""The 13 classes in the order of their indices (protocol.md 1.2)."""

EXPECTED_LAYOUT = """\
NYUDv2/
    train/                  795 samples, named by an integer
        image/0.npy ...     float h w 3, RGB in [0, 1]
        label/0.npy ...     float or integer h w, classes 0 to 12, -1 where missing
        depth/0.npy ...     float h w 1 or h w, metres, 0 where missing
        normal/0.npy ...    float h w 3, unit vectors, all zero where missing
    val/                    654 samples, the same four folders"""
"""The expected folders and files."""

PUBLISHED = {"train": 795, "val": 654}
"""Number of images by split."""

FORMATS = {
    "image": npy_tree.image_format("image"),
    "semseg": npy_tree.class_format("label", len(CLASSES)),
    "depth": npy_tree.depth_format("depth"),
    "normals": npy_tree.normals_format("normal"),
}


class NYUD(npy_tree.NpyTree):
    """One split of NYUD-v2 with the tasks semseg, depth (metres) and normals (protocol.md 1.2).

    Args:
        root: The folder ``NYUDv2``, or the one that holds it.
        split: ``train`` or ``val``.
        uniform_size: Whether ``check`` refuses images of different sizes.
    """

    def __init__(self, root: str | Path, split: str, uniform_size: bool = True) -> None:
        super().__init__(
            "NYUD-v2 with 13 classes", root, "NYUDv2", split, FORMATS, EXPECTED_LAYOUT, PUBLISHED, uniform_size
        )


class NYUDDataModule(PartialLabelDataModule):
    """NYUD-v2 with 13 classes, 795 training and 654 validation images of 288 x 384 (protocol.md 1.2).

    Args:
        root: Folder with ``train/`` and ``val/``, or the one that holds ``NYUDv2/``.
        **kwargs: See ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        **kwargs: Any,
    ) -> None:
        self.root = root
        super().__init__(**kwargs)

    def dataset_tasks(self) -> list[Task]:
        """In the order of the published masks' columns, with the published loss weights (method.md 3)."""
        # The thresholds of label discovery are the published ones, per protocol (method.md 4).
        depth = Depth(
            loss_weight=0.6, confidence_threshold=0.95 if protocol_of(self.labels) == "random-label" else 0.85
        )
        return [SemSeg(classes=CLASSES), depth, Normals()]

    def build_dataset(self, split: Split) -> NYUD:
        """A split of the tree."""
        return NYUD(self.root, split, uniform_size=self.requires_uniform_size(split))
