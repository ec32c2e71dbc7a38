"""Colours for pictures of maps."""

import colorsys
from functools import cache

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

MISSING_GRAY = 128
"""Grey level of missing pixels."""


@cache
def class_palette(count: int) -> Tensor:
    """A palette ``k 3``, uint8: class 0 dark, the others apart in hue by the golden ratio."""
    hues = [(k * 0.618034) % 1 for k in range(count)]
    shades = [colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * (k % 2), 0.95 - 0.25 * (k % 3)) for k, hue in enumerate(hues)]
    return (torch.tensor([(0.12, 0.12, 0.16), *shades[1:]]) * 255).to(torch.uint8)


def apply_palette(palette: Tensor, index: Tensor) -> Tensor:
    """Look colours up.

    Args:
        palette: uint8 ``k 3``.
        index: int ``b h w``; anything outside the palette is missing.

    Returns:
        uint8 ``b 3 h w``.
    """
    valid = (index >= 0) & (index < len(palette))
    picture = palette[index.long().masked_fill(~valid, 0)]
    return rearrange(picture.masked_fill(~valid[..., None], MISSING_GRAY), "b h w c -> b c h w")


def heatmap(values: Tensor) -> Tensor:
    """A scalar map in [0, 1] as a heat map.

    Args:
        values: ``b h w``; NaN is missing, values outside the range are clipped.

    Returns:
        uint8 ``b 3 h w``.
    """
    level = (values.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.int64)
    level = level.masked_fill(values.isnan(), 256)
    return apply_palette(_heat_palette().to(values.device), level)


@cache
def _heat_palette() -> Tensor:
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)
    return torch.from_numpy(ramp[:, 0, ::-1].copy())
