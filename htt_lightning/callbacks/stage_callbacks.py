"""Callbacks of Lightning that count from the start of a run, made to count from the start of a stage."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class StageCallbacks:
    """The callbacks of a trainer that restart with each stage.

    ``EarlyStopping`` ends a stage and forgets it, ``WeightAveraging`` averages the weights of a stage alone and leaves
    them to its network, and ``GradientAccumulationScheduler`` counts the epochs of a stage.

    Args:
        trainer: Trainer, before a checkpoint restores the states of its callbacks.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        callbacks: list[Any] = [*trainer.callbacks]  # type: ignore[attr-defined]
        self._stoppers = [(x, x.state_dict()) for x in callbacks if isinstance(x, EarlyStopping)]
        self._averages = [x for x in callbacks if isinstance(x, WeightAveraging)]
        self._accumulations = [(x, x.scheduling) for x in callbacks if isinstance(x, GradientAccumulationScheduler)]

    @property
    def can_stop(self) -> bool:
        """Return whether a stage may end early."""
        return bool(self._stoppers)

    @property
    def stopped(self) -> bool:
        """Return whether the stage has ended early. A resumed run knows it from the states of its callbacks."""
        return any(stopper.stopping_reason != EarlyStoppingReason.NOT_STOPPED for stopper, _ in self._stoppers)

    def count_from(self, epoch: int) -> None:
        """Let callbacks count epochs from ``epoch`` on."""
        for accumulation, scheduling in self._accumulations:
            accumulation.scheduling = {start + epoch: factor for start, factor in scheduling.items()}
            accumulation.epochs = sorted(accumulation.scheduling)

    def end_stage(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give the network the averaged weights, which were validated."""
        for average in self._averages:
            average.on_train_end(trainer, module)

    def begin_stage(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Forget the last stage."""
        for stopper, state in self._stoppers:
            worst = torch.tensor(-torch.inf if stopper.mode == "max" else torch.inf)  # the mode follows the metric
            stopper.load_state_dict(state | {"best_score": worst})
        for average in self._averages:
            average.setup(trainer, module, "fit")
