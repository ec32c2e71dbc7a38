"""A dataset with a seventh task, as another project would write it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torchmetrics import Metric

from htt_lightning.data.datasets.synthetic import SyntheticDataModule, SyntheticScenes
from htt_lightning.losses import l1
from htt_lightning.metrics import DepthErrors
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks import Task
from htt_lightning.tasks.colormap import heatmap


@dataclass(frozen=True, kw_only=True)
class Height(Task):
    """Height of points above the optical axis of the camera, shifted to be positive."""

    name: str = "height"
    reach: float = 4.0

    field_channels: ClassVar[int | None] = 1
    primary_metric: ClassVar[str] = "abs_err"
    higher_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = "m"

    @property
    def num_tokens(self) -> int:
        return 1

    def loss(self, output: TaskOutput, target: torch.Tensor) -> torch.Tensor:
        return l1(self.decode(output, target.shape[-2:]), target, target.isfinite()[:, 0])

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> torch.Tensor:
        return upsample_to_image(2 * self.reach * output.logits.float().sigmoid(), size)

    def metrics(self) -> Metric:
        return DepthErrors()

    def colorize(self, values: torch.Tensor) -> torch.Tensor:
        return heatmap(values[:, 0] / (2 * self.reach))


class HeightScenes(SyntheticScenes):
    """Scenes that know the height as well."""

    def label(self, index: int, task: str) -> np.ndarray:
        if task != "height":
            return super().label(index, task)
        depth = super().label(index, "depth")
        rows = np.linspace(1, -1, len(depth), dtype=np.float32)[:, None]
        return np.clip(4 + 0.4 * depth * rows, 0.1, 8).astype(np.float32)


class HeightDataModule(SyntheticDataModule):
    """Seven tasks."""

    def dataset_tasks(self) -> list[Task]:
        return [*super().dataset_tasks(), Height()]

    def build_dataset(self, split: Any) -> HeightScenes:
        return HeightScenes(split, self.counts[split], self.image_size, self.scene_seed, self.cache)
