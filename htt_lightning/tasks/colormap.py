"""Colors of drawn maps."""

import colorsys
from functools import cache

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

MISSING_GRAY = 128
"""Gray level of missing pixels."""


@cache
def class_palette(count: int) -> Tensor:
    """Make a palette of ``count`` distinct hues, uint8 ``k 3``, with a dark class 0."""
    hues = [(k * 0.618034) % 1 for k in range(count)]  # the golden ratio keeps neighbors apart
    shades = [colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * (k % 2), 0.95 - 0.25 * (k % 3)) for k, hue in enumerate(hues)]
    return (torch.tensor([(0.12, 0.12, 0.16), *shades[1:]]) * 255).to(torch.uint8)


def apply_palette(palette: Tensor, index: Tensor) -> Tensor:
    """Color integers ``b h w`` by a palette uint8 ``k 3``, as uint8 ``b 3 h w``; other values are missing.

    >>> apply_palette(torch.tensor([[0, 0, 0], [255, 0, 0]], dtype=torch.uint8), torch.tensor([[[1, 255]]]))[0, :, 0]
    tensor([[255, 128],
            [  0, 128],
            [  0, 128]], dtype=torch.uint8)
    """
    valid = (index >= 0) & (index < len(palette))
    picture = palette[index.long().masked_fill(~valid, 0)]
    return rearrange(picture.masked_fill(~valid[..., None], MISSING_GRAY), "b h w c -> b c h w")


def heatmap(values: Tensor) -> Tensor:
    """Draw a map ``b h w``, clipped to [0, 1], as a heat map uint8 ``b 3 h w``; NaN is missing."""
    return _apply_ramp(values, cv2.COLORMAP_VIRIDIS)


def error_heatmap(errors: Tensor) -> Tensor:
    """Draw errors ``b h w``, clipped to [0, 1], from black to bright yellow, uint8 ``b 3 h w``; NaN is missing."""
    return _apply_ramp(errors, cv2.COLORMAP_INFERNO)


def _apply_ramp(values: Tensor, name: int) -> Tensor:
    level = (values.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.int64)
    return apply_palette(_ramp(name).to(values.device), level.masked_fill(values.isnan(), 256))


@cache
def _ramp(name: int) -> Tensor:
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], name)
    return torch.from_numpy(ramp[:, 0, ::-1].copy())
