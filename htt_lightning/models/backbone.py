"""Backbones: any timm model that returns feature maps."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.weights import check_finite, verify_zip_checksums
from htt_lightning.models.pretrained import CLASSIFIER, PACKAGES, load_packaged_weights

PYRAMID_STRIDES = (4, 8, 16, 32)
"""Strides of the maps of a multi-scale backbone."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels R, G, B in [0, 1]."""


class Backbone(nn.Module):
    """Four feature maps of a timm model: a pyramid of strides 4 to 32, or four depths of a plain vision transformer.

    Examples:
        >>> backbone = Backbone("test_resnet").eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 48, 8, 12), (1, 192, 4, 6), (1, 96, 2, 3)]

    Args:
        name: Name of a timm model with ``features_only`` and either strides 4 to 32 or patches of 4, 8 or 16 pixels.
        pretrained: True for the weights of an installed package (extra ``pretrained``) or else of timm's hub, False for
            random ones, or a path to a weights file.
        options: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Attributes:
        channels: Number of channels of each map.
        strides: Stride of each map.
        mean: Mean of the channels R, G, B with which the weights were trained; ImageNet's for random weights.
        std: Their standard deviation.
    """

    def __init__(
        self, name: str = "resnet18", pretrained: bool | str = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.model = _create_timm_model(name, pretrained, **_feature_kwargs(name) | dict(options or {}))
        self.channels: list[int] = self.model.feature_info.channels()
        self.strides: list[int] = self.model.feature_info.reduction()
        trained = self.model.pretrained_cfg if pretrained else {}
        self.mean: tuple[float, ...] = tuple(trained.get("mean", IMAGENET_MEAN))
        self.std: tuple[float, ...] = tuple(trained.get("std", IMAGENET_STD))
        for module in self.modules():
            if isinstance(module, Conv2dSame):  # of tf_* models; in place, as its parameters stay the same
                module.__class__ = ConstantSameConv2d

    def forward(self, image: Tensor) -> list[Tensor]:
        """Turn a normalized image ``b 3 h w``, in multiples of 32, into maps ``b c_s h/s w/s``."""
        maps: list[Tensor] = self.model(image)
        if getattr(self.model, "output_fmt", "NCHW") == "NCHW":
            return maps
        return [rearrange(x, "b h w c -> b c h w") for x in maps]  # of hierarchical transformers


class ConstantSameConv2d(Conv2dSame):
    """Convolution with TensorFlow's "same" padding, for maps whose size is a multiple of its stride.

    The padding of timm's layer depends on the size of the map, which takes the ONNX exporter forever.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``b c h w`` to ``b d h/s w/s``."""
        padding: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            padding = [total // 2, total - total // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@lru_cache
def _feature_kwargs(name: str) -> dict[str, Any]:
    """Return the arguments that select a model's four maps; only a built model knows its strides."""
    with torch.random.fork_rng(devices=[]):
        model = _create_timm_model(name)
    strides: list[int] = model.feature_info.reduction()
    if len(set(strides)) == 1:
        if strides[0] not in (4, 8, 16):
            raise ConfigError(f"model.backbone must have patches of 4, 8 or 16 pixels, got {strides[0]} of {name!r}.")
        # A plain transformer: four evenly spaced depths, (2, 5, 8, 11) of twelve.
        depth = len(model.model.blocks) if hasattr(model.model, "blocks") else len(strides)
        return {"out_indices": tuple(depth * k // 4 - 1 for k in (1, 2, 3, 4)), "dynamic_img_size": True}
    if not set(PYRAMID_STRIDES) <= set(strides):
        raise ConfigError(
            f"model.backbone must have maps of strides {PYRAMID_STRIDES}, or of one stride, got {strides} of {name!r}."
        )
    kwargs: dict[str, Any] = {"out_indices": tuple(strides.index(stride) for stride in PYRAMID_STRIDES)}
    if any(hasattr(part, "strict_img_size") for part in model.modules()):  # Swin accepts other sizes on request
        kwargs["strict_img_size"] = False
    return kwargs


def _create_timm_model(name: str, pretrained: bool | str = False, **kwargs: Any) -> Any:
    """Create a timm model that returns feature maps."""
    if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and ":" not in name:
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"model.backbone must be a model of timm.list_models(), got {name!r}.{hint}")
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise ConfigError(f"model.pretrained must be true, false or a weights file, got {pretrained!r}: no such file.")
    try:
        if isinstance(pretrained, str):
            return _load_from_file(name, pretrained, **kwargs)
        if pretrained and (weights := load_packaged_weights(name)):
            overlay = {"state_dict": {key: x for key, x in weights.items() if not key.startswith(CLASSIFIER)}}
            model: Any = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **kwargs
            )
            del model.pretrained_cfg["state_dict"]  # not kept twice
            return model
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except ConfigError:
        raise
    except Exception as error:  # timm, hub clients and file readers raise many types
        if not pretrained:
            raise ConfigError(
                f"timm cannot build backbone {name!r} with {kwargs}: {error}\nCheck model.backbone_options."
            ) from error
        origin = pretrained if isinstance(pretrained, str) else "timm's hub"
        raise ConfigError(
            f"The weights of backbone {name!r} cannot be loaded from {origin}: {type(error).__name__}: {error}\n"
            "Set model.pretrained to a weights file (.safetensors or .pth of this timm model), or to false; or install "
            f"htt-lightning[pretrained], which needs no internet and has weights of {', '.join(PACKAGES)}."
        ) from error


def _load_from_file(name: str, path: str, **kwargs: Any) -> Any:
    """Create a timm model with the weights of a file; a missing or infinite weight raises an error."""
    verify_zip_checksums(path)
    # timm passes over weights that the file lacks. They stay as random as in an untrained model of the same seed.
    with torch.random.fork_rng(devices=[]):
        untrained = dict(timm.create_model(name, features_only=True, **kwargs).named_parameters())
    overlay = {"file": path}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **kwargs)
    params = model.named_parameters()
    if missing := [key for key, value in params if value.min() != value.max() and value.equal(untrained[key])]:
        raise ValueError(f"the file lacks {len(missing)} weights, such as {missing[0]}")
    check_finite(model.state_dict())
    return model
