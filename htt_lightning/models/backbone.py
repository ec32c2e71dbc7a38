"""From an image to feature maps: any timm model that can return them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from einops import rearrange
from torch import Tensor, nn

from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.io.weights import verify_zip_checksums

PYRAMID_STRIDES = (4, 8, 16, 32)
"""Strides of a multi-scale backbone's maps (contracts.md, Backbones)."""


class Backbone(nn.Module):
    """Four feature maps of a timm model: a pyramid of strides 4 to 32, or four depths of a plain vision transformer.

    Args:
        name: A timm model with ``features_only``: strides 4 to 32, or patches of 4, 8 or 16 pixels.
        pretrained: True for timm's weights from its hub, False for random ones, or a local weights file.
        options: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Attributes:
        channels: Of each map, finest first.
        strides: Of each map.

    Raises:
        HTTError: The name is unknown, or the weights cannot be had.
    """

    def __init__(
        self, name: str = "resnet18", pretrained: bool | str = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        arguments = _feature_kwargs(name) | dict(options or {})
        self.model = _create_timm_model(name, pretrained, **arguments)
        self.channels: list[int] = self.model.feature_info.channels()
        self.strides: list[int] = self.model.feature_info.reduction()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image ``b 3 h w``, multiples of 32, to maps ``b c_s h/s w/s``."""
        maps: list[Tensor] = self.model(image)
        return [rearrange(x, "b h w c -> b c h w") for x in maps] if _channels_last(self.model) else maps


def _feature_kwargs(name: str) -> dict[str, Any]:
    """Which levels to ask timm for; a look at the untrained model tells."""
    model = _create_timm_model(name, pretrained=False)
    strides: list[int] = model.feature_info.reduction()
    if len(set(strides)) == 1:
        if strides[0] not in (4, 8, 16):
            raise HTTError(f"Backbone {name!r} has patches of {strides[0]} pixels; patches of 4, 8 or 16 are needed.")
        # A plain transformer: four evenly spaced depths, (2, 5, 8, 11) of twelve.
        depth = len(model.model.blocks) if hasattr(model.model, "blocks") else len(strides)
        return {"out_indices": tuple(depth * k // 4 - 1 for k in (1, 2, 3, 4)), "dynamic_img_size": True}
    if not set(PYRAMID_STRIDES) <= set(strides):
        raise HTTError(
            f"Backbone {name!r} has maps of strides {strides}; strides {PYRAMID_STRIDES} or one stride are needed."
        )
    arguments: dict[str, Any] = {"out_indices": tuple(strides.index(stride) for stride in PYRAMID_STRIDES)}
    if any(hasattr(part, "strict_img_size") for part in model.modules()):  # Swin, at sizes other than its own
        arguments["strict_img_size"] = False
    return arguments


def _channels_last(model: Any) -> bool:
    """Whether a timm model returns ``b h w c``, as hierarchical transformers do."""
    return bool(getattr(model, "output_fmt", "NCHW") != "NCHW")


def _create_timm_model(name: str, pretrained: bool | str, **arguments: Any) -> Any:
    if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and ":" not in name:
        hint = did_you_mean(name, timm.list_models())
        raise HTTError(
            f"Unknown backbone {name!r} (model.backbone): timm has no such model, see timm.list_models().{hint}"
        )
    if isinstance(pretrained, str):
        if not Path(pretrained).is_file():
            raise HTTError(f"model.pretrained: there is no weights file {pretrained!r} for backbone {name!r}.")
        arguments["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        if isinstance(pretrained, str):
            verify_zip_checksums(pretrained)
        model = timm.create_model(name, pretrained=bool(pretrained), features_only=True, **arguments)
        if isinstance(pretrained, str):
            with torch.random.fork_rng(devices=[]):
                again = timm.create_model(name, pretrained=True, features_only=True, **arguments)
            # timm says nothing of weights that a file lacks. They are random, and so no two times the same.
            pairs = zip(model.named_parameters(), again.parameters(), strict=True)
            if random := [key for (key, value), other in pairs if not (value.equal(other) and value.isfinite().all())]:
                raise ValueError(f"the file lacks {len(random)} weights, or they are not finite, such as {random[0]}")
        return model
    except Exception as error:  # timm, hub clients and file readers raise a different one for every mishap
        if not pretrained:
            raise HTTError(
                f"timm cannot build backbone {name!r} with {arguments}, see model.backbone_options: {error}"
            ) from error
        origin = f"from {pretrained}" if isinstance(pretrained, str) else "from timm's hub"
        raise HTTError(
            f"The weights of backbone {name!r} could not be loaded {origin}: {type(error).__name__}: {error}\n"
            "Set model.pretrained to a local weights file (.safetensors or .pth of this timm model), or to false to "
            "train from scratch."
        ) from error
