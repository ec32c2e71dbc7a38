import ast

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.errors import DataError
from htt_lightning.io.arrays import normalize_, read_npy, resize, vector_norm

lengths = st.integers(1, 80)


@given(lengths, lengths)
def test_resize_nearest_matches_pixel_centers(old, new):
    positions = resize(np.arange(old, dtype=np.float32)[None], (1, new), "nearest")[0]
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    assert np.abs(positions - centers).max() <= 0.5


@pytest.mark.parametrize("size", [(4, 10), (20, 6), (33, 70)])
def test_resize_aligns_images_and_maps(size):
    columns = np.tile(np.arange(30, dtype=np.float32), (20, 1))
    bilinear, nearest = resize(np.dstack([columns] * 3), size)[..., 0], resize(columns, size, "nearest")
    assert bilinear.shape == nearest.shape == size
    assert np.abs(bilinear - nearest).max() <= 0.5
    assert abs((bilinear - nearest).mean()) < 0.1  # matching corners would shift by half a pixel and more


def test_fault_of_pythons_parser_is_no_corrupt_file(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(3))
    parse, faults = ast.parse, [SystemError("AST constructor recursion depth mismatch")]

    def faulty(*args, **options):
        if faults:
            raise faults.pop()
        return parse(*args, **options)

    monkeypatch.setattr(ast, "parse", faulty)
    assert read_npy(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert not faults


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(17, 23), (17, 23, 3)])
def test_resize_nearest_keeps_values_and_type(dtype, shape):
    array = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    resized = resize(array, (31, 7), "nearest")
    assert resized.dtype == dtype
    assert resized.shape == (31, 7, *shape[2:])
    assert np.isin(resized, array).all()


def test_resize_nearest_keeps_missing_vectors_whole():
    vectors = np.random.default_rng(0).normal(size=(17, 23, 3)).astype(np.float32)
    vectors[3:9, 4:8] = np.nan
    channels = [resize(channel, (40, 50), "nearest") for channel in cv2.split(vectors)]
    np.testing.assert_array_equal(resize(vectors, (40, 50), "nearest"), np.stack(channels, -1))


def test_normalize_makes_unit_vectors():
    vectors = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    norm = vector_norm(vectors)
    np.testing.assert_allclose(norm, np.linalg.norm(vectors, axis=-1), rtol=1e-6)
    assert normalize_(vectors, norm) is vectors
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-6)


def test_read_npy_maps_the_file(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04" + bytes(99), None, "longer", "objects"])
def test_read_npy_names_corrupt_files(tmp_path, content):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{}]) if content == "objects" else np.arange(9), allow_pickle=True)
    if content != "objects":
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] if content is None else whole + b"0" if content == "longer" else content)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(path)


def test_read_npy_names_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"a\.npy is missing"):
        read_npy(tmp_path / "a.npy")
