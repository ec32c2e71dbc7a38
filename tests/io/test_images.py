import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from htt_lightning.errors import HTTError
from htt_lightning.io.images import ImageFormat, read_index, read_normals, read_rgb, size_of

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
INDICES = RNG.integers(0, 21, (6, 9), np.uint8)
READERS = {"rgb": read_rgb, "index": read_index, "directions": lambda path: read_normals(path, (6, 9))}
FORMS = {"rgb": ImageFormat.RGB, "index": ImageFormat.INDEX, "directions": ImageFormat.NORMALS}


def saved(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def palette_png(path, indices, **options):
    """A palette whose colours have nothing to do with the indices, as VOC's."""
    image = Image.fromarray(indices).convert("L")
    image = Image.frombytes("P", image.size, indices.tobytes())
    image.putpalette(RNG.permutation(768).astype(np.uint8).tobytes())
    return saved(path, image, **options)


def grey_png(path, bits, levels):
    """A grey PNG of any depth, written by hand: Pillow writes only some."""
    rows = [b"\0" + np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(bool)).tobytes() for row in levels]

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_photographs_are_read_as_rgb_from_png_and_jpeg(tmp_path):
    read = read_rgb(saved(tmp_path / "a.png", COLOURS))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, COLOURS)
    smooth = cv2.resize(COLOURS, (90, 60))
    read = read_rgb(saved(tmp_path / "a.jpg", smooth, quality=100, subsampling=0))
    assert np.abs(read.astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_grey_photographs_become_rgb(tmp_path, suffix):
    read = read_rgb(saved(tmp_path / f"a.{suffix}", INDICES))
    assert read.shape == (6, 9, 3)
    assert (read == read[..., :1]).all()


def test_a_photograph_with_a_palette_shows_its_colours(tmp_path):
    path = palette_png(tmp_path / "a.png", INDICES)
    with Image.open(path) as image:
        palette = np.reshape(image.getpalette(), (-1, 3))
    np.testing.assert_array_equal(read_rgb(path), palette[INDICES])


@pytest.mark.parametrize("bits", [8, 5, 4])
def test_indices_of_a_palette_are_read_whatever_its_colours(tmp_path, bits):
    indices = INDICES % (16 if bits == 4 else 21)
    path = palette_png(tmp_path / "a.png", indices, bits=bits)
    np.testing.assert_array_equal(read_index(path), indices)


def test_grey_indices_are_read_as_they_are(tmp_path):
    read = read_index(saved(tmp_path / "a.png", INDICES))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, INDICES)


def test_what_is_read_may_be_changed(tmp_path):
    for read in (read_rgb(saved(tmp_path / "a.png", COLOURS)), read_index(saved(tmp_path / "b.png", INDICES))):
        read[:] = 0


def test_directions_are_decoded_and_brought_to_unit_length(tmp_path):
    read = read_normals(saved(tmp_path / "a.png", COLOURS), (6, 9))
    expected = 2 * COLOURS.astype(float) / 255 - 1
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, expected, atol=1e-5)


def test_greys_in_the_middle_have_no_direction(tmp_path):
    colours = COLOURS.copy()
    colours[0, :3] = [[127, 127, 127], [128, 128, 128], [127, 128, 127]]
    colours[0, 3] = [127, 128, 131]
    read = read_normals(saved(tmp_path / "a.png", colours), (6, 9))
    assert np.isnan(read[0, :3]).all()
    assert np.isfinite(read).sum() == read.size - 9


def test_directions_of_another_size_are_interpolated_by_cubics_then_normalised(tmp_path):
    colours = cv2.GaussianBlur(RNG.integers(0, 256, (12, 16, 3), np.uint8), (0, 0), 2)
    read = read_normals(saved(tmp_path / "a.png", colours), (24, 40))
    expected = cv2.resize(2 * colours.astype(float) / 255 - 1, (40, 24), interpolation=cv2.INTER_CUBIC)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(read, expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(read, axis=-1), 1, atol=1e-6)


def test_missing_directions_stay_missing_and_do_not_spread_when_interpolated(tmp_path):
    colours = np.full((8, 8, 3), (128, 128, 255), np.uint8)
    colours[:, :4] = 127
    read = read_normals(saved(tmp_path / "a.png", colours), (16, 24))
    assert np.isnan(read[:, :12]).all()
    np.testing.assert_allclose(read[:, 12:], np.broadcast_to([0, 0, 1], (16, 12, 3)), atol=0.01)


@pytest.mark.parametrize("reader", READERS)
def test_the_size_is_read_without_the_pixels(tmp_path, reader):
    path = saved(tmp_path / "a.png", INDICES if reader == "index" else COLOURS)
    assert size_of(path, FORMS[reader]) == (6, 9)


def refused(path, reader, message):
    """Both the reader and the quick look name the file and say what is wrong."""
    for look in (READERS[reader], lambda path: size_of(path, FORMS[reader])):
        with pytest.raises(HTTError, match=message) as error:
            look(path)
        assert path.name in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_is_named(tmp_path, reader):
    refused(tmp_path / "a.png", reader, "is missing")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"no picture IEND \xff\xd9", bytes(9)], ids=len)
def test_a_file_that_is_no_picture_is_refused(tmp_path, reader, content):
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", reader, "truncated or no JPEG or PNG picture")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_picture_is_refused(tmp_path, suffix, share):
    path = saved(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (60, 80, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "rgb", "truncated")


def test_damage_inside_a_picture_is_found_on_reading(tmp_path):
    path = saved(tmp_path / "a.png", RNG.integers(0, 256, (60, 80), np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(HTTError, match=r"a\.png is truncated or no"):
        read_index(path)


def test_a_folder_is_no_picture(tmp_path):
    refused(tmp_path, "rgb", "no JPEG or PNG picture")


@pytest.mark.parametrize("reader", ["rgb", "index"])
def test_sixteen_bits_are_refused(tmp_path, reader):
    refused(saved(tmp_path / "a.png", INDICES.astype(np.uint16)), reader, "16-bit PNG")


@pytest.mark.parametrize("reader", READERS)
def test_sixteen_bits_per_colour_are_refused(tmp_path, reader):
    # Pillow neither writes these nor says that it has read them.
    cv2.imwrite(str(tmp_path / "a.png"), COLOURS.astype(np.uint16) * 257)
    refused(tmp_path / "a.png", reader, "16-bit PNG RGB")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_indices_of_fewer_bits_are_refused(tmp_path, bits):
    refused(grey_png(tmp_path / "a.png", bits, INDICES % 2**bits), "index", f"{bits}-bit PNG")


def test_grey_pngs_written_by_hand_are_sound(tmp_path):
    np.testing.assert_array_equal(read_index(grey_png(tmp_path / "a.png", 8, INDICES)), INDICES)


def test_colours_are_no_indices_and_indices_no_directions(tmp_path):
    refused(saved(tmp_path / "a.png", COLOURS), "index", "is PNG RGB; store it as PNG L or PNG P")
    refused(saved(tmp_path / "b.png", INDICES), "directions", "is PNG L; store it as PNG RGB")
    refused(saved(tmp_path / "c.jpg", INDICES), "index", "is JPEG L; store it as PNG L or PNG P")


def test_transparency_and_colours_for_print_are_refused(tmp_path):
    refused(saved(tmp_path / "a.png", np.dstack([COLOURS, INDICES])), "rgb", "PNG RGBA")
    refused(saved(tmp_path / "b.jpg", Image.fromarray(COLOURS).convert("CMYK")), "rgb", "JPEG CMYK")


def test_moving_pictures_are_refused(tmp_path):
    frames = [Image.fromarray(np.roll(COLOURS, k)) for k in range(3)]
    path = saved(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])
    refused(path, "rgb", "several pictures")
