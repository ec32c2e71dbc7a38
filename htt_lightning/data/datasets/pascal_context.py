"""PASCAL-Context with five tasks, in the archive of ATRC (https://github.com/brdav/atrc) and ASTMT.

Cite R. Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014,
and for body parts X. Chen et al., "Detect What You Can", CVPR 2014. Normals and saliency are predictions of networks
that K.-K. Maninis, I. Radosavovic and I. Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, use as
ground truth. The images are those of PASCAL VOC 2010, with the terms of Flickr; no part comes with this package.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.borders import segment_boundaries, thin_boundaries
from htt_lightning.data.datamodule import Split
from htt_lightning.data.dataset import check_in_parallel
from htt_lightning.data.datasets.file_dataset import FileDataModule, check_turn
from htt_lightning.data.datasets.id_list import IdListDataset
from htt_lightning.data.derivation.classes import edges_from_classes
from htt_lightning.data.derivation.derived_labels import DerivationRule
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import DataError, HTTError, combine_errors, missing_file
from htt_lightning.io.arrays import resize
from htt_lightning.io.files import write_text
from htt_lightning.io.image_files import ImageFormat, size_of
from htt_lightning.io.images import read_index, read_normals
from htt_lightning.io.matlab import as_struct_list, read_mat
from htt_lightning.tasks import Edges, HumanParts, Normals, Saliency, SemSeg, Task
from htt_lightning.tasks.base import IGNORE_INDEX

logger = logging.getLogger(__name__)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes in the order of their indices."""

PERSON = CLASSES.index("person")

PARTS = {
    name: index
    for index, names in enumerate(
        (
            "hair head lear rear lebrow rebrow leye reye mouth nose",
            "neck torso",
            "luarm ruarm",
            "llarm rlarm lhand rhand",
            "luleg ruleg",
            "llleg rlleg lfoot rfoot",
        ),
        start=1,
    )
    for name in names.split()
}
"""Index in ``tasks.human_parts.PARTS`` of each of PASCAL-Part's 24 parts of a person."""

SEGMENTS = 459
"""Largest id in a segment map; 0 is no segment."""

CLASSES_WITH_NORMALS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
"""Ids of segments with normals: classes of NYUD, known to the network that predicted the normals."""

LABEL_PATHS = {
    "semseg": ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),
    "human_parts": ("human_parts/{}.mat",),
    "saliency": ("sal_distill/{}.png",),
    "normals": ("normals_distill/{}.png",),
    "edges": ("pascal-context/trainval/{}.mat",),
}
"""Label files by task; the first one that exists counts."""

HAS_NORMALS = np.isin(np.arange(SEGMENTS + 1), CLASSES_WITH_NORMALS)
"""Whether a segment has normals, by its id."""


class PASCALContext(IdListDataset):
    """One split of PASCAL-Context: semseg, human_parts, saliency, normals and edges.

    An image has a label for human_parts if it shows annotated parts of a person. Training edges are thinned; those of
    the validation images are the raw boundaries between segments, as in published results.
    """

    title = "PASCAL-Context"
    folder_name = "PASCALContext"
    id_list_path = "ImageSets/Context/{split}.txt"
    num_images: ClassVar[Mapping[str, int]] = {"train": 4998, "val": 5105}
    expected_layout = """\
PASCALContext/
    ImageSets/Context/train.txt             4998 image ids, one a line
    ImageSets/Context/val.txt               5105
    ImageSets/Parts/{train,val}.txt         JSON, objects by image id; written where missing
    JPEGImages/<id>.jpg
    semseg/VOC12/<id>.png                   classes 0 to 20, 255 where missing; used where there is one
    semseg/pascal-context/<id>.png          the same for all other images
    human_parts/<id>.mat                    anno, as in PASCAL-Part
    pascal-context/trainval/<id>.mat        LabelMap, segments 1 to 459
    normals_distill/<id>.png                RGB, 2 * color / 255 - 1
    sal_distill/<id>.png                    gray, salient above half"""
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "human_parts", "saliency", "normals", "edges")
    _last_segments: tuple[str, NDArray[np.int16]] | None = None

    def image_path(self, index: int) -> Path:
        """Return the path of an image, a JPEG file."""
        return self.folder / "JPEGImages" / f"{self.ids[index]}.jpg"

    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """Read a task's map; ``label`` resizes it to its image."""
        if task == "semseg":
            return self._semseg(name)
        if task == "human_parts":
            empty = np.full(size, IGNORE_INDEX, np.uint8)
            return merge_parts(self._label_file(name, task), empty) if name in self.images_with_people else empty
        if task == "saliency":
            return (read_index(self._label_file(name, task)) > 127).astype(np.uint8)
        segments = self._segments(name, size)
        if task == "normals":
            return read_normals(self._label_file(name, task), size, ~HAS_NORMALS[segments])
        return (thin_boundaries if self.split == "train" else segment_boundaries)(segments).astype(np.uint8)

    def check_label(self, index: int, task: str) -> None:
        """Check the headers of image files, and that MATLAB files exist."""
        name = self.ids[index]
        if task in ("semseg", "saliency", "normals"):
            path = self._label_file(name, task)
            size = size_of(path, ImageFormat.NORMALS if task == "normals" else ImageFormat.INDEX)
            self.check_turn(index, path, size)
        if task in ("normals", "edges"):
            _check_exists(self._label_file(name, "edges"))
        elif task == "human_parts" and name in self.images_with_people:
            _check_exists(self._label_file(name, task))

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images can have a label: for human parts those with people, for other tasks all."""
        if task != "human_parts":
            return super().available(task)
        return np.array([name in self.images_with_people for name in self.ids])

    @cached_property
    def images_with_people(self) -> frozenset[str]:
        """Ids of the images with parts of a person, from the JSON file, which is written again if it is invalid.

        A published file may list persons without parts as well; their maps are entirely missing.
        """
        path = self.folder / "ImageSets" / "Parts" / f"{self.split}.txt"
        try:
            objects = json.loads(path.read_text(encoding="utf-8"))
            valid = set(objects) == set(self.ids) and all(isinstance(classes, list) for classes in objects.values())
        except (OSError, ValueError, TypeError, AttributeError):
            valid = False
        if not valid:
            objects = {}

            def read_classes(name: str) -> None:
                objects[name] = object_classes(self._label_file(name, "human_parts"))

            if errors := check_in_parallel(self.ids, read_classes, "Looking for people in"):
                raise combine_errors(errors, expected_layout=self.expected_layout)
            try:
                write_text(path, json.dumps({name: objects[name] for name in self.ids}))
            except HTTError as error:
                logger.warning("%s The next run will read all annotations again.", error)
        return frozenset(name for name, classes in objects.items() if PERSON in classes)

    def _label_file(self, name: str, task: str) -> Path:
        paths = [self.folder / path.format(name) for path in LABEL_PATHS[task]]
        return next((path for path in paths if path.exists()), paths[0])

    def _semseg(self, name: str) -> np.ndarray:
        path = self._label_file(name, "semseg")
        stored = read_index(path)
        if (invalid := stored[(stored >= len(CLASSES)) & (stored != IGNORE_INDEX)]).size:
            last = len(CLASSES) - 1
            raise DataError(f"{path} must have classes 0 to {last}, or {IGNORE_INDEX} where missing, got {invalid[0]}.")
        return stored

    def _segments(self, name: str, size: tuple[int, int]) -> NDArray[np.int16]:
        """Read segments at the size of their image; kept, as normals and edges need them in turn."""
        last = self._last_segments
        if last is None or last[0] != name:
            path = self._label_file(name, "edges")
            segments = read_segments(path)
            check_turn(path, segments.shape, size, self.folder / "JPEGImages" / f"{name}.jpg")
            self._last_segments = last = name, segments
        return resize(last[1], size, "nearest")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise missing_file(path)


def read_segments(path: Path) -> NDArray[np.int16]:
    """Read a map of segment ids ``h w``, 0 to 459, from a MATLAB file."""
    stored = read_mat(path, "LabelMap")
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu" or not stored.size:
        raise DataError(f"{path} must have a LabelMap h w of numbers. Unpack the dataset again.")
    valid = (stored >= 0) & (stored <= SEGMENTS) & (np.rint(stored) == stored)  # False for NaN
    if not valid.all():
        raise DataError(f"{path} must have integer segments from 0 to {SEGMENTS}, got {stored[~valid][0]:g}.")
    return stored.astype(np.int16, order="C")  # MATLAB stores columns


def read_part_annotations(path: Path) -> list[tuple[int, list[tuple[str, NDArray[np.bool_]]]]]:
    """Read the objects of a PASCAL-Part file, with names and masks ``h w`` of parts that have pixels.

    The class of an object is -1 if it has no pixel.
    """
    anno = read_mat(path, "anno")
    objects = []
    try:
        for found in as_struct_list(anno["objects"]):
            parts = [(str(part["part_name"]), np.asarray(part["mask"]) > 0) for part in as_struct_list(found["parts"])]
            index = int(found["class_ind"]) if np.any(found["mask"]) else -1
            objects.append((index, [(name, mask) for name, mask in parts if mask.any()]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path} must be a PASCAL-Part annotation ({error!r}). Unpack the dataset again.") from error
    shapes = {mask.shape for _, parts in objects for _, mask in parts}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise DataError(f"{path} must have masks h w of one size, got {', '.join(map(str, sorted(shapes)))}.")
    return objects


def object_classes(path: Path) -> list[int]:
    """Return the class of every object; -1 for objects without pixels and persons without parts."""
    return [-1 if index == PERSON and not parts else index for index, parts in read_part_annotations(path)]


def merge_parts(path: Path, empty: np.ndarray) -> np.ndarray:
    """Merge the parts of all persons, later ones over earlier ones: uint8 ``h w``, or ``empty`` without a part."""
    parts = [part for index, parts in read_part_annotations(path) if index == PERSON for part in parts]
    if not parts:
        return empty
    label = np.zeros_like(parts[0][1], np.uint8)  # columns first, as MATLAB stores the masks
    for name, mask in parts:
        if name not in PARTS:
            raise DataError(f"{path} must have parts of PASCAL-Part, got {name!r}. Unpack the dataset again.")
        np.copyto(label, PARTS[name], where=mask)
    return np.ascontiguousarray(label)


class PASCALContextDataModule(FileDataModule):
    """PASCAL-Context: 4998 training and 5105 validation images of at most 500 x 500.

    Args:
        root: Folder with ``JPEGImages/`` and ``ImageSets/``, or the parent of ``PASCALContext/``.
        augment: Training augmentation; by default with crops of 512 x 512, which is the size of evaluation as well.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        augment: AugmentConfig | None = AugmentConfig(crop=(512, 512)),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        super().__init__(root, augment=augment, **kwargs)

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks in canonical order, with the published weights and thresholds."""
        return [
            SemSeg(classes=CLASSES, loss_weight=1, confidence_threshold=0.9),
            HumanParts(loss_weight=2, confidence_threshold=0.85),
            Saliency(loss_weight=5, confidence_threshold=0.7),
            Normals(loss_weight=10, confidence_threshold=0.7),
            Edges(loss_weight=50, confidence_threshold=0.99, tolerance=0.0075),
        ]

    def derivation_rules(self) -> Sequence[DerivationRule]:
        """Return the rules; edges are thinned, as those of the training images."""
        return DerivationRule(Edges, SemSeg, partial(edges_from_classes, thin=True)), *super().derivation_rules()

    def open_split(self, split: Split, uniform_size: bool) -> PASCALContext:
        """Open a split of the tree, and list the people in it before loader processes start."""
        dataset = PASCALContext(self.root, split, uniform_size)
        if any(task.name == "human_parts" for task in self.tasks):
            dataset.available("human_parts")
        return dataset
