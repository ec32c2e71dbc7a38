"""Signals to training runs of several processes."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException


def sync_sigterm_across_ranks(trainer: Any) -> None:
    """Make all ranks stop together, between two steps, when any of them receives SIGTERM.

    Lightning's own handler communicates while the signal is handled, out of turn with the gradients, and ends only the
    rank that was signaled (https://github.com/Lightning-AI/pytorch-lightning/issues/20806). Most runs whose scheduler
    signals every process then hang until they are killed. A Lightning without the private attributes that are replaced
    here (written for 2.6) keeps its own behavior.
    """
    connector: Any = getattr(trainer, "_signal_connector", None)
    loop = trainer.fit_loop.epoch_loop
    patched = ("register_signal_handlers", "_sigterm_notifier_fn", "received_sigterm")
    if not all(hasattr(connector, name) for name in patched) or not hasattr(loop, "_broadcast_sigterm_tensor"):
        return
    sync = _SigtermSync(trainer)
    connector.register_signal_handlers, connector._sigterm_notifier_fn = sync.register, sync.handle
    loop._broadcast_sigterm_tensor = sync.stop_together  # Lightning calls it before every step of several processes


class _SigtermSync:
    """Handlers of one trainer. The strategy ``ddp_spawn`` pickles them with it, which closures do not allow."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.received = trainer, False

    def register(self) -> None:
        """Register Lightning's handlers when a run starts."""
        self.received = False  # Lightning resets its own flag, too
        connector = self.trainer._signal_connector
        type(connector).register_signal_handlers(connector)

    def handle(self, number: int, frame: Any) -> None:
        """Note SIGTERM, and pass it on to the processes that this one has started."""
        first, self.received = not self.received, True
        if first and self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(number)
        # Only ranks of a training run have to agree before they stop.
        alone = self.trainer.state.fn != "fit" or self.trainer.world_size == 1
        self.trainer._signal_connector.received_sigterm = alone

    def stop_together(self) -> None:
        """Stop all ranks if one of them was signaled."""
        any_received = torch.tensor([float(self.received)], device=self.trainer.strategy.root_device)
        dist.all_reduce(any_received, dist.ReduceOp.MAX)
        if any_received.item():
            raise SIGTERMException
