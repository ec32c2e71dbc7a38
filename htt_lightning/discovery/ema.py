"""Networks that teach: copies of a student, its moving average, or what a checkpoint holds."""

import lightning as L
import torch
from torch import nn

from htt_lightning.errors import HTTError
from htt_lightning.models import DensePredictionNetwork
from htt_lightning.module import HTTModule
from htt_lightning.tasks.compared import check_same_tasks
from htt_lightning.training.loading import load_module, module_from_state


def clone_module(module: HTTModule) -> HTTModule:
    """Another module of the same hyperparameters and with the weights of the network."""
    weights = {key: value.clone() for key, value in module.net.state_dict().items()}
    return module_from_state(module.hparams, weights, type(module))


def agree(trainer: L.Trainer, net: nn.Module) -> None:
    """Give all processes the first one's running statistics: without synchronised BatchNorm, each has its own."""
    buffers = dict(net.named_buffers())
    for name, value in trainer.strategy.broadcast({key: value.cpu() for key, value in buffers.items()}).items():
        buffers[name].copy_(value)


@torch.no_grad()
def update_ema(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the floating-point state of ``average`` towards ``network`` by ``1 - decay``; counters are copied."""
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [(old, new) for old, new in pairs if old.is_floating_point()]
    torch._foreach_lerp_([old for old, _ in floating], [new for _, new in floating], 1 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)


def read_teacher(path: str, student: HTTModule) -> HTTModule:
    """The module in a checkpoint, as a teacher of ``student``.

    Raises:
        HTTError: It is missing or damaged, or has other tasks, classes or widths, or no tokens.
    """
    teacher = load_module(path, "discovery.teacher", type(student))
    check_same_tasks(student.tasks, teacher.hparams["tasks"], f"The teacher {path}")
    width, ours = teacher.hparams["token_dim"], student.hparams["token_dim"]
    if width != ours:
        raise HTTError(f"The teacher {path} has token_dim {width}, the student {ours}; they must be equal.")
    if student.hparams["network"] == "htt" and teacher.hparams["network"] != "htt":
        raise HTTError(f"The teacher {path} has no tokens; train one with model.network htt.")
    strides = {net.backbone.strides[0] for net in (teacher.net, student.net) if isinstance(net, DensePredictionNetwork)}
    if len(strides) > 1:
        raise HTTError(f"The teacher {path} has features of another stride: choose backbones of one kind.")
    return teacher
