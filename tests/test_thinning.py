import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from htt_lightning.thinning import thin

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
NOISE = SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape))
GREYS = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.25, 0.6, 1.0])))
BLOBS = GREYS.map(lambda greys: cv2.blur(greys, (3, 3)) > 0.5)
MASKS = NOISE | BLOBS


def pieces(mask):
    """Pieces that touch at sides or corners, background not counted."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def holes(mask):
    """Parts of the background that touch at sides, the outside among them."""
    return cv2.connectedComponents(np.pad(~mask, 1, constant_values=True).astype(np.uint8), connectivity=4)[0] - 1


def topology(mask):
    return pieces(mask), holes(mask)


def guo_hall(mask):
    """The published rule, pixel by pixel."""
    mask = np.pad(mask, 1)
    changed = True
    while changed:
        changed = False
        for half in (0, 1):
            gone = []
            for y, x in np.argwhere(mask):
                e, ne, n, nw, w, sw, s, se = (
                    mask[y + dy, x + dx]
                    for dy, dx in ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
                )
                around = [(e, ne, n), (n, nw, w), (w, sw, s), (s, se, e)]
                crossings = sum(not a and (b or c) for a, b, c in around)
                pairs = min(sum(a or b for a, b, _ in around), sum(b or c for _, b, c in around))
                third = e and (ne or n or not se) if half == 0 else w and (sw or s or not nw)
                if crossings == 1 and 2 <= pairs <= 3 and not third:
                    gone.append((y, x))
            for place in gone:
                mask[place] = False
            changed |= bool(gone)
    return mask[1:-1, 1:-1]


def squares(mask):
    return mask[:-1, :-1] & mask[1:, :-1] & mask[:-1, 1:] & mask[1:, 1:]


@settings(max_examples=60)
@given(MASKS)
def test_what_is_left_is_part_of_the_map_and_connected_as_it_was(mask):
    before = mask.copy()
    left = thin(mask)
    assert left.shape == mask.shape
    assert left.dtype == np.bool_
    assert not (left & ~mask).any()
    assert topology(left) == topology(mask)
    np.testing.assert_array_equal(mask, before)


@settings(max_examples=60)
@given(MASKS)
def test_thinning_again_changes_nothing(mask):
    np.testing.assert_array_equal(thin(thin(mask)), thin(mask))


@given(BLOBS)
def test_the_order_in_memory_does_not_matter(mask):
    np.testing.assert_array_equal(thin(np.asfortranarray(mask)), thin(np.ascontiguousarray(mask)))


@settings(max_examples=60)
@given(MASKS)
def test_no_square_is_left_that_could_lose_a_pixel(mask):
    left = thin(mask)
    for y, x in np.argwhere(squares(left)):
        for place in (y, x), (y + 1, x), (y, x + 1), (y + 1, x + 1):
            fewer = left.copy()
            fewer[place] = False
            assert topology(fewer) != topology(left)


@settings(max_examples=60)
@given(MASKS)
def test_the_published_rule_decides_wherever_it_leaves_no_square(mask):
    expected = guo_hall(mask)
    if squares(expected).any():
        assert not (thin(mask) & ~expected).any()
    else:
        np.testing.assert_array_equal(thin(mask), expected)


@pytest.mark.parametrize(
    "lines",
    [
        np.eye(7, dtype=bool),
        np.eye(7, dtype=bool)[::-1],
        np.pad(np.ones((1, 6), bool), 2),
        np.zeros((3, 4), bool),
        np.ones((1, 1), bool),
        np.zeros((0, 5), bool),
    ],
)
def test_lines_of_one_pixel_stay(lines):
    np.testing.assert_array_equal(thin(lines), lines)


def test_a_border_of_two_pixels_becomes_one_of_one_pixel():
    segments = np.ones((9, 12))
    segments[:, 5:] = 7
    double = cv2.Laplacian(segments, cv2.CV_64F) != 0
    assert double.sum() == 18
    assert thin(double).sum(1)[1:].tolist() == [1] * 8  # its end is worn off, by one pixel
    assert not (thin(double) & ~double).any()


def test_a_full_square_leaves_something():
    assert thin(np.ones((2, 2), bool)).sum() == 1
    assert thin(np.ones((3, 3), bool))[1, 1]


def test_a_map_of_borders_takes_milliseconds():
    segments = np.random.default_rng(0).integers(1, 460, (15, 20)).repeat(25, 0).repeat(25, 1).astype(float)
    double = cv2.Laplacian(segments, cv2.CV_64F) != 0
    start = time.process_time()
    for _ in range(20):
        thin(double)
    assert time.process_time() - start < 2
