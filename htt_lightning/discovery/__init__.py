"""Losses on unlabeled tasks: label discovery (https://arxiv.org/abs/2411.18823), and rivals without a teacher."""

from htt_lightning.discovery.consistency import ConsistencyLoss
from htt_lightning.discovery.cross_task import CrossTaskConsistency
from htt_lightning.discovery.fixmatch import FixMatch
from htt_lightning.discovery.joint_task import JointTaskRegularization
from htt_lightning.discovery.loss import DiscoveryLoss, DiscoveryLossWeights, discovery_loss, soft_targets
from htt_lightning.discovery.registry import build_consistency_loss
from htt_lightning.discovery.teacher import TeacherEnsemble

__all__ = [
    "ConsistencyLoss",
    "CrossTaskConsistency",
    "DiscoveryLoss",
    "DiscoveryLossWeights",
    "FixMatch",
    "JointTaskRegularization",
    "TeacherEnsemble",
    "build_consistency_loss",
    "discovery_loss",
    "soft_targets",
]
