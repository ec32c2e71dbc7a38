"""Faster forms of fusion and ASPP on a CPU, behind one switch.

Tests hold that they compute what the plain form does, forward and backward. There are three:

- The composed convolution applies ASPP to the maps of all scales without fusing them to one map.
- The weight gradient of a dilated convolution leaves out the taps beyond the border.
- Cheap layers of large maps are recomputed in the backward pass instead of kept.

By default they are on for tensors on a CPU where they pay, and off on other devices, where nothing was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from htt_lightning.models.layers import checkpoint_with_frozen_bn_stats
from htt_lightning.output import resize_bilinear

MAX_VALID_TAPS = 0.7
"""Fraction of a dilated convolution's products inside the map, up to which leaving out the others pays."""
MIN_CHECKPOINT_NUMEL = 2**20
"""Number of values of a map from which recomputing pays. Below, it costs a step 7 to 14 % and saves little."""
_switch: bool | None = None


def set_enabled(value: bool | None) -> None:
    """Switch the CPU kernels on or off; None, the default, decides by the device of a tensor.

    Examples:
        >>> set_enabled(False)
        >>> enabled(torch.rand(1, 3, 8, 8))
        False
        >>> set_enabled(None)
        >>> enabled(torch.rand(1, 3, 8, 8))
        True
    """
    global _switch
    _switch = value


def enabled(x: "Tensor | LazyFusedMap") -> bool:
    """Return whether the CPU kernels process ``x``. An exported program has free sizes and never uses them."""
    if torch.compiler.is_exporting():
        return False
    return x.device.type == "cpu" if _switch is None else _switch


class LazyFusedMap(NamedTuple):
    """Hold the fusion of maps of several scales, the sum of their resized 1x1 projections, before it is computed.

    Attributes:
        maps: ``b c_s h_s w_s``, finest first; the sum is on the grid of the first.
        weight: Weights of the projections side by side, ``f sum(c_s)``.
        bias: ``f``.
    """

    maps: list[Tensor]
    weight: Tensor
    bias: Tensor

    @property
    def channels(self) -> list[int]:
        """Number of channels of each map."""
        return [x.shape[1] for x in self.maps]

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return self.maps[0].device

    def materialize(self) -> Tensor:
        """Compute the sum ``b f h_0 w_0``; each map is projected before resizing, which commutes."""
        (first, *others), (weight, *weights) = self.maps, torch.split(self.weight, self.channels, 1)
        out = F.conv2d(first, weight[..., None, None], self.bias)
        for x, weight in zip(others, weights, strict=True):
            out = out + resize_bilinear(F.conv2d(x, weight[..., None, None]), first.shape[-2:])
        return out

    def mean(self) -> Tensor:
        """Compute the mean of the sum over its grid, ``b f 1 1``, as weighted means of the maps."""
        size = self.maps[0].shape[-2:]
        out = self.bias
        for x, weight in zip(self.maps, torch.split(self.weight, self.channels, 1), strict=True):
            rows, columns = (_resize_matrix(x, axis, to).mean(0) for axis, to in zip((2, 3), size, strict=True))
            out = out + torch.einsum("b c h w, h, w -> b c", x, rows, columns) @ weight.T
        return out[..., None, None]

    def conv(self, weight: Tensor, dilation: int = 1) -> Tensor:
        """Convolve the sum by ``d f k k`` without computing it, ``b d h_0 w_0``, with zero padding and no bias.

        The convolution is linear, and so are projection and resizing. Its taps ``V_ij`` (``d f``) times the
        projections ``W_s`` are convolutions of the maps themselves. On the first map, on the grid of the sum, that is
        a convolution of ``c_0`` instead of f channels. On a smaller map, let ``R`` be the matrices that resize an
        axis, with rows shifted by the offset of a tap and zeros for the padding:

            ``out[y, x] = sum_(i,h) Ry_i[y, h]  sum_(w,j) Rx_j[x, w]  (V_ij W_s) map[h, w]``

        The innermost product runs on the small grid. The sums over ``(w, j)`` and ``(i, h)`` are one matrix product
        each. The bias is the same everywhere except for taps on the padding.
        """
        first, size = self.maps[0], self.maps[0].shape[-2:]
        offsets = tap_offsets(weight.shape[-1], dilation)
        taps = weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])  # (i j d) f
        shape = (len(offsets), len(offsets), weight.shape[0], -1)
        composed = torch.split((taps @ self.weight).view(shape), self.channels, -1)  # i j d c_s
        kernel = composed[0].permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
        inside = [torch.stack([_shift_rows(first.new_ones(n, 1), by)[:, 0] for by in offsets], 1) for n in size]
        out = dilated_conv2d(first, kernel, dilation).permute(0, 2, 3, 1)
        # In place from here on: many maps of this size that come and go fragment the memory.
        out = out.add_(torch.einsum("y i, x j, i j d -> y x d", *inside, (taps @ self.bias).view(shape[:3])))
        out = out.flatten(2)  # b y (x d)
        reach = [k for k, by in enumerate(offsets) if abs(by) < size[0]]  # rows of taps that overlap the map
        for x, product in zip(self.maps[1:], composed[1:], strict=True):
            batch, channels, height, width = x.shape
            down, right = (_resize_matrix(x, axis, to) for axis, to in zip((2, 3), size, strict=True))
            across = torch.stack([_shift_rows(right, by) for by in offsets], 2).flatten(1)  # x (w j)
            along = torch.cat([_shift_rows(down, offsets[k]) for k in reach], 1)  # y (i h)
            rows = product[reach[0] : reach[-1] + 1].reshape(len(reach), -1, channels).mT  # i c_s (j d)
            small = x.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels) @ rows  # b i (h w) (j d)
            small = across @ small.reshape(batch * len(reach) * height, width * len(offsets), -1)  # (b i h) x d
            out.baddbmm_(along.expand(batch, -1, -1), small.reshape(batch, len(reach) * height, -1))
        return out.reshape(*out.shape[:2], size[1], -1).permute(0, 3, 1, 2)

    def is_cheaper(self, weights: Sequence[Tensor], dilations: Sequence[int]) -> bool:
        """Return whether ``conv`` takes fewer products per image than convolutions of the materialized sum.

        The batch size is left out, so that a prediction never depends on it. Only full precision was measured.
        """
        x = self.maps[0]
        if torch.is_autocast_enabled(x.device.type) or x.dtype not in (torch.float32, torch.float64):
            return False
        (height, width), (features, inputs) = x.shape[-2:], self.weight.shape
        pixels = height * width
        direct: float = sum([m.shape[-2] * m.shape[-1] * m.shape[1] for m in self.maps]) * features
        composed = 0.0
        for weight, dilation in zip(weights, dilations, strict=True):
            out, size = weight.shape[0], weight.shape[-1]
            taps = valid_tap_fraction(size, dilation, (height, width)) * size * size
            direct += pixels * features * out * taps
            composed += pixels * self.channels[0] * out * taps + size * size * out * features * inputs
            for m in self.maps[1:]:
                rows, columns = m.shape[-2:]
                each = columns * m.shape[1] * size + width * columns * size + height * width
                composed += rows * size * out * each
        return composed < direct


def materialize(x: Tensor | LazyFusedMap) -> Tensor:
    """Return the map ``b f h w`` itself, computed if it is lazy."""
    return x.materialize() if isinstance(x, LazyFusedMap) else x


def pyramid_pooling(
    x: Tensor | LazyFusedMap,
    branches: Sequence[nn.Sequential],
    pool: nn.Module,
    project: nn.Sequential,
    dropout: nn.Module,
) -> Tensor:
    """Compute ``htt_lightning.models.heads.ASPP`` from its layers: ``b c h w -> b d h w``."""
    convs = [cast(nn.Conv2d, branch[0]) for branch in branches]
    weights, dilations = [conv.weight for conv in convs], [conv.dilation[0] for conv in convs]
    maps: Iterator[Tensor]
    if isinstance(x, LazyFusedMap) and x.is_cheaper(weights, dilations):
        mean, maps = x.mean(), (x.conv(*pair) for pair in zip(weights, dilations, strict=True))
    else:
        dense = materialize(x)
        mean = dense.mean((2, 3), keepdim=True)
        maps = (dilated_conv2d(dense, *pair) for pair in zip(weights, dilations, strict=True))
    *own, last = cast(nn.Conv2d, project[0]).weight.chunk(len(branches) + 1, dim=1)
    out = F.conv2d(pool(mean), last)
    for branch, weight, features in zip(branches, own, maps, strict=True):
        norm_relu = branch[1:]
        new = checkpoint_if_large(lambda x, w, act=norm_relu: F.conv2d(act(x), w), norm_relu, features, weight)
        out = new.add_(out)  # in place of the newest map: nothing else needs it
    return checkpoint_if_large(lambda x: dropout(project[1:](x)), project, out)


def checkpoint_if_large(run: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """Recompute a cheap function in the backward pass if its first input is large.

    That takes a third of the memory off a step, for a few percent of its time.
    """
    recompute = module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not recompute or inputs[0].numel() < MIN_CHECKPOINT_NUMEL:
        return run(*inputs)
    out: Tensor = checkpoint_with_frozen_bn_stats(run, module, *inputs)
    return out


def tap_offsets(size: int, dilation: int) -> list[int]:
    """Return the offsets in pixels of a kernel's taps along an axis from the middle one.

    Examples:
        >>> tap_offsets(3, 12)
        [-12, 0, 12]
    """
    return [dilation * (k - size // 2) for k in range(size)]


def valid_tap_fraction(kernel_size: int, dilation: int, size: Sequence[int]) -> float:
    """Return the fraction of a convolution's products inside a map of a size, not on its padding.

    Examples:
        >>> round(valid_tap_fraction(3, 4, (8, 8)), 3)
        0.444
    """
    fraction = 1.0
    for length in size:
        inside = [max(1 - abs(offset) / length, 0) for offset in tap_offsets(kernel_size, dilation)]
        fraction *= sum(inside) / kernel_size
    return fraction


def dilated_conv2d(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Convolve without bias at unchanged size: ``b c h w``, ``d c k k`` to ``b d h w``.

    With a dilation of the order of the map, many taps fall on the padding. On a CPU, PyTorch skips them in the forward
    pass and in the gradient of the input, but not in the gradient of the weight.
    """
    size = weight.shape[-1]
    if not torch.is_grad_enabled() or valid_tap_fraction(size, dilation, x.shape[-2:]) > MAX_VALID_TAPS:
        return F.conv2d(x, weight, padding=dilation * (size // 2), dilation=dilation)
    out: Tensor = _DilatedConv.apply(x, weight, dilation)
    return out


class _DilatedConv(torch.autograd.Function):
    """Compute the gradient of the weight tap by tap.

    ``out[p] = sum_s W_s x[p + s]`` over taps ``s``. So the gradient of ``W_s`` is ``sum_p grad[p] x[p + s]^T`` over
    the pixels ``p`` with ``p + s`` inside the map: one matrix product of two windows of equal size.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.padding = dilation, dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, padding=ctx.padding, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(  # type: ignore[no-untyped-call]
                x.shape, weight.to(grad.dtype), grad, padding=ctx.padding, dilation=ctx.dilation
            ).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight)
            pixels, grads = x.to(grad.dtype).permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
            height, width = x.shape[-2:]
            offsets = tap_offsets(weight.shape[-1], ctx.dilation)
            for row, down in enumerate(offsets):
                for column, right in enumerate(offsets):
                    if abs(down) < height and abs(right) < width:
                        out_window = grads[:, _window(height, -down), _window(width, -right)].flatten(0, 2)
                        in_window = pixels[:, _window(height, down), _window(width, right)].flatten(0, 2)
                        grad_weight[:, :, row, column] = out_window.T @ in_window
        return grad_x, grad_weight, None


def _window(length: int, offset: int) -> slice:
    """Return the pixels along an axis that a tap with this offset reaches from inside the map."""
    return slice(max(offset, 0), length + min(offset, 0))


def _resize_matrix(x: Tensor, axis: int, to: int) -> Tensor:
    """Return the matrix ``to n`` that resizes an axis of length n as ``resize_bilinear`` does."""
    size = x.shape[axis]
    same = torch.eye(size, dtype=x.dtype, device=x.device)
    return F.interpolate(same[None], size=to, mode="linear", align_corners=False)[0].T if to != size else same


def _shift_rows(matrix: Tensor, by: int) -> Tensor:
    """Shift the rows of a matrix: row r becomes row ``r + by``, or zero if there is none."""
    by = min(max(by, -len(matrix)), len(matrix))
    return F.pad(matrix, (0, 0, -by, by))  # a negative padding crops
