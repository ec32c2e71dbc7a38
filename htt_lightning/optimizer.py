"""Adam whose moments lie in memory as the weights do, also when they come from a checkpoint."""

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], rate: float, decay: float, fused: bool) -> torch.optim.Adam:
    """Adam (method.md 5).

    Args:
        parameters: What to train.
        rate: Learning rate.
        decay: Weight decay.
        fused: Whether all parameters are updated in one pass.
    """
    optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
    optimizer.register_load_state_dict_post_hook(_lay_out)
    return optimizer


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments their parameters' memory layout: fused Adam goes through both in order of memory."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
