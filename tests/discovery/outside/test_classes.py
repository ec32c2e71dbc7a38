"""Tables from the classes of another program to those of a task."""

import numpy as np
import pytest

from htt_lightning.discovery.outside.classes import class_table, map_classes, map_probabilities
from htt_lightning.errors import ConfigError

OURS, THEIRS = ["floor", "wall", "table"], ["wall", "desk", "sky", "Floor"]


@pytest.mark.parametrize(
    ("classes", "table"),
    [
        (None, {0: 1, 3: 0}),
        ({"desk": "table", "wall": "wall"}, {1: 2, 0: 1}),
        ({1: "table", "3": "floor"}, {1: 2, 3: 0}),
    ],
    ids=["same names", "names", "indices"],
)
def test_class_table(classes, table):
    assert class_table(classes, OURS, THEIRS, "teachers.semseg") == table


@pytest.mark.parametrize(
    ("classes", "theirs", "words"),
    [
        ({"dask": "table"}, THEIRS, r"dask.*Did you mean 'desk'"),
        ({"desk": "tabel"}, THEIRS, r"tabel.*Did you mean 'table'"),
        ({4: "table"}, THEIRS, "4"),
        ({"desk": "table"}, [], "desk"),
        (None, ["sky"], "none"),
    ],
    ids=["their name", "our name", "index", "name for maps", "nothing shared"],
)
def test_class_table_refuses_unknown_names(classes, theirs, words):
    with pytest.raises(ConfigError, match=rf"^teachers\.semseg\.classes.*{words}"):
        class_table(classes, OURS, theirs, "teachers.semseg")


def test_map_classes_leaves_others_missing():
    stored = np.array([[0, 7, 300]])
    np.testing.assert_array_equal(map_classes(stored, {7: 2, 0: 1}), [[1, 2, 255]])


def test_map_probabilities_adds_those_of_one_class():
    probabilities = np.array([[0.3, 0.1], [0.3, 0.1], [0.4, 0.8]], np.float32)[:, None]
    label, confidence = map_probabilities(probabilities, {0: 1, 1: 1}, 2)
    np.testing.assert_array_equal(label, [[1, 255]])
    np.testing.assert_allclose(confidence, [[0.6, 0]], rtol=1e-6)
