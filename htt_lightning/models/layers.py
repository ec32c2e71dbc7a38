"""Layers that several parts of the networks share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from htt_lightning.output import resize_bilinear


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that uses its running statistics where a training batch holds one value per channel.

    A training batch of one image does after image pooling (method.md 6); plain BatchNorm refuses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``b c h w``."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def conv_bn_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1, bias: bool = False) -> nn.Sequential:
    """Convolution of unchanged size, BatchNorm and ReLU: ``b inputs h w -> b outputs h w``."""
    padding = dilation * (kernel // 2)
    kind = DilatedConv2d if dilation > 1 and not bias else nn.Conv2d
    convolution = kind(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, BatchNorm(outputs), nn.ReLU(inplace=True))


class DilatedConv2d(nn.Conv2d):
    """Dilated convolution of unchanged size without bias, whose gradient leaves out what only sees padding.

    Where the dilation is a good part of the map, many taps look beyond its border. On a CPU, PyTorch skips those in the
    forward pass and in the gradient of the input, but not in that of the weight: there it multiplies with zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``b c h w -> b d h w``."""
        return atrous(x, self.weight, (self.dilation[0], self.dilation[1]))


MAX_VALID_TAPS = 0.7
"""Share of a dilated convolution's products that see no padding, up to which leaving out the others pays."""


def tap_offsets(size: int, step: int) -> list[int]:
    """Where the taps along an axis look, relative to the middle one."""
    return [step * (k - size // 2) for k in range(size)]


def valid_tap_fraction(kernel: Sequence[int], dilation: Sequence[int], size: Sequence[int]) -> float:
    """Share of a convolution's products that see no padding, on a map of a size."""
    share = 1.0
    for taps, step, length in zip(kernel, dilation, size, strict=True):
        share *= sum([max(1 - abs(shift) / length, 0) for shift in tap_offsets(taps, step)]) / taps
    return share


def atrous(x: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """Dilated convolution of unchanged size, by the cheaper gradient: ``b c h w``, ``d c k k`` to ``b d h w``."""
    gains = x.device.type == "cpu" and torch.is_grad_enabled()  # asked first: exports want no branches on sizes
    if not gains or valid_tap_fraction(weight.shape[-2:], dilation, x.shape[-2:]) > MAX_VALID_TAPS:
        padding = [step * (size // 2) for size, step in zip(weight.shape[-2:], dilation, strict=True)]
        return F.conv2d(x, weight, padding=padding, dilation=dilation)
    out: Tensor = _Atrous.apply(x, weight, dilation)
    return out


class _Atrous(torch.autograd.Function):
    """The convolution with its own gradient of the weight, tap by tap.

    ``out[p] = sum_s W_s x[p + s]`` over taps ``s``, hence the gradient of ``W_s`` is ``sum_p grad[p] x[p + s]^T`` over
    the pixels ``p`` for which ``p + s`` lies in the map: two windows of equal size, and one matrix product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        padding = [step * (size // 2) for size, step in zip(weight.shape[-2:], dilation, strict=True)]
        ctx.padding = padding
        return F.conv2d(x, weight, padding=padding, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(  # type: ignore[no-untyped-call]
                x.shape, weight.to(grad.dtype), grad, padding=ctx.padding, dilation=ctx.dilation
            ).to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight)
            pixels, grads = x.to(grad.dtype).permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
            _, height, width, _ = pixels.shape
            for row, down in enumerate(tap_offsets(weight.shape[2], ctx.dilation[0])):
                for column, right in enumerate(tap_offsets(weight.shape[3], ctx.dilation[1])):
                    rows, columns = height - abs(down), width - abs(right)
                    if rows > 0 and columns > 0:
                        top, left = max(-down, 0), max(-right, 0)
                        ours = grads[:, top : top + rows, left : left + columns].flatten(0, 2)
                        top, left = top + down, left + right
                        theirs = pixels[:, top : top + rows, left : left + columns].flatten(0, 2)
                        of_weight[:, :, row, column] = ours.T @ theirs
        return of_x, of_weight, None


class DepthwiseDownsample(nn.Conv2d):
    """Depthwise convolution of kernel and stride r: what is computed per pixel costs r * r times less (method.md 1).

    Args:
        channels: Of input and output.
        factor: r; 1 in the published networks.
    """

    def __init__(self, channels: int, factor: int = 1) -> None:
        super().__init__(channels, channels, factor, stride=factor, groups=channels)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``b c h w -> b c ceil(h/r) ceil(w/r)``; incomplete cells are filled up with zeros."""
        if self.factor > 1:
            x = F.pad(x, (0, -x.shape[-1] % self.factor, 0, -x.shape[-2] % self.factor))
        return super().forward(x)

    def token_scores(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Inner products of the reduced map with tokens.

        With r = 1 the convolution is a scale and a shift per channel, which the tokens take over: no map is made.

        Args:
            x: ``b c h w``.
            tokens: ``k c``, or ``b k c`` where each image has its own.

        Returns:
            ``b k ceil(h/r) ceil(w/r)``.
        """
        equation = f"b c h w, {'b ' * (tokens.ndim - 2)}k c -> b k h w"
        if self.factor > 1:
            return torch.einsum(equation, self(x), tokens)
        products = torch.einsum(equation, x, tokens * self.weight.flatten())
        # No product with a vector: onnxruntime confuses the axes where the tokens are a transposed view.
        shift = (tokens * cast(Tensor, self.bias)).sum(-1).to(products.dtype)
        return products + shift[..., None, None]

    def upsample(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Back to the grid that was reduced: cells are enlarged by r, then the fill is cut off."""
        return resize_bilinear(x, [length * self.factor for length in x.shape[-2:]])[..., : size[0], : size[1]]


def checkpoint_with_frozen_bn_stats(run: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
    """What ``run`` returns, keeping its inputs alone for the backward pass, which computes all else once more.

    Running statistics of BatchNorm move in the first pass only; dropout is the same in both.

    Args:
        run: A function of the inputs.
        module: What it uses; holds all its BatchNorms.
        *inputs: Of ``run``.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_bn_stats(module)

    call: Callable[..., Any] = checkpoint
    return call(run, *inputs, use_reentrant=False, context_fn=contexts)


MIN_CHECKPOINT_NUMEL = 2**20
"""Values in a map from which on it is worth computing again: below, that costs a step 7 to 14 % and saves little."""


def checkpoint_if_large(run: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """Recompute a cheap function in the backward pass where its input is large."""
    again = module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    again = again and inputs[0].numel() >= MIN_CHECKPOINT_NUMEL
    out: Tensor = checkpoint_with_frozen_bn_stats(run, module, *inputs) if again else run(*inputs)
    return out


@contextmanager
def _frozen_bn_stats(module: nn.Module) -> Iterator[None]:
    """Running statistics move by nothing: they have to be passed on, or less would be saved than in the first pass."""
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


def init_xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for convolutions and linear layers (method.md 2); use with ``apply``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
