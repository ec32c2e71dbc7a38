"""Open image files: formats, damage, and the orientation that a camera stores beside the pixels."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from htt_lightning.errors import DataError, HTTError, missing_extra, missing_file
from htt_lightning.io.notices import notify_once

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
"""Suffixes of photographs that telephones write."""

RAW_SUFFIXES = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf",
    ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
"""Suffixes of raw photographs. Pillow takes some of them for TIFF files and reads a thumbnail."""

NO_PHOTOGRAPHS = ("PDF", "MPEG", "HDF5", "GRIB", "BUFR", "WMF")
"""Formats with a reader in Pillow that reads no photographs."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_LOSSY_FORMATS = ("JPEG", "MPO", "HEIF", "AVIF")
_DNG_VERSION = 50706
_QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


class ImageFormat(Enum):
    """Accepted containers and modes of an image file, all with 8 bits per channel or a palette.

    Pillow scales gray levels of fewer bits, and drops half of 16-bit colors without a warning. The last three accept
    every format that Pillow opens; ``CLASSES`` rejects lossy ones, which change classes, and ``FIELD`` warns of them.
    """

    RGB = ("PNG RGB", "PNG L", "PNG P", "JPEG RGB", "JPEG L")
    INDEX = ("PNG L", "PNG P")
    NORMALS = ("PNG RGB",)
    ANY = ()
    CLASSES = ("lossless",)
    FIELD = ("any",)

    @property
    def is_open(self) -> bool:
        """Whether every format that Pillow opens is accepted."""
        return self in (ImageFormat.ANY, ImageFormat.CLASSES, ImageFormat.FIELD)


@cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of image files that can be read."""
    formats = Image.registered_extensions()
    known = {suffix for suffix, kind in formats.items() if kind in Image.OPEN and kind not in NO_PHOTOGRAPHS}
    heif = HEIF_SUFFIXES if has_heif() else ()
    return frozenset(known.difference(HEIF_SUFFIXES, RAW_SUFFIXES).union(heif))


@cache
def has_heif() -> bool:
    """Return whether HEIC photographs can be read; Pillow learns to do so at the first call."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def size_of(path: Path, form: ImageFormat = ImageFormat.RGB) -> tuple[int, int]:
    """Read the size ``(h, w)`` of an image from its header, as it is after it was turned upright by EXIF."""
    with open_image(path, form, verify=False) as image:
        (width, height), turned = _stored_size(image), orientation_of(image) in _QUARTER_TURNS
        return (width, height) if turned else (height, width)


def is_turned(path: Path) -> bool:
    """Return whether EXIF turns an image by a quarter; False for a file that is no image."""
    try:
        with open_image(path, ImageFormat.ANY, verify=False) as image:
            return orientation_of(image) in _QUARTER_TURNS
    except HTTError:
        return False


@contextmanager
def open_image(path: Path, form: ImageFormat, verify: bool = True) -> Iterator[Image.Image]:
    """Open an image and check its format; errors inside the block become a ``DataError`` that names the file.

    ``verify`` compares the checksums of a PNG file first, and looks for lost parts of a JPEG file. The image is not yet
    decoded.
    """
    formats = None if form.is_open else ("PNG", "JPEG")
    try:
        content = path.read_bytes() if verify else b""
        with BytesIO(content) if verify else path.open("rb") as file:
            head = file.read(26)
            _check_photograph(path, head)
            if verify:
                file.seek(0)
                with Image.open(file, formats=formats) as image:
                    image.verify()
                if content.startswith(b"\xff\xd8\xff"):  # Pillow fills in lost parts of JPEG files
                    simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
            late_exif = _late_exif(file) if head.startswith(b"\x89PNG") else None
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                image.filename = str(path)  # for notices
                if late_exif:  # Pillow finds it only when it decodes the pixels
                    image.info.setdefault("exif", late_exif)
                _check_format(path, image, head, form)
                yield image
    except HTTError:
        raise
    except FileNotFoundError:
        raise missing_file(path) from None
    except Exception as error:  # corrupt images raise errors of many types
        kind = "image" if form.is_open else "JPEG or PNG image"
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise DataError(f"{path} is corrupt or no {kind}{reason}. Copy or unpack it again.") from error


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, without decoding pixels; 1 where EXIF is missing or damaged."""
    try:
        value = Image.Image.getexif(image).get(Base.Orientation)  # PNG's own method would decode the pixels first
    except Exception:  # damaged EXIF raises errors of many types, and viewers pass over it
        name = getattr(image, "filename", "") or "An image"
        notify_once("exif", f"{name} has damaged EXIF, so it is shown as stored.")
        return 1
    return int(value or 1) if value in range(1, 9) else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as stored; new versions of Pillow exchange those of a turned TIFF file."""
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return (tags[Base.ImageWidth], tags[Base.ImageLength]) if tags else image.size


def _late_exif(file: BinaryIO) -> bytes | None:
    """Find the EXIF chunk behind the pixels of a PNG file; chunks are skipped, not read."""
    place, seen_pixels = 8, False
    while True:
        file.seek(place)
        header = file.read(8)
        if len(header) < 8:
            return None
        length, name = struct.unpack(">I4s", header)
        if name == b"IEND" or not name.isalpha():  # the end, or damage
            return None
        if name == b"eXIf" and seen_pixels:
            return b"Exif\0\0" + file.read(length)
        seen_pixels |= name == b"IDAT"
        place += 12 + length


def _check_photograph(path: Path, head: bytes) -> None:
    if path.suffix.lower() in RAW_SUFFIXES:
        raise DataError(f"{path} must be developed, got a raw photograph. Convert it to JPEG, PNG or TIFF.")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and not has_heif():
        raise missing_extra(f"Reading the HEIC photograph {path} needs pillow-heif", "heic")


def _check_format(path: Path, image: Image.Image, head: bytes, form: ImageFormat) -> None:
    if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", ()):
        raise DataError(f"{path} must be developed, got a raw photograph (DNG). Convert it to JPEG, PNG or TIFF.")
    is_label = form in (ImageFormat.CLASSES, ImageFormat.FIELD)
    if is_label and (kind := _lossy_compression(image, head)):
        if form is ImageFormat.CLASSES:
            raise DataError(
                f"{path} must be lossless, got {kind}, whose compression changes classes. "
                "Save the labels as PNG from their source."
            )
        notify_once("lossy label", f"{path} is {kind}, whose compression changes values. Better save labels as PNG.")
    if is_label and image.format == "PNG" and image.mode == "L" and head[24] < 8:  # Pillow scales their values
        raise DataError(f"{path} must have 8 bits per pixel, got {head[24]}. Save its values with 8 bits.")
    if form.is_open:
        return
    found = f"{image.format} {image.mode}"
    if image.format == "PNG" and image.mode != "P" and head[24] != 8:  # Pillow does not tell the bit depth
        found = f"{head[24]}-bit {found}"
    if found not in form.value:
        raise DataError(f"{path} must be {' or '.join(form.value)} with 8 bits per channel, got {found}.")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{path} must be a single frame, got {frames}. Save one of them.")


def _lossy_compression(image: Image.Image, head: bytes) -> str:
    """Return the name of the lossy compression of an image; empty if it has none."""
    if image.format in _LOSSY_FORMATS:
        return str(image.format)
    if image.format == "WEBP" and head[12:16] == b"VP8 ":
        return "lossy WebP"
    return "JPEG in TIFF" if image.format == "TIFF" and image.info.get("compression") == "jpeg" else ""
