"""Label discovery: teachers, pseudo-labels, soft targets and the losses on them (https://arxiv.org/abs/2411.18823)."""

from htt_lightning.discovery.loss import DiscoveryLoss, DiscoveryLossWeights, TeacherEnsemble, discovery_loss

__all__ = ["DiscoveryLoss", "DiscoveryLossWeights", "TeacherEnsemble", "discovery_loss"]
