"""Images and maps whose values encode the position of each pixel."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from htt_lightning.data.transforms import AugmentConfig, TrainTransform
from htt_lightning.tasks import Depth, Edges, Normals, SemSeg

TASKS = (SemSeg(classes=("wall", "floor", "bed")), Depth(), Normals(), Edges())
STILL = AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=0)
GEOMETRY = AugmentConfig(photometric_prob=0)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=30)


def scene(height=36, width=48, seed=0, holes=0.2):
    """Red and green are 5 times column and row, semseg and edges are column and row; a fifth is missing."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    normals = rng.normal(size=(height, width, 3)).astype(np.float32)
    arrays = {
        "image": np.stack([5 * columns, 5 * rows, 0 * rows], axis=-1).astype(np.uint8),
        "semseg": columns.astype(np.uint8),
        "edges": rows.astype(np.uint8),
        "depth": (1 + columns).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }
    missing = rng.random((height, width)) < holes
    for key in ("semseg", "depth", "normals"):
        arrays[key][missing] = 255 if key == "semseg" else np.nan
    return arrays


def train(arrays, augment, size=None, seed=0, tasks=TASKS):
    return TrainTransform(tasks, augment, size)(arrays, np.random.default_rng(seed))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        np.testing.assert_array_equal(one[key], other[key])
