"""Images without labels, to predict on: a file, a folder, a pattern, a video or a camera."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Batch, to_chw_tensor
from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.datasets.image_search import find_images
from htt_lightning.data.datasets.video import VideoInfo, is_video, video_frames, video_info
from htt_lightning.data.input_size import InputResizer, InputSize
from htt_lightning.data.loader import worker_init
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.images import read_photograph
from htt_lightning.output import ImageView
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)

Item = tuple[str, tuple[Tensor, ImageView] | HTTError]
"""Name of an image, and its network input with its view, or the error."""


class ImageFolder(PartialLabelDataModule):
    """Images of any size for ``predict``; tasks and sizes come from a checkpoint.

    Consecutive images of one size make a batch. Corrupt images are skipped and listed in ``errors``.

    Args:
        root: An image; a folder, including its subfolders; a pattern such as ``photos/*.jpg``; a video; or a
            camera by its number, such as ``camera:0``. Hidden files and folders are skipped, and so are folders with
            predictions of the library.
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
        self.video: VideoInfo | None = None

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
        self.errors = []
        self.video = video_info(self.root) if is_video(self.root) else None
        self.images = {} if self.video else find_images(self.root)
        if self.video and self.video.is_camera:
            rank_zero_info(f"{self.root} is read until Ctrl-C, or for trainer.limit_predict_batches batches.")
        if self.video and self._world > 1:
            raise ConfigError(f"trainer.devices must be 1 for the frames of {self.root}, got {self._world} processes.")

    @property
    def count(self) -> int:
        """Number of images or frames that this process reads; 0 for a camera or a video that does not state it."""
        if self.video:
            return self.video.frames
        return len(range(self._rank, len(self.images), self._world))

    def predict_dataloader(self) -> Any:
        """Iterate over batches; processes share the images."""
        return _BatchIterable(self)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return the batch itself, as it has no labels."""
        return batch

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches of ``id``, ``image``, ``view`` and ``tile_size`` in the order of the images.

        Those of a video have ``video``, which tells the writer that they belong together.
        """
        images = self._frames(self.video) if self.video else self._photographs()
        for names, pixels, view in self.resizer.batches(images, self.batch_size):
            batch = {"id": names, "image": pixels, "view": view, "tile_size": self.resizer.tile_size}
            yield batch | ({"video": self.video} if self.video else {})

    def _photographs(self) -> Iterator[tuple[str, Tensor, ImageView]]:
        share = list(self.images.items())[self._rank :: self._world]
        loader = DataLoader(
            _Images(share, self.resizer),
            batch_size=None,  # a worker reads single images ahead, so memory stays bounded
            num_workers=self.num_workers,
            collate_fn=tuple,
            worker_init_fn=worker_init,
            generator=torch.Generator().manual_seed(self.run_seed),
        )
        for name, found in loader:
            if isinstance(found, HTTError):
                logger.warning("Skipping an image: %s", found)
                self.errors.append(found)
            else:
                yield name, *found

    def _frames(self, video: VideoInfo) -> Iterator[tuple[str, Tensor, ImageView]]:
        for number, pixels in enumerate(video_frames(self.root)):
            resized, view = self.resizer(pixels, f"{self.root}, frame {number}")
            yield f"{video.name}/{number}", to_chw_tensor(resized).float().div_(255), view


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
