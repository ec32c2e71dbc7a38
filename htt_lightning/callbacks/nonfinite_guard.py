"""A callback that stops training, or skips a step, when the loss is not finite."""

from collections.abc import Sequence
from typing import Any, Literal, TypeGuard, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from htt_lightning.data.batch import Batch
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.losses import LossTerm
from htt_lightning.module import HTTModule

Policy = Literal["raise", "skip", "off"]


class NonFiniteLossGuard(Callback):
    """Stop training, or skip the step, when the training loss is not finite.

    The message names the task, the loss term and the images. A run with finite losses does not change. The check does
    not synchronize with the GPU until the backward pass is queued. Ranks exchange one integer per step and act alike.

    Args:
        policy: ``raise`` stops the run before a weight changes. ``skip`` leaves out the optimizer step with a warning:
            weights, running statistics and logged means stay as they were, and ``train/skipped_steps`` counts the
            skipped steps of an epoch. With accumulated gradients, all batches of the step are skipped. Weights that are
            not finite stop the run in either case. ``off`` disables the guard.

    Raises:
        ConfigError: ``policy`` is unknown.
        HTTError: From ``on_after_backward``: the loss is not finite.
    """

    def __init__(self, policy: Policy = "raise") -> None:
        if policy not in get_args(Policy):
            raise ConfigError(f"guard.policy must be one of {', '.join(get_args(Policy))}, got {policy!r}.")
        self.policy, self._num_skipped, self._skip_step = policy, 0, False

    def _enabled(self, module: L.LightningModule) -> TypeGuard[HTTModule]:
        return self.policy != "off" and isinstance(module, HTTModule)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, *_: Any) -> None:
        """Back up the buffers and metrics, which a step changes in place, if it may be skipped."""
        self._batch, self._backup = batch, []
        if self.policy == "skip" and isinstance(pl_module, HTTModule):
            metrics = [*pl_module.loss_metrics.values()]
            metrics += pl_module.discovery.metrics.values() if pl_module.discovery else []
            tensors = [*pl_module.buffers(), *(x for metric in metrics for x in metric.metric_state.values())]
            self._backup = [(tensor, tensor.clone()) for tensor in tensors]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Start to copy to the host whether the loss of any rank is not finite."""
        if self._enabled(pl_module):
            self._own_flag = ~loss.detach().isfinite()
            flag = self._own_flag.int()
            if trainer.world_size > 1:
                torch.distributed.all_reduce(flag)
            self._flag = flag.to("cpu", non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event() if flag.is_cuda else None

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Act on a loss that is not finite."""
        if not self._enabled(pl_module):
            return
        if self._copied is not None:
            self._copied.synchronize()
        if not self._flag:
            return
        lines = describe_nonfinite(pl_module.last_loss_terms, self._batch) if self._own_flag else []
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, lines)
            lines = [line for rank_lines in gathered for line in rank_lines]
        step = f"step {trainer.global_step} (epoch {trainer.current_epoch})"
        message = "\n".join([f"The loss of {step} is not finite:", *lines, ""])
        if not all(weight.isfinite().all() for weight in pl_module.parameters()):
            raise HTTError(f"{message}The weights are not finite. Lower model.lr, or set trainer.gradient_clip_val.")
        if self.policy == "raise":
            raise HTTError(f"{message}To skip such steps, set --guard.policy skip.")
        rank_zero_warn(f"{message}Skipping the step.")
        for tensor, saved in self._backup:
            tensor.copy_(saved)
        self._skip_step, self._num_skipped = True, self._num_skipped + 1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of a skipped step, so that the optimizer changes nothing."""
        if self._skip_step:
            optimizer.zero_grad(set_to_none=True)
            self._skip_step = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the number of skipped steps."""
        if self.policy == "skip" and self._enabled(pl_module):
            pl_module.log("train/skipped_steps", float(self._num_skipped))
            self._num_skipped = 0


def describe_nonfinite(terms: Sequence[LossTerm], batch: Batch) -> list[str]:
    """Return a line for the pixels and for each loss term of this rank that is not finite, with its images."""
    lines = []
    pixels = ("pixels", batch["image"].flatten(1).isfinite().all(1), None)
    for name, finite, indices in [pixels, *((f"{x.task}, {x.kind}", x.loss.isfinite(), x.indices) for x in terms)]:
        positions = range(len(finite)) if indices is None else indices.tolist()
        bad = [repr(batch["id"][k]) for k, fine in zip(positions, finite.tolist(), strict=True) if not fine]
        lines += [f"  {name}: image{'s' if len(bad) > 1 else ''} {', '.join(bad)}"] if bad else []
    return lines or [f"  the sum of finite terms: images {', '.join(map(repr, batch['id']))}"]
