"""Result tables and metric files of a run."""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from rich.columns import Columns
from rich.console import Console
from rich.table import Column, Table

from htt_lightning.callbacks.confusion_matrix import class_table, draw_confusion, scores_by_class
from htt_lightning.callbacks.constant_baseline import constant_baseline_scores
from htt_lightning.callbacks.drawing import save_and_log
from htt_lightning.callbacks.prediction_panel import PredictionPanel
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.io.files import write_text
from htt_lightning.io.run_directory import CONFIG, RESULTS, run_directory
from htt_lightning.module import HTTModule
from htt_lightning.tasks import MetricSpec, Task

Rows = dict[str, dict[str, Any]]  # entries of a metric file by logged key


class ResultsTable(Callback):
    """Print the metrics of a run and write them into the run directory.

    ``fit`` ends with the primary metric of each task, and with Delta_m if the network has baselines
    (``val_metrics.json``). ``test`` ends with all metrics, as JSON (``test_metrics.json``) and as a row of a paper's
    table (``test_metrics.md``), both with the scores of each class. A picture of the confusion matrix is in
    ``confusion_<task>.png``.

    Args:
        constant_baseline: Also score the best constant prediction of each task after ``fit``, fitted to the training
            labels. This reads all labels once and needs a single process. Off by default.
    """

    def __init__(self, constant_baseline: bool = False) -> None:
        self.constant_baseline = constant_baseline
        self._values: dict[str, float] = {}
        self._val_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the last validation metrics, for a run resumed at its end."""
        return {"values": self._values, "epoch": self._val_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last validation metrics."""
        self._values, self._val_epoch = state_dict["values"], state_dict["epoch"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory on all ranks."""
        self._folder, self._values = run_directory(trainer), {}
        self._val_epoch, self._trains = None, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if validation is on and no epoch has one."""
        self._trains = True
        interval, epochs = trainer.check_val_every_n_epoch or 0, trainer.max_epochs or 0
        if interval > epochs > 0 and trainer.limit_val_batches and isinstance(pl_module, HTTModule):
            rank_zero_warn(
                f"Training without validation: trainer.check_val_every_n_epoch is {interval}, of {epochs} epochs. "
                "Set a smaller one."
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the primary metrics."""
        if isinstance(pl_module, HTTModule) and trainer.state.fn == "fit" and not trainer.sanity_checking:
            keys = [*(f"val/{task.name}/{task.primary_metric}" for task in pl_module.tasks), "val/delta_m"]
            metrics = trainer.callback_metrics
            self._values = {key: float(metrics[key]) for key in keys if key in metrics}
            self._val_epoch = trainer.current_epoch

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the table and write ``val_metrics.json``."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        if trainer.ckpt_path and not self._trains:
            rank_zero_warn("Nothing was trained, as --ckpt_path ends the run. Increase trainer.max_epochs to train on.")
        tasks = {f"val/{task.name}/{task.primary_metric}": task for task in pl_module.tasks}
        specs = {key: task.metric_spec(task.primary_metric) for key, task in tasks.items()}
        specs["val/delta_m"], values = MetricSpec(), self._values
        rows = {key: _row(values[key], spec, True, self._val_epoch) for key, spec in specs.items() if key in values}
        if rows:
            self._report_validation(trainer, self._folder, rows, tasks)
        if (checkpoint := self._folder / "checkpoints" / "last.ckpt").is_file():
            _stop_progress_bar(trainer)
            _print_next_commands(checkpoint, self._folder / CONFIG)

    def _report_validation(self, trainer: L.Trainer, folder: Path, rows: Rows, tasks: Mapping[str, Task]) -> None:
        """Add the constant baselines if they are on, write the rows, and print them."""
        if (constants := self._constants(trainer, [*tasks.values()])) is not None:
            for key in rows.keys() & tasks.keys():
                task, constant = tasks[key], constants.get(tasks[key].name, math.nan)
                gain = task.metric_spec(task.primary_metric).relative_gain(rows[key]["value"], constant)
                rows[key] |= {"constant": constant, "gain_percent": gain}
        path = folder / RESULTS["val"]
        _write_json(path, rows)
        panels = [callback.path for callback in cast(Any, trainer).callbacks if isinstance(callback, PredictionPanel)]
        _print(trainer, _val_table(rows, self._val_epoch, trainer.current_epoch), path, *filter(None, panels))

    def _constants(self, trainer: L.Trainer, tasks: list[Task]) -> dict[str, float] | None:
        """Score the constant baselines, or return None if they are off."""
        data = getattr(trainer, "datamodule", None)
        if not self.constant_baseline or not isinstance(data, PartialLabelDataModule):
            return None
        if trainer.world_size > 1:  # the other ranks would wait
            rank_zero_warn("Skipping results.constant_baseline, which needs a single process. Set trainer.devices=1.")
            return None
        return constant_baseline_scores(data, tasks)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn off Lightning's own table of the metrics that ``on_test_end`` prints."""
        if self._folder is not None and isinstance(pl_module, HTTModule):
            cast(Any, trainer).test_loop.verbose = False

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the test metrics and write them as JSON and Markdown."""
        if self._folder is None or not trainer.is_global_zero or not isinstance(pl_module, HTTModule):
            return
        tasks = {task.name: task for task in pl_module.tasks}
        scored = getattr(getattr(trainer, "datamodule", None), "test_split", None)
        rows: Rows = {}
        trained = not pl_module.has_random_weights
        columns: dict[str, dict[str, str]] = {}
        for key, metric in trainer.callback_metrics.items():
            split, *task, name = key.split("/")
            if split == "test" and (task[0] in tasks if task else name == "delta_m"):
                value, spec = float(metric), tasks[task[0]].metric_spec(name) if task else MetricSpec()
                primary = not task or name == tasks[task[0]].primary_metric
                rows[key] = _row(value, spec, primary, pl_module.last_epoch) | {"split": scored, "trained": trained}
                columns.setdefault(" ".join(task), {})[spec.column_header(name)] = spec.format(value)
        if not rows:
            return
        path, pictures, class_tables = self._folder / RESULTS["test"], list[Path](), list[str]()
        for name, confusion in pl_module.test_confusion.items():
            if (key := f"test/{name}/miou") in rows:
                classes = scores_by_class(tasks[name], confusion)
                rows[key] |= {"classes": classes}
                class_tables.append(class_table(tasks[name], classes))
                pictures.append(self._folder / f"confusion_{name}.png")
                picture = draw_confusion(name, tasks[name].class_names, confusion)
                save_and_log(trainer, pictures[-1], f"test/{name}/confusion", picture)
        _write_json(path, rows)
        table = {f"{task} {head}".strip(): cell for task, cells in columns.items() for head, cell in cells.items()}
        lines = (table, ["---:"] * len(table), table.values())
        texts = ["".join(f"| {' | '.join(line)} |\n" for line in lines), *class_tables]
        write_text(markdown := path.with_suffix(".md"), "\n".join(texts))
        epochs = None if pl_module.last_epoch is None else f"Test after {pl_module.last_epoch + 1} epochs"
        title = epochs if trained else "Random weights: no checkpoint was loaded, and nothing was trained"
        tables = [_task_table(task, cells) for task, cells in columns.items()]
        _print(trainer, Columns(tables, title=title), *pictures, path, markdown)


def _stop_progress_bar(trainer: L.Trainer) -> None:
    """Stop the progress bar, whose last redraw would overwrite what is printed below it."""
    if trainer.progress_bar_callback:
        trainer.progress_bar_callback.teardown(trainer, trainer.lightning_module, str(trainer.state.fn))


def _print(trainer: L.Trainer, table: Any, *paths: Path) -> None:
    """Print a table and paths below the progress bar."""
    _stop_progress_bar(trainer)
    console = Console()
    console.print(table)
    for path in paths:
        console.out(path, highlight=False)


def _print_next_commands(checkpoint: Path, config: Path) -> None:
    """Print what to type next, with the program as the user typed it."""
    program = sys.argv[0] if Path(sys.argv[0]).name in ("htt", "lightning") else "htt"
    if shutil.which(Path(program).name):
        program = Path(program).name
    commands = (
        f"predict --ckpt_path {checkpoint} --data ImageFolder --data.root FOLDER_OF_PHOTOS --out maps",
        f"test --config {config} --ckpt_path {checkpoint}",
        f"export --ckpt_path {checkpoint} --format onnx --out net.onnx",
    )
    console = Console()
    console.out("Next:", highlight=False)
    for command in commands:
        console.out(f"  {program} {command}", highlight=False)


def _row(value: float, spec: MetricSpec, primary: bool, epoch: int | None) -> dict[str, Any]:
    """Describe a metric; ``epoch`` is None if unknown."""
    return {"value": value, **spec._asdict(), "primary": primary, "epoch": epoch}


def _write_json(path: Path, rows: Rows) -> None:
    """Write a metric file with null for NaN, which JSON lacks."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_text(path, json.dumps(plain(rows), indent=2, allow_nan=False) + "\n")


def _val_table(rows: Rows, epoch: int | None, epochs: int) -> Table:
    """Lay out one metric per line, beside its constant baseline if there is one."""
    validated = epochs if epoch is None else epoch + 1
    unit = "epoch" if epochs == 1 else "epochs"
    when = f"{epochs} {unit}" if validated == epochs else f"{validated} of {epochs} epochs"
    table = Table("metric", Column("value", justify="right"), title=f"Validation after {when}")
    if any("constant" in row for row in rows.values()):
        table.add_column("constant", justify="right")
        table.add_column("better than the constant by", justify="right")
    for key, row in rows.items():
        texts = [f"{row[name]:.3f} {row['unit']}".rstrip() for name in ("value", "constant") if name in row]
        texts += [f"{row['gain_percent']:+.1f} %"] if "gain_percent" in row else []
        table.add_row(key, *("-" if "nan" in text else text for text in texts))
    return table


def _task_table(task: str, cells: Mapping[str, str]) -> Table:
    """Lay out the test metrics of one task as a row."""
    table = Table(*(Column(header.replace(" ", "\n", 1), justify="right") for header in cells), title=task)
    table.add_row(*cells.values())
    return table
