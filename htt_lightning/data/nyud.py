"""NYUD-v2 with 13 classes, as the npy archive of MTAN holds it (protocol.md 1.2).

Cite N. Silberman, D. Hoiem, P. Kohli and R. Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV
2012. The normals are those of D. Eigen and R. Fergus, ICCV 2015; the arrays were prepared by S. Liu, E. Johns and
A. Davison for "End-to-End Multi-Task Learning with Attention", CVPR 2019. The data set was published for research
without an explicit licence, and no part of it comes with this package. ``TREE`` shows the expected files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from htt_lightning.data.base import PartialLabelDataModule, Split
from htt_lightning.data.listed import check_each
from htt_lightning.data.masks import protocol_of
from htt_lightning.data.partial import Source
from htt_lightning.data.transforms import Augment
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, Normals, SemSeg, Task
from htt_lightning.tasks.base import IGNORE

CLASSES = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects",
    "picture", "sofa", "table", "tv", "wall", "window",
)  # fmt: skip
"""The 13 classes in the order of their indices (protocol.md 1.2)."""

COLOURS = np.array(
    [
        [31, 119, 180], [148, 103, 189], [199, 236, 238], [255, 127, 14], [140, 86, 75], [227, 200, 40], [214, 39, 40],
        [247, 140, 190], [44, 160, 44], [152, 223, 138], [50, 50, 80], [180, 170, 150], [23, 190, 207],
    ],
    np.uint8,
)  # fmt: skip
"""RGB of each class, uint8 ``13 3``."""

TREE = """\
NYUDv2/
    train/                  795 samples, named by an integer
        image/0.npy ...     float h w 3, RGB in [0, 1]
        label/0.npy ...     float or integer h w, classes 0 to 12, -1 where missing
        depth/0.npy ...     float h w 1 or h w, metres, 0 where missing
        normal/0.npy ...    float h w 3, unit vectors, all zero where missing
    val/                    654 samples, the same four folders"""
"""The expected folders and files."""

TOLERANCE = 1e-3
"""How far stored colours may lie outside [0, 1]."""


class Layout(NamedTuple):
    """How a file is stored: its folder, numpy's letters of its types, what follows h w in its shape; all in words."""

    folder: str
    kinds: str
    shapes: tuple[tuple[int, ...], ...]
    words: str


LAYOUTS = {
    "image": Layout("image", "f", ((3,),), "float h w 3, colours in [0, 1]"),
    "semseg": Layout("label", "fiu", ((),), "float or integer h w"),
    "depth": Layout("depth", "f", ((1,), ()), "float h w 1 or h w"),
    "normals": Layout("normal", "f", ((3,),), "float h w 3"),
}


class NYUD(Source):
    """One split of NYUD-v2 with the tasks semseg, depth and normals (protocol.md 1.2).

    Files are read when they are asked for and never unpickled.

    Args:
        root: The folder ``NYUDv2``, or the one that holds it.
        split: ``train`` or ``val``.
        one_size: Whether ``check`` refuses images of different sizes.

    Raises:
        HTTError: If there is no such split, or no images in it, or labels without an image.
    """

    def __init__(self, root: str | Path, split: str, one_size: bool = True) -> None:
        if split not in ("train", "val"):
            raise HTTError(f"NYUD-v2 has no split {split!r}; choose train or val")
        root = Path(root).expanduser()
        self.folder = (root / "NYUDv2" if (root / "NYUDv2").is_dir() else root) / split
        images = self.folder / "image"
        if not images.is_dir():
            raise HTTError(f"{images} is missing; the root must be, or hold, this folder:\n{TREE}")
        names = [path.stem for path in images.glob("*.npy")]
        if not names:
            raise HTTError(f"{images} holds no .npy file; unpack the dataset again, so that it reads:\n{TREE}")
        if odd := sorted(name for name in names if not name.isdecimal()):
            raise HTTError(f"{images / odd[0]}.npy is not named by an integer; move it elsewhere")
        for layout in LAYOUTS.values():
            if stray := sorted({path.stem for path in (self.folder / layout.folder).glob("*.npy")} - set(names)):
                raise HTTError(f"{images / stray[0]}.npy is missing, but {layout.folder}/{stray[0]}.npy is there")
        self.ids, self.one_size = sorted(names, key=int), one_size
        self.tasks = tuple(task for task in LAYOUTS if task != "image")

    def image(self, index: int) -> np.ndarray:
        """RGB image, float32 ``h w 3`` in [0, 1].

        Raises:
            HTTError: If the file is missing or broken, has another shape or type, or colours outside [0, 1].
        """
        path, stored = self._open(index, "image")
        image = floats(stored)
        low, high = image.min(), image.max()
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails
            hint = "; divide colours of 0 to 255 by 255" if 2 < high <= 255 else ""
            raise HTTError(f"{path} holds colours from {low:g} to {high:g}; they must lie in [0, 1]{hint}")
        return image.clip(0, 1, out=image)

    def label(self, index: int, task: str) -> np.ndarray:
        """One task's map, with missing pixels marked as ``tasks.base.Task`` describes it.

        Args:
            index: Position in ``ids``.
            task: ``semseg``: uint8 ``h w``, 0 to 12, or 255 where -1 is stored. ``depth``: float32 ``h w`` in metres,
                NaN where 0, a negative or no finite number is stored. ``normals``: float32 unit vectors ``h w 3``, NaN
                where a zero vector or no finite one is stored.

        Raises:
            HTTError: If there is no such task, or the file is missing or broken, has another shape or type or another
                size than its image, or holds classes outside -1 to 12 or vectors that are none of unit length.
        """
        path, stored = self._open(index, task)
        return {"semseg": classes, "depth": metres, "normals": directions}[task](path, stored)

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Look at type, shape and length of every file that will be used, and at the values of semseg.

        All other values are checked when they are read. Hidden labels are not touched.

        Args:
            labels: Names of the tasks whose labels will be used, by image id.

        Raises:
            HTTError: Files are missing, broken or hold wrong values: the message names three of them.
        """
        positions = {name: index for index, name in enumerate(self.ids)}
        size = self._open(0, "image")[1].shape[:2] if self.one_size else None

        def look(name: str) -> None:
            path, stored = self._open(positions[name], "image")
            if size and stored.shape[:2] != size:
                raise HTTError(f"{path} is {stored.shape[:2]}, but the first image {size}; set data.image_size")
            for key in labels[name]:
                path, stored = self._open(positions[name], key)
                if key == "semseg":
                    classes(path, stored)

        check_each(labels, look, TREE)

    def _open(self, index: int, key: str) -> tuple[Path, np.ndarray]:
        """A file and its array, still on disk: header and length are checked, but no value is read."""
        if key not in LAYOUTS:
            raise HTTError(f"NYUD-v2 with 13 classes has no labels for {key}; choose from {', '.join(self.tasks)}")
        layout = LAYOUTS[key]
        path = self.folder / layout.folder / f"{self.ids[index]}.npy"
        stored = open_array(path, layout)
        size = stored.shape[:2]
        if key != "image" and size != (other := self._open(index, "image")[1].shape[:2]):
            raise HTTError(f"{path} is {size}, but its image {other}; prepare the two again")
        return path, stored


def open_array(path: Path, layout: Layout) -> np.ndarray:
    """An array, still on disk: header and length are checked, but no value is read, and nothing is ever unpickled.

    Raises:
        HTTError: If the file is missing or broken, or not as the layout has it.
    """
    try:
        stored = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise HTTError(f"{path} is missing; unpack the dataset again") from None
    except Exception as error:  # a corrupt header raises errors of many kinds
        raise HTTError(f"{path} is truncated or no .npy array ({error}); copy or unpack it again") from error
    shape = stored.shape
    if stored.dtype.kind not in layout.kinds or len(shape) < 2 or shape[2:] not in layout.shapes or not stored.size:
        raise HTTError(f"{path} is {stored.dtype} {shape}; it must be {layout.words}; prepare it again")
    return stored


def floats(stored: np.ndarray) -> np.ndarray:
    """Read values as float32; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(stored, np.float32)


def classes(path: Path, stored: np.ndarray) -> np.ndarray:
    """Class indices uint8 ``h w``; ``path`` is for the message.

    Raises:
        HTTError: If a value is not a whole number from -1 to 12.
    """
    low, high = stored.min(), stored.max()
    last = len(CLASSES) - 1
    if not (low >= -1 and high <= last and (np.rint(stored) == stored).all()):  # written so that NaN fails
        raise HTTError(f"{path} holds {low:g} to {high:g}; classes must be whole numbers from -1 (missing) to {last}")
    labels = np.array(stored, np.int16)
    labels[labels < 0] = IGNORE
    return labels.astype(np.uint8)


def metres(path: Path, stored: np.ndarray) -> np.ndarray:
    """Depth float32 ``h w``, NaN where missing."""
    depth = floats(stored).reshape(stored.shape[:2])
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def directions(path: Path, stored: np.ndarray) -> np.ndarray:
    """Unit vectors float32 ``h w 3``, NaN where missing; ``path`` is for the message.

    Raises:
        HTTError: If a vector is longer than 2, as normals coded as colours are.
    """
    normals = floats(stored)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.linalg.norm(normals, axis=-1)
    valid = np.isfinite(norm) & (norm > 0)
    longest = norm.max(where=valid, initial=0)
    if longest > 2:
        raise HTTError(f"{path} holds vectors of length {longest:g}; normals must be unit vectors within [-1, 1]")
    norm[~valid] = np.nan
    normals /= norm[..., None]
    return normals


class NYUDDataModule(PartialLabelDataModule):
    """NYUD-v2 with 13 classes, 795 training and 654 validation images of 288 x 384 (protocol.md 1.2).

    Args:
        root: Folder with ``train/`` and ``val/``, or the one that holds ``NYUDv2/``.
        labels: See ``PartialLabelDataModule``, as for all below; the published ``.pth`` masks fit as well.
        tasks: ...
        batch_size: ...
        image_size: ...
        augment: ...
        num_workers: ...
        seed: ...
        discovered: ...
    """

    def __init__(
        self,
        root: str,
        labels: str = "one-label",
        tasks: str | list[str | Task] | None = None,
        batch_size: int = 6,
        image_size: tuple[int, int] | None = None,
        augment: Augment | None = Augment(),  # noqa: B008  # frozen
        num_workers: int = 2,
        seed: int | None = None,
        discovered: str | None = None,
    ) -> None:
        self.root = root
        super().__init__(labels, tasks, batch_size, image_size, augment, num_workers, seed, discovered)

    def available_tasks(self) -> list[Task]:
        """In the order of the published masks' columns, with the published loss weights (method.md 3)."""
        # The thresholds of label discovery are the published ones, per protocol (method.md 4).
        depth = Depth(weight=0.6, threshold=0.95 if protocol_of(self.labels) == "random-label" else 0.85)
        return [SemSeg(classes=CLASSES), depth, Normals()]

    def source(self, split: Split) -> NYUD:
        """A split of the tree."""
        return NYUD(self.root, split, one_size=self.image_size is None)
