import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from skimage.morphology import thin

from htt_lightning.metrics.boundary_matching import match_boundaries

THRESHOLDS = (np.arange(1, 20) / 20).astype(np.float32)
RADII = st.sampled_from([0, 0.9, 1, 1.27, 1.5, 2, 2.3, 50])


def pairs_within(predicted, truth, radius):
    """For each predicted pixel the true pixels within the radius, by comparing all pairs."""
    p, t = np.argwhere(predicted), np.argwhere(truth)
    return np.hypot(*(p[:, None] - t[None]).transpose(2, 0, 1)) <= radius


def largest_matching(reachable):
    return (maximum_bipartite_matching(csr_array(reachable), perm_type="column") >= 0).sum() if reachable.any() else 0


@st.composite
def maps(draw, max_side=7):
    shape = draw(st.tuples(st.integers(1, max_side), st.integers(1, max_side)))
    levels = st.sampled_from([0, 0.04, 0.05, 0.3, 0.5, 0.7, 0.95, 1])
    probability = draw(hnp.arrays(np.float32, shape, elements=levels))
    truth, valid = (draw(hnp.arrays(bool, shape)) for _ in range(2))
    return probability, truth, valid | draw(st.booleans())


@pytest.mark.parametrize("thinned", [False, True])
@given(maps(), RADII)
def test_counts_equal_those_of_scipy(thinned, case, radius):
    probability, truth, valid = case
    counts = match_boundaries(probability, truth, valid, THRESHOLDS, radius, thinned)
    for threshold, matched, predicted in zip(THRESHOLDS, *counts, strict=True):
        binary = (probability >= threshold) & valid
        binary = thin(binary) if thinned else binary
        assert predicted == binary.sum()
        assert matched == largest_matching(pairs_within(binary, truth & valid, radius))


@pytest.mark.parametrize("radius", [1.27, 3.2])
@pytest.mark.parametrize("seed", range(3))
def test_matching_of_larger_maps_equals_that_of_scipy(seed, radius):
    rng = np.random.default_rng(seed)
    probability = rng.random((24, 32), np.float32)
    truth = rng.random((24, 32)) < (0.1, 0.3, 0.6)[seed]
    counts = match_boundaries(probability, truth, np.ones_like(truth), THRESHOLDS, radius)
    for threshold, matched in zip(THRESHOLDS, counts[0], strict=True):
        assert matched == largest_matching(pairs_within(probability >= threshold, truth, radius))


def test_early_match_moves_for_a_later_one():
    # The second pixel reaches only the true pixel that the first one, which is nearer, took.
    truth = np.array([[True, False, False, True]])
    probability = np.array([[0.0, 0.9, 0.2, 0.0]], np.float32)
    counts = match_boundaries(probability, truth, np.ones_like(truth), np.float32([0.1, 0.5]), 2)
    np.testing.assert_array_equal(counts[0], [2, 1])


@pytest.mark.parametrize("value", [0, 0.5, 1, np.nan])
@pytest.mark.parametrize("truth", [False, True])
def test_constant_maps_are_counted(value, truth):
    probability = np.full((3, 4), value, np.float32)
    counts = match_boundaries(probability, np.full((3, 4), truth), np.full((3, 4), True), THRESHOLDS, 1)
    np.testing.assert_array_equal(counts[1], 12 * (np.nan_to_num(value) >= THRESHOLDS))
    np.testing.assert_array_equal(counts[0], counts[1] * truth)
