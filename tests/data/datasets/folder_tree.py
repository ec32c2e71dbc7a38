"""A small dataset of one's own: pictures of many kinds, and images that lack some labels."""

import csv

import numpy as np
from PIL import Image

from htt_lightning import FolderDataModule
from htt_lightning.data import LabelFiles
from htt_lightning.tasks import Depth, Normals, SemSeg

SIZE = (32, 48)
SEMSEG, DEPTH, NORMALS = SemSeg(classes=("a", "b", "c")), Depth(), Normals()
TASKS = {"semseg": SEMSEG, "depth": DEPTH, "normals": NORMALS}
RULES = {"semseg": {"missing_values": (255,)}, "depth": {"scale": 0.001}, "normals": {}}
MAPS = [LabelFiles(t, f"train/{name}/{{id}}.png", f"val/{name}/{{id}}.png", **RULES[name]) for name, t in TASKS.items()]
COLUMNS = [LabelFiles(task, name, name, **RULES[name]) for name, task in TASKS.items()]
KEPT = {
    "1": ("semseg", "depth", "normals"), "2": ("semseg",), "3": ("depth", "normals"), "4": (),
    "10": ("semseg", "depth"), "11": ("normals",), "12": ("depth",),
}  # fmt: skip
LABELLED = {name: kept for name, kept in KEPT.items() if kept}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def stored_map(task, rng, size=SIZE):
    """A label as a user's file holds it."""
    if task == "semseg":
        return np.where(rng.random(size) < 0.1, 255, rng.integers(0, 3, size)).astype(np.uint8)
    if task == "depth":
        return rng.integers(0, 9000, size).astype(np.uint16)
    return rng.integers(0, 256, (*size, 3)).astype(np.uint8)


def write_tree(root, labels=KEPT, size=SIZE, suffix="png"):
    """Both splits, with the labels that each image has."""
    for k, split in enumerate(("train", "val")):
        for name, tasks in labels.items():
            rng = np.random.default_rng([k, int(name)])
            save(root / split / "images" / f"{name}.{suffix}", rng.integers(0, 256, (*size, 3)).astype(np.uint8))
            for task in tasks:
                save(root / split / task / f"{name}.png", stored_map(task, rng, size))
    return root


def write_table(root, rows, name="train.csv", columns=("image", "semseg", "depth", "normals"), encoding="utf-8"):
    with (root / name).open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([columns, *rows])


def rows_of(labels, split="train"):
    cell = "{}/{}/{}.png".format
    return [
        [cell(split, "images", name), *(cell(split, task, name) if task in kept else "" for task in TASKS)]
        for name, kept in labels.items()
    ]


def folder(root, **changes):
    settings = {
        "root": str(root),
        "train": "train/images/*.png",
        "val": "val/images/*.png",
        "label_files": MAPS,
        "seed": 0,
    }
    return FolderDataModule(**(settings | {"batch_size": 2, "num_workers": 0} | changes))


def available(source):
    return {name: tuple(t for t in TASKS if source.available(t)[k]) for k, name in enumerate(source.ids)}
