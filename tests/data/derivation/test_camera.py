import numpy as np
import pytest

from htt_lightning.data.datasets.nyud import CAMERA
from htt_lightning.data.datasets.nyud40 import CAMERA as CROPPED
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.synthetic_scenes.raycaster import Camera


@pytest.mark.parametrize("size", [(24, 32), (40, 24)])
def test_camera_of_synthetic_scenes_casts_their_rays(size):
    x, y = SyntheticScenes("train", 1, size).camera.rays(size)
    rays = Camera(np.zeros(3), np.eye(3), 0.7).rays(size)
    np.testing.assert_allclose(np.stack(np.meshgrid(x, y)), rays[:2], atol=1e-12)


@pytest.mark.parametrize("degrees", [10, 63.3, 120])
def test_rays_span_the_field_of_view(degrees):
    camera = PinholeCamera.from_field_of_view(degrees, (30, 4000))
    x, y = camera.rays((30, 4000))
    assert np.degrees(np.arctan(x[-1]) - np.arctan(x[0])) == pytest.approx(degrees, abs=0.1)
    np.testing.assert_allclose(np.diff(x)[0], -np.diff(y)[0])
    np.testing.assert_allclose(y, -y[::-1], atol=1e-12)


def test_rays_do_not_depend_on_the_resolution():
    for full, half in zip(CAMERA.rays((480, 640)), CAMERA.rays((240, 320)), strict=True):
        np.testing.assert_allclose(full.reshape(-1, 2).mean(1), half)


def test_crop_keeps_the_rays_of_its_pixels():
    for full, crop, start in zip(CAMERA.rays((480, 640)), CROPPED.rays((425, 560)), (40, 44), strict=True):
        np.testing.assert_allclose(full[start : start + len(crop)], crop)
