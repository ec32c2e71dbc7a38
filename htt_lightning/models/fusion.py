"""Feature maps of several scales as one, without ever making it where that is cheaper."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htt_lightning.models.layers import atrous, tap_offsets, valid_tap_fraction
from htt_lightning.output import resize_bilinear


class LazyFusedMap(NamedTuple):
    """A sum of resized 1x1 projections, as yet not computed.

    Attributes:
        maps: ``b c_s h_s w_s``, the first one on the grid of the sum.
        weight: Of the projections, side by side, ``f sum(c_s)``.
        bias: ``f``, everywhere.
    """

    maps: list[Tensor]
    weight: Tensor
    bias: Tensor

    @property
    def channels(self) -> list[int]:
        """Those of each map."""
        return [x.shape[1] for x in self.maps]

    def materialize(self) -> Tensor:
        """The sum ``b f h_0 w_0``: projected at each map's own size, which commutes with resizing (method.md 1)."""
        (first, *others), (weight, *weights) = self.maps, torch.split(self.weight, self.channels, 1)
        out = F.conv2d(first, weight[..., None, None], self.bias)
        for x, weight in zip(others, weights, strict=True):
            out = out + resize_bilinear(F.conv2d(x, weight[..., None, None]), first.shape[-2:])
        return out

    def mean(self) -> Tensor:
        """Mean of the sum over its grid, ``b f 1 1``: a resized map's is a weighted one of the map itself."""
        size = self.maps[0].shape[-2:]
        out = self.bias
        for x, weight in zip(self.maps, torch.split(self.weight, self.channels, 1), strict=True):
            rows, columns = (_resize_matrix(x, axis, to).mean(0) for axis, to in zip((2, 3), size, strict=True))
            out = out + torch.einsum("b c h w, h, w -> b c", x, rows, columns) @ weight.T
        return out[..., None, None]

    def conv(self, weight: Tensor, dilation: int = 1) -> Tensor:
        """What a convolution of unchanged size, padded by zeros and without bias, makes of the sum.

        It is linear, and so is all before it: its taps ``V_ij`` (``d f``) times the projections ``W_s`` are
        convolutions of the maps themselves. On the first map, on whose grid the sum lies, that is one of ``c_0``
        channels instead of f. On a smaller one, with the matrices ``R`` that resize an axis, their rows moved by as
        much as a tap looks aside, where rows moved in are the zeros of the padding,

            ``out[y, x] = sum_(i,h) Ry_i[y, h]  sum_(w,j) Rx_j[x, w]  (V_ij W_s) map[h, w]``

        of which the innermost product runs on the small grid, and the two sums over ``(w, j)`` and over ``(i, h)`` are
        one matrix product each. The bias is the same everywhere but for the taps that see padding.

        Args:
            weight: ``d f k k``.
            dilation: In pixels of the sum.

        Returns:
            ``b d h_0 w_0``.
        """
        first, size = self.maps[0], self.maps[0].shape[-2:]
        aside = tap_offsets(weight.shape[-1], dilation)
        taps = weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])  # (i j d) f
        shape = (len(aside), len(aside), weight.shape[0], -1)
        composed = torch.split((taps @ self.weight).view(shape), self.channels, -1)  # i j d c_s
        kernel = composed[0].permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
        sees = [torch.stack([_shift_rows(first.new_ones(n, 1), by)[:, 0] for by in aside], 1) for n in size]
        out = atrous(first, kernel, (dilation, dilation)).permute(0, 2, 3, 1)
        # From here on in place: many maps of this size that come and go leave holes in memory.
        out = out.add_(torch.einsum("y i, x j, i j d -> y x d", *sees, (taps @ self.bias).view(shape[:3])))
        out = out.flatten(2)  # b y (x d)
        reach = [k for k, by in enumerate(aside) if abs(by) < size[0]]  # rows of taps that see any of the map
        for x, product in zip(self.maps[1:], composed[1:], strict=True):
            batch, channels, height, width = x.shape
            down, right = (_resize_matrix(x, axis, to) for axis, to in zip((2, 3), size, strict=True))
            across = torch.stack([_shift_rows(right, by) for by in aside], 2).flatten(1)  # x (w j)
            along = torch.cat([_shift_rows(down, aside[k]) for k in reach], 1)  # y (i h)
            rows = product[reach[0] : reach[-1] + 1].reshape(len(reach), -1, channels).mT  # i c_s (j d)
            seen = x.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels) @ rows  # b i (h w) (j d)
            seen = across @ seen.reshape(batch * len(reach) * height, width * len(aside), -1)  # (b i h) x d
            out.baddbmm_(along.expand(batch, -1, -1), seen.reshape(batch, len(reach) * height, -1))
        return out.reshape(*out.shape[:2], size[1], -1).permute(0, 3, 1, 2)

    def is_cheaper(self, weights: Sequence[Tensor], dilations: Sequence[int]) -> bool:
        """Whether ``conv`` takes fewer products per image than the same convolutions of ``materialize``.

        Counted for one image, so that what is computed does not depend on how many there are in a batch. Only on a CPU
        and in full precision: nothing else was measured.
        """
        x = self.maps[0]
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dtype not in (torch.float32, torch.float64):
            return False
        (height, width), (features, inputs) = x.shape[-2:], self.weight.shape
        pixels = height * width
        direct: float = sum([m.shape[-2] * m.shape[-1] * m.shape[1] for m in self.maps]) * features
        composed = 0.0
        for weight, dilation in zip(weights, dilations, strict=True):
            out, size = weight.shape[0], weight.shape[-1]
            inside = valid_tap_fraction(weight.shape[-2:], (dilation, dilation), (height, width)) * size * size
            direct += pixels * features * out * inside
            composed += pixels * self.channels[0] * out * inside + size * size * out * features * inputs
            for m in self.maps[1:]:
                rows, columns = m.shape[-2:]
                each = columns * m.shape[1] * size + width * columns * size + height * width
                composed += rows * size * out * each
        return composed < direct


class Fusion(nn.Module):
    """Feature maps of several scales to one map on the grid of the first: resize, concatenate, convolve 1x1.

    Args:
        channels: Channels of each map.
        out: Channels of the fused map.
    """

    def __init__(self, channels: Sequence[int], out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(sum(channels), out, 1)

    def forward(self, maps: Sequence[Tensor]) -> LazyFusedMap:
        """``[b c_s h_s w_s]`` to what can become ``b out h_0 w_0``."""
        return LazyFusedMap(list(maps), self.conv.weight.flatten(1), cast(Tensor, self.conv.bias))


def _resize_matrix(x: Tensor, axis: int, to: int) -> Tensor:
    """The matrix ``to n`` that resizes an axis of length n as ``resize_bilinear`` does."""
    size = x.shape[axis]
    same = torch.eye(size, dtype=x.dtype, device=x.device)
    return F.interpolate(same[None], size=to, mode="linear", align_corners=False)[0].T if to != size else same


def _shift_rows(matrix: Tensor, by: int) -> Tensor:
    """Row r is row ``r + by``, or zero where there is none."""
    size = len(matrix)
    kept = matrix[max(by, 0) : max(size + min(by, 0), 0)]
    return F.pad(kept, (0, 0, min(max(-by, 0), size), min(max(by, 0), size)))
