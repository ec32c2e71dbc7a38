"""Synthetic scenes as a dataset: nothing to download, every label exact."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Arrays
from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.datasets.nyud import CLASSES
from htt_lightning.data.synthetic_scenes import TASKS, has_people, render
from htt_lightning.errors import HTTError
from htt_lightning.io.files import atomic_path
from htt_lightning.io.progress import track
from htt_lightning.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task

RENDERER_VERSION = 1
"""Part of the name of every cache: raise it with any change to what ``render`` returns."""

_SPLIT_STREAMS = {"train": 0, "val": 1}


class SyntheticScenes(DenseDataset):
    """One split of an endless collection of rendered rooms.

    Args:
        split: ``train`` or ``val``; no scene is in both.
        count: Number of scenes; a larger split begins with the scenes of a smaller one.
        size: Height and width in pixels.
        seed: Seed of the collection.
        cache: Folder in which to keep rendered scenes; without it they are rendered as asked for.

    Raises:
        HTTError: The split is unknown, or the count, the size or the seed cannot be.
    """

    def __init__(self, split: str, count: int, size: tuple[int, int], seed: int = 0, cache: Path | None = None) -> None:
        if split not in _SPLIT_STREAMS:
            raise HTTError(f"split {split!r} of the synthetic scenes: choose one of {', '.join(_SPLIT_STREAMS)}")
        if count < 1 or min(size) < 1 or seed < 0:
            raise HTTError(
                f"synthetic scenes need a count and a size of at least 1 and a seed of at least 0, "
                f"not count {count}, size {tuple(size)}, seed {seed}"
            )
        self.ids = [str(index) for index in range(count)]
        self.tasks = TASKS
        self._key = (seed, _SPLIT_STREAMS[split], size)
        self._folder: Path | None = None
        if cache is not None:
            self._folder = Path(cache) / f"v{RENDERER_VERSION}-seed{seed}-{size[0]}x{size[1]}" / split
        # The image and the labels of an item are asked for one after the other.
        self._last: tuple[int, Arrays] | None = None

    def image(self, index: int) -> np.ndarray:
        """RGB image, uint8 ``h w 3``."""
        return self._array(index, "image")

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, the same for all."""
        return self._key[2]

    def label(self, index: int, task: str) -> np.ndarray:
        """A task's map: uint8 ``h w``, or float32 ``h w`` / ``h w c``."""
        return self._array(index, task)

    def available(self, task: str) -> NDArray[np.bool_]:
        """Body parts have labels where there are people, everything else always."""
        if task != "human_parts":
            return super().available(task)
        seed, stream, _ = self._key
        return np.array([has_people(seed, index, stream) for index in range(len(self.ids))])

    def prerender(self, workers: int) -> None:
        """Render every scene that the cache lacks, showing progress.

        Args:
            workers: Processes that share the work; 0 for this one.
        """
        absent = [i for i, name in enumerate(self.ids) if self._folder and not (self._folder / f"{name}.npz").exists()]
        if absent:
            drawn = DataLoader(_Images(self), sampler=absent, batch_size=8, num_workers=workers, collate_fn=len)
            for _ in track(drawn, f"Rendering {len(absent)} scenes into {self._folder}"):
                pass

    def _array(self, index: int, name: str) -> np.ndarray:
        """One array of a scene, alone from the cache; a file that is missing or damaged is written anew."""
        if self._folder is None:
            return self._scene(index)[name].copy()
        path = self._folder / f"{index}.npz"
        try:
            # numpy leaves a file open that it opened itself and found damaged.
            with path.open("rb") as handle, np.load(handle) as file:
                array: np.ndarray = file[name]
                return array
        except Exception:  # a damaged archive fails in many ways
            with atomic_path(path) as partial, partial.open("wb") as whole:
                np.savez_compressed(whole, allow_pickle=False, **self._scene(index))
            return self._scene(index)[name].copy()

    def _scene(self, index: int) -> Arrays:
        if self._last is None or self._last[0] != index:
            seed, stream, size = self._key
            self._last = index, render(seed, index, size, stream)
        return self._last[1]


class _Images(Dataset[np.ndarray]):
    """The images of a source, in the form that loaders take."""

    def __init__(self, source: DenseDataset) -> None:
        self.source = source

    def __getitem__(self, index: int) -> np.ndarray:
        return self.source.image(index)


def write_nyud_tree(root: Path, train: int, val: int, size: tuple[int, int], seed: int = 0) -> None:
    """Write scenes in the layout of NYUD with 13 classes, holes in every label as in the real one.

    Args:
        root: Folder for ``{train,val}/{image,label,depth,normal}/<index>.npy``.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Height and width in pixels.
        seed: Seed of the collection.
    """
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            scene = render(seed, index, size, _SPLIT_STREAMS[split])
            rng = np.random.default_rng([seed, _SPLIT_STREAMS[split], index, 2])
            arrays = {
                "image": scene["image"].astype(np.float32) / 255,
                "label": np.where(_hole(size, rng), -1, scene["semseg"].astype(np.float32)),
                "depth": np.where(_hole(size, rng), 0, scene["depth"])[..., None],
                "normal": np.where(_hole(size, rng)[..., None], 0, scene["normals"]),
            }
            for folder, array in arrays.items():
                with atomic_path(root / split / folder / f"{index}.npy") as partial, partial.open("wb") as file:
                    np.save(file, array.astype(np.float32))


def _hole(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A disc that covers 2 % of the image, less where it crosses a border; bool ``h w``, never empty."""
    height, width = size
    row, column = rng.integers(height), rng.integers(width)
    y, x = np.ogrid[:height, :width]
    return (y - row) ** 2 + (x - column) ** 2 <= 0.02 * height * width / np.pi


class SyntheticDataModule(PartialLabelDataModule):
    """Rendered rooms with labels for all six tasks: the embedded default.

    Args:
        train_images: Number of training scenes.
        val_images: Number of validation scenes.
        image_size: ``[h, w]`` to render at.
        scene_seed: Seed of the collection of scenes; order, augmentation and labels follow ``seed``.
        cache: Folder that all scenes are rendered into before training; by default they are rendered as loaders run.
        batch_size: Images per batch and process.
        **kwargs: See ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        train_images: int = 240,
        val_images: int = 60,
        image_size: tuple[int, int] = (64, 96),
        scene_seed: int = 0,
        cache: str | None = None,
        batch_size: int = 8,
        **kwargs: Any,
    ) -> None:
        self.counts = {"train": train_images, "val": val_images}
        self.scene_seed, self.cache = scene_seed, Path(cache) if cache else None
        super().__init__(image_size=image_size, batch_size=batch_size, **kwargs)

    def prepare_data(self) -> None:
        """Fill the cache first: training then has the cores to itself."""
        trainer = self.trainer
        if self.cache and not (trainer and cast(Any, trainer).fast_dev_run):
            for split in ("train", "val") if trainer is None or trainer.state.fn == "fit" else ("val",):
                self.build_dataset(split).prerender(self.num_workers)
        super().prepare_data()

    def dataset_tasks(self) -> list[Task]:
        """All six, with NYUD's classes; weights that bring the losses to one scale."""
        return [
            SemSeg(classes=CLASSES),
            HumanParts(loss_weight=5),
            Saliency(loss_weight=5),
            Normals(loss_weight=2),
            Edges(loss_weight=10, pseudo_label_weight=0),  # uncertain lines are worse than few given ones
            Depth(loss_weight=8),
        ]

    def build_dataset(self, split: Split) -> SyntheticScenes:
        """The scenes of a split."""
        size = cast(tuple[int, int], self.image_size)
        return SyntheticScenes(split, self.counts[split], size, self.scene_seed, self.cache)
