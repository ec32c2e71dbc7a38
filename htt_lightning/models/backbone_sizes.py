"""Search for the arguments and the padding with which a timm model takes images of any size."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from htt_lightning.errors import ConfigError

PYRAMID_STRIDES = (4, 8, 16, 32)
"""Strides of the maps of a multi-scale backbone."""
PATCH_SIZES = (4, 8, 16)
"""Patches of a plain transformer in pixels."""
STRIDE = 32
"""Multiple to which networks pad images: the coarsest stride, and twice a stride of 16, which attention halves."""
MULTIPLES = (STRIDE, 2 * STRIDE, 4 * STRIDE)
"""Multiples that are tried in this order, before that of a model's own size."""
ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""Arguments by which timm's models take other sizes than that of their weights."""


class SizePlan(NamedTuple):
    """Tell how to create a timm model, and which images it takes.

    Attributes:
        arguments: Of ``timm.create_model``, for four maps of images of any size.
        multiple: Height and width to whose multiples images are padded.
        fixed: Whether images are padded to ``multiple`` itself, so that larger ones do not fit.
        resizable: Whether the argument ``img_size`` sets ``multiple``.
    """

    arguments: dict[str, Any]
    multiple: tuple[int, int] = (STRIDE, STRIDE)
    fixed: bool = False
    resizable: bool = False


def plan_sizes(name: str, create: Callable[..., Any], options: Mapping[str, Any]) -> SizePlan:
    """Find by trial how a timm model takes images of any size.

    Args:
        name: Name of the model.
        create: Function that creates the model from arguments. Only shapes are read: on the device ``meta`` nothing is
            computed.
        options: Arguments of the user, which stay as they are.

    Raises:
        ConfigError: The model lacks maps of the strides, or returns none at its own size.
    """
    maps = _select_maps(name, create, options)
    built: dict[int, Any] = {}
    for multiple, (k, change) in product(MULTIPLES, enumerate(ANY_SIZE)):
        arguments = maps | change | dict(options)
        if k not in built:
            built[k] = _try(create, **arguments) if change else create(**arguments)
        if _takes(built[k], 3 * multiple, 5 * multiple) and _takes(built[k], multiple, 2 * multiple):
            return SizePlan(arguments, (multiple, multiple))
    model, arguments = built[0], maps | dict(options)
    size = height, width = _own_size(model, options)
    if height % STRIDE or width % STRIDE or not _takes(model, *size):
        raise ConfigError(
            f"model.backbone must have maps of h/s x w/s pixels at stride s, which {name!r} has not. "
            f"Choose another backbone, or img_size in model.backbone_options in multiples of {STRIDE}."
        )
    double = 2 * height, 2 * width
    fixed = not (_takes(model, height, 2 * width) and _takes(model, *double))
    resizable = _takes(_try(create, **arguments | {"img_size": double}), *double)
    return SizePlan(arguments, size, fixed, resizable)


def feature_maps(model: Any, image: Tensor) -> list[Tensor]:
    """Compute the maps ``b c_s h/s w/s`` of a timm model."""
    maps: list[Tensor] = model(image)
    if getattr(model, "output_fmt", "NCHW") == "NCHW":
        return maps
    return [rearrange(x, "b h w c -> b c h w") for x in maps]  # of hierarchical transformers


def _select_maps(name: str, create: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that select four maps: a pyramid, or four depths of a plain transformer."""
    model = create(**options)
    strides: list[int] = model.feature_info.reduction()
    if len(set(strides)) > 1:
        if not set(PYRAMID_STRIDES) <= set(strides):
            raise ConfigError(
                f"model.backbone must have maps of strides {PYRAMID_STRIDES}, or of one stride, got {strides} of "
                f"{name!r}. Choose another backbone."
            )
        return {"out_indices": tuple(strides.index(stride) for stride in PYRAMID_STRIDES)}
    # Four evenly spaced depths, (2, 5, 8, 11) of twelve.
    depth = len(model.feature_info.info)
    arguments: dict[str, Any] = {"out_indices": tuple(depth * k // 4 - 1 for k in (1, 2, 3, 4))}
    if strides[0] in PATCH_SIZES:
        return arguments
    if strides[0] != 14:
        raise ConfigError(
            f"model.backbone must have patches of 4, 8, 14 or 16 pixels, got {strides[0]} of {name!r}. "
            "Choose another backbone, or set patch_size in model.backbone_options, for which timm resamples weights."
        )
    # Of DINOv2: timm resamples the weights of the patches, and the grid of positions stays.
    grid = getattr(getattr(model.model, "patch_embed", None), "grid_size", None)
    return arguments | {"patch_size": 16} | ({"img_size": tuple(16 * cells for cells in grid)} if grid else {})


def _try(create: Callable[..., Any], **arguments: Any) -> Any:
    """Create a model, or return None if it does not know an argument."""
    try:
        return create(**arguments)
    except ConfigError:
        return None


def _own_size(model: Any, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width for which a model was created."""
    size = options.get("img_size", tuple(model.pretrained_cfg["input_size"][1:]))
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def _takes(model: Any, height: int, width: int) -> bool:
    """Return whether a model turns an image of this size into maps of its strides; no model takes any."""
    if model is None:
        return False
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    try:
        maps = feature_maps(model.eval(), image)
    except Exception:  # models refuse sizes in many ways
        return False
    info = model.feature_info
    expected = [(c, height // s, width // s) for c, s in zip(info.channels(), info.reduction(), strict=True)]
    return [tuple(x.shape[1:]) for x in maps] == expected
