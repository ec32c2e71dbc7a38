"""Opening of image files: orientation, formats of telephones, and files that are something else."""

import builtins
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from htt_lightning.errors import DataError, HTTError
from htt_lightning.io.image_files import ImageFormat, has_heif, is_turned, readable_suffixes, size_of
from htt_lightning.io.images import read_colors, read_gray, read_index, read_normals, read_photograph, read_rgb

COLORS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_turned_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLORS).save(path, exif=exif(orientation), **options)
    expected = UPRIGHT[orientation](COLORS)
    np.testing.assert_array_equal(read_photograph(path), expected)
    assert size_of(path, ImageFormat.ANY) == expected.shape[:2]
    assert is_turned(path) == (orientation > 4)


def test_a_jpeg_is_turned_for_every_reader(tmp_path):
    smooth = np.kron(COLORS, np.ones((8, 8, 1), np.uint8))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif(6), quality=100, subsampling=0)
    for form in (ImageFormat.RGB, ImageFormat.ANY):
        pixels = read_rgb(tmp_path / "a.jpg", form)
        assert size_of(tmp_path / "a.jpg", form) == pixels.shape[:2] == (72, 48)
        assert np.abs(pixels.astype(int) - np.rot90(smooth, -1)).mean() < 2


def test_labels_are_turned_as_viewers_show_them(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLORS[..., 0]).save(path, exif=exif(8))
    for read in (read_gray, read_index):
        np.testing.assert_array_equal(read(path), np.rot90(COLORS[..., 0]))
    Image.fromarray(COLORS).save(path, exif=exif(8))
    np.testing.assert_array_equal(read_colors(path), np.rot90(COLORS))
    turned = read_normals(path, (9, 6))
    Image.fromarray(COLORS).save(path)
    np.testing.assert_array_equal(turned, np.rot90(read_normals(path, (6, 9))))


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLORS).save(path)
    content, data = path.read_bytes(), exif(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert size_of(path) == (9, 6)
    np.testing.assert_array_equal(read_rgb(path), np.rot90(COLORS, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", [b"garbage!!", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\x03\0\0\0\1\0\x63\0\0\0\0\0\0"])
def test_images_with_damaged_exif_are_shown_as_stored(tmp_path, suffix, damage, caplog):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLORS).save(path, exif=b"Exif\0\0" + damage)
    assert read_photograph(path).shape == COLORS.shape
    assert size_of(path, ImageFormat.ANY) == COLORS.shape[:2]
    assert all(path.name in message for message in caplog.messages)
    assert len(caplog.messages) == (suffix == "png" and damage == b"garbage!!")  # Pillow drops that of a JPEG itself


def save_heic(path, array, **options):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(array)).save(path, quality=-1, chroma=444, **options)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIC", "sent.jpg"])
def test_a_heic_photograph_is_read_upright(tmp_path, name):
    smooth = np.kron(COLORS, np.ones((8, 8, 1), np.uint8))
    save_heic(tmp_path / "a.heic", smooth, exif=exif(6).tobytes())
    path = (tmp_path / "a.heic").rename(tmp_path / name)
    pixels = read_photograph(path)
    assert size_of(path, ImageFormat.ANY) == pixels.shape[:2] == (72, 48)
    assert np.abs(pixels.astype(int) - np.rot90(smooth, -1)).mean() < 8
    assert ".heic" in readable_suffixes()


def test_a_heic_photograph_names_the_missing_extra(tmp_path, monkeypatch):
    save_heic(tmp_path / "a.heic", COLORS)
    import_module = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pillow_heif":
            raise ImportError(name)
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for cached in (has_heif, readable_suffixes):
        cached.cache_clear()
    try:
        with pytest.raises(HTTError, match=r"a\.heic needs pillow-heif.*htt-lightning\[heic\]"):
            read_photograph(tmp_path / "a.heic")
        assert ".heic" not in readable_suffixes()
    finally:
        for cached in (has_heif, readable_suffixes):
            cached.cache_clear()


def test_raw_photographs_are_refused_not_read_as_thumbnails(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "thumbnail.tiff", tiffinfo={50706: b"\1\4\0\0"})
    for name in ("a.dng", "a.NEF", "a.cr2"):
        (tmp_path / name).write_bytes((tmp_path / "thumbnail.tiff").read_bytes())
    for name in ("a.dng", "a.NEF", "a.cr2", "thumbnail.tiff"):
        for read in (read_photograph, lambda path: size_of(path, ImageFormat.ANY)):
            with pytest.raises(DataError, match=rf"{name} must be developed, got a raw photograph"):
                read(tmp_path / name)


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.webp", {}), ("a.tiff", {"compression": "jpeg"})])
def test_lossy_files_are_refused_for_classes(tmp_path, caplog, name, options):
    Image.fromarray(COLORS).save(tmp_path / name, **options)
    with pytest.raises(DataError, match=rf"{name} must be lossless, got .*PNG"):
        size_of(tmp_path / name, ImageFormat.CLASSES)
    for _ in range(2):
        assert size_of(tmp_path / name, ImageFormat.FIELD) == (6, 9)
    (message,) = caplog.messages
    assert name in message


def test_lossless_webp_holds_classes(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.webp", lossless=True)
    assert size_of(tmp_path / "a.webp", ImageFormat.CLASSES) == (6, 9)
    assert not is_turned(Path("nowhere.png"))
