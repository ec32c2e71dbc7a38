"""Label files of a task, and the meaning of the values in them."""

from dataclasses import dataclass
from functools import reduce
from os.path import lexists
from pathlib import Path

import numpy as np

from htt_lightning.data.datasets.npy_tree import FileFormat, as_float32, check_no_colors, unit_vectors
from htt_lightning.errors import ConfigError, DataError
from htt_lightning.io.arrays import read_npy, read_npz
from htt_lightning.io.image_files import HEIF_SUFFIXES, ImageFormat, readable_suffixes, size_of
from htt_lightning.io.images import read_colors, read_gray
from htt_lightning.tasks import IGNORE_INDEX, Depth, Normals, Task


@dataclass(frozen=True)
class LabelFiles:
    """Paths of a task's label files, and the meaning of their values.

    Files are images of one channel (three for normals), or arrays ``h w`` or ``h w c``: ``.npy``, or ``.npz`` with one
    array or one that is called like the task. Normals are unit vectors where they are floats, and ``2 x / 255 - 1``
    where they are bytes. Index maps must be stored without loss, so not as JPEG.

    Args:
        task: The task, with its settings.
        train: Label files of training images: a pattern relative to the root with ``{id}`` in place of the image's id,
            or the column of the table that lists the images, or of the ``.parquet`` files that hold them; null if they
            have no labels of the task, as where all are to be derived or discovered.
        val: Label files of validation images, in the same form; by default they have no labels of the task.
        test: Label files of test images, in the same form; by default they have no labels of the task.
        missing_values: Stored values that mark missing labels. The default is 0 in fields and none in index maps, where
            an unknown class is an error. In fields of several channels all of them must have the value; NaN, infinity,
            zero vectors and depths that are not positive are missing in fields as well.
        class_map: Class by stored value, for index maps; by default the stored value is the class.
        class_offset: Offset from stored values to classes, for index maps: -1 if they count from 1.
        scale: Factor for stored values of fields, such as 0.001 for millimeters; or one factor per channel, such as
            ``[1, -1, 1]`` for normals whose y points down.
        offset: Summand of the scaled values of fields, or one per channel: a value is ``scale * stored + offset``.
            Disparities stored as ``256 d + 1`` have the scale 0.00390625 and the offset -0.00390625.

    Raises:
        ConfigError: The settings do not fit the task or each other.
    """

    task: Task
    train: str | None
    val: str | None = None
    missing_values: tuple[float, ...] | None = None
    class_map: dict[int, int] | None = None
    class_offset: int = 0
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    test: str | None = None

    def __post_init__(self) -> None:
        count, channels = self.num_classes, self.task.field_channels
        scales, offsets = np.atleast_1d(self.scale), np.atleast_1d(self.offset)
        unknown = [index for index in (self.class_map or {}).values() if not 0 <= index < count]
        if channels is None:
            rules = {
                "scale can only be set for fields, not for index maps": self.scale == 1,
                "offset can only be set for fields, not for index maps (class_offset)": self.offset == 0,
                "class_map and class_offset exclude each other": not (self.class_map and self.class_offset),
                f"class_map must have classes 0 to {count - 1}, got {unknown}. Or use missing_values": not unknown,
                f"the task must have at most {IGNORE_INDEX} classes, got {count}": count <= IGNORE_INDEX,
            }
        else:
            valid_scale = len(scales) in (1, channels) and bool(np.isfinite(scales).all() and scales.all())
            valid_offset = len(offsets) in (1, channels) and bool(np.isfinite(offsets).all())
            rules = {
                "class_map and class_offset can only be set for index maps": not (self.class_map or self.class_offset),
                f"scale must be one finite number other than zero, or one per channel, got {self.scale}": valid_scale,
                f"offset must be one finite number, or one per channel, got {self.offset}": valid_offset,
            }
        for rule, holds in rules.items():
            if not holds:
                raise ConfigError(f"data.label_files of {self.task.name}: {rule}.")

    @property
    def num_classes(self) -> int:
        """Number of classes of an index map; two for a task with a single logit."""
        return max(self.task.num_tokens, 2)

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width of a label, from the header of its file."""
        if not is_array(path):
            _check_suffix(path)
            return size_of(path, self._image_format)
        height, width = self._validate(path, self._read_array(path, header_only=True)).shape[:2]
        return height, width

    def read(self, path: Path) -> np.ndarray:
        """Read a label file as a map, with missing pixels marked as ``Task`` defines it."""
        return self.decode(path, self.read_stored(path))

    def read_stored(self, path: Path) -> np.ndarray:
        """Read the values of a label file as stored: ``h w`` for index maps and ``h w c`` for fields."""
        if is_array(path):
            return self._validate(path, self._read_array(path))
        _check_suffix(path)
        read = read_colors if self.task.field_channels == 3 else read_gray
        return self._validate(path, read(path, self._image_format))

    def decode(self, location: str | Path, stored: np.ndarray) -> np.ndarray:
        """Decode stored values to a map, with missing pixels marked as ``Task`` defines it."""
        decode = self._decode_index if self.task.field_channels is None else self._decode_field
        return decode(location, self._validate(location, stored))

    def column_format(self, column: str) -> FileFormat:
        """Return the format of a column of maps ``c h w`` or ``h w`` in ``.parquet`` files."""
        channels = self.task.field_channels or 1
        shapes = ((1,), ()) if channels == 1 else ((channels,),)
        return FileFormat(column, self._dtype_kinds, shapes, f"maps of {self.task.name}", self.decode)

    def _read_array(self, path: Path, header_only: bool = False) -> np.ndarray:
        return read_npy(path) if is_npy(path) else read_npz(path, self.task.name, header_only)

    @property
    def _image_format(self) -> ImageFormat:
        return ImageFormat.CLASSES if self.task.field_channels is None else ImageFormat.FIELD

    @property
    def _dtype_kinds(self) -> str:
        return "biuf" if self.task.field_channels is None else "uf" if isinstance(self.task, Normals) else "iuf"

    def _validate(self, path: str | Path, stored: np.ndarray) -> np.ndarray:
        """Check type and shape; return ``h w`` for index maps and ``h w c`` for fields."""
        channels = self.task.field_channels or 1
        shape = (*stored.shape[:2], channels)
        valid_shape = stored.shape == shape or (channels == 1 and stored.shape == shape[:2])
        if not valid_shape or not stored.size or stored.dtype.kind not in self._dtype_kinds:
            expected = f"h w {channels}" if channels > 1 else "h w"
            raise DataError(f"{path} must be {expected} for {self.task.name}, got {stored.dtype} {stored.shape}.")
        return stored.reshape(shape[:2] if self.task.field_channels is None else shape)

    def _decode_index(self, path: str | Path, stored: np.ndarray) -> np.ndarray:
        class_map = self.class_map or {index - self.class_offset: index for index in range(self.num_classes)}
        known = {float(value): index for value, index in class_map.items()}
        known |= dict.fromkeys(self.missing_values or (), IGNORE_INDEX)
        values, labels = np.array(sorted(known)), np.array([known[value] for value in sorted(known)], np.uint8)
        position = values.searchsorted(stored).clip(max=len(values) - 1)
        unknown = values[position] != stored  # True for NaN
        if unknown.any():
            expected = f"{min(class_map)} to {max(class_map)}"
            if len(class_map) <= max(class_map) - min(class_map):
                expected = ", ".join(map(str, sorted(class_map)))
            raise DataError(
                f"{path} must have values {expected} for the {self.num_classes} classes of {self.task.name}, "
                f"got {stored[unknown][0]:g}. Add it to missing_values, or set classes, class_map or class_offset."
            )
        return np.asarray(labels[position])

    def scaled_values(self, stored: np.ndarray) -> np.ndarray:
        """Return the values of a field ``h w c``, NaN where one is missing, whatever their sign or length."""
        values = as_float32(stored)
        missing = ~_all_channels(np.isfinite(values))
        for value in (0,) if self.missing_values is None else self.missing_values:
            missing |= _all_channels(stored == value)
        if isinstance(self.task, Normals) and stored.dtype.kind != "f":
            top = np.iinfo(stored.dtype).max
            missing |= _all_channels(np.abs(2 * values - top) <= 1)  # zero lies between two codes
            values = 2 * values / top - 1
        values *= np.array(self.scale, np.float32)
        values += np.array(self.offset, np.float32)
        values[missing] = np.nan
        return values

    def _decode_field(self, path: str | Path, stored: np.ndarray) -> np.ndarray:
        values = self.scaled_values(stored)
        if isinstance(self.task, Depth):
            values[values <= 0] = np.nan
        if isinstance(self.task, Normals):
            if stored.dtype.kind == "f" and not np.any(self.offset):
                check_no_colors(path, stored)
            values = unit_vectors(path, values)
        return values[..., 0] if self.task.field_channels == 1 else values


def _all_channels(values: np.ndarray) -> np.ndarray:
    """Reduce bool ``h w c`` to ``h w``; numpy takes ten times as long for a short axis."""
    return np.asarray(reduce(np.logical_and, np.moveaxis(values, -1, 0)))


def is_npy(path: Path) -> bool:
    """Return whether a file is an array, by its suffix."""
    return path.suffix.lower() == ".npy"


def is_array(path: Path) -> bool:
    """Return whether a file is an array or an archive of one, by its suffix."""
    return path.suffix.lower() in (".npy", ".npz")


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix and suffix not in readable_suffixes() and suffix not in HEIF_SUFFIXES and lexists(path):
        raise DataError(
            f"{path} must be .npy, .npz or an image (PNG or TIFF of 8 or 16 bits, TIFF of 32-bit floats), "
            f"got {suffix}. Convert it."
        )
