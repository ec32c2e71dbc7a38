"""Measure how hard the synthetic scenes are, by a logistic regression on color and position.

Trains one linear layer per task on the red, green, blue, row and column of each pixel, with the library's own losses
and metrics, and compares what it gains over the best constant with what a trained network gains:

    python benchmarks/hardness.py runs/version_0/val_metrics.json
"""

import json
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from htt_lightning import HTTModule, SyntheticDataModule, TaskOutput
from htt_lightning.callbacks.constant_baseline import constant_baseline_scores


class PixelLinear(nn.Module):
    """Network whose logits are linear in the color and position of a pixel."""

    def __init__(self, num_tokens: dict[str, int]) -> None:
        super().__init__()
        self.classify = nn.ModuleDict({task: nn.Conv2d(5, k, 1) for task, k in num_tokens.items()})

    def forward(self, image: Tensor) -> dict[str, TaskOutput]:
        """Predict every task at full resolution."""
        b, _, h, w = image.shape
        rows = torch.linspace(-1, 1, h, device=image.device).view(1, 1, h, 1).expand(b, 1, h, w)
        columns = torch.linspace(-1, 1, w, device=image.device).view(1, 1, 1, w).expand(b, 1, h, w)
        x = torch.cat([2 * image - 1, rows, columns], dim=1)
        return {task: TaskOutput(layer(x), x, torch.ones_like(rows)) for task, layer in self.classify.items()}


def main(path: str) -> None:
    """Print the gains over the constant."""
    reached = {key.split("/")[1]: row for key, row in json.loads(Path(path).read_text()).items()}
    L.seed_everything(0)
    data = SyntheticDataModule(train_images=600, labels="full", augment=None, cache="runs/scenes", seed=0)
    module = HTTModule(data.tasks, backbone="test_resnet", lr=0.02)
    module.net = PixelLinear({task.name: task.num_tokens for task in data.tasks})
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(max_epochs=6, accelerator="cpu", logger=False, default_root_dir=folder)
        trainer.fit(module, data)
    constants = constant_baseline_scores(data, data.tasks)
    print(f"{'metric':24}{'constant':>10}{'linear':>10}{'network':>10}{'linear gain / network gain':>30}")
    for task in data.tasks:
        key = f"val/{task.name}/{task.primary_metric}"
        constant, linear = constants[task.name], float(trainer.callback_metrics[key])
        network = reached[task.name]["value"]
        share = (linear - constant) / (network - constant)
        print(f"{key:24}{constant:10.3f}{linear:10.3f}{network:10.3f}{share:30.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
