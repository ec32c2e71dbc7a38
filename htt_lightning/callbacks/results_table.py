"""The results of a run: beside what a network that ignores its images would reach, and laid out as in papers."""

import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import MetricCollection

from htt_lightning.callbacks.prediction_panel import PredictionPanel
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.io.files import atomic_path
from htt_lightning.io.progress import track
from htt_lightning.io.run_directory import RESULTS, run_directory
from htt_lightning.module import HTTModule
from htt_lightning.tasks import MetricSpec, Task


class ResultsTable(Callback):
    """Prints and writes results into the run directory.

    Each task's headline figure when training ends (``val_metrics.json``); all figures after ``test``, laid out as in papers
    (``test_metrics.json``, ``test_metrics.md``).

    Args:
        constant: Also fit a constant prediction per task to the training labels and score it on the validation images.
    """

    def __init__(self, constant: bool = True) -> None:
        self.constant = constant
        self._values: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The figures of the last validation: a run that was ended behind its last epoch has no other left to make."""
        return {"values": self._values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with those of the checkpoint."""
        self._values = state_dict["values"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self._folder, self._values = run_directory(trainer), {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the headline figures."""
        if isinstance(pl_module, HTTModule) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            keys = [f"val/{task.name}/{task.primary_metric}" for task in pl_module.tasks]
            metrics = trainer.callback_metrics
            self._values = {key: float(metrics[key]) for key in keys if key in metrics}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and write the table."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        if trainer.progress_bar_callback:  # its last redraw would come after the table
            trainer.progress_bar_callback.teardown(trainer, pl_module, "fit")
        data = getattr(trainer, "datamodule", None)
        constants = (
            constant_scores(data, pl_module.tasks) if self.constant and isinstance(data, PartialLabelDataModule) else {}
        )
        rows: dict[str, dict[str, Any]] = {}
        for task in pl_module.tasks:
            key = f"val/{task.name}/{task.primary_metric}"
            if key in self._values:
                value, constant = self._values[key], constants.get(task.name, math.nan)
                gain = task.relative_gain(value, constant)
                rows[key] = {"value": value, **task.metric_spec(task.primary_metric)._asdict()}
                rows[key] |= {"constant": constant, "gain_percent": gain}
        if not rows:
            return
        path = self._folder / RESULTS["val"]
        _write_json(path, rows)
        table = Table(title=f"Validation after {trainer.current_epoch} epochs")
        for column in ("metric", "value", "constant", "better than the constant by"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for key, row in rows.items():
            numbers = [_number(row[column], ".3f", row["unit"]) for column in ("value", "constant")]
            table.add_row(key, *numbers, _number(row["gain_percent"], "+.1f", "%"))
        console = Console()
        console.print(table)
        panels = [callback.path for callback in cast(Any, trainer).callbacks if isinstance(callback, PredictionPanel)]
        for written in [path, *filter(None, panels)]:
            console.out(written, highlight=False)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and write the figures of ``test``: one row, with an arrow for the better direction."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        tasks = {task.name: task for task in pl_module.tasks}
        rows: dict[str, dict[str, Any]] = {}
        columns: dict[str, dict[str, str]] = {}
        for key, value in trainer.callback_metrics.items():
            split, *task, name = key.split("/")
            if split == "test" and (task[0] in tasks if task else name == "delta_m"):
                kind = tasks[task[0]].metric_spec(name) if task else MetricSpec()
                primary_metric = not task or name == tasks[task[0]].primary_metric
                rows[key] = {"value": float(value), **kind._asdict(), "headline": primary_metric}
                columns.setdefault(" ".join(task), {})[kind.column_header(name)] = kind.format(float(value))
        if not rows:
            return
        path = self._folder / RESULTS["test"]
        _write_json(path, rows)
        table = {f"{task} {head}".strip(): cell for task, figures in columns.items() for head, cell in figures.items()}
        lines = (table, ["---:"] * len(table), table.values())
        with atomic_path(path.with_suffix(".md")) as partial:
            partial.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
        if trainer.progress_bar_callback:
            trainer.progress_bar_callback.teardown(trainer, pl_module, "test")
        console = Console()
        parts = [Table(title=task) for task in columns]
        for part, figures in zip(parts, columns.values(), strict=True):
            for head in figures:
                part.add_column(head.replace(" ", "\n", 1), justify="right")
            part.add_row(*figures.values())
        console.print(Columns(parts))  # one row, as far as the terminal is wide enough
        for written in (path, path.with_suffix(".md")):
            console.out(written, highlight=False)


def _number(value: float, form: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{form}} {unit}".rstrip()


def _write_json(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    """JSON knows no NaN: what could not be computed is null."""
    plain = {
        key: {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        for key, row in rows.items()
    }
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _never() -> bool:
    return False


def constant_scores(data: PartialLabelDataModule, tasks: list[Task]) -> dict[str, float]:
    """Headline metric on the validation images of the best constant per task, fitted on the training labels.

    Args:
        data: Set up for ``fit``.
        tasks: The tasks to score; one without a single training label is left out.

    Returns:
        Scores by task name.
    """
    constants: dict[str, Tensor] = {}
    for task in tasks:
        labels = track(data.training_targets(task), f"Fitting a constant to {task.name}", len(data.train))
        targets: Iterator[Tensor] = iter(labels)
        first = next(targets, None)
        if first is not None:
            constants[task.name] = task.best_constant(chain([first], targets))
    metrics = {task.name: task.metrics() for task in tasks if task.name in constants}
    for metric in metrics.values():
        for part in metric.values() if isinstance(metric, MetricCollection) else [metric]:
            part.distributed_available_fn = _never  # other processes do not take part
    for index in track(range(len(data.val)), "Scoring constants"):
        sample = data.val[index]
        for name, metric in metrics.items():
            target = sample[name][None]
            value = constants[name].view(1, -1, 1, 1) if target.ndim == 4 else constants[name]
            metric.update(value.expand_as(target), target)
    return {
        task.name: float(metrics[task.name].compute()[task.primary_metric]) for task in tasks if task.name in metrics
    }
