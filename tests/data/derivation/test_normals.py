"""Normals from depth, against planes and rendered scenes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.derivation.normals import normals_from_depth
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Depth, InverseDepth, Normals

SIZE = (24, 32)
CAMERA = PinholeCamera.from_field_of_view(70, SIZE)
SCENES = SyntheticScenes("train", 8, (64, 96))


def derived(depth, camera=CAMERA, source=None, **options):
    return normals_from_depth(depth.astype(np.float32), source or Depth(), Normals(), camera, **options)


def angles(one, other):
    """Angles in degrees, exact near 0; NaN where a vector is missing."""
    one, other = (vectors.astype(np.float64) for vectors in (one, other))
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(one, other), axis=-1), (one * other).sum(-1)))


def plane(normal, distance, camera=CAMERA, size=SIZE):
    """Depth of a plane; missing where a ray does not meet it."""
    x, y = camera.rays(size)
    cosine = normal[2] - normal[0] * x - normal[1] * y[:, None]
    return np.where(cosine > 0.02, distance / np.maximum(cosine, 0.02), np.nan)


@given(st.floats(-1.4, 1.4), st.floats(0, 3.1), st.floats(0.2, 9), st.floats(30, 110), st.sampled_from([None, 1, 3]))
def test_depth_of_a_plane_gives_its_normal(tilt, turn, distance, field_of_view, radius):
    normal = np.array([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])
    camera = PinholeCamera.from_field_of_view(field_of_view, SIZE)
    depth = plane(normal, distance, camera)
    found = derived(depth, camera, radius=radius)
    known = np.isfinite(found).all(-1)
    assert (known <= np.isfinite(depth)).all()
    assert known.mean() >= 0.9 * np.isfinite(depth).mean() - 0.1
    assert np.nanmax(angles(found, np.broadcast_to(normal, found.shape))[known], initial=0) < 0.1


def test_principal_point_and_focal_lengths_count():
    camera = PinholeCamera((20.0, 25.0), (10.0, 16.0), SIZE)
    normal = np.array([0.3, -0.4, np.sqrt(0.75)])
    found = derived(plane(normal, 2, camera), camera)
    assert angles(found, np.broadcast_to(normal, found.shape)).max() < 0.1


@pytest.mark.parametrize("index", range(4))
def test_mirrored_depth_gives_mirrored_normals(index):
    depth, task = SCENES.label(index, "depth"), Normals()
    mirrored = derived(Depth().flip(depth), SCENES.camera)
    expected = task.flip(derived(depth, SCENES.camera))
    assert (np.isfinite(mirrored) == np.isfinite(expected)).mean() > 0.999
    error = angles(mirrored, expected)
    assert (error[np.isfinite(error)] < 0.1).mean() > 0.995, "windows of equal residual may change sides"


def test_normals_are_those_of_rendered_scenes():
    errors, known = [], []
    for index in range(8):
        found = derived(SCENES.label(index, "depth"), SCENES.camera)
        error = angles(found, SCENES.label(index, "normals"))
        known.append(np.isfinite(error).mean())
        errors.append(error[np.isfinite(error)])
    error = np.concatenate(errors)
    assert np.median(error) < 0.01
    assert (error < 11.25).mean() > 0.85
    assert np.mean(known) > 0.95


def test_no_normal_crosses_a_jump():
    depth = np.full(SIZE, 4.0)
    depth[:, 16:] = 2.0
    depth[5:9] = 3.0
    depth[20, 3:12] = 1.0  # a bar that is too thin for a window
    found = derived(depth)
    assert np.isnan(found[20, 3:12]).all()
    known = np.isfinite(found).all(-1)
    assert known.mean() > 0.95
    assert angles(found, np.broadcast_to([0.0, 0.0, 1.0], found.shape))[known].max() < 0.01


def test_missing_depth_has_no_normal_and_spoils_no_other():
    normal = np.array([0.0, 0.6, 0.8])
    depth = plane(normal, 1.5)
    depth[8:12, 10:20] = np.nan
    depth[0, 0], depth[15, 5] = 0, np.nan
    found = derived(depth)
    known = np.isfinite(found).all(-1)
    assert not known[8:12, 10:20].any()
    assert not known[0, 0]
    assert not known[15, 5]
    assert (~known).sum() == 42
    assert angles(found, np.broadcast_to(normal, found.shape))[known].max() < 0.1


def test_inverse_depth_gives_the_normals_of_depth():
    depth = SCENES.label(0, "depth")
    inverse = derived(0.3 / depth, SCENES.camera, InverseDepth())
    error = angles(inverse, derived(depth, SCENES.camera))
    assert (error[np.isfinite(error)] < 0.2).mean() > 0.99


@pytest.mark.parametrize("depth", [np.full(SIZE, np.nan), np.zeros(SIZE), np.full((2, 2), 3.0), np.full((1, 1), 3.0)])
def test_depth_without_a_window_gives_no_normal(depth):
    found = derived(depth)
    assert found.shape == (*depth.shape, 3)
    assert np.isnan(found).all()


def test_larger_windows_bear_more_noise():
    depth = plane(np.array([0.0, 0.0, 1.0]), 2.0) + np.random.default_rng(0).normal(0, 0.005, SIZE)
    errors = [np.nanmedian(angles(derived(depth, radius=r), np.array([0.0, 0.0, 1.0]))) for r in (1, 2, 4)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_radius_must_be_positive():
    with pytest.raises(ConfigError, match=r"data\.derive\.normals\.radius .* got 0"):
        derived(np.ones(SIZE), radius=0)
