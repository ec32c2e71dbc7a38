"""Predictions on disk, as they come."""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from rich.console import Console
from torch import Tensor

from htt_lightning.callbacks.drawing import to_uint8_image, with_title
from htt_lightning.data.batch import Batch
from htt_lightning.errors import HTTError, combine_errors
from htt_lightning.io.files import atomic_path, check_output_dir
from htt_lightning.io.run_directory import run_directory
from htt_lightning.module import HTTModule
from htt_lightning.output import ImageView
from htt_lightning.tasks import Task

Format = Literal["png", "npy"]
"""How maps are stored; see ``PredictionWriter``."""

LEGEND = "maps.json"
"""Name of the file that says what the maps hold."""

CELL = 320
"""Pixels that a cell of a panel has at most along either side."""

COMPRESSION = 1
"""Of PNG files: the fastest, as whoever predicts on many images waits for it."""


class PredictionWriter(BasePredictionWriter):
    """Writes each image's maps, a coloured view of each, and a panel of all; in threads, while the network goes on.

    The map of a task is ``<id>_<task>.png`` where a picture holds its numbers: classes as indices (8 bits), depth in
    millimetres (16 bits), normals as colours (8 bits per component). Others, such as probabilities, are
    ``<id>_<task>.npy``: float32 ``h w``, or ``c h w`` in the task's unit. ``maps.json`` says what is what. Views are
    ``<id>_<task>_view.png``, the panel is ``<id>_panel.png``.

    Args:
        folder: Where to; ``predictions/`` of the run directory by default.
        overwrite: Whether files that are there may be replaced.
        format: ``png`` as above; ``npy`` stores every map exactly as it is decoded (classes int64 ``h w``).
        save_visualizations: Whether to write the views.
        save_panels: Whether to write the panels.
        num_workers: Threads that write.

    Raises:
        HTTError: An argument is wrong; from ``setup``, the folder is not empty, a file, or cannot be made; from
            ``on_predict_end``, some images could not be read or written: the message names them.
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
            raise HTTError(f"predictions.format is {format!r}; it must be one of {', '.join(get_args(Format))}.")
        self.folder, self.overwrite, self.format = folder, overwrite, format
        self.save_visualizations, self.save_panels, self.num_workers = (
            save_visualizations,
            save_panels,
            max(num_workers, 1),
        )
        self._written, self._failed = 0, list[HTTError]()
        self._waiting: deque[Future[None]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder, which all ranks have to ask for together, before any of them writes."""
        super().setup(trainer, pl_module, stage)
        run = run_directory(trainer)
        folder = self._folder = run and (Path(self.folder) if self.folder else run / "predictions")
        if stage == "predict" and folder:
            check_output_dir(folder, self.overwrite)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep nothing in memory: what is on disk need not be returned."""
        trainer.predict_loop.return_predictions = False
        self._written, self._failed = 0, []
        if self._folder and isinstance(pl_module, HTTModule):
            # Before the network has worked in vain: whether the folder can be written.
            if trainer.is_global_zero:
                with atomic_path(self._folder / LEGEND) as partial:
                    partial.write_text(json.dumps(self.legend(pl_module.tasks), indent=2))
            self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="write")

    def legend(self, tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
        """What the maps hold, by task: the unit of their files' numbers, and the names of classes.

        Args:
            tasks: The tasks predicted.
        """
        png = self.format == "png"
        return {
            task.name: {
                "png": task.png_unit if png else None,
                "npy": task.metric_unit,
                "classes": list(task.class_names),
            }
            for task in tasks
        }

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Hand one batch to the threads; the ids come from the batch, so ranks never write the same file."""
        if self._folder is None or self._pool is None or not isinstance(pl_module, HTTModule):
            return
        maps = {task.name: prediction[task.name].cpu() for task in pl_module.tasks}
        for k, name in enumerate(prediction["id"]):
            row = {task: values[k : k + 1] for task, values in maps.items()}
            image = inside(batch)[k : k + 1].cpu() if self.save_panels else None
            self._waiting.append(self._pool.submit(self._write, self._folder / name, pl_module.tasks, row, image))
        # Memory does not grow with the number of images: where threads lag behind, the network waits for them.
        while len(self._waiting) > 2 * max(self.num_workers, len(prediction["id"])):
            self._finish(self._waiting.popleft())

    def _finish(self, future: "Future[None]") -> None:
        """Wait for an image's files; what cannot be written is no reason to lose the other images."""
        try:
            future.result()
            self._written += 1
        except HTTError as error:
            self._failed.append(error)

    def _write(self, stem: Path, tasks: Sequence[Task], maps: Mapping[str, Tensor], image: Tensor | None) -> None:
        """All files of one image, from maps with a batch axis of one."""
        pictures = {}
        for task in tasks:
            values = maps[task.name]
            write_map(stem.with_name(f"{stem.name}_{task.name}"), task, values[0].numpy(), self.format)
            if self.save_visualizations or image is not None:
                pictures[task.name] = rearrange(task.colorize(values), "1 c h w -> h w c").numpy()
            if self.save_visualizations:
                _save(stem.with_name(f"{stem.name}_{task.name}_view.png"), pictures[task.name])
        if image is not None:
            cells = {f"image {stem.name}": rearrange(_bytes(image), "1 c h w -> h w c").numpy(), **pictures}
            drawn = [with_title(cell, title) for title, cell in zip(cells, _cells(list(cells.values())), strict=True)]
            _save(stem.with_name(f"{stem.name}_panel.png"), np.concatenate(drawn, 1))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the threads, say where the files are, and then what is missing."""
        self._close()
        if self._folder and trainer.is_global_zero:
            Console().out(self._folder, highlight=False)
        failed = [*getattr(getattr(trainer, "datamodule", None), "errors", ()), *self._failed]
        if failed:
            named = combine_errors(failed, shown=None).message
            count = self._written + len(failed)
            raise HTTError(f"{len(failed)} of {count} images failed, the others are in {self._folder}:\n{named}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Finish what is under way."""
        self._close()

    def _close(self) -> None:
        while self._waiting:
            self._finish(self._waiting.popleft())
        if self._pool:
            self._pool.shutdown()
            self._pool = None


def inside(batch: Batch) -> Tensor:
    """The images of a batch without the padding that ``view`` tells of, ``b 3 h w``."""
    view: ImageView | None = batch.get("view")
    if view is None:
        images: Tensor = batch["image"]
        return images
    (top, left), (height, width) = view.offset, view.resized
    inner: Tensor = batch["image"][..., top : top + height, left : left + width]
    return inner


def write_map(stem: Path, task: Task, values: np.ndarray, format: Format = "png") -> Path:
    """Write one decoded map.

    Args:
        stem: The file without its suffix.
        task: The map's task.
        values: ``h w`` or ``c h w``, as decoded.
        format: See ``PredictionWriter``.

    Returns:
        The file.

    Raises:
        HTTError: It cannot be written.
    """
    pixels = task.to_png(values) if format == "png" else None
    path = stem.with_name(f"{stem.name}.{'npy' if pixels is None else 'png'}")
    if pixels is not None:
        _save(path, pixels)
    else:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.save(file, values)
    return path


def _save(path: Path, picture: np.ndarray) -> None:
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG", compress_level=COMPRESSION)


def _bytes(image: Tensor) -> Tensor:
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _cells(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pictures uint8 ``h w 3`` at one size that one can look at, that of the second, a map's."""
    height, width = pictures[1].shape[:2]
    zoom = min(CELL / max(height, width), 1)
    size = max(round(width * zoom), 1), max(round(height * zoom), 1)
    small = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX)) for picture in pictures]
    return [to_uint8_image(torch.from_numpy(rearrange(cell.copy(), "h w c -> 1 c h w")))[0] for cell in small]
