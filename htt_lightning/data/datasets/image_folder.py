"""Images without labels, to predict on: a file, a folder or a pattern."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from os.path import commonpath
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Batch, to_chw_tensor
from htt_lightning.data.datamodule import PartialLabelDataModule, Split, worker_init
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.input_size import InputResizer, InputSize
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.images import read_photograph
from htt_lightning.output import ImageView
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "maps.json"
"""Description of the maps in a folder of predictions, by which such a folder is known."""

NO_PHOTOGRAPHS = ("PDF", "MPEG", "HDF5", "GRIB", "BUFR", "WMF")
"""Formats with a reader in Pillow that reads no photographs."""

Item = tuple[str, tuple[Tensor, ImageView] | HTTError]
"""Name of an image, and its network input with its view, or the error."""


class ImageFolder(PartialLabelDataModule):
    """Images of any size for ``predict``; tasks and sizes come from a checkpoint.

    Consecutive images of one size make a batch. Corrupt images are skipped and listed in ``errors``.

    Args:
        root: An image; a folder, including its subfolders; or a pattern such as ``photos/*.jpg``. Hidden files and
            folders are skipped, and so are folders with predictions of the library.
        checkpoint: Checkpoint to predict with; on the command line that of ``--ckpt_path``.
        batch_size: Maximum number of images per batch.
        input_size: Size at which the network sees images: ``training`` (as in the evaluation of the training run),
            ``original``, or ``[h, w]`` (resized to that number of pixels, aspect ratio kept).
        tile_size: Width in pixels of a sliding window for larger images, a multiple of 32; null for whole images.
            Predictions of overlapping windows are blended.
        num_workers: Number of loader processes; 0 reads in the main process.

    Attributes:
        errors: Errors of the images that were skipped so far.

    Raises:
        HTTError: An argument or the checkpoint is wrong, or (from ``setup``) there are no images.
    """

    def __init__(
        self,
        root: str,
        checkpoint: str | None = None,
        batch_size: int = 4,
        input_size: InputSize = "training",
        tile_size: int | None = None,
        num_workers: int = 2,
    ) -> None:
        if checkpoint is None:
            raise ConfigError("ImageFolder needs a checkpoint for its tasks. Give --ckpt_path.")
        stored = read_checkpoint(checkpoint, "--ckpt_path")
        self._stored_tasks = [Task.from_config(task) for task in stored["hyper_parameters"]["tasks"]]
        super().__init__(labels="full", batch_size=batch_size, augment=None, num_workers=num_workers)
        self.root, self.resizer = root, InputResizer.of(stored.get("input_size"), input_size, tile_size)
        self.errors: list[HTTError] = []
        self.images: dict[str, Path] = {}

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks of the checkpoint."""
        return self._stored_tasks

    def build_dataset(self, split: Split) -> DenseDataset:
        """Refuse to build a split, as there are no labels."""
        raise ConfigError("ImageFolder has no labels and serves predict alone. Use FolderDataModule for labels.")

    def prepare_data(self) -> None:
        """Check nothing: images are checked when they are read."""

    def setup(self, stage: str) -> None:
        """List the images."""
        if stage != "predict":
            self.build_dataset("val")
        # Lightning counts samples for users who want predictions by index; these have names.
        warnings.filterwarnings("ignore", f"Couldn't infer the batch indices .*{_BatchIterable.__name__}")
        self.errors, self.images = [], find_images(self.root)

    @property
    def count(self) -> int:
        """Number of images that this process reads."""
        return len(range(self._rank, len(self.images), self._world))

    def predict_dataloader(self) -> Any:
        """Iterate over batches; processes share the images."""
        return _BatchIterable(self)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return the batch itself, as it has no labels."""
        return batch

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches of ``id``, ``image``, ``view`` and ``tile_size`` in the order of the images."""
        share = list(self.images.items())[self._rank :: self._world]
        loader = DataLoader(
            _Images(share, self.resizer),
            batch_size=None,  # a worker reads single images ahead, so memory stays bounded
            num_workers=self.num_workers,
            collate_fn=tuple,
            worker_init_fn=worker_init,
            generator=torch.Generator().manual_seed(self.run_seed),
        )
        names: list[str] = []
        images: list[Tensor] = []
        last: ImageView | None = None
        for name, found in loader:
            if isinstance(found, HTTError):
                logger.warning("Skipping an image: %s", found)
                self.errors.append(found)
                continue
            image, view = found
            # An image that needs tiling is large enough to go alone.
            limit = 1 if self.resizer.needs_tiling(image.shape[1:]) else self.batch_size
            if images and (view != last or len(images) >= limit):
                yield self._batch(names, images, last)
                names, images = [], []
            names, images, last = [*names, name], [*images, image], view
        if images:
            yield self._batch(names, images, last)

    def _batch(self, names: list[str], images: list[Tensor], view: ImageView | None) -> Batch:
        return {"id": names, "image": torch.stack(images), "view": view, "tile_size": self.resizer.tile_size}


class _Images(Dataset[Item]):
    def __init__(self, images: Sequence[tuple[str, Path]], resizer: InputResizer) -> None:
        self.images, self.resizer = images, resizer

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        name, path = self.images[index]
        try:
            resized, view = self.resizer(read_photograph(path), str(path))
        except HTTError as error:
            return name, error
        return name, (to_chw_tensor(resized).float().div_(255), view)


class _BatchIterable:
    def __init__(self, images: ImageFolder) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Batch]:
        return self.images.batches()


def find_images(root: str) -> dict[str, Path]:
    """Find the images of a path or pattern in natural order, by their path below it.

    Names have no suffix unless two differ in it alone. Hidden files and folders and folders of predictions are skipped.
    """
    place = Path(root).expanduser()
    if place.is_file():
        return {place.stem: place}
    if place.is_dir():
        formats, base = Image.registered_extensions(), place
        readable = {suffix for suffix, kind in formats.items() if kind in Image.OPEN and kind not in NO_PHOTOGRAPHS}
        paths = [path for path in place.rglob("*") if path.suffix.lower() in readable and not path.is_dir()]
    elif has_magic(str(place)):
        paths = [path for path in map(Path, glob(str(place), recursive=True)) if not path.is_dir()]  # noqa: PTH207  # takes absolute ones
        base = Path(commonpath([path.parent for path in paths])) if paths else place
    else:
        raise ConfigError(f"data.root must be an image, a folder or a pattern, got {root}.")
    relative = [path.relative_to(base) for path in paths]
    relative = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    outputs = sorted({base / p for path in relative for p in path.parents if (base / p / DESCRIPTION_FILE).is_file()})
    if outputs:
        logger.warning("Skipping folders of predictions: %s.", ", ".join(map(str, outputs)))
        relative = [path for path in relative if not any(base / parent in outputs for parent in path.parents)]
    if not relative:
        raise ConfigError(f"data.root {root} must contain images, got none.")
    relative.sort(key=lambda path: natural_key(str(path)))
    times = Counter(path.with_suffix("") for path in relative)
    names = [path if times[path.with_suffix("")] > 1 else path.with_suffix("") for path in relative]
    return {name.as_posix(): base / path for name, path in zip(names, relative, strict=True)}
