"""A training step on disk: everything that its loss depends on, so that it can be done again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.optim import Optimizer

from htt_lightning.data.batch import Batch
from htt_lightning.discovery.loss import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.files import atomic_path
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task
from htt_lightning.tasks.pseudo_label import PseudoLabel
from htt_lightning.training.loading import module_from_state

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Replay(NamedTuple):
    """A step done again, up to its loss.

    Attributes:
        loss: The loss, from which ``backward`` goes on.
        module: The module in the state before the step; ``last_loss_terms`` are the parts of the loss.
        optimizer: The optimiser in the state before the step.
        batch: The batch.
    """

    loss: Tensor
    module: HTTModule
    optimizer: Optimizer
    batch: Batch


def keep_step(
    path: Path,
    module: HTTModule,
    optimizer: Optimizer,
    batch: Batch,
    precision: str,
    teachers: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a step that has not changed the weights yet.

    Args:
        path: Where to; whoever reads meets a whole file or none.
        module: The module as the step began, ``generators`` included.
        optimizer: Its optimiser, likewise.
        batch: The batch.
        precision: That of the trainer.
        teachers: Hyperparameters and state of the networks that discover labels, as in a checkpoint.

    Raises:
        HTTError: The file cannot be written.
    """
    discovery = module.discovery
    step = {
        "batch": batch | {"discovered": {task: tuple(found) for task, found in batch.get("discovered", {}).items()}},
        "generators": module.generators,
        "evaluating": [name for name, part in module.net.named_modules() if not part.training],
        "precision": precision,
        "optimizer": optimizer.state_dict(),
        "discovery": discovery
        and {
            "teachers": list(teachers),
            "tasks": [task.to_config() for task in discovery.tasks],
            "loss_weights": dict(discovery.loss_weights),
            "terms": asdict(discovery.terms),
            "targets": discovery.targets,
            "precision": discovery.teacher_precision,
            "scale": discovery.scale,
        },
    }
    stored = {
        "pytorch-lightning_version": L.__version__,
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "step": move_data_to_device(step, "cpu"),
    }
    with atomic_path(path) as partial:
        torch.save(stored, partial)


def replay(path: str | Path, device: str | torch.device = "cpu") -> Replay:
    """Do a step again that ``NonFiniteLossGuard`` has kept; neither its data nor its config is needed.

    On the same kind of device with the same versions the loss is that of the run, bit for bit. With several processes
    it is that of one of them, whose synchronised BatchNorm then lacks the other images.

    Args:
        path: ``replay/step_N.pt`` of a run. No pickled class in it is trusted.
        device: Where to compute.

    Raises:
        HTTError: The file is missing or damaged, or no such step.
    """
    stored = read_checkpoint(path, "replay")
    if "step" not in stored:
        raise HTTError(f"replay: {path} is a checkpoint, and no step that was kept.")
    step, device = stored["step"], torch.device(device)
    weights = {key.removeprefix("net."): value for key, value in stored["state_dict"].items() if key.startswith("net.")}
    module = _module(stored["hyper_parameters"], weights).to(device).train()
    for name in step["evaluating"]:
        module.net.get_submodule(name).training = False
    module.discovery = _discovery(step["discovery"], module, device)
    module.epochs_per_stage = 1  # whatever the schedule: the optimiser has its rate with it
    optimizer: Optimizer = module.configure_optimizers()["optimizer"]
    optimizer.load_state_dict(step["optimizer"])
    batch = move_data_to_device(step["batch"], device)
    batch["discovered"] = {task: PseudoLabel(*found) for task, found in batch["discovered"].items()}
    dtype, devices = AUTOCAST.get(step["precision"]), [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, dtype, dtype is not None, cache_enabled=False):
        module.generators = step["generators"]
        torch.set_rng_state(module.generators[0])
        for state in module.generators[1:] if devices else ():
            torch.cuda.set_rng_state(state, device)
        loss, _ = module.loss(batch)
    return Replay(loss, module, optimizer, batch)


def _module(hyperparameters: Mapping[str, Any], weights: Mapping[str, Tensor]) -> HTTModule:
    # Copies, as the file is still where these are.
    return module_from_state(hyperparameters, {key: value.clone() for key, value in weights.items()}, HTTModule)


def _discovery(settings: Mapping[str, Any] | None, module: HTTModule, device: torch.device) -> TeacherEnsemble | None:
    if settings is None:
        return None
    teachers = [_module(x["hyper_parameters"], x["state_dict"]).net.to(device) for x in settings["teachers"]]
    discovery = TeacherEnsemble(
        teachers,
        [Task.from_config(task) for task in settings["tasks"]],
        settings["loss_weights"],
        DiscoveryLossWeights(**settings["terms"]),
        device,
        settings["targets"],
        settings["precision"],
    )
    discovery.scale = settings["scale"]
    return discovery
