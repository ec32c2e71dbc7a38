"""Train on two processes, one with a nonfinite loss: ``python -m tests.ddp_guard FOLDER``.

The first run skips the step; the second one ends with the error.
"""

import sys
import warnings
from pathlib import Path

import torch

from htt_lightning import NonFiniteLossGuard
from tests.callbacks.test_nonfinite_guard import Poison, few, state
from tests.tiny import tiny_module, tiny_trainer


class PoisonOnRankOne(Poison):
    """Poison the loss of rank 1, and record the state before the step on both ranks."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        elif trainer.fit_loop.total_batch_idx in self.steps:
            self.before.append(state(trainer, pl_module))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for policy in ("skip", "raise"):
        torch.manual_seed(0)
        data, poison = few(batch_size=2), PoisonOnRankOne(1)
        callbacks = [poison, NonFiniteLossGuard(policy)]
        trainer = tiny_trainer(folder / policy, devices=2, strategy="ddp", callbacks=callbacks, limit_val_batches=0)
        module = tiny_module(data)
        trainer.fit(module, data)
        record = {"images": poison.images, "before": poison.before[0], "after": poison.after[0]}
        record |= {"end": module.state_dict(), "skipped": trainer.callback_metrics["train/skipped_steps"]}
        torch.save(record, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
