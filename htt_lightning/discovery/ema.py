"""Exponential moving averages of networks, and buffers that agree between ranks."""

import lightning as L
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def sync_buffers(trainer: L.Trainer, net: nn.Module) -> None:
    """Copy the first rank's buffers to all ranks; without synchronized BatchNorm, each has its own statistics."""
    buffers = dict(net.named_buffers())
    for name, value in trainer.strategy.broadcast({key: value.cpu() for key, value in buffers.items()}).items():
        buffers[name].copy_(value)


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an average network towards a network ([Mean Teacher](https://arxiv.org/abs/1703.01780), Eq. 1).

    ``decay`` is the weight of the old average, in [0, 1]. Counters are copied.
    """
    # Not `AveragedModel`: it reads its step counter from the GPU at every update, and averages integer counters.
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [(old, new) for old, new in pairs if old.is_floating_point()]
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    update([old for old, _ in floating], [new for _, new in floating], None)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)
