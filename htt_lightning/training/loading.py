"""Construction of modules from checkpoints, weights and other modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htt_lightning.errors import CheckpointError, ConfigError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.models import DensePredictionNetwork
from htt_lightning.module import HTTModule
from htt_lightning.tasks.serialization import check_same_tasks


def load_module(
    path: str | Path, option: str, cls: type[HTTModule] = HTTModule, device: str | torch.device = "cpu"
) -> HTTModule:
    """Load the module of a checkpoint, named by an option; nothing in the file is executed."""
    checkpoint = read_checkpoint(path, option)
    try:
        module = cls(**checkpoint["hyper_parameters"])
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # hyperparameters may be wrong in any way
        cause = error.__cause__ or error  # the module's own message does not name the file
        raise CheckpointError(f"{option}: the weights of {path} do not fit its hyperparameters: {cause}") from error
    return module.to(device)


def module_from_state(
    hyperparameters: Mapping[str, Any], weights: Mapping[str, Tensor], cls: type[HTTModule]
) -> HTTModule:
    """Build a module around the weights of a network, which are neither copied nor cast."""
    with torch.random.fork_rng(devices=[]):
        module = cls(**hyperparameters)
    module.net.load_state_dict(weights, assign=True)
    return module


def clone_module(module: HTTModule) -> HTTModule:
    """Copy a module: its hyperparameters and the weights of its network."""
    weights = {key: value.clone() for key, value in module.net.state_dict().items()}
    return module_from_state(module.hparams, weights, type(module))


def load_teacher(path: str, student: HTTModule) -> HTTModule:
    """Load a checkpoint as a teacher, with the tasks, token width and feature stride of the student."""
    teacher = load_module(path, "discovery.teacher", type(student))
    check_same_tasks(student.tasks, teacher.hparams["tasks"], f"The teacher {path}")
    width, expected = teacher.hparams["token_dim"], student.hparams["token_dim"]
    if width != expected:
        raise ConfigError(f"model.token_dim must be {width} to learn from discovery.teacher {path}, got {expected}.")
    if student.hparams["network"] == "htt" and teacher.hparams["network"] != "htt":
        raise ConfigError(f"discovery.teacher must have tokens, got {path}. Train it with model.network htt.")
    nets = [net for net in (teacher.net, student.net) if isinstance(net, DensePredictionNetwork)]
    if len({net.backbone.strides[0] for net in nets}) > 1:
        raise ConfigError(f"discovery.teacher must have the student's stride, got {path}. Use backbones of one family.")
    return teacher
