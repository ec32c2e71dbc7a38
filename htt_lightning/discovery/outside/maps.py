"""Teacher whose maps another program wrote into a folder."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from htt_lightning.data.dataset import check_in_parallel
from htt_lightning.data.datasets.label_files import LabelFiles, is_array
from htt_lightning.data.datasets.npy_tree import as_float32
from htt_lightning.discovery.outside.classes import class_table, map_classes
from htt_lightning.discovery.outside.options import TeacherOptions
from htt_lightning.discovery.outside.teacher import LabelWithConfidence, OutsideTeacher
from htt_lightning.errors import ConfigError, DataError, combine_errors
from htt_lightning.io.arrays import resize
from htt_lightning.io.file_names import FileFinder, nfc, shorten
from htt_lightning.io.image_files import readable_suffixes
from htt_lightning.tasks import Depth, Task


class ImageSizes(NamedTuple):
    """Height and width of an image as stored, and of the maps that training reads for it."""

    stored: tuple[int, int]
    maps: tuple[int, int]


class MapFiles:
    """Files of maps by image id.

    Args:
        place: Folder of maps that are called like their image's id, or a path with ``{id}`` in its place.
        option: Option that names it, for messages.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, place: str, option: str) -> None:
        self.place, self.option, self._finder = Path(place).expanduser(), option, FileFinder()
        self._paths: dict[str, list[Path]] | None = None
        if "{id}" in place:
            return
        if not self.place.is_dir():
            raise DataError(f"{option} must be a folder or a path with {{id}}, got {place}.", missing_path=self.place)
        self._paths = defaultdict(list)
        for path in sorted(self.place.rglob("[!.]*")):
            if is_array(path) or path.suffix.lower() in readable_suffixes():
                self._paths[nfc(path.relative_to(self.place).with_suffix("").as_posix())].append(path)

    def find(self, name: str) -> Path | None:
        """Find the map of an image; None if there is none."""
        if self._paths is None:
            return self._finder.find(Path(str(self.place).replace("{id}", name)))
        found = self._paths.get(nfc(name), [])
        if len(found) > 1:
            raise DataError(
                f"{self.option} must have one map of image {name!r}, got {shorten([str(p) for p in found])}."
            )
        return found[0] if found else None

    def __getitem__(self, name: str) -> Path:
        if (path := self.find(name)) is None:
            raise DataError(f"{self.option} must have a map of image {name!r}, got none in {self.place}.")
        return path


class MapTeacher(OutsideTeacher):
    """Teacher whose maps another program wrote into a folder."""

    reads_images: ClassVar[bool] = False

    def __init__(self, task: Task, options: TeacherOptions) -> None:
        super().__init__(task, options)
        assert options.maps is not None
        self.files = MapFiles(options.maps, f"{self.option}.maps")
        self.confidences = MapFiles(options.confidence, f"{self.option}.confidence") if options.confidence else None
        try:
            self.reader = LabelFiles(
                task, "{id}", missing_values=options.missing_values, scale=options.scale, offset=options.offset
            )
        except ConfigError as error:
            raise ConfigError(error.message.replace(f"data.label_files of {task.name}", self.option)) from error
        self.table = class_table(options.classes, task.class_names, (), self.option) if options.classes else None
        self._images: dict[str, ImageSizes] = {}

    def check(self, images: Mapping[str, ImageSizes]) -> None:
        """Check that images, by id, have maps whose sizes fit; nothing is decoded.

        Raises:
            DataError: Maps are missing or corrupt, or have another aspect than their image.
        """
        self._images = dict(images)
        for files in filter(None, (self.files, self.confidences)):
            if holes := [name for name in images if files.find(name) is None]:
                raise DataError(
                    f"{files.option} must have a map of each of the {len(images)} images without a label of "
                    f"{self.task.name}, but {len(holes)} are missing in {files.place}: {shorten(holes)}. "
                    "Let the other program write them."
                )

        def check_size(name: str) -> None:
            path = self.files[name]
            _check_aspect(path, self.reader.size(path), images[name].stored)

        if errors := check_in_parallel(images, check_size):
            raise combine_errors(errors)

    def source(self) -> dict[str, Any]:
        """Describe the maps: their number, and the SHA-256 of names, sizes and the content of three of them."""
        digest, names = hashlib.sha256(), [*self._images]
        read = {names[index] for index in (0, len(names) // 2, len(names) - 1)} if names else {}
        for name in names:
            for path in [files[name] for files in (self.files, self.confidences) if files]:
                digest.update(f"{name}{path.suffix} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes() if name in read else b"")
        return {"maps": len(names), "sha256": digest.hexdigest()}

    def read(self, name: str, sizes: ImageSizes) -> LabelWithConfidence:
        """Read the map of an image, not yet aligned, and its confidence."""
        path = self.files[name]
        values = self._decode(path)
        _check_aspect(path, (values.shape[0], values.shape[1]), sizes.stored)
        values = resize(values, sizes.maps, "nearest")
        if self.confidences is None:
            return values, np.ones(sizes.maps, np.float32)
        return values, resize(_read_confidence(self.confidences[name]), sizes.maps, "nearest")

    def label(self, name: str) -> LabelWithConfidence:
        """Return the label of an image that was checked, and its confidence."""
        return self.finish(*self.read(name, self._images[name]))

    def _decode(self, path: Path) -> np.ndarray:
        if isinstance(self.task, Depth):  # of which values below 0 may still be aligned
            return self.reader.scaled_values(self.reader.read_stored(path))[..., 0]
        if self.table is not None:
            return map_classes(self.reader.read_stored(path), self.table)
        values = self.reader.read(path)
        return self.axes.turn(values) if self.axes else values


def _check_aspect(path: Path, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Raise a ``DataError`` if a map has another aspect than its image, by more than a pixel."""
    (rows, columns), (height, width) = size, image
    if abs(rows * width - columns * height) > max(height, width):
        raise DataError(
            f"{path} must have the aspect of its image, {height}x{width}, got {rows}x{columns}. "
            "Cut or pad it as the other program did, or write it again."
        )


def _read_confidence(path: Path) -> np.ndarray:
    """Read a map of the confidence, float32 ``h w`` in [0, 1]."""
    stored = LabelFiles(Depth(name="confidence"), "{id}").read_stored(path)[..., 0]
    top = 1 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max
    values = as_float32(stored) / top
    if not (values.min() >= 0 and values.max() <= 1):  # negated, so that NaN fails
        raise DataError(f"{path} must have confidences in [0, 1], got {values.min():g} to {values.max():g}.")
    return values
