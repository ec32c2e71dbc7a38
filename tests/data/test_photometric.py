import random

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.data.transforms import PhotoMetricDistortion


def test_photometric_values_fill_their_ranges():
    distortion = PhotoMetricDistortion(1.0)
    distortion.set_random_state(np.random.default_rng(0), random.Random(0))
    draws = [distortion.get_params() for _ in range(2000)]
    for key, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("saturation", 0.5, 1.5)):
        values = np.array([draw[key] for draw in draws])
        assert low <= values.min() < low + (high - low) / 100
        assert high - (high - low) / 100 < values.max() <= high
    assert {draw["hue"] for draw in draws} == set(range(-18, 18))
    assert 900 < sum(draw["contrast_first"] for draw in draws) < 1100


def test_photometric_operations_are_independent():
    distortion = PhotoMetricDistortion(0.5)
    distortion.set_random_state(np.random.default_rng(0), random.Random(0))
    draws = [distortion.get_params() for _ in range(2000)]
    neutral = {"brightness": 0, "contrast": 1, "saturation": 1, "hue": 0}
    active = np.array([[draw[key] != value for key, value in neutral.items()] for draw in draws])
    assert (np.abs(active.mean(0) - 0.5) < 0.05).all()
    assert len(np.unique(active, axis=0)) == 16


def reference(image, brightness, contrast, saturation, hue, contrast_first):
    def cut(values):
        return np.clip(values, 0, 255).astype(np.uint8)

    image = cut(image.astype(float) + brightness)
    if contrast_first:
        image = cut(image.astype(float) * contrast)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = cut(hsv[..., 1].astype(float) * saturation)
    hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return image if contrast_first else cut(image.astype(float) * contrast)


@settings(max_examples=30)
@given(
    st.floats(-32, 32),
    st.floats(0.5, 1.5),
    st.floats(0.5, 1.5).filter(lambda value: value != 1),
    st.integers(-18, 17),
    st.booleans(),
)
def test_photometric_operations_equal_plain_formulas(brightness, contrast, saturation, hue, contrast_first):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    numbers = (brightness, contrast, saturation, hue, contrast_first)
    np.testing.assert_array_equal(PhotoMetricDistortion(1.0).apply(image, *numbers), reference(image, *numbers))
