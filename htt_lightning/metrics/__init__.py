"""Metrics that pool the pixels of a dataset.

A metric takes decoded predictions and targets, with missing pixels marked as 255 or NaN. It computes float64 scalars by
name, NaN without a valid pixel. All states are sums, so batches and processes add up exactly.
"""

from htt_lightning.metrics.boundary import BoundaryFMeasure
from htt_lightning.metrics.classes import SegmentationScores
from htt_lightning.metrics.depth import DepthErrors
from htt_lightning.metrics.max_f import MaxFMeasure
from htt_lightning.metrics.normals import NormalErrors
from htt_lightning.metrics.pooled import SumStateMetric

__all__ = ["BoundaryFMeasure", "DepthErrors", "MaxFMeasure", "NormalErrors", "SegmentationScores", "SumStateMetric"]
