"""Metrics of the benchmark, pooled over all pixels of a data set (protocol.md 5).

Every metric is updated with a decoded prediction and a target at the same size, in which missing pixels are marked: 255
in index maps, NaN in fields. It computes all the figures that one pass over the pixels gives, by name, as float64
scalars. Its states are sums, so pieces of a data set and processes simply add up. Without a valid pixel every figure is
NaN.
"""

from htt_lightning.metrics.boundary import BoundaryFMeasure
from htt_lightning.metrics.classes import SegmentationScores
from htt_lightning.metrics.depth import DepthErrors
from htt_lightning.metrics.max_f import MaxFMeasure
from htt_lightning.metrics.normals import NormalErrors
from htt_lightning.metrics.pooled import MeanLoss, SumStateMetric

__all__ = [
    "BoundaryFMeasure",
    "DepthErrors",
    "MaxFMeasure",
    "MeanLoss",
    "NormalErrors",
    "SegmentationScores",
    "SumStateMetric",
]
