"""Label discovery: teachers, pseudo-labels, soft targets and the losses on them (https://arxiv.org/abs/2411.18823)."""

from htt_lightning.discovery.loss import Discovery, TaskDiscovery, Terms, discover_task

__all__ = ["Discovery", "TaskDiscovery", "Terms", "discover_task"]
