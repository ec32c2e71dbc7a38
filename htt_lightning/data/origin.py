"""Origins of labels, and the weights of labels by origin."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.tasks import Task

OriginWeights = Mapping[str, float | Mapping[str, float]]
"""Weight, or weight by task, by origin; as in ``{derived: {normals: 0.5}, outside: 0.3}``."""

WeightTable = Mapping["Origin", Mapping[str, float]]
"""Weights of labels by origin and task."""

NO_LABEL = -1
"""Code of a label that there is not."""


class Origin(StrEnum):
    """Origin of a label: the dataset, a given label, our network, or another program."""

    GIVEN = "given"
    DERIVED = "derived"
    DISCOVERED = "discovered"
    OUTSIDE = "outside"

    @property
    def code(self) -> int:
        """The number of the origin in batches, from 0 in the order of the members."""
        return [*Origin].index(self)

    @property
    def is_stored(self) -> bool:
        """Whether labels of this origin are pseudo-labels: stored in a folder with their confidence, to be rejected."""
        return self in (Origin.DISCOVERED, Origin.OUTSIDE)


def build_origin_weights(option: OriginWeights, tasks: Sequence[Task]) -> WeightTable:
    """Return the weight of labels by origin and task, 1 where ``data.origin_weights`` does not set it.

    Raises:
        ConfigError: The option names an unknown origin or task, or given labels, or a weight is negative or not finite.

    Examples:
        >>> from htt_lightning.tasks import Depth, Normals
        >>> build_origin_weights({"derived": {"normals": 0.5}}, [Depth(), Normals()])[Origin.DERIVED]
        {'depth': 1.0, 'normals': 0.5}
    """
    names = [task.name for task in tasks]
    weighted = [origin for origin in Origin if origin is not Origin.GIVEN]
    table = {origin: dict.fromkeys(names, 1.0) for origin in Origin}
    for name, value in option.items():
        if name not in weighted:
            hint = " The weight of given labels is always 1." if name == Origin.GIVEN else did_you_mean(name, weighted)
            raise ConfigError(f"data.origin_weights must name {', '.join(weighted)}, got {name!r}.{hint}")
        by_task = value if isinstance(value, Mapping) else dict.fromkeys(names, value)
        for task, weight in by_task.items():
            if task not in names:
                hint = did_you_mean(task, names)
                raise ConfigError(f"data.origin_weights.{name} must name tasks of the run, got {task!r}.{hint}")
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"data.origin_weights.{name} must be finite and at least 0, got {weight} of {task}.")
        table[Origin(name)] |= by_task
    return table
