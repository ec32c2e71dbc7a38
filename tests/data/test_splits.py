"""No image is both trained on and validated on, or else it is said."""

import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from htt_lightning import (
    CityscapesDataModule,
    FolderDataModule,
    MixedDataModule,
    NYUD40DataModule,
    NYUDDataModule,
    PASCALContextDataModule,
)
from htt_lightning.commands.check.command import inspect
from htt_lightning.data.dataset import find_train_val_overlap
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.data.datasets.folder_tree import MAPS
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
    settings = {"train": "train/images/*.png", "val": "val/images/*.png", "label_files": MAPS, "batch_size": 2}
    return FolderDataModule(str(root / "mine"), num_workers=0, seed=0, **(settings | changes))


MODULES = {
    "synthetic": lambda root: tiny_data(train_images=4),
    "nyud": lambda root: NYUDDataModule(str(root)),
    "nyud40": lambda root: NYUD40DataModule(str(root / "NYUD40")),
    "cityscapes": lambda root: CityscapesDataModule(str(root)),
    "pascal": lambda root: PASCALContextDataModule(str(root)),
    "folder": mine,
    "mixed": lambda root: MixedDataModule([NYUDDataModule(str(root), tasks="depth"), mine(root)], (32, 48)),
}


def sources(data):
    return data.build_dataset("train"), data.build_dataset("val")


def warned(data, caplog, text):
    """The run and the check both say it."""
    caplog.set_level(logging.WARNING)
    data.prepare_data()
    assert text in caplog.text
    assert any(text in warning for warning in inspect(data)[1]["warnings"])
    return True


@pytest.mark.parametrize("name", MODULES)
def test_the_images_of_both_splits_are_others(name, trees):
    train, val = sources(MODULES[name](trees))
    pixels = [{source.image(index).tobytes() for index in range(len(source.ids))} for source in (train, val)]
    assert not pixels[0] & pixels[1]
    assert find_train_val_overlap(train, val) == ""
    if name != "synthetic":
        files = [{os.path.realpath(source.image_path(k)) for k in range(len(source.ids))} for source in (train, val)]
        assert [len(group) for group in files] == [len(train.ids), len(val.ids)]
        assert not files[0] & files[1]


def test_one_pattern_for_both_splits_is_told(trees, caplog):
    everything = mine(trees, val="train/images/*.png", label_files=[replace(files, val=files.train) for files in MAPS])
    assert warned(everything, caplog, "6 of 6 training images are in the validation split as well, such as '1'")


def test_a_copy_below_the_other_split_is_told_and_another_image_of_its_name_is_not(trees, tmp_path, caplog):
    shutil.copytree(trees / "NYUDv2", tmp_path / "NYUDv2")
    assert not find_train_val_overlap(*sources(NYUDDataModule(str(tmp_path))))
    shutil.copy(tmp_path / "NYUDv2" / "train" / "image" / "1.npy", tmp_path / "NYUDv2" / "val" / "image" / "1.npy")
    data = NYUDDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)
    assert warned(data, caplog, "1 of 4 training images are in the validation split as well, such as '1'")


def test_an_id_in_the_lists_of_both_splits_is_told(trees, tmp_path, caplog):
    shutil.copytree(trees / "PASCALContext", tmp_path / "PASCALContext")
    val = tmp_path / "PASCALContext" / "ImageSets" / "Context" / "val.txt"
    val.write_text(val.read_text() + "2008_000008\n")
    data = PASCALContextDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)
    assert warned(data, caplog, "1 of 4 training images are in the validation split as well, such as '2008_000008'")


def test_a_link_from_one_split_to_the_other_is_told(trees, tmp_path, caplog):
    shutil.copytree(trees / "NYUDv2", tmp_path / "NYUDv2")
    shutil.rmtree(tmp_path / "NYUDv2" / "val")
    (tmp_path / "NYUDv2" / "val").symlink_to(tmp_path / "NYUDv2" / "train")
    data = NYUDDataModule(str(tmp_path), num_workers=0, batch_size=2, seed=0)
    assert warned(data, caplog, "4 of 4 training images are in the validation split as well, such as '0'")


def test_what_one_dataset_of_a_mixture_trains_on_and_another_validates_on_is_told(trees, caplog):
    swapped = mine(trees, train="val/images/*.png", val="train/images/*.png",
                   label_files=[replace(files, train=files.val, val=files.train) for files in MAPS])  # fmt: skip
    data = MixedDataModule([mine(trees), swapped], (32, 48), num_workers=0, batch_size=2, seed=0)
    assert warned(data, caplog, "12 of 12 training images are in the validation split as well, such as '0/1'")
    assert np.unique([name[0] for name in data.build_dataset("train").ids]).tolist() == ["0", "1"]
