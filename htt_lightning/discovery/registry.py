"""Consistency losses by their name in ``model.consistency``."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from htt_lightning.discovery.consistency import ConsistencyLoss
from htt_lightning.discovery.cross_task import CrossTaskConsistency
from htt_lightning.discovery.fixmatch import FixMatch
from htt_lightning.discovery.joint_task import JointTaskRegularization
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.tasks import Task

ConsistencyName = Literal["cross_task", "joint_task", "fixmatch"]
CONSISTENCY_LOSSES: dict[str, type[CrossTaskConsistency | JointTaskRegularization | FixMatch]] = {
    loss.name: loss for loss in (CrossTaskConsistency, JointTaskRegularization, FixMatch)
}


def build_consistency_loss(
    name: str | None,
    options: Mapping[str, Any] | None,
    tasks: Sequence[Task],
    task_weights: Mapping[str, float],
    net: nn.Module,
) -> ConsistencyLoss | None:
    """Build a consistency loss for a network, and let it watch the network.

    Args:
        name: Name of the loss; None for no loss.
        options: Options of the loss; None or empty for the defaults.
        tasks: Tasks to learn.
        task_weights: Weight lambda of each task's loss, by name.
        net: Network that is trained.

    Raises:
        ConfigError: Name or option is unknown, a value is out of its range, or the loss cannot learn the tasks.
    """
    if name is None:
        if options:
            raise ConfigError(f"model.consistency_options must be empty without model.consistency, got {options}.")
        return None
    if name not in CONSISTENCY_LOSSES:
        hint = did_you_mean(str(name), CONSISTENCY_LOSSES)
        raise ConfigError(f"model.consistency must be null, {', '.join(CONSISTENCY_LOSSES)}, got {name!r}.{hint}")
    cls = CONSISTENCY_LOSSES[name]
    _check_options(cls, options or {})
    loss = cls(tasks, task_weights, net, **(options or {}))
    loss.watch(net)
    return loss


def _check_options(cls: type[ConsistencyLoss], options: Mapping[str, Any]) -> None:
    """Check names and ranges of the options of a loss."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {x.name: x.default for x in parameters if x.kind == inspect.Parameter.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            rule = f"options of {cls.name} ({', '.join(defaults)})"
            raise ConfigError(f"model.consistency_options must be {rule}, got {key!r}.{did_you_mean(key, defaults)}")
        whole = isinstance(defaults[key], int)
        low, high = cls.option_ranges.get(key, (1, float("inf")))
        kind = int if whole else int | float
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high or value == float("inf"):
            rule = f"{'an integer' if whole else 'a finite number'} in [{low:g}, {high:g}]"
            raise ConfigError(f"model.consistency_options.{key} must be {rule}, got {value!r}.")
