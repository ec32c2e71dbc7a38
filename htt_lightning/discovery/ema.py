"""Exponential moving averages of networks, and buffers that agree between ranks."""

import lightning as L
import torch
from torch import nn


def sync_buffers(trainer: L.Trainer, net: nn.Module) -> None:
    """Give all processes the first one's running statistics: without synchronised BatchNorm, each has its own."""
    buffers = dict(net.named_buffers())
    for name, value in trainer.strategy.broadcast({key: value.cpu() for key, value in buffers.items()}).items():
        buffers[name].copy_(value)


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the floating-point state of ``average`` towards ``network`` by ``1 - decay``; counters are copied."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [(old, new) for old, new in pairs if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in floating], [new for _, new in floating], 1 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)
