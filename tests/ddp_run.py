"""Train two stages, record and test them.

``python -m tests.ddp_run FOLDER DEVICES TARGET_TYPE [CONSISTENCY [TEACHER]]``; an averaged teacher has one stage.
"""

import sys
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.callbacks.results_table import ResultsTable
from htt_lightning.discovery.teacher import TargetType
from tests.tiny import BACKBONE, tiny_data, tiny_trainer

GLOBAL_BATCH = 4


class Recorder(HTTModule):
    """Record losses and reduced gradients. BatchNorm uses its running statistics: batches differ by rank."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        unlabeled = [task for task, labeled in batch["labeled"].items() if not labeled.any()]
        self.steps.append({"ids": batch["id"], "unlabeled": unlabeled})

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.steps[-1]["loss"] = self.all_gather(loss.detach()).mean()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.steps[-1]["gradients"] = {name: p.grad.clone() for name, p in self.named_parameters()}


def main(
    folder: Path, devices: int, target_type: TargetType, consistency: Any = None, teacher: str = "previous"
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # The two runs differ in more than their targets, so that they cover more options.
    labels, image_weighting = ("one-label", "num_tasks") if target_type == "hard" else ("random-label", "per_label")
    # An average begins as its student: the sign of the difference of two equal depths is that of rounding errors.
    tasks = None if teacher == "previous" else "semseg,human_parts,saliency,edges"
    data = tiny_data(batch_size=GLOBAL_BATCH // devices, val_images=5, labels=labels, tasks=tasks)
    options: dict[str, Any] = {"backbone": BACKBONE, "token_dim": 8, "dropout": 0.0, "lr": 1e-3}
    module = Recorder(data.tasks, **options, image_weighting=cast(Any, image_weighting), consistency=consistency)
    strategy = "ddp" if devices > 1 else "auto"
    # Double precision, because Adam turns rounding errors of vanishing gradients into whole steps.
    settings: dict[str, Any] = {
        "precision": "64-true",
        "max_epochs": 1 if teacher == "previous" else 2,
        "gradient_clip_val": 10,
    }
    settings["callbacks"] = [LabelDiscovery(target_type=target_type, teacher=teacher), ResultsTable()]
    trainer = tiny_trainer(folder / f"run{devices}", devices=devices, strategy=strategy, **settings)
    trainer.fit(module, data)
    if trainer.is_global_zero:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        record = {"steps": module.steps, "weights": module.state_dict(), "metrics": metrics}
        torch.save(record, folder / f"devices{devices}.pt")
    trainer.test(module, data, verbose=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), cast(TargetType, sys.argv[3]), *sys.argv[4:])
