"""Largest one-to-one matching of predicted and true boundary pixels.

Two pixels may be matched if they are no further apart than a tolerance. Binary predictions grow as the threshold falls,
so pixels are added to *one* matching by falling probability, each by an augmenting path. A matched pixel stays matched,
and a pixel that could not be matched never can be later. So one pass answers all thresholds: the matched pixels above a
threshold are a largest matching of that threshold.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import thin

UNMATCHED = -1


def match_boundaries(
    probability: NDArray[np.floating],
    truth: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    thresholds: NDArray[np.floating],
    radius: float,
    thin_predictions: bool = False,
) -> NDArray[np.int64]:
    """Match predicted with true boundary pixels of one image at every threshold.

    A 64x96 map takes milliseconds, a 480x640 map with a radius of 9 pixels half a second. Thinning takes many times as
    long.

    Args:
        probability: ``h w`` in [0, 1]. A pixel is predicted where ``probability >= threshold``, never where NaN.
        truth: ``h w``, True on boundaries.
        valid: ``h w``, False on pixels that count neither as predicted nor as true.
        thresholds: Ascending thresholds ``t`` of the probability's dtype, so that equal values compare equal.
        radius: Largest distance of a pair in pixels; 0 matches equal positions only.
        thin_predictions: Thin the binary prediction at each threshold first. Thinned predictions do not grow as the
            threshold falls, so each threshold has a matching of its own.

    Returns:
        Number of matched pairs and number of predicted pixels at each threshold, ``2 t``.
    """
    if thin_predictions:
        lines = (thin(valid & (probability >= threshold)) for threshold in thresholds)
        one = np.ones(1, np.float32)
        return np.hstack([match_boundaries(line.astype(np.float32), truth, valid, one, radius) for line in lines])
    reached = np.searchsorted(thresholds, np.where(valid & ~np.isnan(probability), probability, -np.inf), "right")
    rows, columns = np.nonzero(reached)
    levels = reached[rows, columns]
    order = np.argsort(-levels, kind="stable")
    levels = levels[order]
    matched = _match(*_neighbors(np.stack([rows[order], columns[order]], 1), truth & valid, radius))
    at_level = [np.bincount(found, minlength=len(thresholds) + 1) for found in (levels[matched], levels)]
    return np.stack(at_level)[:, :0:-1].cumsum(1)[:, ::-1].astype(np.int64)


def _neighbors(
    points: NDArray[np.intp], truth: NDArray[np.bool_], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Find the true pixels within reach of each predicted pixel ``p 2``, nearest first.

    Returns:
        Bounds ``p+1``, neighbors ``e`` and the number of true pixels. The neighbors of point ``i`` are the true pixels
        numbered ``neighbors[bounds[i]:bounds[i + 1]]``.
    """
    reach = min(int(radius), max(truth.shape))
    point_at = np.full(np.array(truth.shape) + 2 * reach, UNMATCHED)
    point_at[tuple(points.T + reach)] = np.arange(len(points))
    rows, columns = np.nonzero(truth)

    span = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(span, span, indexing="ij"), -1).reshape(-1, 2)
    distances = (offsets**2).sum(1)
    near = np.argsort(distances, kind="stable")[: int((distances <= radius**2).sum())]
    sources = np.concatenate([point_at[rows + reach + dy, columns + reach + dx] for dy, dx in offsets[near]])
    targets = np.tile(np.arange(len(rows)), len(near))

    hit = sources != UNMATCHED
    sources, targets = sources[hit], targets[hit]
    bounds = np.concatenate([[0], np.bincount(sources, minlength=len(points)).cumsum()])
    return bounds, targets[np.argsort(sources, kind="stable")], len(rows)


def _match(bounds: NDArray[np.intp], neighbors: NDArray[np.intp], num_targets: int) -> NDArray[np.intp]:
    """Match sources one after another, each by a shortest augmenting path.

    A failed search has visited targets that are all taken and lead only to each other. They are closed for good, so all
    failures together cost no more than the size of the graph.

    Returns:
        Ascending numbers of the matched sources. Those below ``n`` form a largest matching of the first ``n`` sources.
    """
    edges, limits = neighbors.tolist(), bounds.tolist()
    owner = [UNMATCHED] * num_targets
    mate = [UNMATCHED] * (len(bounds) - 1)
    closed = bytearray(num_targets)
    for source in np.flatnonzero(np.diff(bounds)).tolist():
        via: dict[int, int] = {}
        queue = [source]
        end = UNMATCHED
        for point in queue:
            for target in edges[limits[point] : limits[point + 1]]:
                if closed[target] or target in via:
                    continue
                via[target] = point
                if owner[target] == UNMATCHED:
                    end = target
                    break
                queue.append(owner[target])
            if end != UNMATCHED:
                break
        if end == UNMATCHED:
            for target in via:
                closed[target] = True
        while end != UNMATCHED:
            point = via[end]
            owner[end] = point
            mate[point], end = end, mate[point]
    return np.flatnonzero(np.array(mate, np.intp) != UNMATCHED)
