"""Callbacks of Lightning that a run refuses, with the reason."""

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.callbacks.finetuning import BaseFinetuning
from lightning.pytorch.utilities import rank_zero_warn

from htt_lightning.errors import ConfigError


def check_callbacks(callbacks: Iterable[Callback], counts_steps: bool, has_pseudo_labels: bool) -> None:
    """Raise a ``ConfigError`` for a callback that would not do what it promises, and warn if one is missing.

    Args:
        callbacks: Callbacks of the trainer.
        counts_steps: Whether the learning rate needs the number of steps of a stage.
        has_pseudo_labels: Whether the data has stored pseudo-labels.
    """
    found: list[Any] = list(callbacks)
    counts = [callback.stages for callback in found if hasattr(callback, "stages")]  # of LabelDiscovery
    stages = max((count for count in counts if isinstance(count, int)), default=1)
    if has_pseudo_labels and not counts:
        rank_zero_warn("Training without data.pseudo_labels. Add the callback LabelDiscovery(stages=1).")
    for callback in found:
        for reason in _reasons(callback, stages, counts_steps):
            raise ConfigError(f"trainer.callbacks must be without {type(callback).__name__}, which {reason}")


def _reasons(callback: Any, stages: int, counts_steps: bool) -> Iterator[str]:
    if isinstance(callback, BaseFinetuning):
        yield (
            "adds parameters to an optimizer whose schedule does not know them. "
            "Set model.freeze_backbone or model.backbone_lr_factor."
        )
    if isinstance(callback, ModelPruning):
        yield "renames weights while it trains, so that no checkpoint or teacher can be made of them. Prune afterwards."
    if isinstance(callback, StochasticWeightAveraging) and stages > 1:
        yield (
            f"averages at the end of the run, not of each of {stages} stages. "
            "Take WeightAveraging, or set discovery.stages 1."
        )
    if isinstance(callback, EMAWeightAveraging) and stages > 1:
        for key in ("update_starting_at_step", "update_starting_at_epoch"):
            if (start := getattr(callback, key)) is not None:
                yield f"counts {key} {start} from the start of the run, not of a stage. Leave it out."
    if isinstance(callback, GradientAccumulationScheduler) and counts_steps:
        yield "changes the number of steps, over which the learning rate decays. Set model.lr_interval epoch."


def check_resumable(callbacks: Iterable[Callback]) -> None:
    """Raise a ``ConfigError`` for a callback that would restart a resumed run."""
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            kind = type(callback).__name__
            option = "data.batch_size" if isinstance(callback, BatchSizeFinder) else "model.lr"
            raise ConfigError(
                f"trainer.callbacks must be without {kind} in a run that resumes, which {kind} would restart. "
                f"Leave it out, and set {option} to what it found."
            )
