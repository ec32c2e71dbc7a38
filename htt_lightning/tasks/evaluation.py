"""Evaluation of a task: metrics, their units and directions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torchmetrics import Metric, MetricCollection

from htt_lightning.tasks.metric_spec import MetricSpec


class EvaluationMixin(ABC):
    """Evaluation side of a task."""

    primary_metric: ClassVar[str]
    """Name of the metric that papers report and that enters Delta_m."""
    higher_is_better: ClassVar[bool]
    """Direction of the primary metric."""
    metric_unit: ClassVar[str]
    """Unit of the primary metric."""
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {}
    """Specs by name of the metrics that differ from the primary one in unit or direction."""

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """Make a new metric, which is updated with ``(decoded, target)``.

        It computes values by name, the primary metric among them. It may be a ``MetricCollection`` of single values.
        """

    def metric_spec(self, name: str) -> MetricSpec:
        """Return unit and direction of a metric of ``metrics()``."""
        return self.metric_specs.get(name, MetricSpec(self.metric_unit, self.higher_is_better))

    def relative_gain(self, value: float, reference: float) -> float:
        """Compute the relative improvement of the primary metric over a reference in percent; positive is better."""
        return self.metric_spec(self.primary_metric).relative_gain(value, reference)

    def test_metrics(self) -> Metric | MetricCollection:
        """Make the metric of ``test``, which may take longer; by default that of validation."""
        return self.metrics()
