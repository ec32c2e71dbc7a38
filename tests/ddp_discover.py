"""Write pseudo-labels on two processes: ``python -m tests.ddp_discover OUT CHECKPOINT``."""

import sys
import warnings

import torch

from htt_lightning.commands.discover import discover
from htt_lightning.training.trainer import HTTTrainer
from tests.commands.test_discover import FEW, QUIET
from tests.tiny import tiny_data, tiny_module

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = tiny_data(**FEW)
    trainer = HTTTrainer(devices=2, strategy="ddp", **QUIET)
    discover(trainer, tiny_module(data), data, sys.argv[1], sys.argv[2])
