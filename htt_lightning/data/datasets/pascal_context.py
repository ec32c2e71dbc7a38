"""PASCAL-Context with five tasks, as the archive of ATRC and ASTMT holds it (protocol.md 1.5).

Cite R. Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014,
and for body parts X. Chen et al., "Detect What You Can", CVPR 2014. Normals and saliency are predictions of networks,
which K.-K. Maninis, I. Radosavovic and I. Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, took for
the truth. The images are those of PASCAL VOC 2010, with the terms of Flickr; no part of them comes with this package.
``PASCALContext.tree`` shows the expected files.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import check_each
from htt_lightning.data.datasets.id_list import IdListDataset
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import HTTError, sound, tolerated
from htt_lightning.io.arrays import resized
from htt_lightning.io.files import atomic_path
from htt_lightning.io.images import ImageFormat, read_index, read_normals, size_of
from htt_lightning.io.matlab import look_at_mat, read_mat, structs
from htt_lightning.tasks import Edges, HumanParts, Normals, Saliency, SemSeg, Task
from htt_lightning.tasks.base import IGNORE_INDEX
from htt_lightning.thinning import thin

logger = logging.getLogger(__name__)

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes in the order of their indices (protocol.md 1.5)."""

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
"""Index in ``tasks.human_parts.PARTS`` of each of PASCAL-Part's 24 parts of a person (protocol.md 1.5)."""

SEGMENTS = 459
"""Largest id in a segment map; 0 is no segment."""

FLAT = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
"""Ids of segments that have normals: classes of NYUD as well, known to the network that predicted the normals."""

HAS_NORMALS = np.isin(np.arange(SEGMENTS + 1), FLAT)
"""Whether a segment has normals, by its id."""


class PASCALContext(IdListDataset):
    """One split of PASCAL-Context: semseg, human_parts, saliency, normals and edges (protocol.md 1.5).

    An image has a label for human_parts if it shows annotated parts of a person. Edges to train on are thinned, those
    of the validation images are the raw borders between segments, as the published figures have it (protocol.md 5).
    """

    title = "PASCAL-Context"
    home = "PASCALContext"
    listing = "ImageSets/Context/{split}.txt"
    counts: ClassVar[Mapping[str, int]] = {"train": 4998, "val": 5105}
    usual = frozenset({"not_unit"})  # normals are predictions as a network made them (protocol.md 1.5)
    tree = """\
PASCALContext/
    ImageSets/Context/train.txt             4998 image ids, one a line
    ImageSets/Context/val.txt               5105
    ImageSets/Parts/{train,val}.txt         JSON, objects by image id; made anew where missing
    JPEGImages/<id>.jpg
    semseg/VOC12/<id>.png                   classes 0 to 20, 255 where missing; used where there is one
    semseg/pascal-context/<id>.png          the same for all other images
    human_parts/<id>.mat                    anno, as in PASCAL-Part
    pascal-context/trainval/<id>.mat        LabelMap, segments 1 to 459
    normals_distill/<id>.png                RGB, 2 * colour / 255 - 1
    sal_distill/<id>.png                    grey, salient above half"""
    tasks: ClassVar[tuple[str, ...]] = ("semseg", "human_parts", "saliency", "normals", "edges")
    _known: tuple[str, NDArray[np.int16]] | None = None  # the segments asked for last

    def image_path(self, name: str) -> Path:
        """A JPEG file."""
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """A task's map; ``label`` brings it to the size of its image.

        Args:
            name: The image's id.
            task: ``semseg``: uint8 ``h w``, 0 to 20, or 255. ``human_parts``: uint8 ``h w``, 0 to 6, or 255 everywhere.
                ``saliency`` and ``edges``: uint8 ``h w``, 0 or 1. ``normals``: float32 unit vectors ``h w 3``, NaN
                where grey is stored or the segment has none.
            size: ``(h, w)`` of the image.

        Raises:
            HTTError: A file is missing or damaged, or holds what it must not.
        """
        if task == "semseg":
            return self._semseg(name)
        if task == "human_parts":
            missing = np.full(size, IGNORE_INDEX, np.uint8)
            return merged_parts(self._parts(name), missing) if name in self.people else missing
        if task == "saliency":
            return (read_index(self.folder / "sal_distill" / f"{name}.png") > 127).astype(np.uint8)
        segments = self._segments(name, size)
        if task == "normals":
            return read_normals(self.folder / "normals_distill" / f"{name}.png", size, ~HAS_NORMALS[segments])
        return (thinned if self.split == "train" else borders)(segments).astype(np.uint8)

    def look(self, name: str, task: str) -> None:
        """Read classes and segments; of parts, saliency and normals, look at the header and the end of the file."""
        if task == "semseg":
            self._semseg(name)
        elif task == "saliency":
            size_of(self.folder / "sal_distill" / f"{name}.png", ImageFormat.INDEX)
        elif task == "human_parts" and name in self.people:
            look_at_mat(self._parts(name))
        elif task in ("normals", "edges"):
            read_segments(self._segment_map(name))
            if task == "normals":
                size_of(self.folder / "normals_distill" / f"{name}.png", ImageFormat.DIRECTIONS)

    def available(self, task: str) -> NDArray[np.bool_]:
        """Body parts have labels where there are people, everything else always."""
        if task != "human_parts":
            return super().available(task)
        return np.array([name in self.people for name in self.ids])

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """See ``IdListDataset``."""
        if any("human_parts" in tasks for tasks in labels.values()):
            self.available("human_parts")  # once, before all threads ask for it
        super().check(labels)

    @cached_property
    def people(self) -> frozenset[str]:
        """Ids of the images with annotated parts of a person, from the JSON file, which is made anew if need be.

        A published file may list persons without parts as well; their maps are entirely missing.
        """
        path = self.folder / "ImageSets" / "Parts" / f"{self.split}.txt"
        try:
            objects = json.loads(path.read_text(encoding="utf-8"))
            sound = set(objects) == set(self.ids) and all(isinstance(kinds, list) for kinds in objects.values())
        except (OSError, ValueError, TypeError, AttributeError):
            sound = False
        if not sound:
            objects = {}

            def look(name: str) -> None:
                objects[name] = categories(self._parts(name))

            with tolerated():  # without those whose file is at fault, the list is not kept
                check_each(self.ids, look, self.tree, "Looking for people in")
                self._keep(path, {name: objects[name] for name in self.ids})
        return frozenset(name for name, kinds in objects.items() if PERSON in kinds)

    def _keep(self, path: Path, objects: Mapping[str, Sequence[int]]) -> None:
        try:
            with atomic_path(path) as partial:
                partial.write_text(json.dumps(objects), encoding="utf-8")
        except HTTError as error:
            logger.warning("%s The next run has to look for people again.", error)

    def _semseg(self, name: str) -> np.ndarray:
        path, other = (self.folder / "semseg" / kind / f"{name}.png" for kind in ("VOC12", "pascal-context"))
        if not path.exists() and other.exists():
            path = other
        stored = read_index(path)
        if (wrong := stored[(stored >= len(CLASSES)) & (stored != IGNORE_INDEX)]).size:
            raise HTTError(f"{path} holds {wrong[0]}; classes must be 0 to {len(CLASSES) - 1}, or {IGNORE_INDEX}")
        return stored

    def _parts(self, name: str) -> Path:
        return self.folder / "human_parts" / f"{name}.mat"

    def _segment_map(self, name: str) -> Path:
        return self.folder / "pascal-context" / "trainval" / f"{name}.mat"

    def _segments(self, name: str, size: tuple[int, int]) -> NDArray[np.int16]:
        """Segments at the size of their image; normals and edges ask for them in turn."""
        if self._known is None or self._known[0] != name:
            self._known = name, read_segments(self._segment_map(name))
        return resized(self._known[1], size, smooth=False)


def read_segments(path: Path) -> NDArray[np.int16]:
    """A map of segment ids ``h w``, 0 to 459.

    Raises:
        HTTError: As ``read_mat``, or it is no map, or other ids are in it.
    """
    stored = read_mat(path, "LabelMap")
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu" or not stored.size:
        raise HTTError(f"{path} has a LabelMap that is no map of numbers; unpack the dataset again")
    if not (right := (stored >= 0) & (stored <= SEGMENTS) & (np.rint(stored) == stored)).all():  # NaN fails
        raise HTTError(f"{path} holds {stored[~right][0]:g}; segments must be whole numbers from 1 to {SEGMENTS}")
    return stored.astype(np.int16, order="C")  # MATLAB stores columns one after the other


def annotated(path: Path) -> list[tuple[int, list[tuple[str, NDArray[np.bool_]]]]]:
    """Objects of a PASCAL-Part file.

    Returns:
        Each object's class, -1 where it has no pixel; and names and masks ``h w`` of its parts that have pixels.

    Raises:
        HTTError: As ``read_mat``, or the file is not built like that, or its masks differ in size.
    """
    anno = read_mat(path, "anno")
    objects = []
    try:
        for found in structs(anno["objects"]):
            parts = [(str(part["part_name"]), np.asarray(part["mask"]) > 0) for part in structs(found["parts"])]
            kind = int(found["class_ind"]) if np.any(found["mask"]) else -1
            objects.append((kind, [(name, mask) for name, mask in parts if mask.any()]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise HTTError(f"{path} is no annotation of PASCAL-Part ({error!r}); unpack the dataset again") from error
    shapes = {mask.shape for _, parts in objects for _, mask in parts}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise HTTError(f"{path} has masks of {', '.join(map(str, sorted(shapes)))}; they must be h w and of one size")
    return objects


def categories(path: Path) -> list[int]:
    """Class of every object in a PASCAL-Part file; -1 for those without a pixel and for persons without a part."""
    return [-1 if kind == PERSON and not parts else kind for kind, parts in annotated(path)]


def merged_parts(path: Path, missing: np.ndarray) -> np.ndarray:
    """Parts of all persons in a PASCAL-Part file, later ones over earlier ones (protocol.md 1.5).

    Args:
        path: The file.
        missing: What to return if no person has a part.

    Returns:
        uint8 ``h w``, 0 to 6.

    Raises:
        HTTError: As ``annotated``, or a person has an unknown part.
    """
    every = [part for kind, parts in annotated(path) if kind == PERSON for part in parts]
    if not every:
        return missing
    label = np.zeros_like(every[0][1], np.uint8)  # in the order of MATLAB, too
    for name, mask in every:
        if name not in PARTS:
            raise HTTError(f"{path} has a person's part {name!r}, which PASCAL-Part has not; unpack the dataset again")
        np.copyto(label, PARTS[name], where=mask)
    return np.ascontiguousarray(label)


def thinned(segments: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Edges to train on, ``h w``: where the Laplacian of the ids is not zero, one pixel wide (protocol.md 1.5)."""
    return thin(cv2.Laplacian(segments.astype(np.float32), cv2.CV_32F) != 0)  # OpenCV is slow with integers


def borders(segments: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Edges to evaluate on, ``h w``: pixels whose right or lower neighbour lies in another segment."""
    found = np.zeros(segments.shape, np.bool_)
    found[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    found[:-1] |= segments[:-1] != segments[1:]
    return found


class PASCALContextDataModule(PartialLabelDataModule):
    """PASCAL-Context, 4998 training and 5105 validation images of at most 500 x 500 (protocol.md 1.5).

    Args:
        root: Folder with ``JPEGImages/`` and ``ImageSets/``, or the one that holds ``PASCALContext/``.
        augment: Training crops, and the canvas of evaluation, are of 512 x 512 by default.
        **kwargs: See ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        root: str,
        augment: AugmentConfig | None = AugmentConfig(crop=(512, 512)),  # noqa: B008  # frozen
        **kwargs: Any,
    ) -> None:
        self.root = root
        self._sources: dict[Split, PASCALContext] = {}
        super().__init__(augment=augment, **kwargs)

    def dataset_tasks(self) -> list[Task]:
        """In canonical order, with the published weights and thresholds (method.md 3 and 4)."""
        return [
            SemSeg(classes=CLASSES, loss_weight=1, confidence_threshold=0.9),
            HumanParts(loss_weight=2, confidence_threshold=0.85),
            Saliency(loss_weight=5, confidence_threshold=0.7),
            Normals(loss_weight=10, confidence_threshold=0.7),
            Edges(loss_weight=50, confidence_threshold=0.99, tolerance=0.0075),
        ]

    def source(self, split: Split) -> PASCALContext:
        """A split of the tree, once for all: loader processes get what it knows about people."""
        if split in self._sources:
            return self._sources[split]
        source = PASCALContext(self.root, split, one_size=self.requires_uniform_size(split))
        if any(task.name == "human_parts" for task in self.tasks):
            source.available("human_parts")
        if sound():
            self._sources[split] = source
        return source
