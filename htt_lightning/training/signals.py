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
    register_handlers, received = connector.register_signal_handlers, False

    def handle(number: int, frame: Any) -> None:
        nonlocal received
        first, received = not received, True
        if first and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        # Only ranks of a training run have to agree before they stop.
        connector.received_sigterm = trainer.state.fn != "fit" or trainer.world_size == 1

    def stop_together() -> None:
        any_received = torch.tensor([float(received)], device=trainer.strategy.root_device)
        dist.all_reduce(any_received, dist.ReduceOp.MAX)
        if any_received.item():
            raise SIGTERMException

    def register() -> None:
        nonlocal received
        received = False  # Lightning resets its own flag when a run starts
        register_handlers()

    connector.register_signal_handlers, connector._sigterm_notifier_fn = register, handle
    loop._broadcast_sigterm_tensor = stop_together  # Lightning calls it before every step of several processes
