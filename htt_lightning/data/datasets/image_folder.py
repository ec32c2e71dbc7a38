"""Images alone, to predict on: a file, a folder or a pattern. Tasks and sizes come from a checkpoint."""

import logging
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from glob import glob, has_magic
from itertools import islice
from os.path import commonpath
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from htt_lightning.data.batch import Batch, to_chw_tensor
from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.input_size import InputResizer, InputSize
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.images import read_photograph
from htt_lightning.output import ImageView
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)


class ImageFolder(PartialLabelDataModule):
    """Images of any size for ``predict``. They are read ahead in threads and never all in memory.

    Images of one size that follow each other make a batch. What cannot be read is left out, and listed in ``errors``.

    Args:
        root: An image; a folder, with what is below it; or a pattern such as ``photos/*.jpg``.
        checkpoint: The checkpoint to predict with; on the command line that of ``--ckpt_path``.
        batch_size: Images per batch at most.
        input_size: Size at which the network sees images: ``training`` (as in the evaluation of the training run),
            ``original``, or ``[h, w]`` (resized to that number of pixels, aspect ratio kept).
        tile_size: Width in pixels of a sliding window for larger images, a multiple of 32; None for whole images.
        num_workers: Threads that read images.

    Attributes:
        errors: What went wrong with which image, so far.

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
            raise HTTError("ImageFolder predicts what a checkpoint was trained for; give --ckpt_path.")
        stored = read_checkpoint(checkpoint, "--ckpt_path")
        self._stored_tasks = [Task.from_config(task) for task in stored["hyper_parameters"]["tasks"]]
        super().__init__(labels="full", batch_size=batch_size, augment=None, num_workers=num_workers)
        self.root, self.policy = root, InputResizer.of(stored.get("input_size"), input_size, tile_size)
        self.errors: list[HTTError] = []
        self.images: dict[str, Path] = {}

    def dataset_tasks(self) -> list[Task]:
        """Those of the checkpoint."""
        return self._stored_tasks

    def build_dataset(self, split: Split) -> DenseDataset:
        """There are no labels.

        Raises:
            HTTError: Always.
        """
        raise HTTError("ImageFolder has no labels, it serves predict alone; FolderDataModule reads images with labels.")

    def prepare_data(self) -> None:
        """Nothing: images are looked at as they come."""

    def setup(self, stage: str) -> None:
        """List the images."""
        if stage != "predict":
            self.build_dataset("val")
        # Lightning keeps count of samples for those who want predictions by index; ours have names.
        warnings.filterwarnings("ignore", f"Couldn't infer the batch indices .*{_Stream.__name__}")
        self.errors, self.images = [], find_images(self.root)

    @property
    def count(self) -> int:
        """Number of images that this process has to read."""
        return len(range(self._rank, len(self.images), self._world))

    def predict_dataloader(self) -> Any:
        """Batches as they are read; processes share the images."""
        return _Stream(self)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """There are no labels to look for."""
        return batch

    def read(self, path: Path) -> tuple[Tensor, ImageView] | HTTError:
        """What the network sees of an image, float32 ``3 h w``, and where the image lies in it; or what is wrong.

        Args:
            path: The image.
        """
        try:
            seen, view = self.policy(read_photograph(path), str(path))
        except HTTError as error:
            return error
        return to_chw_tensor(seen).float().div_(255), view

    def batches(self) -> Iterator[Batch]:
        """Images in order, with ``view`` and ``tile`` for ``HTTModule.predict_step``."""
        names: list[str] = []
        images: list[Tensor] = []
        last: ImageView | None = None
        for name, found in self._read_ahead():
            if isinstance(found, HTTError):
                logger.warning("%s; going on without it.", found)
                self.errors.append(found)
                continue
            image, view = found
            # What needs a window is large enough to go alone.
            limit = 1 if self.policy.needs_tiling(image.shape[1:]) else self.batch_size
            if images and (view != last or len(images) >= limit):
                yield self._batch(names, images, last)
                names, images = [], []
            names, images, last = [*names, name], [*images, image], view
        if images:
            yield self._batch(names, images, last)

    def _batch(self, names: list[str], images: list[Tensor], view: ImageView | None) -> Batch:
        return {"id": names, "image": torch.stack(images), "view": view, "tile_size": self.policy.tile_size}

    def _read_ahead(self) -> Iterator[tuple[str, tuple[Tensor, ImageView] | HTTError]]:
        """Images as they are read by threads, at most two batches ahead."""
        share = islice(self.images.items(), self._rank, None, self._world)
        pool = ThreadPoolExecutor(max(self.num_workers, 1), thread_name_prefix="read")
        waiting: deque[tuple[str, Future[tuple[Tensor, ImageView] | HTTError]]] = deque()
        try:
            for name, path in share:
                waiting.append((name, pool.submit(self.read, path)))
                if len(waiting) > 2 * self.batch_size:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Stream:
    """Batches that can be gone through again."""

    def __init__(self, images: ImageFolder) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Batch]:
        return self.images.batches()


def find_images(root: str) -> dict[str, Path]:
    """The images that a path or pattern stands for, in natural order, by what to call their maps.

    That is their path below the folder, without the suffix unless two differ in nothing else.

    Raises:
        HTTError: There are none.
    """
    place = Path(root).expanduser()
    if place.is_file():
        return {place.stem: place}
    if place.is_dir():
        suffixes = _suffixes()
        paths = [path for path in place.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir()]
        base, hint = place, f"its files must end in {', '.join(sorted(suffixes)[:3])}, ..."
    elif has_magic(str(place)):
        paths = [path for path in map(Path, glob(str(place), recursive=True)) if not path.is_dir()]  # noqa: PTH207  # takes absolute ones
        base, hint = Path(commonpath([path.parent for path in paths])) if paths else place, "no file matches it"
    else:
        raise HTTError(f"data.root: there is no image, folder or pattern {root}.")
    if not paths:
        raise HTTError(f"data.root: there are no images in {root}; {hint}.")
    return _image_names(
        sorted((path.relative_to(base) for path in paths), key=lambda path: natural_key(str(path))), base
    )


def _image_names(paths: Sequence[Path], base: Path) -> dict[str, Path]:
    stems = [path.with_suffix("").as_posix() for path in paths]
    times = Counter(stems)
    return {path.as_posix() if times[stem] > 1 else stem: base / path for path, stem in zip(paths, stems, strict=True)}


def _suffixes() -> set[str]:
    """Those of the formats that Pillow reads as pictures, lower case."""
    kinds = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return {suffix for suffix, kind in kinds.items() if kind not in ("PDF", "MPEG", "HDF5", "GRIB", "BUFR", "WMF")}
