"""Readers of masks, datasets and images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from htt_lightning.data import NYUD, NYUD40, Cityscapes, PASCALContext, read_mask, sample_mask
from htt_lightning.data.dataset import DenseDataset
from tests.data.datasets import folder_tree, pascal_tree, test_cityscapes, test_nyud, test_nyud40
from tools.damage_campaign.damage import ANY, OTHER, VALID
from tools.damage_campaign.formats import ARRAYS, MATLAB, PICTURES, TEXTS, checkpoint, nested, text, write_json
from tools.damage_campaign.reader import COUNTED, OPEN, Reader, Target, Values

TASKS = ("semseg", "depth", "normals")
IDS = tuple(map(str, range(6)))
DRAWN = sample_mask("random-label", IDS, TASKS, 0)


def everything(source: DenseDataset, tasks: Sequence[str]) -> Values:
    """Check a split as before training, and read all its images and labels."""
    source.check({name: [t for t in tasks if source.available(t)[k]] for k, name in enumerate(source.ids)})
    found: dict[str, Any] = {"ids": source.ids}
    for index, name in enumerate(source.ids):
        found[name] = source.image(index)
        found |= {f"{name} {task}": source.label(index, task) for task in tasks if source.available(task)[index]}
    return found


def kept(root: Path, name: str, tasks: Sequence[str] = TASKS) -> Values:
    """Read a label mask."""
    mask = read_mask(root / name, IDS, tasks)
    return {"ids": mask.ids, "labeled": mask.labeled}


def _json_mask(root: Path) -> None:
    DRAWN.save(root / "label_mask.json")


def _tensor_mask(root: Path) -> None:
    torch.save({"labels_weights": torch.from_numpy(DRAWN.labeled).float()}, root / "labels.pth")


def _table_mask(root: Path) -> None:
    rows = zip(DRAWN.ids, DRAWN.labeled.astype(int).tolist(), strict=True)
    torch.save({np.str_(name): row for name, row in rows}, root / "table.pth")


def _lists_mask(root: Path) -> None:
    lists = {task: [np.str_(name) for name, row in zip(DRAWN.ids, DRAWN.labeled, strict=True) if row[k]]
             for k, task in enumerate(TASKS)}  # fmt: skip
    np.save(root / "lists.npy", np.array(lists, object), allow_pickle=True)


def _weights(value: torch.Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda stored: {"labels_weights": value}


TENSORS = [
    checkpoint("float halves", OTHER, _weights(torch.full((6, 3), 0.5))),
    checkpoint("NaN", OTHER, _weights(torch.full((6, 3), np.nan))),
    checkpoint("a row too few", OTHER, _weights(torch.ones(5, 3))),
    checkpoint("a column too many", OTHER, _weights(torch.ones(6, 4))),
    checkpoint("complex", OTHER, _weights(torch.full((6, 3), 1 + 1j))),
    checkpoint("sparse", OTHER, _weights(torch.eye(6, 3).to_sparse())),
    checkpoint("nothing kept", OTHER, _weights(torch.zeros(6, 3))),
]
_STORED = {
    "format": 1, "protocol": "random-label", "seed": 0, "tasks": list(TASKS),
    "labels": {name: [t for t, k in zip(TASKS, row, strict=True) if k]
               for name, row in zip(DRAWN.ids, DRAWN.labeled.tolist(), strict=True)},
}  # fmt: skip
MASKS = [
    Reader("label mask .json", _json_mask, partial(kept, name="label_mask.json"),
           [Target("label_mask.json", [*ANY, *nested(_STORED, write_json), *TEXTS], OPEN)]),
    Reader("label mask .pth", _tensor_mask, partial(kept, name="labels.pth"),
           [Target("labels.pth", [*ANY, *TENSORS])]),
    Reader("label mask table", _table_mask, partial(kept, name="table.pth"), [Target("table.pth", ANY)]),
    Reader("label mask .npy", _lists_mask, partial(kept, name="lists.npy"), [Target("lists.npy", ANY, COUNTED)]),
]  # fmt: skip


def _nyud(root: Path) -> Values:
    return everything(NYUD(root, "train"), TASKS)


def _nyud40(root: Path) -> Values:
    return everything(NYUD40(root, "train"), test_nyud40.ALL)


def _cityscapes(root: Path) -> Values:
    return everything(Cityscapes(root, "train"), ("semseg", "depth"))


def _pascal(root: Path) -> Values:
    return everything(PASCALContext(root, "train", uniform_size=False), pascal_tree.ALL)


def _folder(root: Path) -> Values:
    data = folder_tree.folder(root, image_size=(32, 48))
    return everything(data.build_dataset("train"), TASKS)


def _make_folder(root: Path) -> None:
    folder_tree.write_tree(root, suffix="png")


def _make_table(root: Path) -> None:
    folder_tree.write_tree(root)
    folder_tree.write_table(root, folder_tree.rows_of(folder_tree.LABELLED))


def _table(root: Path) -> Values:
    return everything(
        folder_tree.folder(root, train="train.csv", label_files=folder_tree.COLUMNS).build_dataset("train"), TASKS
    )


def _make_jpegs(root: Path) -> None:
    folder_tree.write_tree(root, suffix="jpg")


def _jpegs(root: Path) -> Values:
    return everything(
        folder_tree.folder(root, train="train/images/*.jpg", val="val/images/*.jpg").build_dataset("train"), ()
    )


CELLS = [
    text("a link of dots", OTHER, lambda content: content.replace("train/images/2.png", "../train/images/2.png")),
    text("an absolute cell", OTHER, lambda content: content.replace("train/images/2.png", "/etc/passwd")),
    text("a zero byte in a cell", OTHER, lambda content: content.replace("train/images/2.png", "train/\0.png")),
    text("an open quote", OTHER, lambda content: content.replace("train/images/2.png", '"train/images/2.png')),
    text("another head", OTHER, lambda content: content.replace("image,", "picture,")),
    text("a column twice", OTHER, lambda content: content.replace("depth,", "semseg,", 1)),
    text("a cell more", OTHER, lambda content: content.replace("train/images/2.png", "train/images/2.png,more")),
    text("semicolons", OTHER, lambda content: content.replace(",", ";")),
    text("a wildcard in a cell", OTHER, lambda content: content.replace("train/images/2.png", "train/images/*.png")),
]
INDEX = PHOTO = [*ANY, *PICTURES]
STRETCHED = [damage._replace(what=VALID) for damage in ARRAYS]
"""Damage to maps that are resized to their image, where another size is valid."""
DATASETS = [
    Reader("NYUD", test_nyud.write_tree, _nyud, [
        Target("train/image/1.npy", [*ANY, *ARRAYS], COUNTED),
        Target("train/label/1.npy", [*ANY, *ARRAYS], COUNTED),
        Target("train/depth/1.npy", [*ANY, *ARRAYS], COUNTED),
        Target("train/normal/1.npy", [*ANY, *ARRAYS], COUNTED),
    ]),
    Reader("Cityscapes", test_cityscapes.write_tree, _cityscapes, [
        Target("train/image/1.npy", [*ANY, *ARRAYS], COUNTED),
        Target("train/label_7/1.npy", [*ANY, *ARRAYS], COUNTED),
        Target("train/depth/1.npy", [*ANY, *ARRAYS], COUNTED),
    ]),
    Reader("NYUD40", test_nyud40.write_tree, _nyud40, [
        Target("gt_sets/train.txt", [*ANY, *TEXTS], OPEN),
        Target("images/3.png", PHOTO),
        Target("segmentation/3.png", INDEX),
        Target("normals/3.png", INDEX),
        Target("edge/3.png", INDEX),
        Target("depth/3.npy", [*ANY, *STRETCHED], COUNTED),
    ]),
    Reader("PASCAL", pascal_tree.write_tree, _pascal, [
        Target("ImageSets/Context/train.txt", [*ANY, *TEXTS], OPEN),
        Target("JPEGImages/2008_000008.jpg", PHOTO, OPEN),
        Target("semseg/VOC12/2008_000008.png", INDEX),
        Target("sal_distill/2008_000008.png", INDEX),
        Target("normals_distill/2008_000008.png", INDEX),
        Target("human_parts/2008_000002.mat", [*ANY, *MATLAB]),
        Target("human_parts/2008_000008.mat", [*ANY, *MATLAB], COUNTED),  # not compressed, so without a checksum
        Target("pascal-context/trainval/2008_000008.mat", [*ANY, *MATLAB]),
    ], slow=True),
    Reader("Folder", _make_folder, _folder, [
        Target("train/images/2.png", PHOTO, optional=True),
        Target("train/semseg/2.png", INDEX, optional=True),
        Target("train/depth/3.png", INDEX, optional=True),
        Target("train/normals/3.png", PHOTO, optional=True),
    ]),
    Reader("Folder, a table", _make_table, _table, [
        Target("train.csv", [*ANY, *TEXTS, *CELLS], OPEN),
        Target("train/images/2.png", PHOTO),
        Target("train/depth/3.png", INDEX),
    ], speaks=["is missing", "Is a directory"]),  # a path that the damaged table names
    Reader("Folder, JPEG", _make_jpegs, _jpegs, [Target("train/images/2.jpg", PHOTO, OPEN, optional=True)]),
]  # fmt: skip
