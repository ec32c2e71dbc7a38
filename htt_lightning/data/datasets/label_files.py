"""What the values in label files mean, and reading them by it."""

import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from htt_lightning.data.datasets.npy_tree import floats, open_npy, unit_vectors
from htt_lightning.errors import HTTError
from htt_lightning.io.images import ImageFormat, read_gray, read_rgb
from htt_lightning.tasks import IGNORE_INDEX, Depth, Normals, Task


@dataclass(frozen=True)
class LabelFiles:
    """Where the label files of a task lie, and what the values in them mean.

    Files are pictures of one channel (three for normals), or ``.npy`` arrays ``h w`` or ``h w c``. Normals are unit
    vectors where they are floats, and ``2 x / 255 - 1`` where they are bytes.

    Args:
        task: The task, with its settings.
        train: Where labels of training images are: a pattern relative to the root in which ``{id}`` stands for the
            image's id, or the column of the table that lists the images.
        val: The same for validation images; by default they have no labels of the task.
        missing: Stored values that mean no label; by default 0 in fields, and none in index maps, where what is no
            class is an error. In fields of several channels all of them must hold the value; NaN, infinity, vectors
            without direction and depths that are not positive are missing in fields as well.
        values: Class by stored value, in index maps; by default the stored value is the class.
        offset: Added to stored values of index maps to get classes: -1 where they count from 1.
        factor: What stored values of fields are multiplied by, such as 0.001 for millimetres; or one factor for each
            channel, such as ``[1, -1, 1]`` for normals whose y points down.

    Raises:
        HTTError: The rules do not fit the task or each other.
    """

    task: Task
    train: str
    val: str | None = None
    missing: tuple[float, ...] | None = None
    values: dict[int, int] | None = None
    offset: int = 0
    factor: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Refuse what no file could be read by."""
        count, channels, factors = self.classes, self.task.field_channels, np.atleast_1d(self.factor)
        no_class = [value for value in (self.values or {}).values() if not 0 <= value < count]
        faults = {
            f"factor is for fields, {self.task.name} is an index map": channels is None and self.factor != 1,
            "values and offset are for index maps": channels is not None and bool(self.values or self.offset),
            "values and offset exclude each other": bool(self.values and self.offset),
            f"values has {no_class}, but classes are 0 to {count - 1}": channels is None and bool(no_class),
            f"{count} classes are too many, an index map holds {IGNORE_INDEX}": channels is None
            and count > IGNORE_INDEX,
            "factor must be other than zero, one number or one per channel": len(factors) not in (1, channels)
            or not all(map(math.isfinite, factors))
            or not factors.all(),
        }
        for fault, holds in faults.items():
            if holds:
                raise HTTError(f"data.maps of {self.task.name}: {fault}.")

    @property
    def classes(self) -> int:
        """Number of classes of an index map; a single logit stands for two."""
        return max(self.task.num_tokens, 2)

    def read(self, path: Path) -> np.ndarray:
        """A label file as a map, with missing pixels marked as ``tasks.base.Task`` describes it.

        Args:
            path: The file.

        Raises:
            HTTError: The file is missing or broken, has another shape or type, or holds a value that is no class or a
                vector that is not of unit length; the message names it.
        """
        channels = self.task.field_channels or 1
        stored = (
            read_npy(path) if is_npy(path) else read_rgb(path, ImageFormat.ANY) if channels == 3 else read_gray(path)
        )
        shape = (*stored.shape[:2], channels)
        kinds = "biuf" if self.task.field_channels is None else "uf" if isinstance(self.task, Normals) else "iuf"
        if stored.shape not in (shape, shape[:2] if channels == 1 else shape) or stored.dtype.kind not in kinds:
            words = f"h w {channels}" if channels > 1 else "h w"
            raise HTTError(f"{path} is {stored.dtype} {stored.shape}; labels of {self.task.name} must be {words}")
        if self.task.field_channels is None:
            return self._index(path, stored.reshape(shape[:2]))
        return self._field(path, stored.reshape(shape))

    def _index(self, path: Path, stored: np.ndarray) -> np.ndarray:
        known = self.values or {number - self.offset: number for number in range(self.classes)}
        codes = {float(value): number for value, number in known.items()}
        codes |= dict.fromkeys(self.missing or (), IGNORE_INDEX)
        keys, labels = np.array(sorted(codes)), np.array([codes[key] for key in sorted(codes)], np.uint8)
        place = keys.searchsorted(stored).clip(max=len(keys) - 1)
        strange = keys[place] != stored  # NaN is never equal
        if strange.any():
            raise HTTError(
                f"{path} holds {stored[strange][0]:g}, which is none of the {self.classes} classes of "
                f"{self.task.name}; list it in missing, or set values or offset"
            )
        return np.asarray(labels[place])

    def _field(self, path: Path, stored: np.ndarray) -> np.ndarray:
        values = floats(stored)
        gone = ~_all_channels(np.isfinite(values))
        for value in (0,) if self.missing is None else self.missing:
            gone |= _all_channels(stored == value)
        is_normals = isinstance(self.task, Normals)
        if is_normals and stored.dtype.kind != "f":
            top = np.iinfo(stored.dtype).max
            gone |= _all_channels(np.abs(2 * values - top) <= 1)  # zero lies between two codes
            values = 2 * values / top - 1
        values *= np.array(self.factor, np.float32)
        values[gone] = np.nan
        if isinstance(self.task, Depth):
            values[values <= 0] = np.nan
        if is_normals:
            values = unit_vectors(path, values)
        return values[..., 0] if self.task.field_channels == 1 else values


def _all_channels(holds: np.ndarray) -> np.ndarray:
    """Where all channels of bool ``h w c`` hold, ``h w``; numpy takes ten times as long to reduce a short axis."""
    return np.asarray(reduce(np.logical_and, np.moveaxis(holds, -1, 0)))


def is_npy(path: Path) -> bool:
    """Whether a file is an array rather than a picture, by its name."""
    return path.suffix.lower() == ".npy"


def read_npy(path: Path) -> np.ndarray:
    """An array ``h w`` or ``h w c``, still on disk; it is never unpickled.

    Raises:
        HTTError: The file is missing or truncated, or holds no such array.
    """
    stored = open_npy(path)
    if stored.ndim not in (2, 3) or not stored.size:
        raise HTTError(f"{path} has the shape {stored.shape}; it must be h w or h w c")
    return stored
