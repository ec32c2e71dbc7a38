"""Images of validation are no images of training; a warning names those that are both."""

import logging
import os
import shutil
from dataclasses import replace

import pytest

from htt_lightning.data import (
    CityscapesDataModule,
    MixedDataModule,
    NYUD40DataModule,
    NYUDDataModule,
    PASCALContextDataModule,
)
from htt_lightning.data.dataset import find_train_val_overlap
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.data.datasets.folder_tree import MAPS, folder
from tests.data.datasets.folder_tree import write_tree as write_folder
from tests.data.datasets.pascal_tree import write_tree as write_pascal
from tests.data.datasets.test_cityscapes import write_tree as write_cityscapes
from tests.data.datasets.test_nyud40 import write_tree as write_nyud40
from tests.tiny import tiny_data


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    write_nyud_tree(root / "NYUDv2", train=4, val=2, size=(24, 32))
    write_nyud40(root / "NYUD40" / "NYUDv2")
    write_cityscapes(root / "cityscapes")
    write_pascal(root / "PASCALContext")
    write_folder(root / "mine")
    return root


def mine(root, **changes):
    return folder(root / "mine", **changes)


MODULES = {
    "synthetic": lambda root: tiny_data(train_images=4),
    "nyud": lambda root: NYUDDataModule(str(root)),
    "nyud40": lambda root: NYUD40DataModule(str(root / "NYUD40")),
    "cityscapes": lambda root: CityscapesDataModule(str(root)),
    "pascal": lambda root: PASCALContextDataModule(str(root)),
    "folder": mine,
    "mixed": lambda root: MixedDataModule([NYUDDataModule(str(root), tasks="depth"), mine(root)], (32, 48)),
}


@pytest.mark.parametrize("name", MODULES)
def test_splits_share_no_images(name, trees):
    data = MODULES[name](trees)
    splits = [data.build_dataset("train"), data.build_dataset("val")]
    train, val = ({split.image(index).tobytes() for index in range(len(split.ids))} for split in splits)
    assert not train & val
    assert find_train_val_overlap(*splits) == ""
    if name != "synthetic":
        train, val = ({os.path.realpath(split.image_path(k)) for k in range(len(split.ids))} for split in splits)
        assert (len(train), len(val)) == tuple(len(split.ids) for split in splits)
        assert not train & val


def one_pattern(trees, tmp_path):
    return mine(trees, val="train/images/*.png", label_files=[replace(files, val=files.train) for files in MAPS])


def copied_file(trees, tmp_path):
    shutil.copytree(trees / "NYUDv2", tmp_path / "NYUDv2")
    shutil.copy(tmp_path / "NYUDv2" / "train" / "image" / "1.npy", tmp_path / "NYUDv2" / "val" / "image" / "1.npy")
    return NYUDDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)


def listed_twice(trees, tmp_path):
    shutil.copytree(trees / "PASCALContext", tmp_path / "PASCALContext")
    val = tmp_path / "PASCALContext" / "ImageSets" / "Context" / "val.txt"
    val.write_text(val.read_text() + "2008_000008\n")
    return PASCALContextDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)


def linked_folder(trees, tmp_path):
    shutil.copytree(trees / "NYUDv2", tmp_path / "NYUDv2")
    shutil.rmtree(tmp_path / "NYUDv2" / "val")
    (tmp_path / "NYUDv2" / "val").symlink_to(tmp_path / "NYUDv2" / "train")
    return NYUDDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)


def swapped_in_a_mixture(trees, tmp_path):
    files = [replace(files, train=files.val, val=files.train) for files in MAPS]
    swapped = mine(trees, train="val/images/*.png", val="train/images/*.png", label_files=files)
    return MixedDataModule([mine(trees), swapped], (32, 48), num_workers=0, batch_size=2, seed=0)


@pytest.mark.parametrize(
    ("build", "count", "name"),
    [
        (one_pattern, "6 of 6", "'1'"),
        (copied_file, "1 of 4", "'1'"),
        (listed_twice, "1 of 4", "'2008_000008'"),
        (linked_folder, "4 of 4", "'0'"),
        (swapped_in_a_mixture, "12 of 12", "'0/1'"),
    ],
)
def test_prepare_data_warns_of_shared_images(build, count, name, trees, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    build(trees, tmp_path).prepare_data()
    (message,) = [text for text in caplog.messages if "validation split" in text]
    assert message.startswith(count)
    assert name in message


@pytest.mark.parametrize("name", MODULES)
def test_checks_before_training_decode_nothing(name, trees, monkeypatch):
    data = MODULES[name](trees)
    parts = data.datasets if name == "mixed" else [data]
    for part in parts:
        for attribute in ("image", "label", "read"):
            kind = type(part.build_dataset("train"))
            if hasattr(kind, attribute):
                monkeypatch.setattr(kind, attribute, lambda *_, attribute=attribute: pytest.fail(attribute))
    monkeypatch.setattr("PIL.Image.Image.load", lambda *_: pytest.fail("decoded a file"))
    data.prepare_data()
    for split in ("train", "val"):
        data.partial_label_dataset(split)
