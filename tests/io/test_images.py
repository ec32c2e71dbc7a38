import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from htt_lightning.errors import DataError
from htt_lightning.io.image_files import ImageFormat, size_of
from htt_lightning.io.images import read_colors, read_gray, read_index, read_normals, read_photograph, read_rgb

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
INDICES = RNG.integers(0, 21, (6, 9), np.uint8)
READERS = {"rgb": read_rgb, "index": read_index, "normals": lambda path: read_normals(path, (6, 9))}
FORMATS = {"rgb": ImageFormat.RGB, "index": ImageFormat.INDEX, "normals": ImageFormat.NORMALS}
every_reader = pytest.mark.parametrize("reader", READERS)


def saved(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def palette_png(path, indices, **options):
    """A palette whose colors have nothing to do with the indices, like VOC's."""
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(RNG.permutation(768).astype(np.uint8).tobytes())
    return saved(path, image, **options)


def gray_png(path, bits, levels):
    """A gray PNG of any bit depth; Pillow writes only some."""
    rows = [b"\0" + np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(bool)).tobytes() for row in levels]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_read_rgb_from_png_and_jpeg(tmp_path):
    read = read_rgb(saved(tmp_path / "a.png", COLORS))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, COLORS)
    read[:] = 0  # writable
    smooth = cv2.resize(COLORS, (90, 60))
    read = read_rgb(saved(tmp_path / "a.jpg", smooth, quality=100, subsampling=0))
    assert np.abs(read.astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_read_rgb_converts_gray_images(tmp_path, suffix):
    read = read_rgb(saved(tmp_path / f"a.{suffix}", INDICES))
    assert read.shape == (6, 9, 3)
    assert (read == read[..., :1]).all()


def test_read_rgb_looks_palettes_up(tmp_path):
    path = palette_png(tmp_path / "a.png", INDICES)
    with Image.open(path) as image:
        palette = np.reshape(image.getpalette(), (-1, 3))
    np.testing.assert_array_equal(read_rgb(path), palette[INDICES])


@pytest.mark.parametrize("bits", [8, 5, 4])
def test_read_index_keeps_indices_of_a_palette(tmp_path, bits):
    indices = INDICES % (16 if bits == 4 else 21)
    np.testing.assert_array_equal(read_index(palette_png(tmp_path / "a.png", indices, bits=bits)), indices)


def test_read_index_keeps_gray_levels(tmp_path):
    for read in (read_index(saved(tmp_path / "a.png", INDICES)), read_index(gray_png(tmp_path / "b.png", 8, INDICES))):
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, INDICES)
        read[:] = 0  # writable


def test_read_normals_returns_unit_vectors(tmp_path):
    read = read_normals(saved(tmp_path / "a.png", COLORS), (6, 9))
    expected = 2 * COLORS.astype(float) / 255 - 1
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, atol=1e-5)


def test_read_normals_treats_zero_vectors_as_missing(tmp_path):
    colors = COLORS.copy()
    colors[0, :3] = [[127, 127, 127], [128, 128, 128], [127, 128, 127]]
    colors[0, 3] = [127, 128, 131]
    read = read_normals(saved(tmp_path / "a.png", colors), (6, 9))
    assert np.isnan(read[0, :3]).all()
    assert np.isfinite(read).sum() == read.size - 9


def test_read_normals_interpolates_before_normalizing(tmp_path):
    colors = cv2.GaussianBlur(RNG.integers(0, 256, (12, 16, 3), np.uint8), (0, 0), 2)
    read = read_normals(saved(tmp_path / "a.png", colors), (24, 40))
    expected = cv2.resize(2 * colors.astype(float) / 255 - 1, (40, 24), interpolation=cv2.INTER_CUBIC)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(read, expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(read, axis=-1), 1, atol=1e-6)


def test_read_normals_does_not_spread_missing_pixels(tmp_path):
    colors = np.full((8, 8, 3), (128, 128, 255), np.uint8)
    colors[:, :4] = 127
    read = read_normals(saved(tmp_path / "a.png", colors), (16, 24))
    assert np.isnan(read[:, :12]).all()
    np.testing.assert_allclose(read[:, 12:], np.broadcast_to([0, 0, 1], (16, 12, 3)), atol=0.01)


@every_reader
def test_size_of_reads_the_header_only(tmp_path, reader):
    path = saved(tmp_path / "a.png", INDICES if reader == "index" else COLORS)
    path.write_bytes(path.read_bytes()[:-30])
    assert size_of(path, FORMATS[reader]) == (6, 9)


def assert_refused(path, reader, got="corrupt"):
    """Check that the reader and ``size_of`` name the file and what they got."""
    for read in (READERS[reader], lambda path: size_of(path, FORMATS[reader])):
        with pytest.raises(DataError, match=got) as error:
            read(path)
        assert path.name in str(error.value)


@every_reader
def test_readers_name_missing_files_and_folders(tmp_path, reader):
    assert_refused(tmp_path / "a.png", reader, "missing")
    assert_refused(tmp_path, reader)


@every_reader
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no image IEND \xff\xd9"], ids=len)
def test_readers_name_files_that_are_no_image(tmp_path, reader, content):
    (tmp_path / "a.png").write_bytes(content)
    assert_refused(tmp_path / "a.png", reader)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_readers_name_truncated_images(tmp_path, suffix, share):
    path = saved(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (60, 80, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=path.name):
        read_rgb(path)


@pytest.mark.parametrize("reader", [read_rgb, read_photograph, read_colors])
@pytest.mark.parametrize("end", [b"\xff\xd9", bytes(3000)], ids=["end marker", "zeros"])
@pytest.mark.parametrize("progressive", [False, True])
def test_readers_name_jpeg_files_with_lost_parts(tmp_path, reader, end, progressive):
    path = tmp_path / "a.jpg"
    Image.fromarray(RNG.integers(0, 256, (60, 80, 3), np.uint8)).save(path, progressive=progressive)
    reader(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + end)
    with pytest.raises(DataError, match=r"a\.jpg is corrupt"):
        reader(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_readers_compare_checksums_of_png(tmp_path, place):
    path = saved(tmp_path / "a.png", RNG.integers(0, 256, (60, 80), np.uint8))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        read_index(path)


@every_reader
def test_readers_refuse_16_bits_per_channel(tmp_path, reader):
    # Pillow neither writes these nor tells that it has read them.
    cv2.imwrite(str(tmp_path / "a.png"), COLORS.astype(np.uint16) * 257)
    assert_refused(tmp_path / "a.png", reader, "16-bit PNG RGB")
    assert_refused(saved(tmp_path / "b.png", INDICES.astype(np.uint16)), reader, "16-bit PNG")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_read_index_refuses_gray_levels_of_few_bits(tmp_path, bits):
    assert_refused(gray_png(tmp_path / "a.png", bits, INDICES % 2**bits), "index", f"{bits}-bit PNG")


@pytest.mark.parametrize(
    ("reader", "name", "image", "got"),
    [
        ("index", "a.png", COLORS, "PNG RGB"),
        ("normals", "a.png", INDICES, "PNG L"),
        ("index", "a.jpg", INDICES, "JPEG L"),
        ("rgb", "a.png", np.dstack([COLORS, INDICES]), "PNG RGBA"),
        ("rgb", "a.jpg", Image.fromarray(COLORS).convert("CMYK"), "JPEG CMYK"),
    ],
)
def test_readers_refuse_other_formats(tmp_path, reader, name, image, got):
    assert_refused(saved(tmp_path / name, image), reader, f"got {got}")


def test_readers_refuse_several_frames(tmp_path):
    frames = [Image.fromarray(np.roll(COLORS, k)) for k in range(3)]
    assert_refused(saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:]), "rgb", "single frame")


def test_photographs_with_16_bits_keep_the_upper_half(tmp_path, caplog):
    cv2.imwrite(str(tmp_path / "a.png"), COLORS[..., ::-1].astype(np.uint16) * 256 + 7)
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), COLORS)
    assert caplog.messages == []
    cv2.imwrite(str(tmp_path / "b.tiff"), COLORS[..., ::-1].astype(np.uint16) * 16)
    for _ in range(2):
        np.testing.assert_array_equal(read_photograph(tmp_path / "b.tiff"), COLORS // 16)
    (message,) = caplog.messages
    assert "b.tiff has 16 bits per channel, but no value above 4095" in message


def test_first_frame_and_first_bands_are_read_with_a_word(tmp_path, caplog):
    frames = [Image.fromarray(np.roll(COLORS, k)) for k in range(3)]
    path = saved(tmp_path / "a.tiff", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_photograph(path), COLORS)
    tifffile = pytest.importorskip("tifffile")
    bands = np.dstack([COLORS, INDICES])
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_photograph(tmp_path / "b.tif"), COLORS)
    gray = saved(tmp_path / "c.tiff", INDICES, save_all=True, append_images=[Image.fromarray(INDICES)])
    np.testing.assert_array_equal(read_gray(gray), INDICES)
    assert [part in text for part, text in zip(("3 frames", "4 bands"), caplog.messages, strict=True)] == [True, True]


def test_previews_of_a_camera_are_no_frames(tmp_path, caplog):
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLORS), format="MPO", save_all=True,
                 append_images=[Image.fromarray(COLORS[:3])])  # fmt: skip
    assert read_photograph(path).shape == COLORS.shape
    assert caplog.messages == []


def test_read_gray_keeps_floats_of_a_tiff(tmp_path):
    depth = RNG.uniform(0, 9, (6, 9)).astype(np.float32)
    np.testing.assert_array_equal(read_gray(saved(tmp_path / "a.tiff", depth)), depth)
