"""Train on two processes, one of which is killed in its second step: ``python -m tests.ddp_fail FOLDER RANK``."""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from htt_lightning import HTTModule
from tests.tiny import BACKBONE, tiny_data, tiny_trainer


class Failing(HTTModule):
    """Kill one process while the other waits for its gradients."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx == 1 and self.global_rank == int(sys.argv[2]):
            print("killed", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = tiny_data(batch_size=2, tasks="semseg,depth", labels="full")
    module = Failing(data.tasks, backbone=BACKBONE, token_dim=8, lr=1e-3)
    tiny_trainer(Path(sys.argv[1]), devices=2, strategy="ddp").fit(module, data)
