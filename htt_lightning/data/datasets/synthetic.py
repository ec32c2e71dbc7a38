"""Synthetic scenes as a dataset, with exact labels and nothing to download."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Arrays
from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.datasets.nyud import CLASSES
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.synthetic_scenes import TASKS, has_people, render
from htt_lightning.data.synthetic_scenes.rooms import STYLES, TANGENT, StyleName
from htt_lightning.errors import ConfigError
from htt_lightning.io.files import atomic_path
from htt_lightning.io.progress import track
from htt_lightning.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task

RENDERER_VERSION = 1
"""Version in the name of every cache; increase it with any change of the result of ``render``."""

_SPLIT_STREAMS = {"train": 0, "val": 1}


class SyntheticScenes(DenseDataset):
    """One split of an endless collection of rendered rooms.

    Args:
        split: ``train`` or ``val``; no scene is in both.
        count: Number of scenes; a larger split begins with the scenes of a smaller one.
        size: Height and width in pixels.
        seed: Seed of the collection.
        cache: Folder for rendered scenes; by default scenes are rendered each time they are read.
        style: Look of the images, ``day`` or ``night``; the labels of a scene are the same in both.

    Raises:
        ConfigError: Split or style is unknown, or count, size or seed are out of range.
    """

    def __init__(
        self,
        split: str,
        count: int,
        size: tuple[int, int],
        seed: int = 0,
        cache: Path | None = None,
        style: StyleName = "day",
    ) -> None:
        if split not in _SPLIT_STREAMS:
            raise ConfigError(f"The split of synthetic scenes must be train or val, got {split!r}.")
        if count < 1 or min(size) < 1 or seed < 0:
            given = f"count {count}, size {tuple(size)}, seed {seed}"
            raise ConfigError(f"Synthetic scenes must have count and size above 0 and seed at least 0, got {given}.")
        if style not in STYLES:
            raise ConfigError(f"The style of synthetic scenes must be {' or '.join(STYLES)}, got {style!r}.")
        self.ids = [str(index) for index in range(count)]
        self.tasks = TASKS
        self._key = (seed, _SPLIT_STREAMS[split], size)
        self.style: StyleName = style
        focal_length = max(size) / (2 * TANGENT)
        self.camera = PinholeCamera((focal_length, focal_length), (size[1] / 2, size[0] / 2), size)
        name = f"v{RENDERER_VERSION}-seed{seed}-{size[0]}x{size[1]}" + ("" if style == "day" else f"-{style}")
        self._folder = Path(cache) / name / split if cache else None
        self._last: tuple[int, Arrays] | None = None  # image and labels of a scene are read in turn

    def image(self, index: int) -> np.ndarray:
        """Render or read an RGB image, uint8 ``h w 3``."""
        return self._array(index, "image")

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width, the same for all scenes."""
        return self._key[2]

    def label(self, index: int, task: str) -> np.ndarray:
        """Render or read a task's map: uint8 ``h w``, or float32 ``h w`` / ``h w c``."""
        return self._array(index, task)

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images can have a label: for human parts those with people, for other tasks all."""
        if task != "human_parts":
            return super().available(task)
        seed, stream, _ = self._key
        return np.array([has_people(seed, index, stream) for index in range(len(self.ids))])

    def prerender(self, workers: int) -> None:
        """Render all scenes that are missing in the cache, in this process if ``workers`` is 0."""
        missing = [i for i, name in enumerate(self.ids) if self._folder and not (self._folder / f"{name}.npz").exists()]
        if missing:
            images = cast(Dataset[int], missing)
            loader = DataLoader(images, batch_size=8, num_workers=workers, collate_fn=self._render_batch)
            for _ in track(loader, f"Rendering {len(missing)} scenes into {self._folder}"):
                pass

    def _render_batch(self, indices: list[int]) -> None:
        for index in indices:
            self.image(index)

    def _array(self, index: int, name: str) -> np.ndarray:
        """Return one array of a scene; a cached file that is missing or corrupt is written again."""
        if self._folder is None:
            return self._scene(index)[name].copy()
        path = self._folder / f"{index}.npz"
        try:
            # numpy does not close corrupt files that it has opened itself
            with path.open("rb") as handle, np.load(handle) as file:
                array: np.ndarray = file[name]
                return array
        except Exception:  # corrupt archives raise errors of many types
            with atomic_path(path) as partial, partial.open("wb") as whole:
                np.savez_compressed(whole, allow_pickle=False, **self._scene(index))
            return self._scene(index)[name].copy()

    def _scene(self, index: int) -> Arrays:
        if self._last is None or self._last[0] != index:
            seed, stream, size = self._key
            self._last = index, render(seed, index, size, stream, self.style)
        return self._last[1]


def write_nyud_tree(root: Path, train: int, val: int, size: tuple[int, int], seed: int = 0) -> None:
    """Write ``train`` and ``val`` scenes in the layout of NYUD with 13 classes, with holes in every label."""
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
    """Draw a disc of 2 % of the image, less where it crosses a border; bool ``h w``, never empty."""
    height, width = size
    row, column = rng.integers(height), rng.integers(width)
    y, x = np.ogrid[:height, :width]
    return (y - row) ** 2 + (x - column) ** 2 <= 0.02 * height * width / np.pi


class SyntheticDataModule(PartialLabelDataModule):
    """Rendered rooms with labels for all six tasks; the default dataset.

    Args:
        train_images: Number of training scenes.
        val_images: Number of validation scenes.
        image_size: ``[h, w]`` to render at.
        scene_seed: Seed of the collection of scenes; ``seed`` is that of order, augmentation and labels.
        cache: Folder for all scenes, rendered before training; by default they are rendered during training.
        batch_size: Images per batch and process.
        style: Look of the images: ``day``, or ``night`` with blue light, dark shadows and grain. Labels do not depend
            on it.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(
        self,
        train_images: int = 240,
        val_images: int = 60,
        image_size: tuple[int, int] = (64, 96),
        scene_seed: int = 0,
        cache: str | None = None,
        batch_size: int = 8,
        style: StyleName = "day",
        **kwargs: Any,
    ) -> None:
        self.style: StyleName = style
        self.counts = {"train": train_images, "val": val_images}
        self.scene_seed, self.cache = scene_seed, Path(cache) if cache else None
        super().__init__(image_size=image_size, batch_size=batch_size, **kwargs)

    def prepare_data(self) -> None:
        """Render all scenes into the cache, then check the dataset."""
        trainer = self.trainer
        if self.cache and not (trainer and cast(Any, trainer).fast_dev_run):
            for split in self.required_splits:
                self.build_dataset(split).prerender(self.num_workers)
        super().prepare_data()

    def dataset_tasks(self) -> list[Task]:
        """Return all six tasks, with NYUD's classes and weights that bring the losses to one scale."""
        return [
            SemSeg(classes=CLASSES),
            HumanParts(loss_weight=5),
            Saliency(loss_weight=5),
            Normals(loss_weight=2),
            Edges(loss_weight=10, pseudo_label_weight=0),  # uncertain lines are worse than few given ones
            Depth(loss_weight=8),
        ]

    def build_dataset(self, split: Split) -> SyntheticScenes:
        """Return the scenes of a split."""
        size = cast(tuple[int, int], self.image_size)
        return SyntheticScenes(split, self.counts[split], size, self.scene_seed, self.cache, self.style)
