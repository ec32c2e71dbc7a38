"""Metrics that callbacks monitor: their names and better directions."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from htt_lightning.callbacks.label_discovery import PREVIOUS, LabelDiscovery
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.module import HTTModule

OWN_PACKAGES = ("htt_lightning.", "lightning.")
"""Packages whose modules and callbacks log known metrics only."""


def resolve_monitors(trainer: L.Trainer, module: L.LightningModule, datamodule: Any) -> None:
    """Give every monitoring callback the better direction of its metric, and let it look when there is a value.

    Raises:
        ConfigError: A callback or the schedule monitors a metric that the run does not log, or in the wrong direction.
    """
    callbacks: list[Callback] = cast(Any, trainer).callbacks
    if not isinstance(module, HTTModule):
        return
    known = metric_directions(module, callbacks, datamodule)
    all_known = all(type(one).__module__.startswith(OWN_PACKAGES) for one in (module, *callbacks))

    def mode_of(monitor: str, option: str) -> str | None:
        """Return the better direction, or None for a metric of another project's callback."""
        if monitor in known:
            if monitor.startswith("val/") and not trainer.limit_val_batches:
                raise ConfigError(f"trainer.limit_val_batches must be above 0, as {option} is {monitor}, got 0.")
            return "max" if known[monitor] else "min"
        if monitor == "val/delta_m":
            rule = f"have a value per task, as {option} is {monitor}"
            step = f"Set it, such as {{{module.tasks[0].name}: 40}}, or monitor the metric of a task."
            raise ConfigError(f"model.single_task_baselines must {rule}, got none. {step}")
        if all_known:
            nearest = [name for name in known if name.endswith(f"/{monitor}")] or known
            hint = did_you_mean(monitor, nearest, cutoff=0)
            raise ConfigError(f"{option} must be a metric that the run logs, got {monitor!r}.{hint}")
        return None

    for callback in callbacks:
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and (monitor := callback.monitor) is not None:
            option = f"{getattr(callback, 'option_group', type(callback).__name__)}.monitor"
            if mode := mode_of(monitor, option):
                _set_direction(callback, mode)
                if monitor.startswith("train/"):
                    _wait_for_epoch_end(callback)
    schedule = (module.hparams["lr_scheduler"] or {}).get("init_args", {})
    if monitor := schedule.get("monitor"):
        mode, got = mode_of(monitor, "lr_scheduler.monitor"), schedule.get("mode", "min")
        if mode not in (None, got):
            raise ConfigError(f"lr_scheduler.mode must be {mode} for {monitor}, got {got}.")


def metric_directions(module: HTTModule, callbacks: Sequence[Callback], datamodule: Any) -> dict[str, bool]:
    """Return the metrics that a training run logs, and whether higher is better."""
    directions = {"train/loss": False} | {f"train/{task.name}/loss": False for task in module.tasks}
    for task in module.tasks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns of metrics without data
            names = task.metrics().compute()
        directions |= {f"val/{task.name}/{name}": task.metric_spec(name).higher_is_better for name in names}
    if module.single_task_baselines:
        directions["val/delta_m"] = True
    if module.consistency is not None:
        directions["train/consistency_loss"] = False
    discoveries = [callback for callback in callbacks if isinstance(callback, LabelDiscovery)]
    teaches = any(callback.stages > 1 or callback.teacher != PREVIOUS for callback in discoveries)
    if teaches or getattr(datamodule, "pseudo_labels", None) is not None:
        directions["train/pseudo_label_loss"] = False
        for name in (task.name for task in module.tasks if task.supports_pseudo_labels):
            directions |= {f"train/{name}/pseudo_label_{value}": True for value in ("coverage", "confidence")}
            directions[f"val/{name}/pseudo_label_accuracy"] = True
    if any(getattr(callback, "policy", None) == "skip" for callback in callbacks):
        directions["train/skipped_steps"] = False
    return directions


def _set_direction(callback: EarlyStopping | ModelCheckpoint, mode: str) -> None:
    """Set the direction of a callback that has seen no value."""
    if getattr(callback, "given_mode", None) not in (None, mode):
        raise ConfigError(f"checkpoint.mode must be {mode} for {callback.monitor}, got {callback.mode}. Leave it out.")
    if hasattr(callback, "given_mode"):
        callback.given_mode = mode
    if callback.mode == mode:
        return
    callback.mode = mode
    if isinstance(callback, ModelCheckpoint):
        callback.kth_value = -callback.kth_value
    else:
        callback.best_score, callback.min_delta = -callback.best_score, -callback.min_delta


def _wait_for_epoch_end(callback: EarlyStopping | ModelCheckpoint) -> None:
    """Let a callback look after an epoch. Lightning's looks after a validation within it if not all epochs have one."""
    if isinstance(callback, EarlyStopping):
        callback._check_on_train_epoch_end = True
    else:
        callback._save_on_train_epoch_end = True
