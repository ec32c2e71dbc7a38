"""Networks: backbone, task tokens and heads."""

from htt_lightning.models.network import DensePredictionNetwork, HTTNet, MultiTaskNet

__all__ = ["DensePredictionNetwork", "HTTNet", "MultiTaskNet"]
