"""Backbone, global task tokens, fine-grained task tokens and heads, and the networks made of them."""

from htt_lightning.models.network import DenseNetwork, HTTNet, MultiTaskNet

__all__ = ["DenseNetwork", "HTTNet", "MultiTaskNet"]
