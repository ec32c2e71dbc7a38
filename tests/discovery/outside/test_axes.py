"""Axes of another program's normals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.discovery.outside.axes import Axes, check_axes, parse_axes
from htt_lightning.errors import ConfigError, DataError

EVERY = st.builds(
    Axes,
    st.permutations(range(3)).map(tuple),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
)


def normals(count=500):
    vectors = np.random.default_rng(0).normal([0, 0, 3], 1, (count, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(EVERY)
def test_turn_and_undo_are_inverse(axes):
    vectors = normals(20)
    np.testing.assert_allclose(axes.undo(axes.turn(vectors)), vectors)
    np.testing.assert_allclose(axes.turn(vectors)[:, 0], axes.signs[0] * vectors[:, axes.order[0]])


@pytest.mark.parametrize(
    ("axes", "turned"),
    [("opengl", [1, 2, 3]), ("opencv", [1, -2, -3]), (("x", "-y", "z"), [1, -2, 3]), (("-y", "x", "z"), [-2, 1, 3])],
)
def test_parse_axes(axes, turned):
    np.testing.assert_array_equal(parse_axes(axes, "teachers.normals").turn(np.array([1.0, 2, 3])), turned)


@pytest.mark.parametrize("axes", [None, "blender", ("x", "x", "z"), ("x", "y"), ("x", "y", "up")])
def test_parse_axes_refuses_others(axes):
    with pytest.raises(ConfigError, match=r"teachers\.normals\.axes"):
        parse_axes(axes, "teachers.normals")


@given(EVERY)
def test_check_axes_names_those_that_fit(axes):
    given_normals, declared = normals(), Axes((0, 1, 2), (1, 1, 1))
    turned = declared.turn(axes.undo(given_normals))
    if axes == declared:
        return
    with pytest.raises(DataError, match=r"teachers\.normals\.axes") as error:
        check_axes(declared, turned, given_normals, "teachers.normals")
    assert f"{axes} is off by 0" in str(error.value)


def test_check_axes_needs_pixels():
    axes = Axes((0, 1, 2), (1, 1, 1))
    assert np.isnan(check_axes(axes, normals(9), -normals(9), "teachers.normals"))
    assert check_axes(axes, normals(), normals(), "teachers.normals") == pytest.approx(0, abs=1e-4)
