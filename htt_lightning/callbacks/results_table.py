"""Result tables and metric files of a run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from htt_lightning.callbacks.constant_baseline import constant_baseline_scores
from htt_lightning.callbacks.prediction_panel import PredictionPanel
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import RESULTS, run_directory
from htt_lightning.module import HTTModule
from htt_lightning.tasks import MetricSpec, Task

Rows = dict[str, dict[str, Any]]
"""Entries of a metric file by logged key."""


class ResultsTable(Callback):
    """Print the metrics of a run and write them into the run directory.

    ``fit`` ends with the primary metric of each task (``val_metrics.json``). ``test`` ends with all metrics, as JSON
    (``test_metrics.json``) and as a row of a paper's table (``test_metrics.md``).

    Args:
        constant_baseline: Also score the best constant prediction of each task after ``fit``, fitted to the training
            labels. This reads all labels once and needs a single process. Off by default.
    """

    def __init__(self, constant_baseline: bool = False) -> None:
        self.constant_baseline = constant_baseline
        self._values: dict[str, float] = {}
        self._val_epoch: int | None = None
        self._checkpoint_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the last validation metrics, for a run resumed at its end."""
        return {"values": self._values, "epoch": self._val_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last validation metrics."""
        self._values, self._val_epoch = state_dict["values"], state_dict["epoch"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the epoch of the checkpoint, which ``test`` reports."""
        self._checkpoint_epoch = checkpoint["epoch"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory on all ranks."""
        self._folder, self._values = run_directory(trainer), {}
        self._val_epoch = self._checkpoint_epoch = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the primary metrics."""
        if isinstance(pl_module, HTTModule) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            keys = [f"val/{task.name}/{task.primary_metric}" for task in pl_module.tasks]
            metrics = trainer.callback_metrics
            self._values = {key: float(metrics[key]) for key in keys if key in metrics}
            self._val_epoch = trainer.current_epoch

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table and write ``val_metrics.json``."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        _close_progress_bar(trainer, pl_module, "fit")
        constants = self._constants(trainer, pl_module.tasks) if self._values else {}
        rows: Rows = {}
        for task in pl_module.tasks:
            key = f"val/{task.name}/{task.primary_metric}"
            if key in self._values:
                value = self._values[key]
                rows[key] = _row(value, task.metric_spec(task.primary_metric), True, self._val_epoch)
                if constants is not None:
                    constant = constants.get(task.name, math.nan)
                    rows[key] |= {"constant": constant, "gain_percent": task.relative_gain(value, constant)}
        if not rows:
            return
        path = self._folder / RESULTS["val"]
        _write_json(path, rows)
        console = Console()
        console.print(_val_table(rows, trainer.current_epoch))
        panels = [callback.path for callback in cast(Any, trainer).callbacks if isinstance(callback, PredictionPanel)]
        for written in [path, *filter(None, panels)]:
            console.out(written, highlight=False)

    def _constants(self, trainer: L.Trainer, tasks: list[Task]) -> dict[str, float] | None:
        """Score the constant baselines, or return None if they are off."""
        data = getattr(trainer, "datamodule", None)
        if not self.constant_baseline or not isinstance(data, PartialLabelDataModule):
            return None
        if trainer.world_size > 1:  # the other ranks would wait
            rank_zero_warn("Skipping results.constant_baseline, which needs a single process. Set trainer.devices=1.")
            return None
        return constant_baseline_scores(data, tasks)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the test metrics and write them as JSON and Markdown."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        tasks = {task.name: task for task in pl_module.tasks}
        epoch = trainer.current_epoch - 1 if trainer.current_epoch else self._checkpoint_epoch
        rows: Rows = {}
        columns: dict[str, dict[str, str]] = {}
        for key, metric in trainer.callback_metrics.items():
            split, *task, name = key.split("/")
            if split == "test" and (task[0] in tasks if task else name == "delta_m"):
                value, spec = float(metric), tasks[task[0]].metric_spec(name) if task else MetricSpec()
                primary = not task or name == tasks[task[0]].primary_metric
                rows[key] = _row(value, spec, primary, epoch)
                columns.setdefault(" ".join(task), {})[spec.column_header(name)] = spec.format(value)
        if not rows:
            return
        path = self._folder / RESULTS["test"]
        _write_json(path, rows)
        table = {f"{task} {head}".strip(): cell for task, cells in columns.items() for head, cell in cells.items()}
        lines = (table, ["---:"] * len(table), table.values())
        with atomic_path(path.with_suffix(".md")) as partial:
            partial.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
        _close_progress_bar(trainer, pl_module, "test")
        console = Console()
        console.print(Columns([_task_table(task, cells) for task, cells in columns.items()]))
        for written in (path, path.with_suffix(".md")):
            console.out(written, highlight=False)


def _row(value: float, spec: MetricSpec, primary: bool, epoch: int | None) -> dict[str, Any]:
    """Describe a metric; ``epoch`` is None for an untrained network."""
    return {"value": value, **spec._asdict(), "primary": primary, "epoch": epoch}


def _write_json(path: Path, rows: Rows) -> None:
    """Write a metric file with null for NaN, which JSON lacks."""
    plain = {
        key: {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        for key, row in rows.items()
    }
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _val_table(rows: Rows, epochs: int) -> Table:
    """Lay out one metric per line, beside its constant baseline if there is one."""
    table = Table(title=f"Validation after {epochs} epochs")
    columns = {"value": "value", "constant": "constant", "gain_percent": "better than the constant by"}
    shown = {name: title for name, title in columns.items() if any(name in row for row in rows.values())}
    table.add_column("metric")
    for title in shown.values():
        table.add_column(title, justify="right")
    for key, row in rows.items():
        forms = {name: (":+.1f", "%") if name == "gain_percent" else (":.3f", row["unit"]) for name in shown}
        texts = (f"{{{form}}} {unit}".format(row[name]).rstrip() for name, (form, unit) in forms.items())
        table.add_row(key, *("-" if text.startswith(("nan", "+nan")) else text for text in texts))
    return table


def _task_table(task: str, cells: Mapping[str, str]) -> Table:
    """Lay out the test metrics of one task as a row."""
    table = Table(title=task)
    for header in cells:
        table.add_column(header.replace(" ", "\n", 1), justify="right")
    table.add_row(*cells.values())
    return table


def _close_progress_bar(trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
    """Close the progress bar, whose last redraw would overwrite the table."""
    if trainer.progress_bar_callback:
        trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
