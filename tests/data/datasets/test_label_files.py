"""Label files and the meaning of their values."""

import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from htt_lightning.data.datasets.label_files import LabelFiles
from htt_lightning.errors import ConfigError, DataError, HTTError
from htt_lightning.io.image_files import ImageFormat, size_of
from htt_lightning.io.images import read_gray, read_rgb
from htt_lightning.tasks import Depth, Edges, InverseDepth, Normals, Saliency, SemSeg
from tests.data.datasets.test_nyud import Trap
from tests.flow import Height
from tests.io.test_images import gray_png

SEMSEG = SemSeg(classes=("a", "b", "c", "d"))
SIZE = (6, 8)


@pytest.fixture
def file(tmp_path):
    """Write an array, as a picture or as ``.npy``; its path."""

    def write(array, suffix=".png"):
        path = tmp_path / f"map{suffix}"
        if suffix == ".npy":
            np.save(path, array, allow_pickle=True)
        else:
            Image.fromarray(array).save(path)
        return path

    return write


def integers(high, dtype=np.uint8, low=0, shape=SIZE):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".npy"])
def test_classes_are_read_from_images_and_arrays(file, suffix):
    stored = integers(4)
    label = LabelFiles(SEMSEG, "").read(file(stored, suffix))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, stored)


def test_palette_indices_are_classes(tmp_path):
    stored = integers(4)
    picture = Image.fromarray(stored).convert("P")
    picture.putdata(stored.ravel().tolist())
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    picture.save(tmp_path / "map.png", transparency=bytes([0, 255, 255, 255]))
    np.testing.assert_array_equal(LabelFiles(SEMSEG, "").read(tmp_path / "map.png"), stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colours = read_rgb(tmp_path / "map.png", ImageFormat.ANY)
    np.testing.assert_array_equal(colours[stored == 2], np.tile(np.uint8([0, 0, 200]), ((stored == 2).sum(), 1)))


@pytest.mark.parametrize(
    ("high", "dtype", "suffix"), [(2, bool, ".png"), (2**16, np.uint16, ".png"), (2**16, np.uint16, ".tiff")]
)
def test_gray_images_keep_their_values(file, high, dtype, suffix):
    stored = integers(high, dtype)
    path = file(stored, suffix)
    gray = read_gray(path)
    assert gray.dtype == (np.uint8 if dtype is bool else dtype)
    np.testing.assert_array_equal(gray, stored)
    assert size_of(path, ImageFormat.ANY) == LabelFiles(Edges(), "").size(path) == SIZE


def test_transparent_images_are_put_on_white_with_a_word(file, caplog):
    path = file(np.full((*SIZE, 4), (10, 20, 30, 51), np.uint8))  # a fifth of the color, four fifths white
    for _ in range(2):
        np.testing.assert_array_equal(read_rgb(path, ImageFormat.ANY)[0, 0], [206, 208, 210])
    (message,) = caplog.messages
    assert path.name in message
    with pytest.raises(DataError, match=r"map\.png must be opaque"):
        LabelFiles(Normals(), "").read(path)


def test_gray_images_of_fewer_bits_are_rejected(tmp_path):
    gray_png(tmp_path / "a.png", 4, integers(16))
    with pytest.raises(DataError, match=r"a\.png must have 8 bits per pixel, got 4"):
        LabelFiles(SEMSEG, "").read(tmp_path / "a.png")


def test_labels_in_colors_are_rejected_with_a_next_step(file):
    with pytest.raises(DataError, match=r"one value per pixel .* got RGB\. Convert its colors"):
        LabelFiles(SEMSEG, "").read(file(integers(256, shape=(*SIZE, 3)), ".png"))


def test_images_of_other_modes_are_rejected(file, tmp_path):
    read_any = partial(read_rgb, form=ImageFormat.ANY)
    for read, path in (
        (read_any, file(integers(2**16, np.uint16))),
        (read_gray, file(integers(256, shape=(*SIZE, 3)), ".bmp")),
        (read_gray, file(integers(9, np.int32, -5), ".tif")),
    ):
        with pytest.raises(HTTError, match=path.name):
            read(path)
    for read in (read_any, read_gray, partial(size_of, form=ImageFormat.ANY)):
        with pytest.raises(HTTError, match=r"gone\.png is missing"):
            read(tmp_path / "gone.png")
        with pytest.raises(HTTError, match=tmp_path.name):
            read(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".npy"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.6])
def test_truncated_files_are_named(file, suffix, part):
    path = file(integers(4, shape=(64, 64)), suffix)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(HTTError, match=rf"map\{suffix} "):
        LabelFiles(SEMSEG, "").read(path)


@given(st.dictionaries(st.integers(-5, 300), st.integers(0, 3), min_size=1), st.sets(st.integers(-5, 300)))
def test_class_map_and_missing_values_are_applied(tmp_path_factory, values, missing):
    stored = np.array([[*values, *missing]])
    path = tmp_path_factory.getbasetemp() / "values.npy"
    np.save(path, stored)
    label = LabelFiles(SEMSEG, "", class_map=values, missing_values=tuple(missing)).read(path)
    assert label.tolist() == [[255 if value in missing else values[value] for value in stored[0].tolist()]]


def test_class_offset_shifts_classes(file):
    stored = integers(5)  # 0 is unknown
    label = LabelFiles(SEMSEG, "", class_offset=-1, missing_values=(0,)).read(file(stored))
    np.testing.assert_array_equal(label, np.where(stored == 0, 255, stored.astype(int) - 1))


def test_classes_may_be_floats_with_negative_missing_values(file):
    stored = integers(4, np.float64, -1)
    label = LabelFiles(SEMSEG, "", missing_values=(-1,)).read(file(stored, ".npy"))
    np.testing.assert_array_equal(label, np.where(stored < 0, 255, stored).astype(np.uint8))


@pytest.mark.parametrize("value", [4, 255, -1, 0.5, np.nan, np.inf, 1e300])
def test_unknown_classes_are_rejected(file, value):
    stored = integers(4, np.float64)
    stored[1, 2] = value
    with pytest.raises(DataError, match=r"map\.npy .* values 0 to 3 for the 4 classes of semseg, got .* missing_val"):
        LabelFiles(SEMSEG, "").read(file(stored, ".npy"))


@pytest.mark.parametrize(
    ("rules", "values"),
    [({"class_offset": -1}, "1 to 4"), ({"class_map": {7: 0, 11: 1, 12: 3}}, "7, 11, 12")],
)
def test_unknown_class_names_the_values_of_files(file, rules, values):
    with pytest.raises(DataError, match=f"values {values} for the 4 classes of semseg, got 0"):
        LabelFiles(SEMSEG, "", **rules).read(file(np.zeros(SIZE, np.uint8), ".npy"))


def test_white_in_a_mask_needs_a_class_map(file):
    stored = integers(2) * 255
    with pytest.raises(DataError, match="2 classes of saliency, got 255"):
        LabelFiles(Saliency(), "").read(file(stored))
    label = LabelFiles(Saliency(), "", class_map={0: 0, 255: 1}).read(file(stored))
    np.testing.assert_array_equal(label, stored // 255)


def test_scale_turns_millimeters_into_meters(file):
    stored = integers(9000, np.uint16)
    stored[0, 0] = 0
    depth = LabelFiles(Depth(), "", scale=0.001).read(file(stored))
    assert depth.dtype == np.float32
    assert depth.shape == SIZE
    np.testing.assert_allclose(depth, np.where(stored == 0, np.nan, stored / 1000), rtol=1e-6)


@pytest.mark.parametrize("value", [-3.0, np.nan, np.inf, 99.0])
def test_invalid_depth_is_missing(file, value):
    stored = np.random.default_rng(0).uniform(1, 5, (*SIZE, 1))
    stored[2, 3] = value
    depth = LabelFiles(Depth(), "", missing_values=(99,)).read(file(stored, ".npy"))
    assert np.isnan(depth).sum() == 1
    assert np.isnan(depth[2, 3])


def test_zero_is_valid_without_missing_values(file):
    stored = integers(3)
    assert np.isnan(LabelFiles(Height(), "").read(file(stored))).sum() == (stored == 0).sum()
    field = LabelFiles(Height(), "", missing_values=(), scale=-2.0).read(file(stored))
    np.testing.assert_array_equal(field, -2.0 * stored)


def test_normals_are_decoded_from_colors(file):
    stored = integers(256, shape=(*SIZE, 3))
    stored[0, :3] = [[0, 0, 0], [128, 127, 128], [127, 127, 127]]
    normals = LabelFiles(Normals(), "").read(file(stored))
    vectors = 2 * stored.astype(np.float64) / 255 - 1
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[0, :3] = np.nan
    assert normals.dtype == np.float32
    np.testing.assert_allclose(normals, vectors, atol=1e-5)


def test_offset_is_added_to_scaled_values(file):
    stored = np.array([[0, 1, 257], [513, 5121, 65535]], np.uint16)  # Cityscapes' disparities: 256 d + 1, 0 missing
    files = LabelFiles(InverseDepth(), "", scale=1 / 256, offset=-1 / 256)
    depth = files.read(file(stored))
    np.testing.assert_allclose(depth, [[np.nan, np.nan, 1], [2, 20, 65534 / 256]], rtol=1e-6)
    column = files.column_format("disparity")
    np.testing.assert_array_equal(column.decode("disparity", stored), depth)


def test_offset_keeps_missing_values_missing(file):
    stored = np.array([[0, 200], [300, 65535]], np.uint16)
    files = LabelFiles(Height(), "", missing_values=(65535,), scale=0.1, offset=-30.0)
    np.testing.assert_allclose(files.read(file(stored)), [[-30, -10], [0, np.nan]], atol=1e-5)


def test_offset_may_differ_between_channels(file):
    vectors = np.full((2, 3, 3), [0.5, 0.5, 1.3], np.float32)
    normals = LabelFiles(Normals(), "", offset=(-0.5, 0.1, -0.5)).read(file(vectors, ".npy"))
    np.testing.assert_allclose(normals, np.broadcast_to([0, 0.6, 0.8], (2, 3, 3)), atol=1e-6)


def test_scale_flips_an_axis_of_float_normals(file):
    vectors = np.random.default_rng(0).normal(size=(*SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[0, 0], vectors[0, 1] = 0, (1, np.nan, 0)
    normals = LabelFiles(Normals(), "", scale=(1, -1, 1)).read(file(vectors, ".npy"))
    assert np.isnan(normals[0, :2]).all()
    np.testing.assert_allclose(normals[1:], vectors[1:] * [1, -1, 1], atol=1e-6)


def test_normals_that_are_no_unit_vectors_are_rejected(file):
    for array in (100 * np.ones((*SIZE, 3)), np.ones((*SIZE, 3), int)):
        with pytest.raises(DataError, match=r"map\.npy must"):
            LabelFiles(Normals(), "").read(file(array, ".npy"))


@pytest.mark.parametrize(
    ("task", "array"),
    [
        (SEMSEG, np.zeros((*SIZE, 3))),
        (SEMSEG, np.zeros(SIZE, complex)),
        (SEMSEG, np.zeros(6)),
        (SEMSEG, np.zeros((0, 3))),
        (Depth(), np.ones((*SIZE, 3))),
        (Depth(), np.ones(SIZE, bool)),
        (Normals(), np.ones(SIZE)),
        (Normals(), np.ones((3, *SIZE))),
    ],
)
def test_other_shapes_and_types_are_rejected(file, task, array):
    path = file(array, ".npy")
    for read in (LabelFiles(task, "").read, LabelFiles(task, "").size):
        with pytest.raises(DataError, match=r"map\.npy must be h w"):
            read(path)


@pytest.mark.parametrize("suffix", [".tiff", ".npz", ".NPZ", ".npy"])
def test_depth_is_read_from_floats_of_several_files(tmp_path, suffix):
    stored = np.random.default_rng(0).uniform(0.1, 9, SIZE).astype(np.float32)
    stored[0, :2] = 0, np.nan
    path = tmp_path / f"map{suffix}"
    if suffix == ".tiff":
        Image.fromarray(stored).save(path)
    else:
        with path.open("wb") as file:
            np.save(file, stored) if suffix == ".npy" else np.savez_compressed(file, stored)
    files = LabelFiles(Depth(), "", scale=10.0)
    expected = stored * 10
    expected[0, 0] = np.nan
    np.testing.assert_allclose(files.read(path), expected, rtol=1e-6)
    assert files.size(path) == SIZE


def test_archives_need_one_array_or_that_of_the_task(tmp_path):
    path, depth = tmp_path / "map.npz", np.full(SIZE, 2, np.float32)
    np.savez(path, depth=depth, other=depth * 2)
    np.testing.assert_array_equal(LabelFiles(Depth(), "").read(path), depth)
    for task in (Height(), SEMSEG):
        for read in (LabelFiles(task, "").read, LabelFiles(task, "").size):
            with pytest.raises(DataError, match=rf"map\.npz must hold one array, or one called '{task.name}'.*other"):
                read(path)
    np.savez(path, np.array([[Trap()]], object))
    with pytest.raises(DataError, match=r"map\.npz"):
        LabelFiles(Depth(), "").read(path)
    with pytest.raises(DataError, match=r"gone\.npz is missing"):
        LabelFiles(Depth(), "").size(tmp_path / "gone.npz")


@pytest.mark.parametrize("suffix", [".mat", ".exr", ".h5", ".pt", ".EXR"])
def test_other_files_are_refused_with_the_formats_that_are_read(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    path.write_bytes(b"\0" * 64)
    for read in (LabelFiles(Depth(), "").read, LabelFiles(Depth(), "").size):
        with pytest.raises(DataError, match=rf"map\{suffix} must be \.npy, \.npz or an image .*got \{suffix.lower()}"):
            read(path)


@pytest.mark.parametrize(
    ("task", "rules", "message"),
    [
        (SEMSEG, {"scale": 2.0}, "label_files of semseg: scale"),
        (SEMSEG, {"class_map": {7: 4}}, r"class_map must have classes 0 to 3, got \[4\]"),
        (SEMSEG, {"class_map": {7: 1}, "class_offset": 1}, "exclude each other"),
        (Depth(), {"class_map": {7: 1}}, "label_files of depth: class_map"),
        (Depth(), {"class_offset": -1}, "class_offset"),
        (SEMSEG, {"offset": 2.0}, "label_files of semseg: offset .*class_offset"),
        (Depth(), {"offset": float("inf")}, "offset must be"),
        (Normals(), {"offset": (1.0, -1.0)}, "offset must be .*one per channel"),
        (Depth(), {"scale": 0.0}, "scale must be"),
        (Depth(), {"scale": float("nan")}, "scale must be"),
        (Normals(), {"scale": (1.0, -1.0)}, "one per channel"),
        (SemSeg(classes=tuple(map(str, range(256)))), {}, "got 256"),
    ],
)
def test_settings_that_do_not_fit_are_rejected(task, rules, message):
    with pytest.raises(ConfigError, match=message):
        LabelFiles(task, "", **rules)
