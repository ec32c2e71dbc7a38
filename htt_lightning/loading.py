"""The network that a checkpoint holds."""

from pathlib import Path

import torch

from htt_lightning.errors import HTTError
from htt_lightning.files import read_checkpoint
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
        raise HTTError(f"{argument}: the weights of {path} do not fit the network it describes: {error}") from error
