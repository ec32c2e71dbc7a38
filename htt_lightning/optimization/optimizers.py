"""Parameter groups, optimizers and learning rate schedules."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.cli import instantiate_class
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from htt_lightning.errors import ConfigError

WeightDecayOn = Literal["all", "weights"]
LRInterval = Literal["epoch", "step"]
BACKBONE, UNCERTAINTY = "net.backbone.", "uncertainty."
"""Beginnings of the names of the backbone's parameters, and of learned task weights, which never decay."""
EMBEDDINGS = ("tokens", "pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
"""Ends of the names of tokens and positions, which are no weights of a layer."""


def split_lr(spec: Mapping[str, Any] | None, lr: float) -> tuple[dict[str, Any] | None, float]:
    """Split ``class_path`` and ``init_args`` of an optimizer into those without the learning rate, and the rate.

    So a module has one learning rate, whatever its optimizer, which ``LearningRateFinder`` can set.
    """
    if spec is None:
        return None, lr
    check_spec("optimizer", spec)
    arguments = dict(spec.get("init_args") or {})
    lr = arguments.pop("lr", lr)
    return {"class_path": spec["class_path"], "init_args": arguments}, lr


def check_spec(option: str, spec: Any) -> None:
    """Check that an optimizer or schedule is given by its class and arguments."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
        raise ConfigError(f"{option} must have class_path and init_args, got {spec!r}.")


def parameter_groups(
    module: nn.Module, lr: float, backbone_lr_factor: float = 1.0, weight_decay_on: WeightDecayOn = "all"
) -> list[dict[str, Any]]:
    """Group the parameters that train by learning rate and weight decay; the published recipe is a single group."""
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            in_backbone = backbone_lr_factor != 1 and name.startswith(BACKBONE)
            excluded = name.startswith(UNCERTAINTY) or (weight_decay_on == "weights" and not is_weight(name, parameter))
            label = ("backbone" if in_backbone else "rest") + ("_no_decay" if excluded else "")
            group = groups.setdefault(label, {"name": label, "params": []})
            group["params"].append(parameter)
            group |= {"lr": lr * backbone_lr_factor} if in_backbone else {}
            group |= {"weight_decay": 0.0} if excluded else {}
    if not groups:
        raise ConfigError("A module must have parameters that train, got none.")
    return [*groups.values()] if len(groups) > 1 else [{"params": groups.popitem()[1]["params"]}]


def is_weight(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter is the weight of a layer, not a norm, a bias or a token."""
    return parameter.ndim > 1 and not name.endswith((".bias", *(f".{end}" for end in EMBEDDINGS)))


def make_optimizer(
    groups: Sequence[Mapping[str, Any]],
    lr: float,
    weight_decay: float,
    fused: bool,
    spec: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer of ``spec``, by default Adam."""
    parameters: Any = [dict(group) for group in groups]
    optimizer: torch.optim.Optimizer
    if spec is None:
        optimizer = torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=fused)
    else:
        arguments = {**(spec.get("init_args") or {}), "lr": lr}
        optimizer = _instantiate("optimizer", parameters, {"class_path": spec["class_path"], "init_args": arguments})
    optimizer.register_load_state_dict_post_hook(_match_memory_format)
    return optimizer


def make_schedule(
    optimizer: torch.optim.Optimizer, length: int, warmup: int, poly_power: float, spec: Mapping[str, Any] | None = None
) -> LRScheduler:
    """Make the schedule of ``spec``, by default a polynomial decay to zero; both after a linear warm-up.

    Args:
        optimizer: Optimizer.
        length: Number of epochs or steps until the default schedule is zero, with warm-up.
        warmup: Number of epochs or steps of the warm-up.
        poly_power: Exponent of the default schedule.
        spec: ``class_path`` and ``init_args``.
    """
    if spec is None:
        if warmup >= length:
            raise ConfigError(f"model.warmup must be less than the {length} of a stage, got {warmup}.")
        return LambdaLR(optimizer, partial(poly_factor, length=length, warmup=warmup, power=poly_power))
    schedule: LRScheduler = _instantiate("lr_scheduler", optimizer, spec)
    if isinstance(schedule, ReduceLROnPlateau):
        if warmup or not hasattr(schedule, "monitor"):
            rule = (
                "have model.warmup 0" if warmup else "be lightning.pytorch.cli.ReduceLROnPlateau, which has a monitor"
            )
            raise ConfigError(f"lr_scheduler must {rule}, got {spec['class_path']}.")
        return schedule
    if not warmup:
        return schedule
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup), schedule], [warmup])


def poly_factor(step: int, length: int, warmup: int, power: float) -> float:
    """Compute the factor on the learning rate: a linear warm-up, then a polynomial decay to zero.

    Examples:
        >>> [poly_factor(step, length=5, warmup=1, power=1.0) for step in range(5)]
        [0.5, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return float(max(1 - (step - warmup) / (length - warmup), 0) ** power)


def _instantiate(option: str, first: Any, spec: Mapping[str, Any]) -> Any:
    check_spec(option, spec)
    try:
        return instantiate_class(first, {"class_path": spec["class_path"], "init_args": spec.get("init_args") or {}})
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        given = f"{spec['class_path']} with {spec.get('init_args') or {}}"
        raise ConfigError(f"{option} must be a class and arguments that it accepts, got {given}: {error}") from error


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    # Fused Adam passes through parameters and moments in the order of memory.
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
