"""One-to-one matching of predicted and true boundary pixels, the heart of the boundary F-measure (protocol.md 5).

Two boundary pixels may be matched when they lie no further apart than a tolerance, and no pixel is matched twice. The
number wanted is the size of a largest such matching, for the binary prediction at every threshold. Binary predictions
grow as the threshold falls, so the pixels are added by falling probability to *one* matching, each by an augmenting
path. A pixel that was matched stays matched, and one that could not be matched never can be later. Therefore a single
pass answers all thresholds: the matched pixels above a threshold are a largest matching of that threshold.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.morphology import thin

FREE = -1


class BoundaryCounts(NamedTuple):
    """Pixel counts of one image, or their sum over images.

    Attributes:
        matched: int64 ``t``, matched pairs at each threshold.
        predicted: int64 ``t``, predicted boundary pixels at each threshold.
        true: True boundary pixels.
    """

    matched: NDArray[np.int64]
    predicted: NDArray[np.int64]
    true: int


def match_boundaries(
    probability: NDArray[np.floating],
    truth: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    thresholds: NDArray[np.floating],
    radius: float,
    thin_predictions: bool = False,
) -> BoundaryCounts:
    """Match predicted with true boundary pixels of one image at every threshold (protocol.md 5, edge odsF).

    Exact. A 64x96 map takes milliseconds, a 480x640 map with a radius of 9 pixels half a second, and several seconds
    where a tenth of all its pixels are true. Thinning takes about twenty times as long at 99 thresholds.

    Args:
        probability: ``h w`` in [0, 1]; a pixel is predicted where ``probability >= threshold`` (never where NaN).
        truth: ``h w``, True on boundaries.
        valid: ``h w``, False on pixels that count neither as predicted nor as true.
        thresholds: ``t``, ascending, of the probability's dtype so that equal values compare equal.
        radius: Largest distance of a matched pair in pixels; 0 matches equal positions only.
        thin_predictions: Thin the binary prediction at each threshold first. Thinned predictions do not grow as the
            threshold falls, so each threshold needs a matching of its own.

    Returns:
        The counts; with an empty truth or prediction nothing is matched.
    """
    if thin_predictions:
        lines = (thin(valid & (probability >= threshold)) for threshold in thresholds)
        one = np.ones(1, np.float32)
        each = [match_boundaries(line.astype(np.float32), truth, valid, one, radius) for line in lines]
        matched, predicted = (np.concatenate([counts[k] for counts in each]) for k in (0, 1))
        return BoundaryCounts(matched, predicted, each[0].true)
    truth = truth & valid
    reached = np.searchsorted(thresholds, np.where(valid & ~np.isnan(probability), probability, -np.inf), "right")
    rows, columns = np.nonzero(reached)
    levels = reached[rows, columns]
    order = np.argsort(-levels, kind="stable")
    levels = levels[order]
    matched = _match(*_neighbours(np.stack([rows[order], columns[order]], 1), truth, radius))
    count = len(thresholds)
    return BoundaryCounts(_at_least(levels[matched], count), _at_least(levels, count), int(truth.sum()))


def _at_least(levels: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """How many of ``levels`` are >= 1, ..., >= ``count``."""
    return np.bincount(levels, minlength=count + 1)[::-1].cumsum()[::-1][1:].astype(np.int64)


def _neighbours(
    points: NDArray[np.intp], truth: NDArray[np.bool_], radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """True pixels within reach of each predicted pixel, nearest first.

    Args:
        points: Row and column of the predicted pixels, ``p 2``.
        truth: True pixels, ``h w``.
        radius: Reach in pixels.

    Returns:
        Bounds ``p+1`` and neighbours ``e``: those of point ``i`` are ``neighbours[bounds[i]:bounds[i + 1]]``, numbers
        of true pixels; and the number of true pixels.
    """
    reach = min(int(radius), max(truth.shape))
    point_at = np.full(np.array(truth.shape) + 2 * reach, FREE)
    point_at[tuple(points.T + reach)] = np.arange(len(points))
    rows, columns = np.nonzero(truth)

    span = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(span, span, indexing="ij"), -1).reshape(-1, 2)
    distances = (offsets**2).sum(1)
    near = np.argsort(distances, kind="stable")[: int((distances <= radius**2).sum())]
    sources = np.concatenate([point_at[rows + reach + dy, columns + reach + dx] for dy, dx in offsets[near]])
    targets = np.tile(np.arange(len(rows)), len(near))

    hit = sources != FREE
    sources, targets = sources[hit], targets[hit]
    bounds = np.concatenate([[0], np.bincount(sources, minlength=len(points)).cumsum()])
    return bounds, targets[np.argsort(sources, kind="stable")], len(rows)


def _match(bounds: NDArray[np.intp], neighbours: NDArray[np.intp], targets: int) -> NDArray[np.intp]:
    """Match sources one after the other, each by a shortest augmenting path that keeps all earlier ones matched.

    A failed search has visited a set of targets that are all taken and lead only to each other: no later search can
    succeed through them, so they are closed for good and failures cost no more than the graph's size altogether.

    Args:
        bounds: As from ``_neighbours``.
        neighbours: As from ``_neighbours``.
        targets: Number of targets.

    Returns:
        Ascending numbers of the matched sources; those below ``n`` form a largest matching of the first ``n`` sources.
    """
    sources = np.flatnonzero(np.diff(bounds))
    edges = neighbours.tolist()
    limits = bounds.tolist()
    owner = [FREE] * targets
    mate = [FREE] * (len(bounds) - 1)
    closed = bytearray(targets)

    for source in sources.tolist():
        via: dict[int, int] = {}
        queue = [source]
        end = FREE
        for point in queue:
            for target in edges[limits[point] : limits[point + 1]]:
                if closed[target] or target in via:
                    continue
                via[target] = point
                if owner[target] == FREE:
                    end = target
                    break
                queue.append(owner[target])
            if end != FREE:
                break
        if end == FREE:
            for target in via:
                closed[target] = True
        while end != FREE:
            point = via[end]
            owner[end] = point
            mate[point], end = end, mate[point]
    return np.flatnonzero(np.array(mate, np.intp) != FREE)
