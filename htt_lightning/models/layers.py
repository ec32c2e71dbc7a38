"""Layers and helpers that several parts of the networks share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from htt_lightning.output import resize_bilinear


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that accepts a batch of one pooled image: running statistics normalize its one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``b c h w``."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = False
) -> nn.Sequential:
    """Build a convolution of unchanged size, BatchNorm and ReLU.

    Examples:
        >>> conv_bn_relu(3, 8, 3)(torch.rand(2, 3, 5, 6)).shape
        torch.Size([2, 8, 5, 6])
    """
    padding = dilation * (kernel_size // 2)
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, BatchNorm(out_channels), nn.ReLU(inplace=True))


class DepthwiseDownsample(nn.Conv2d):
    """Depthwise convolution of kernel size and stride ``factor`` r, on whose output tokens score the pixels."""

    def __init__(self, channels: int, factor: int = 1) -> None:
        super().__init__(channels, channels, factor, stride=factor, groups=channels)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Downsample ``b c h w`` to ``b c ceil(h/r) ceil(w/r)``; incomplete cells are padded with zeros."""
        if self.factor > 1:
            x = F.pad(x, (0, -x.shape[-1] % self.factor, 0, -x.shape[-2] % self.factor))
        return super().forward(x)

    def token_scores(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Multiply the downsampled map with tokens ``k c`` or ``b k c``: ``b c h w -> b k ceil(h/r) ceil(w/r)``.

        With r = 1 the convolution is a scale and a shift per channel. The tokens absorb both, and no map is made.
        """
        equation = f"b c h w, {'b ' * (tokens.ndim - 2)}k c -> b k h w"
        if self.factor > 1:
            return torch.einsum(equation, self(x), tokens)
        scores = torch.einsum(equation, x, tokens * self.weight.flatten())
        # Not a matrix-vector product: onnxruntime mixes up the axes if the tokens are a transposed view.
        shift = (tokens * cast(Tensor, self.bias)).sum(-1).to(scores.dtype)
        return scores + shift[..., None, None]

    def upsample(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return to the grid before downsampling, of a size in pixels."""
        return resize_bilinear(x, [length * self.factor for length in x.shape[-2:]])[..., : size[0], : size[1]]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def checkpoint_with_frozen_bn_stats(run: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
    """Call a function, keep only its inputs, and recompute the rest in the backward pass.

    Every BatchNorm of ``module`` updates its running statistics only in the first pass. Dropout is the same in both.
    """
    call: Callable[..., Any] = checkpoint
    return call(run, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_bn_stats(module)))


@contextmanager
def frozen_bn_stats(module: nn.Module) -> Iterator[None]:
    """Freeze running statistics; BatchNorm still gets them, as a recomputed pass must save the same tensors."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    before = [(norm, norm.momentum, cast(Tensor, norm.num_batches_tracked).clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            cast(Tensor, norm.num_batches_tracked).copy_(count)


@contextmanager
def norms_in_mode_of(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """Let BatchNorm of another network with the same layers use the statistics of the batch where this one does.

    The other one's running statistics stay as they are.
    """
    pairs = zip(network.modules(), other.modules(), strict=True)
    norms = [(copy, norm.training) for norm, copy in pairs if isinstance(norm, _BatchNorm)]
    for copy, training in norms:
        copy.train(training)
    try:
        with frozen_bn_stats(other):
            yield
    finally:
        for copy, _ in norms:
            copy.eval()


def init_xavier(module: nn.Module) -> None:
    """Initialize a convolution or linear layer with Xavier-normal weights and zero biases; use with ``apply``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sample_weights(net: nn.Module) -> Tensor:
    """Copy the first value of each weight behind the backbone, which may be pretrained, to the CPU."""
    weights = dict(net.named_parameters())
    behind = [weight for name, weight in weights.items() if not name.startswith("backbone.")]
    return torch.cat([weight.detach().flatten()[:1] for weight in behind or weights.values()]).cpu()
