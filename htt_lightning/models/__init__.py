"""Backbone, global task tokens, fine-grained task tokens and heads, and the networks made of them."""

from htt_lightning.models.network import DensePredictionNetwork, HTTNet, MultiTaskNet

__all__ = ["DensePredictionNetwork", "HTTNet", "MultiTaskNet"]
