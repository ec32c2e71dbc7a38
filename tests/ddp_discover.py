"""Write pseudo-labels on two processes: ``python -m tests.ddp_discover OUT --checkpoint FILE`` or ``--maps FOLDER``."""

import argparse
import warnings
from pathlib import Path

import torch

from htt_lightning.commands.discover import discover
from htt_lightning.training.trainer import HTTTrainer
from tests.commands.test_discover import FEW, QUIET
from tests.commands.test_discover_outside import maps_of
from tests.tiny import tiny_data, tiny_module

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--checkpoint")
    parser.add_argument("--maps", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = tiny_data(**FEW)
    trainer = HTTTrainer(devices=2, strategy="ddp", **QUIET)
    teachers = maps_of(given.maps) if given.maps else None
    discover(trainer, tiny_module(data), data, given.out, given.checkpoint, teachers)
