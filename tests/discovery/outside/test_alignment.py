"""Robust scale and shift from another program's depth to given labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.discovery.outside import fit_alignment
from htt_lightning.errors import DataError


def observed(depth, scale, shift, rng, inverse=False, noise=0.05, outliers=0.1):
    """Values of a teacher of known scale and shift, with relative noise and random outliers."""
    values = ((1 / depth if inverse else depth) - shift) / scale
    values *= 1 + noise * rng.standard_normal(len(depth))
    wrong = rng.random(len(depth)) < outliers
    values[wrong] = rng.uniform(values.min(), values.max(), wrong.sum())
    return values


@given(st.floats(0.02, 50), st.floats(-0.5, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_fit_finds_scale_and_shift(scale, shift, seed):
    """Within 2 % and 2 cm, under 5 % noise and 10 % outliers."""
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.uniform(np.log(0.8), np.log(8), 8000))
    found = fit_alignment(observed(depth, scale, shift, rng), depth, "scale_shift", False, "teachers.depth")
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert found.shift == pytest.approx(shift, abs=0.02)
    assert 0.85 < found.inliers < 0.95
    assert found.median_error == pytest.approx(0.05 * 0.6745 / 0.9, rel=0.5)


@given(st.floats(0.02, 50), st.floats(-0.05, 0.05), st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_fit_finds_inverse_scale_and_shift(scale, shift, seed):
    rng = np.random.default_rng(seed)
    depth = np.exp(rng.uniform(np.log(0.8), np.log(8), 8000))
    values = observed(depth, scale, shift, rng, inverse=True)
    found = fit_alignment(values, depth, "scale_shift", True, "teachers.depth")
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert found.shift == pytest.approx(shift, abs=0.01)
    clean = observed(depth, scale, shift, rng, inverse=True, noise=0, outliers=0)
    assert np.median(np.abs(found.align(clean) / depth - 1)) < 0.02


def test_fit_of_scale_alone_has_no_shift():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, 5000)
    found = fit_alignment(observed(depth, 3, 0, rng), depth, "scale", False, "teachers.depth")
    assert (found.scale, found.shift) == (pytest.approx(3, rel=0.01), 0)


def test_no_alignment_measures_the_error():
    depth = np.linspace(1, 5, 500)
    found = fit_alignment(depth * 1.1, depth, "none", False, "teachers.depth")
    assert (found.scale, found.shift, found.median_error) == (1, 0, pytest.approx(0.1, abs=1e-4))


def test_confidence_is_the_accuracy_at_that_depth():
    """Near values are right and far ones random, so confidence falls from one to less than a half."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, 20000)
    values = np.where(depth < 5, depth, rng.uniform(5, 9, len(depth)))
    found = fit_alignment(values, depth, "none", False, "teachers.depth")
    near, far = found.confidence(np.float32([[1.5, 8.5]]))[0]
    assert near == 1
    assert 0 <= far < 0.6
    assert found.confidence(np.float32([[np.nan]])).shape == (1, 1)


@pytest.mark.parametrize(
    ("values", "labels", "method", "word"),
    [
        (np.linspace(0, 1, 99), np.linspace(1, 2, 99), "scale_shift", "100 pixels"),
        (np.full(500, 0.3), np.linspace(1, 2, 500), "scale_shift", "vary"),
        (np.full(500, 0.3), np.linspace(1, 2, 500), "scale", "vary"),
        (np.linspace(0, 1, 500), np.full(500, 2.0), "scale_shift", "alignment must be scale"),
        (np.linspace(1, 0, 500), np.linspace(1, 2, 500), "scale_shift", "space: inverse"),
    ],
    ids=["too few", "constant", "constant scale", "equal labels", "falling"],
)
def test_fit_refuses_what_cannot_be_aligned(values, labels, method, word):
    with pytest.raises(DataError, match=rf"^teachers\.depth.*{word}"):
        fit_alignment(values, labels, method, False, "teachers.depth")
