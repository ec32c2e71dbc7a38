"""Prediction maps, visualizations and panels as files."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from rich.console import Console
from torch import Tensor

from htt_lightning.callbacks.panel import PanelEntry, draw_map, draw_panel, task_legend, to_uint8
from htt_lightning.callbacks.video_file import VideoFile
from htt_lightning.data.batch import Batch, unpadded_window
from htt_lightning.data.datasets.image_search import DESCRIPTION_FILE
from htt_lightning.errors import ConfigError, DataError, HTTError, collect_errors, combine_errors
from htt_lightning.io.files import atomic_path, check_output_dir, write_text
from htt_lightning.io.images import write_png
from htt_lightning.io.run_directory import run_directory
from htt_lightning.module import HTTModule
from htt_lightning.output import ImageView
from htt_lightning.tasks import Task

Format = Literal["png", "npy"]
"""File format of maps, see ``PredictionWriter``."""
MAX_COLUMNS = 3
"""Maximum number of maps in a row of a panel that has one row."""


class PredictionWriter(BasePredictionWriter):
    """Write the maps of each image, in threads beside the network.

    The map of a task is ``<id>_<task>.png`` if a PNG file holds its values: class indices (8 bits), depth in
    millimeters (16 bits), normals as colors (8 bits per component). Other maps, such as probabilities, are
    ``<id>_<task>.npy``: float32 ``h w`` or ``c h w``, as decoded. ``maps.json`` lists units and class names. Of a video
    or camera one video is written, ``<name>_panel.mp4``, with every frame beside its maps. Ctrl-C ends that of a
    camera, which is kept.

    Args:
        folder: Output folder. ``predictions/`` in the run directory by default.
        overwrite: If true, existing files may be replaced.
        format: ``png`` as above, or ``npy`` for arrays of all maps (classes are int64 ``h w``).
        save_visualizations: If true, write a color image of each map, ``<id>_<task>_view.png``.
        save_panels: If true, write a panel of each image with all its maps, ``<id>_panel.png``.
        num_workers: Number of threads that write.

    Raises:
        ConfigError: The format is unknown, or the folder is a file or not empty.
        DataError: Images could not be read or written; it names them at the end.
    """

    def __init__(
        self,
        folder: str | None = None,
        overwrite: bool = False,
        format: Format = "png",
        save_visualizations: bool = True,
        save_panels: bool = True,
        num_workers: int = 2,
    ) -> None:
        super().__init__(write_interval="batch")
        if format not in get_args(Format):
            raise ConfigError(f"predictions.format must be one of {', '.join(get_args(Format))}, got {format!r}.")
        self.folder, self.overwrite, self.format = folder, overwrite, format
        self.save_visualizations, self.save_panels = save_visualizations, save_panels
        self.num_workers = max(num_workers, 1)
        self._num_written, self._errors = 0, list[HTTError]()
        self._pending: deque[Future[np.ndarray | None]] = deque()
        self._video: VideoFile | None = None
        self._pool: ThreadPoolExecutor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find and check the output folder on all ranks, before any rank writes."""
        super().setup(trainer, pl_module, stage)
        run = run_directory(trainer)
        folder = self._folder = run and (Path(self.folder) if self.folder else run / "predictions")
        if stage == "predict" and folder:
            check_output_dir(folder, self.overwrite)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``maps.json`` and start the threads."""
        trainer.predict_loop.return_predictions = False  # they would fill the memory
        self._num_written, self._errors = 0, []
        if self._folder and isinstance(pl_module, HTTModule):
            if trainer.is_global_zero:
                text = json.dumps(self.map_descriptions(pl_module.tasks), indent=2)
                write_text(self._folder / DESCRIPTION_FILE, text)
            self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="write")

    def map_descriptions(self, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
        """Describe the maps of each task: units of PNG files and arrays, classes."""
        png = self.format == "png"
        return {
            task.name: {"png": task.png_unit if png else None, "npy": task.output_unit, "classes": [*task.class_names]}
            for task in tasks
        }

    def write_on_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, indices: Any, batch: Any, *_: int
    ) -> None:
        """Submit a batch to the threads; image ids name the files on all ranks."""
        if self._folder is None or self._pool is None or not isinstance(pl_module, HTTModule):
            return
        maps = {task.name: prediction[task.name].cpu() for task in pl_module.tasks}
        if video := batch.get("video"):
            path = self._folder / f"{video.name}_panel.mp4"
            self._video = self._video or VideoFile(path, video.fps, keep_partial=video.is_camera)
        for k, name in enumerate(prediction["id"]):
            window: tuple[slice, slice] = (slice(None), slice(None))
            if "view" not in batch and "valid" in batch:  # an image of a dataset, with its padding
                window = unpadded_window(batch["valid"][k].cpu().numpy())
            single = {task: values[k : k + 1, ..., *window] for task, values in maps.items()}
            image = crop_padding(batch)[k : k + 1, :, *window].cpu() if self.save_panels or video else None
            write: Callable[..., np.ndarray | None] = _draw_frame if video else self._write
            self._pending.append(self._pool.submit(write, self._folder / name, pl_module.tasks, single, image))
        self._wait(max_pending=2 * max(self.num_workers, len(prediction["id"])))  # bounds the memory

    def _wait(self, max_pending: int = 0) -> None:
        """Wait for the files of images, and collect errors; one of a video ends the command."""
        while len(self._pending) > max_pending:
            frame, pending = None, self._pending.popleft()
            with collect_errors(self._errors):
                frame = pending.result()
                self._num_written += 1
            if frame is not None and self._video:
                try:
                    self._video.write(frame)
                except HTTError:
                    self._video = None  # no later frame is written either
                    raise

    def _write(self, stem: Path, tasks: Sequence[Task], maps: Mapping[str, Tensor], image: Tensor | None) -> None:
        """Write all files of one image; tensors have a batch axis of one."""
        pictures = {}
        for task in tasks:
            values = maps[task.name]
            write_map(stem.with_name(f"{stem.name}_{task.name}"), task, values[0].numpy(), self.format)
            if self.save_visualizations or image is not None:
                pictures[task.name] = draw_map(task, values[0])
            if self.save_visualizations:
                write_png(stem.with_name(f"{stem.name}_{task.name}_view.png"), pictures[task.name])
        if image is not None:
            write_png(stem.with_name(f"{stem.name}_panel.png"), _panel(stem.name, image[0], pictures, tasks))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the threads, print the folder, and raise the collected errors."""
        self._close(is_complete=True)
        if self._folder and trainer.is_global_zero:
            Console().out(self._folder, highlight=False)
        errors = [*getattr(getattr(trainer, "datamodule", None), "errors", ()), *self._errors]
        if errors:
            count, listed = self._num_written + len(errors), combine_errors(errors, shown=None).message
            raise DataError(f"{len(errors)} of {count} images failed, the others are in {self._folder}:\n{listed}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Finish the files that are being written."""
        is_kept = self._video and self._video.keep_partial
        self._close()
        if is_kept:
            Console().out(self._folder, highlight=False)

    def _close(self, is_complete: bool = False) -> None:
        self._wait()
        if self._video:
            self._video.close(is_complete)
            self._video = None
        if self._pool:
            self._pool.shutdown()
            self._pool = None


def crop_padding(batch: Batch) -> Tensor:
    """Crop the padding that ``view`` describes from images, ``b 3 h w``."""
    view: ImageView | None = batch.get("view")
    images: Tensor = batch["image"]
    if view is None:
        return images
    (top, left), (height, width) = view.offset, view.resized
    return images[..., top : top + height, left : left + width]


def write_map(stem: Path, task: Task, values: np.ndarray, format: Format = "png") -> Path:
    """Write one decoded map, ``h w`` or ``c h w``, and return the file: ``stem`` with a suffix."""
    pixels = task.to_png(values) if format == "png" else None
    path = stem.with_name(f"{stem.name}.{'npy' if pixels is None else 'png'}")
    if pixels is not None:
        write_png(path, pixels)
    else:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, values)
    return path


def _draw_frame(stem: Path, tasks: Sequence[Task], maps: Mapping[str, Tensor], image: Tensor) -> np.ndarray:
    """Draw a frame of a video beside its maps, without a legend, so that all frames have one size."""
    pictures = {task.name: draw_map(task, maps[task.name][0]) for task in tasks}
    return _panel(f"{stem.parent.name}, frame {stem.name}", image[0], pictures, ())


def _panel(title: str, image: Tensor, pictures: Mapping[str, np.ndarray], tasks: Sequence[Task]) -> np.ndarray:
    """Draw an image and its maps, in two rows if there are more than ``MAX_COLUMNS``; ``tasks`` have a legend."""
    names = [*pictures]
    columns = len(names) if len(names) <= MAX_COLUMNS else -(-len(names) // 2)
    rows = [{name: pictures[name] for name in names[k : k + columns]} for k in range(0, len(names), columns)]
    entry = PanelEntry(title, to_uint8(image), [("", row) for row in rows])
    return draw_panel([entry], task_legend(tasks, [entry]) if tasks else [])
