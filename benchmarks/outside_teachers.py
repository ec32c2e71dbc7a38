"""Measure images per second of `discover` from stored maps, and of the loader on what it wrote.

    python benchmarks/outside_teachers.py --images 100

Rooms of 288x384 pixels with three tasks (13 classes, depth, normals) keep the label of one task each. Another program's
maps of all tasks lie beside them, in the format of the labels; its errors of depth are smooth. `discover` completes two
tasks of each image; its time includes checks and fits. The loader then reads the completed dataset, with the
augmentation of training.

- `npy`: NYUD-v2 as MTAN published it, arrays of float32.
- `png`: a folder with JPEG images, and labels as PNG files (classes, millimeters, normals as colors).

Both run on one thread of one process (`data.num_workers` 0). Seconds are those of the CPU, which a busy machine changes
little; the files are in its cache. A first round is not counted. Eight rooms are rendered, and their files copied.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from noisy_maps import smooth_noise
from PIL import Image

from htt_lightning import HTTModule, NYUDDataModule
from htt_lightning.commands.discover import discover
from htt_lightning.data import PartialLabelDataModule
from htt_lightning.data.datasets.folder import FolderDataModule
from htt_lightning.data.datasets.label_files import LabelFiles
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.synthetic_scenes import render
from htt_lightning.discovery.outside import TeacherOptions
from htt_lightning.training.trainer import HTTTrainer

SIZE = (288, 384)
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
ROOMS = 8
SETTINGS: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "seed": 0, "labels": "one-label"}


def save(path: Path, array: np.ndarray) -> None:
    """Write an array or a picture, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def write_maps(root: Path, count: int, kind: str) -> None:
    """Write another program's maps of the rooms, and for PNG files the rooms themselves."""
    for index in range(count):
        scene = render(0, index, SIZE, 0)
        error = 1 + 0.05 * smooth_noise(np.random.default_rng(index), SIZE)[..., 0]
        maps = {"semseg": scene["semseg"], "depth": scene["depth"] * error, "normals": scene["normals"]}
        if kind == "png":
            scene["depth"], maps["depth"] = (np.uint16(1000 * depth) for depth in (scene["depth"], maps["depth"]))
            scene["normals"] = maps["normals"] = np.uint8(np.rint(127.5 * (scene["normals"] + 1)))
            save(root / "data" / "image" / f"{index}.jpg", scene["image"])
        for task, array in maps.items():
            save(root / "maps" / task / f"{index}.{kind}", array)
            if kind == "png":
                save(root / "data" / task / f"{index}.png", scene[task])


def multiply(root: Path, count: int) -> None:
    """Copy the files of the rooms to those of as many images."""
    for path in [path for path in root.rglob("*") if path.stem.isdecimal() and "val" not in path.parts]:
        for index in range(int(path.stem) + ROOMS, count, ROOMS):
            shutil.copy(path, path.with_stem(str(index)))


def folder_data(root: Path, **changes: Any) -> PartialLabelDataModule:
    """Return the dataset of the PNG files."""
    scale = {"depth": 0.001}
    files = [
        LabelFiles(task, f"{task.name}/{{id}}.png", scale=scale.get(task.name, 1.0), missing_values=())
        for task in NYUDDataModule(".").dataset_tasks()
    ]
    return FolderDataModule(str(root / "data"), "image/*.jpg", "image/*.jpg", files, **SETTINGS, **changes)


def measure(build: Callable[..., PartialLabelDataModule], maps: Path, out: Path) -> tuple[float, float]:
    """Return images per CPU second of `discover` and of the loader."""
    data = build()
    teachers = {task.name: TeacherOptions(maps=str(maps / task.name)) for task in data.tasks}
    teachers["normals"] = TeacherOptions(maps=str(maps / "normals"), axes="opengl")
    module = HTTModule(data.tasks, backbone="test_resnet", token_dim=8)
    start = time.process_time()
    discover(HTTTrainer(**QUIET), module, data, str(out), teachers=teachers)
    rate = len(data.build_dataset("train").ids) / (time.process_time() - start)
    completed = build(pseudo_labels=str(out))
    completed.setup("fit")
    loader = completed.train_dataloader()
    start = time.process_time()
    return rate, sum(len(batch["id"]) for batch in loader) / (time.process_time() - start)


def main() -> None:
    """Measure and print both formats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    count = parser.parse_args().images
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for kind in ("npy", "png"):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            write_maps(root, ROOMS, kind)
            if kind == "npy":
                write_nyud_tree(root / "data", ROOMS, 1, SIZE)
            multiply(root, count)

            def build(root: Path = root, kind: str = kind, **changes: Any) -> PartialLabelDataModule:
                data = str(root / "data")
                return (
                    NYUDDataModule(root=data, **SETTINGS, **changes) if kind == "npy" else folder_data(root, **changes)
                )

            measure(build, root / "maps", root / "first")
            rates = measure(build, root / "maps", root / "out")
            print(f"{kind}: discover {rates[0]:.0f}, loader {rates[1]:.0f} images per second")


if __name__ == "__main__":
    main()
