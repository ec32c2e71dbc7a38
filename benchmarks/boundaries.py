"""Time the boundary F-measure: all thresholds of a map at once, against scipy one threshold at a time.

Maps are made at random: borders between smooth regions as truth (2-5 % of the pixels), and as probability a ridge along
them that is blurred, broken and joined by others, over a background that is nowhere zero.

    python benchmarks/boundaries.py
"""

import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from htt_lightning.metrics.boundary_matching import match_boundaries

THRESHOLDS = (np.arange(1, 100) / 100).astype(np.float32)
MAPS = 4


def smooth(rng: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float64]:
    field: NDArray[np.float64] = ndimage.gaussian_filter(rng.standard_normal(size), scale)
    return field / field.std()


def random_maps(seed: int, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Make a probability map and a ground truth, ``h w``."""
    rng = np.random.default_rng(seed)
    region = smooth(rng, size, 10) > 0
    truth = np.zeros(size, bool)
    truth[1:] = region[1:] != region[:-1]
    truth[:, 1:] |= region[:, 1:] != region[:, :-1]
    logit = 3 - 0.8 * ndimage.distance_transform_edt(~truth) + 1.5 * smooth(rng, size, 3)
    return (1 / (1 + np.exp(-np.maximum(logit, -6)))).astype(np.float32), truth


def one_by_one(probability: NDArray[np.float32], truth: NDArray[np.bool_], radius: float) -> NDArray[np.int64]:
    """Count matched pairs at each threshold by scipy."""
    targets = KDTree(np.argwhere(truth))
    matched = []
    for threshold in THRESHOLDS:
        near = targets.query_ball_point(np.argwhere(probability >= threshold), radius, return_sorted=False)
        bounds = np.cumsum([0, *map(len, near)])
        graph = csr_array((np.ones(bounds[-1]), np.concatenate([*near, []]), bounds), (len(near), targets.n))
        matched.append((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
    return np.array(matched)


def seconds(count: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = count(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    """Print the mean seconds per map, and compare the counts with scipy's on small maps."""
    for size, tolerance in product(((80, 120), (320, 480)), (0.0075, 0.011)):
        radius, rows = tolerance * float(np.hypot(*size)), []
        for seed in range(MAPS):
            probability, truth = random_maps(seed, size)
            case = (probability, truth, np.ones_like(truth), THRESHOLDS, radius)
            ours, counts = seconds(match_boundaries, *case)
            thin, _ = seconds(match_boundaries, *case, True)
            rows.append([100 * truth.mean(), ours, thin])
            if size == (80, 120):
                scipy, matched = seconds(one_by_one, probability, truth, radius)
                np.testing.assert_array_equal(counts[0], matched)
                rows[-1].append(scipy / ours)
        true, ours, thin, *ratio = np.mean(rows, 0)
        print(
            f"{size[0]}x{size[1]}, radius {radius:.1f}, {true:.1f} % true, {len(THRESHOLDS)} thresholds: "
            f"{ours:.3f} s per map, {thin:.2f} s thinned"
            + "".join(f"; scipy takes {x:.0f} times as long" for x in ratio)
        )


if __name__ == "__main__":
    main()
