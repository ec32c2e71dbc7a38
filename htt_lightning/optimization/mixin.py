"""The part of a module that sets up its training."""

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from htt_lightning.discovery.consistency import ConsistencyLoss
from htt_lightning.errors import ConfigError
from htt_lightning.optimization.callback_check import check_callbacks, check_resumable
from htt_lightning.optimization.freezing import freeze_backbone, freeze_statistics
from htt_lightning.optimization.optimizers import (
    LRInterval,
    WeightDecayOn,
    check_spec,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from htt_lightning.optimization.uncertainty import TaskWeighting, UncertaintyWeights
from htt_lightning.tasks import Task
from htt_lightning.tasks.semseg import resolve_class_weights


class OptimizationMixin(L.LightningModule):
    """Optimizer, schedule, frozen backbone, compilation and task weights of an ``HTTModule``."""

    net: nn.Module
    tasks: list[Task]
    loss_weights: dict[str, float]
    uncertainty: UncertaintyWeights | None
    consistency: ConsistencyLoss | None
    epochs_per_stage: int | None
    _configured_lr: float | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a network in the wrapper of ``torch.compile``, which renames weights, is compiled in place.

        The wrapper's arguments are kept by Lightning.
        """
        if isinstance(value, nn.Module) and hasattr(value, "_orig_mod"):
            arguments: dict[str, Any] = getattr(value, "_compile_kwargs", {})
            value = value._orig_mod
            value.compile(**arguments)
        super().__setattr__(name, value)

    def check_optimization_arguments(self) -> None:
        """Check the hyperparameters of this part."""
        choices = {"lr_interval": get_args(LRInterval), "weight_decay_on": get_args(WeightDecayOn)}
        choices |= {"task_weighting": get_args(TaskWeighting)}
        for option, values in choices.items():
            if (value := self.hparams[option]) not in values:
                raise ConfigError(f"model.{option} must be one of {', '.join(values)}, got {value!r}.")
        if not (factor := self.hparams["backbone_lr_factor"]) > 0:
            raise ConfigError(f"model.backbone_lr_factor must be above 0, got {factor}. Or set model.freeze_backbone.")
        for option in ("lr", "weight_decay", "warmup"):
            if not (value := self.hparams[option]) >= 0:
                raise ConfigError(f"model.{option} must be at least 0, got {value}.")
        if (schedule := self.hparams["lr_scheduler"]) is not None:
            check_spec("lr_scheduler", schedule)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Refuse callbacks of the trainer that would not do what they promise, and warn if one is missing."""
        if self.trainer.state.fn == "fit":
            stored = getattr(getattr(self.trainer, "datamodule", None), "pseudo_labels", None)
            check_callbacks(cast(Any, self.trainer).callbacks, self._decays_per_step, stored is not None)
        return []

    @property
    def _decays_per_step(self) -> bool:
        return self.hparams["lr_interval"] == "step" and self.hparams["lr_scheduler"] is None

    def setup(self, stage: str) -> None:
        """Freeze the backbone, compile the network and count classes, before a training run."""
        self._configured_lr = None
        if stage == "fit":
            if stages := self.hparams["freeze_backbone"]:
                freeze_backbone(getattr(self.net, "backbone", None), stages)
            if arguments := self.hparams["compile"]:
                self.net.compile(**(arguments if isinstance(arguments, dict) else {}))
            self.tasks = resolve_class_weights(self.tasks, self.trainer)
            if self.consistency is not None:
                self.consistency.tasks = self.tasks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with a callback that would restart the run."""
        # A callback that searches for a rate or a size loads its own checkpoint when the optimizer is configured.
        if self._trainer and self.trainer.state.fn == "fit" and self._configured_lr is None:
            check_resumable(cast(Any, self.trainer).callbacks)

    def on_fit_start(self) -> None:
        """Configure the optimizer again if ``LearningRateFinder`` has changed the learning rate."""
        if self._configured_lr not in (None, self.hparams["lr"]):
            self.trainer.strategy.setup_optimizers(self.trainer)

    def on_train_start(self) -> None:
        """Take the learning rate from the schedule, as a resumed run may have another number of epochs."""
        if isinstance(schedule := self.lr_schedulers(), LambdaLR):
            groups = schedule.optimizer.param_groups
            for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = base * factor(schedule.last_epoch)
        if self.hparams["freeze_backbone"]:
            freeze_statistics(cast(Any, self.net).backbone)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and its schedule, by default Adam and a polynomial decay to zero once per epoch."""
        lr, weight_decay, spec = (self.hparams[key] for key in ("lr", "weight_decay", "lr_scheduler"))
        self._configured_lr = lr
        # Lightning cannot clip the gradients of a fused optimizer in mixed precision.
        fused = self._trainer is None or not isinstance(self.trainer.precision_plugin, MixedPrecision)
        groups = parameter_groups(self, lr, self.hparams["backbone_lr_factor"], self.hparams["weight_decay_on"])
        optimizer = make_optimizer(groups, lr, weight_decay, fused, self.hparams["optimizer"])
        length = self._schedule_length() if spec is None else 0
        schedule: Any = make_schedule(optimizer, length, self.hparams["warmup"], self.hparams["poly_power"], spec)
        config: Any = {"scheduler": schedule, "interval": self.hparams["lr_interval"]}
        if hasattr(schedule, "monitor"):
            config["monitor"] = schedule.monitor
            if schedule.monitor.startswith("val/") and config["interval"] == "epoch":
                config["frequency"] = self.trainer.check_val_every_n_epoch or 1  # other epochs have no new value
        return {"optimizer": optimizer, "lr_scheduler": config}

    def task_weights(self) -> dict[str, float | Tensor]:
        """Return the weight of each task's losses. Learned ones have no gradient, so that teachers never move them."""
        if (learned := self.uncertainty) is None:
            return {**self.loss_weights}
        return {name: weight * learned.weight(name).detach() for name, weight in self.loss_weights.items()}

    def on_train_epoch_end(self) -> None:
        """Log the learned weights of the tasks, and advance schedules that wait for a metric."""
        if self.uncertainty is not None:
            self.log_dict({f"train/{name}/weight": float(weight) for name, weight in self.task_weights().items()})
        for config in self._plateaus:
            metric = self.trainer.callback_metrics.get(config.monitor)
            if metric is not None and (self.current_epoch + 1) % config.frequency == 0:
                config.scheduler.step(metric)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advance a schedule, except one that ``on_train_epoch_end`` advances."""
        if all(scheduler is not config.scheduler for config in self._plateaus):
            super().lr_scheduler_step(scheduler, metric)

    @property
    def _plateaus(self) -> list[Any]:
        """Schedules that wait for a metric per epoch. Lightning advances them after it has saved the checkpoint."""
        return [x for x in self.trainer.lr_scheduler_configs if x.reduce_on_plateau and x.interval == "epoch"]

    def _schedule_length(self) -> int:
        """Return the number of epochs or steps of a stage."""
        epochs = self.epochs_per_stage or self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ConfigError(f"trainer.max_epochs must be at least 1 for the learning rate's decay, got {epochs}.")
        if not self._decays_per_step:
            return epochs
        trainer: Any = self.trainer
        _ = trainer.estimated_stepping_batches  # loads the data, if that has not been done
        batches, accumulated = int(trainer.num_training_batches), int(trainer.accumulate_grad_batches)
        return epochs * math.ceil(batches / accumulated)
