"""Modules made anew: from a checkpoint, or from hyperparameters and weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htt_lightning.errors import HTTError
from htt_lightning.io.files import read_checkpoint
from htt_lightning.module import HTTModule


def load_module(
    path: str | Path, argument: str, kind: type[HTTModule] = HTTModule, device: str | torch.device = "cpu"
) -> HTTModule:
    """The module of a checkpoint; nothing in the file is executed.

    Args:
        path: The checkpoint.
        argument: What it was given as, for messages.
        kind: Class of the module.
        device: Where its weights are to be.

    Raises:
        HTTError: The file is missing, damaged, or no checkpoint of this library, or its weights are those of another
            network than it describes.
    """
    read_checkpoint(path, argument)
    try:
        return kind.load_from_checkpoint(path, map_location=device, weights_only=True)
    except Exception as error:  # wrong hyperparameters fail wherever a network is built of them
        cause = error.__cause__ or error  # ours says the same of any checkpoint
        raise HTTError(f"{argument}: the weights of {path} do not fit the network it describes: {cause}") from error


def module_from_state(
    hyperparameters: Mapping[str, Any], weights: Mapping[str, Tensor], kind: type[HTTModule]
) -> HTTModule:
    """A module whose network takes the very tensors given, so that one in double precision stays so.

    Args:
        hyperparameters: Of the module.
        weights: State of its network; copies, where what they come from goes on changing.
        kind: Class of the module.
    """
    with torch.random.fork_rng(devices=[]):
        module = kind(**hyperparameters)
    module.net.load_state_dict(weights, assign=True)
    return module
