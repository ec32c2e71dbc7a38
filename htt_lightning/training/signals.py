"""Signals: which process answers them, and the status that a program returns when one has ended it."""

import signal
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException


def sync_sigterm_across_ranks(trainer: Any) -> None:
    """Let all processes of a training run answer SIGTERM together, between two steps, whichever of them it came to.

    Lightning's own answer talks to the other processes while the signal is handled, out of turn with their gradients,
    and leaves the run on its own afterwards: where a scheduler signals every process, most runs hang until they are
    killed (lightning 2.6.6, two processes with gloo).

    Args:
        trainer: A Lightning trainer, before it runs.
    """
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    noted = False

    def note(number: int, frame: Any) -> None:
        nonlocal noted
        first, noted = not noted, True
        if first and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        # Others than a training run have nothing to exchange before their end.
        connector.received_sigterm = trainer.state.fn != "fit" or trainer.world_size == 1

    def agree() -> None:
        any_noted = torch.tensor([float(noted)], device=trainer.strategy.root_device)
        dist.all_reduce(any_noted, dist.ReduceOp.MAX)
        if any_noted.item():
            raise SIGTERMException

    def register() -> None:
        nonlocal noted
        noted = False  # as Lightning does with its own flag, when a run begins
        registers()

    registers, connector.register_signal_handlers = connector.register_signal_handlers, register
    connector._sigterm_notifier_fn = note
    loop._broadcast_sigterm_tensor = agree  # which Lightning calls before every step of several processes


def exit_status(error: BaseException) -> int | None:
    """The exit status of a program that a signal has ended, 128 and its number as in shells; None if none has.

    Args:
        error: What reached the end of the program. Lightning makes an exit with status 0 of SIGTERM, and one with 1 of
            Ctrl-C.
    """
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return None
