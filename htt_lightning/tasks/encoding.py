"""Encoding of labels and predictions as channels on one scale, for networks that read the maps of any task."""

from abc import ABC

import torch
from torch import Tensor

from htt_lightning.losses import upcast
from htt_lightning.output import TaskOutput
from htt_lightning.tasks.presentation import PresentationMixin
from htt_lightning.tasks.training import TrainingMixin


class EncodingMixin(TrainingMixin, PresentationMixin, ABC):
    """Label and prediction of a task as channels in [-1, 1], in one form."""

    @property
    def num_channels(self) -> int | None:
        """Return the number of channels of an encoded map; None for a field without ``output_range``."""
        if self.field_channels is None:
            return max(2, self.num_tokens)
        return None if self.output_range is None else self.field_channels

    def encode_label(self, target: Tensor, valid: Tensor) -> Tensor:
        """Encode a target: one-hot classes, or values of a field scaled from ``output_range`` to [-1, 1].

        Args:
            target: Target or pseudo-label, ``b h w`` or ``b c h w``.
            valid: bool ``b h w``; channels are 0 elsewhere.

        Returns:
            Float32 ``b c h w``, double for a double target.
        """
        inside = valid[:, None]
        if self.field_channels is not None:
            # Replaced before the arithmetic: NaN times 0 is NaN.
            return self._scale(torch.where(inside, target, torch.zeros_like(target))) * inside
        encoded = torch.zeros(len(target), self.num_channels or 0, *target.shape[1:], device=target.device)
        return encoded.scatter_(1, target.masked_fill(~valid, 0)[:, None], inside.to(encoded.dtype))

    def encode_prediction(self, output: TaskOutput) -> Tensor:
        """Encode an output in the form of a label, with gradient: class probabilities or decoded values.

        Args:
            output: Network output.

        Returns:
            ``b c h/s w/s``.
        """
        logits = upcast(output.logits)
        if self.field_channels is not None:
            return self._scale(upcast(self.decode(output, (logits.shape[-2], logits.shape[-1]))))
        if logits.shape[1] > 1:
            return logits.softmax(1)
        probability = logits.sigmoid()
        return torch.cat([1 - probability, probability], 1)

    def _scale(self, values: Tensor) -> Tensor:
        low, high = self.output_range or (-1.0, 1.0)
        return (2 * (values - low) / (high - low) - 1).clamp(-1, 1)
