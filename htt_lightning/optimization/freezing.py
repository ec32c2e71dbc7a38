"""Backbones that do not train, wholly or up to a stage."""

from typing import Any

import torch
from torch import nn

from htt_lightning.errors import ConfigError

PROBE_SIZE = 64
"""Height and width of the image that finds the layers of a stage, in pixels."""


def freeze_backbone(backbone: Any, stages: bool | int) -> None:
    """Freeze a backbone, or the layers that its first feature maps depend on.

    Args:
        backbone: Module with ``strides`` that returns a list of maps.
        stages: True for all layers, or the number of maps, from the finest on.

    Raises:
        ConfigError: The backbone has fewer maps, or there is no backbone.
    """
    number = len(getattr(backbone, "strides", ()))
    if not number or (stages is not True and not 1 <= stages <= number):
        raise ConfigError(f"model.freeze_backbone must be true, false or from 1 to {number}, got {stages}.")
    backbone.requires_grad_(True)
    parameters = list(backbone.parameters())
    if stages is not True:
        modes = [(part, part.training) for part in backbone.modules()]
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            maps = backbone.eval()(parameters[0].new_zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
            gradients = torch.autograd.grad(maps[stages - 1].sum(), parameters, allow_unused=True)
        for part, training in modes:
            part.training = training
        parameters = [part for part, used in zip(parameters, gradients, strict=True) if used is not None]
    for parameter in parameters:
        parameter.requires_grad_(False)


def freeze_statistics(backbone: nn.Module) -> None:
    """Put the frozen parts of a backbone in evaluation mode: BatchNorm then keeps its statistics."""
    for part in backbone.modules():
        own = list(part.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            part.eval()
