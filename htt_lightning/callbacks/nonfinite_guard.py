"""A watch over the training loss: what is not a number changes no weight unnoticed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from htt_lightning.callbacks.label_discovery import LabelDiscovery
from htt_lightning.data.batch import Batch
from htt_lightning.errors import HTTError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.losses import LossTerm
from htt_lightning.metrics import MeanLoss
from htt_lightning.module import HTTModule
from htt_lightning.steps import keep_step

Policy = Literal["raise", "skip", "off"]
"""What to do about a loss that is not finite; see ``NonFiniteLossGuard``."""

SHOWN = 4
"""So many images are named for each term."""


class NonFiniteLossGuard(Callback):
    """Watches the training loss. Where it is not finite, the task, the term and the images are named.

    What the step depends on is written to ``replay/step_N.pt`` in the run directory, where N steps come before it;
    ``htt_lightning.steps.replay`` does it again. Several processes agree on what becomes of a step. No number of a run
    whose losses are finite changes.

    On a GPU nothing waits for the loss before the backward pass has been queued, so that the device always has work;
    the host comes no further ahead than that. Running statistics are copied before every step; several processes add up
    one integer.

    Args:
        policy: ``raise`` an error; ``skip`` the step: no weight, running statistic or logged mean takes part in it, a
            warning tells of it, and ``train/skipped`` counts such steps by epoch. With gradients accumulated over
            several batches, they are all left out. Weights that are not finite themselves are an error all the same.
            ``off``: nothing is watched.
        replays: So many steps at most are written in a run, by each process: a file is as large as a checkpoint.

    Raises:
        HTTError: An argument is wrong; or (from ``on_after_backward``) the loss is not finite.
    """

    def __init__(self, policy: Policy = "raise", replays: int = 1) -> None:
        if policy not in get_args(Policy):
            raise HTTError(f"guard.policy is {policy!r}; it must be one of {', '.join(get_args(Policy))}.")
        if replays < 0:
            raise HTTError(f"guard.replays must be at least 0, not {replays}.")
        self.policy, self.replays = policy, replays

    def _watches(self, module: L.LightningModule) -> TypeGuard[HTTModule]:
        return self.policy != "off" and isinstance(module, HTTModule)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self._folder, self._kept, self._skipped, self._leave_out = run_directory(trainer), 0, 0, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make room for copies of the running statistics."""
        self._statistics = Copies(pl_module.buffers() if self._watches(pl_module) else ())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Note what the step would change."""
        if self._watches(pl_module):
            self._batch = batch
            self._statistics.take()
            self._means = [(mean, mean.total, mean.counted) for mean in means_of(pl_module)]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Send off the answer to whether any process has a loss that is not finite."""
        if self._watches(pl_module):
            self._own = ~loss.detach().isfinite()
            flag = self._own.int()
            if trainer.world_size > 1:
                torch.distributed.all_reduce(flag)
            self._flag = flag.to("cpu", non_blocking=True)
            self._arrival = torch.cuda.Event() if flag.is_cuda else None  # type: ignore[no-untyped-call]
            if self._arrival is not None:
                self._arrival.record()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the answer, which comes before the gradients do."""
        if self._watches(pl_module):
            if self._arrival is not None:
                self._arrival.synchronize()
            if self._flag:
                self._act(trainer, pl_module)
            del self._batch, self._means

    def _act(self, trainer: L.Trainer, module: HTTModule) -> None:
        self._statistics.give_back()
        for mean, total, counted in self._means:
            mean.total, mean.counted = total, counted
        broken = not all(weight.isfinite().all() for weight in module.net.parameters())
        own = self._tell(trainer, module) if self._own else []
        said = gathered(trainer, own)
        lines = [f"The loss of step {trainer.global_step} (epoch {trainer.current_epoch}) is not finite:", *said]
        if broken:
            lines.append(
                "The weights are not finite to begin with: gradients of a step before overflowed, though its loss was "
                "finite. Lower model.lr, or give trainer.gradient_clip_val."
            )
        if broken or self.policy == "raise":
            raise HTTError("\n".join([*lines, *([] if broken else ["--guard.policy skip leaves such steps out."])]))
        rank_zero_warn("\n".join([*lines, "The step is left out."]))
        self._leave_out, self._skipped = True, self._skipped + 1

    def _tell(self, trainer: L.Trainer, module: HTTModule) -> list[str]:
        """What is wrong in this process, and where its step is kept."""
        lines = list(findings(module.last_loss_terms, self._batch))
        if self._folder and self._kept < self.replays:
            rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
            path = self._folder / "replay" / f"step_{trainer.global_step}{rank}.pt"
            optimizer, precision = trainer.optimizers[0], str(trainer.precision)
            try:
                keep_step(path, module, optimizer, self._batch, precision, teachers_of(trainer, module))
                lines.append(f"  kept as {path}; htt_lightning.steps.replay does the step again.")
            except HTTError as error:  # the other processes wait for what this one has to say
                lines.append(f"  not kept: {error}")
            self._kept += 1
        return lines

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Leave a step out: without gradients an optimiser changes nothing."""
        if self._leave_out:
            optimizer.zero_grad(set_to_none=True)
            self._leave_out = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how many steps were left out."""
        if self.policy == "skip" and self._watches(pl_module):
            pl_module.log("train/skipped", float(self._skipped))
            self._skipped = 0


class Copies:
    """Tensors, and what they were.

    Args:
        tensors: They are copied together, as many small copies would take long.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        kinds: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        self._pairs = [(group, [tensor.clone() for tensor in group]) for group in kinds.values()]

    @torch.no_grad()
    def take(self) -> None:
        """Copy the tensors."""
        for tensors, copies in self._pairs:
            torch._foreach_copy_(copies, tensors)

    @torch.no_grad()
    def give_back(self) -> None:
        """Make the tensors what they were."""
        for tensors, copies in self._pairs:
            torch._foreach_copy_(tensors, copies)


def means_of(module: HTTModule) -> Iterator[MeanLoss]:
    """The running means that a training step takes part in."""
    yield from module.losses.values()
    if module.discovery is not None:
        yield from module.discovery.account.values()


def teachers_of(trainer: L.Trainer, module: HTTModule) -> Sequence[Mapping[str, Any]]:
    """What a checkpoint holds of the networks that teach."""
    found = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, LabelDiscovery)]
    teaching = bool(found and module.discovery and module.discovery.teachers)
    teachers: list[dict[str, Any]] = found[0].state_dict()["teachers"] if teaching else []
    return teachers


def findings(terms: Sequence[LossTerm], batch: Batch) -> Iterator[str]:
    """Which terms of which tasks are not finite on which images, or on what else it lies; line by line."""
    ids, found = batch["id"], False
    if names := named(batch["image"].flatten(1).isfinite().all(1), ids):
        yield f"  not the loss alone, but the pixels of {names}"
    for task, kind, loss, rows in terms:
        where = ids if rows is None else [ids[row] for row in rows.tolist()]
        if names := named(loss.isfinite(), where):
            found = True
            yield f"  {task}, {kind}: {names}"
    if not found:
        yield f"  every term is finite, but not their sum; the images are {', '.join(map(repr, ids))}"


def named(sound: Tensor, ids: Sequence[str]) -> str:
    """The images that are not sound, in words; empty if all are."""
    wrong = [repr(name) for name, fine in zip(ids, sound.tolist(), strict=True) if not fine]
    more = [f"{len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    return f"image{'s' if len(wrong) > 1 else ''} {', '.join([*wrong[:SHOWN], *more])}" if wrong else ""


def gathered(trainer: L.Trainer, lines: list[str]) -> list[str]:
    """What all processes have to say; they have to ask together."""
    if trainer.world_size == 1:
        return lines
    said: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(said, lines)
    return [line for each in said for line in each]
