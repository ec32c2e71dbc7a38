"""Alignment of another program's depth with given depth: scale, shift, and the confidence that follows from the fit.

The teacher's values x are noisy and the given labels u are taken as exact. So the line is fitted from labels to values,
x = a u + b, and then inverted: a fit of labels to noisy values would find too small a scale. Residuals are divided by
u, because errors of depth grow with depth. The start is the line of least median residual among lines through few
pixels; reweighted least squares with Tukey's biweight then leave out outliers.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from htt_lightning.errors import DataError

AlignmentMethod = Literal["scale_shift", "scale", "none"]
Floats = NDArray[np.float64]

MIN_PIXELS = 100
"""Smallest number of pixels with a given label and a value of the teacher."""
CORRECT_RATIO = 1.25
"""Ratio of two depths below which they agree, as in the metric ``delta1``."""
_BINS, _TRIALS, _TRIAL_PIXELS, _STEPS = 8, 500, 2000, 50
_BIWEIGHT, _MAD_TO_STD = 4.685, 1.4826


@dataclass(frozen=True)
class Alignment:
    """Line from the values of a teacher to labels, and how well it fits the given ones.

    Attributes:
        scale: Factor on the teacher's values.
        shift: Summand of the scaled values, in the unit of the labels, or of one over it if ``inverse``.
        inverse: Whether the line gives one over the label.
        median_error: Median relative error of the aligned values.
        inliers: Fraction of the pixels that the fit did not leave out as outliers.
        pixels: Number of pixels that were compared.
        knots: Aligned labels in the middle of eight bins of equally many pixels, rising.
        accuracy: Fraction of each bin's pixels within a factor of 1.25 of the given label.
    """

    scale: float
    shift: float
    inverse: bool
    median_error: float
    inliers: float
    pixels: int
    knots: tuple[float, ...]
    accuracy: tuple[float, ...]

    def align(self, values: np.ndarray) -> np.ndarray:
        """Turn values ``h w`` of the teacher into labels, float32; NaN where they have no positive finite one."""
        aligned = np.float32(self.scale) * values + np.float32(self.shift)
        aligned[~(aligned > 0)] = np.nan
        return np.asarray(1 / aligned if self.inverse else aligned, np.float32)

    def confidence(self, labels: np.ndarray) -> np.ndarray:
        """Compute the confidence of aligned labels: how often labels like them were right where depth is given."""
        return np.asarray(np.interp(labels, self.knots, self.accuracy), np.float32)

    @property
    def summary(self) -> str:
        """Describe the fit in a sentence."""
        line = f"{self.scale:.4g} * value {'-' if self.shift < 0 else '+'} {abs(self.shift):.4g}"
        return (
            f"{'1 / (' + line + ')' if self.inverse else line}, median error {100 * self.median_error:.1f} %, "
            f"{100 * self.inliers:.0f} % inliers, {100 * np.mean(self.accuracy):.0f} % within a factor of "
            f"{CORRECT_RATIO} of {self.pixels} given pixels"
        )


def fit_alignment(
    values: np.ndarray, labels: np.ndarray, method: AlignmentMethod, inverse: bool, option: str
) -> Alignment:
    """Fit the line from a teacher's values to given labels.

    Args:
        values: Values of the teacher at pixels with a given label, ``n``.
        labels: Given labels of these pixels, above 0, ``n``.
        method: ``scale_shift``, ``scale`` without a shift, or ``none`` for values that need no alignment.
        inverse: Whether the teacher's values are linear in one over the label.
        option: Option of the teacher, for messages.

    Raises:
        DataError: The pixels are too few, the values are constant or fall where labels rise.
    """
    values, labels = values.astype(np.float64), labels.astype(np.float64)
    if len(values) < MIN_PIXELS:
        raise DataError(
            f"{option} must have at least {MIN_PIXELS} pixels with given labels to be aligned with, got {len(values)}. "
            "Give more labels in data.labels, or add the maps of labeled images."
        )
    if np.ptp(values) <= 1e-6 * np.abs(values).max():
        raise DataError(f"{option} must give maps that vary, got {values[0]:g} at every pixel with a given label.")
    targets = 1 / labels if inverse else labels
    if method == "scale_shift" and np.ptp(targets) <= 1e-3 * targets.max():
        raise DataError(f"{option}.alignment must be scale for given labels that are all alike, got scale_shift.")
    slope, intercept, inliers = 1.0, 0.0, 1.0
    if method != "none":
        columns = [np.ones_like(targets), 1 / targets][: 2 if method == "scale_shift" else 1]
        solution, inliers = _robust_lines(np.stack(columns, 1), values / targets)
        slope, intercept = solution[0], float(solution[1:].sum())
    if slope <= 0:
        other = "depth" if inverse else "inverse"
        raise DataError(f"{option} must rise with the given labels, got a slope of {slope:.3g}. Try space: {other}.")
    scale, shift = float(1 / slope), float(-intercept / slope)
    line = Alignment(scale, shift, inverse, np.nan, inliers, len(values), (), ())
    return _with_errors(line, values, labels)


def _with_errors(line: Alignment, values: Floats, labels: Floats) -> Alignment:
    """Add the errors of a line at given labels."""
    aligned = line.align(values).astype(np.float64)
    missing = ~np.isfinite(aligned)
    aligned[missing] = 0  # wrong, and in the first bin
    order = np.argsort(aligned, kind="stable")
    with np.errstate(divide="ignore"):
        correct = np.maximum(aligned / labels, labels / aligned) < CORRECT_RATIO
    bins = np.array_split(order, _BINS)
    return replace(
        line,
        median_error=float(np.median(np.abs(aligned - labels) / labels)),
        knots=tuple(float(np.median(aligned[pixels])) for pixels in bins),
        accuracy=tuple(float(correct[pixels].mean()) for pixels in bins),
    )


def _robust_lines(columns: Floats, targets: Floats) -> tuple[Floats, float]:
    """Solve ``columns @ x = targets`` (``n k`` and ``n``) without outliers; return x and the fraction of inliers."""
    rng = np.random.default_rng(0)
    count, width = columns.shape
    chosen = rng.permutation(count)[:_TRIAL_PIXELS]
    subsets = rng.integers(count, size=(_TRIALS, width))
    lines = np.einsum("tkj,tj->tk", np.linalg.pinv(columns[subsets]), targets[subsets])
    medians = np.median(np.abs(lines @ columns[chosen].T - targets[chosen]), axis=1)
    solution: Floats = lines[medians.argmin()]
    weights = np.ones(count)
    for _ in range(_STEPS):
        residuals = targets - columns @ solution
        spread = max(_MAD_TO_STD * np.median(np.abs(residuals)), 1e-9 * np.abs(targets).max())
        weights = np.maximum(1 - (residuals / (_BIWEIGHT * spread)) ** 2, 0) ** 2
        previous, weighted = solution, columns.T * weights
        solution = np.linalg.lstsq(weighted @ columns, weighted @ targets, rcond=None)[0]
        if np.allclose(solution, previous, rtol=1e-9, atol=1e-12):
            break
    return solution, float((weights > 0).mean())
