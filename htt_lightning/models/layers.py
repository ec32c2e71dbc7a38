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

from htt_lightning.output import resize


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
    kind = AtrousConv if dilation > 1 and not bias else nn.Conv2d
    convolution = kind(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias)
    return nn.Sequential(convolution, BatchNorm(outputs), nn.ReLU(inplace=True))


class AtrousConv(nn.Conv2d):
    """Dilated convolution of unchanged size without bias, whose gradient leaves out what only sees padding.

    Where the dilation is a good part of the map, many taps look beyond its border. On a CPU, PyTorch skips those in the
    forward pass and in the gradient of the input, but not in that of the weight: there it multiplies with zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``b c h w -> b d h w``."""
        if (
            x.device.type != "cpu" or not torch.is_grad_enabled()
        ):  # nothing to gain, and export wants no branches on sizes
            return super().forward(x)
        seen = 1.0
        for size, step, length in zip(self.kernel_size, self.dilation, x.shape[-2:], strict=True):
            seen *= sum([max(1 - abs(shift) / length, 0) for shift in _shifts(size, step)]) / size
        if seen > MOST_TAPS:
            return super().forward(x)
        out: Tensor = _Atrous.apply(x, self.weight, self.dilation)
        return out


MOST_TAPS = 0.7
"""Share of a dilated convolution's products that see no padding, up to which leaving out the others pays."""


def _shifts(size: int, step: int) -> list[int]:
    """Where the taps along an axis look, relative to the middle one."""
    return [step * (k - size // 2) for k in range(size)]


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
            for row, down in enumerate(_shifts(weight.shape[2], ctx.dilation[0])):
                for column, right in enumerate(_shifts(weight.shape[3], ctx.dilation[1])):
                    rows, columns = height - abs(down), width - abs(right)
                    if rows > 0 and columns > 0:
                        top, left = max(-down, 0), max(-right, 0)
                        ours = grads[:, top : top + rows, left : left + columns].flatten(0, 2)
                        top, left = top + down, left + right
                        theirs = pixels[:, top : top + rows, left : left + columns].flatten(0, 2)
                        of_weight[:, :, row, column] = ours.T @ theirs
        return of_x, of_weight, None


class Reduce(nn.Conv2d):
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

    def products(self, x: Tensor, tokens: Tensor) -> Tensor:
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
        return products + (tokens @ cast(Tensor, self.bias))[..., None, None]

    def enlarge(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Back to the grid that was reduced: cells are enlarged by r, then the fill is cut off."""
        return resize(x, [length * self.factor for length in x.shape[-2:]])[..., : size[0], : size[1]]


class Fusion(nn.Module):
    """Feature maps of several scales to one map on the grid of the first.

    Resize, concatenate and convolve 1x1, computed the cheap way round: a 1x1 convolution and bilinear resizing commute,
    so each map is convolved at its own size, and the results are resized and added (method.md 1).

    Args:
        channels: Channels of each map.
        out: Channels of the fused map.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        self.channels = list(channels)
        self.conv = nn.Conv2d(sum(channels), out, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[b c_s h_s w_s] -> b out h_0 w_0``."""
        grid = maps[0].shape[-2:]
        weights = torch.split(self.conv.weight, self.channels, dim=1)
        fused = F.conv2d(maps[0], weights[0], self.conv.bias)
        for x, weight in zip(maps[1:], weights[1:], strict=True):
            fused = fused + resize(F.conv2d(x, weight), grid)
        return fused


def recomputed(module: nn.Module, *inputs: Tensor) -> Any:
    """What a module returns, keeping its inputs alone for the backward pass, which computes all else once more.

    Running statistics of BatchNorm move in the first pass only; dropout is the same in both.

    Args:
        module: Any.
        *inputs: Of its ``forward``.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(module)

    call: Callable[..., Any] = checkpoint
    return call(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
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


def xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for convolutions and linear layers (method.md 2); use with ``apply``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
