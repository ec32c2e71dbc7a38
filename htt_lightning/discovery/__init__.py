"""Label discovery: teachers, pseudo-labels, soft targets and the losses on them (https://arxiv.org/abs/2411.18823)."""

from htt_lightning.discovery.loss import DiscoveryLoss, DiscoveryLossWeights, discovery_loss, soft_targets
from htt_lightning.discovery.teacher import TeacherEnsemble

__all__ = ["DiscoveryLoss", "DiscoveryLossWeights", "TeacherEnsemble", "discovery_loss", "soft_targets"]
