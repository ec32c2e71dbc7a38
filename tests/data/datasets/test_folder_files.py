"""Files as users have them: turned photographs, names of other systems, and files beside the declared ones."""

import logging
import shutil
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from htt_lightning.commands.check.command import inspect
from htt_lightning.data import LabelFiles
from htt_lightning.errors import DataError, HTTError
from htt_lightning.io.images import read_photograph
from htt_lightning.tasks import Depth, Normals, SemSeg
from tests.data.datasets.folder_tree import MAPS, SIZE, folder, save, write_table, write_tree

DEPTH_FILES = LabelFiles(Depth(), "train/depth/{id}.png", "val/depth/{id}.png", scale=0.001)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "mine")


def turn(path, orientation=6):
    """Store an image turned, with the EXIF orientation that turns it back."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    with Image.open(path) as image:
        image.rotate(90, expand=True).save(path, exif=tags)


def fit(data):
    """Do what ``fit`` does before the first batch."""
    data.prepare_data()
    data.setup("fit")
    data.train_dataloader()


def check(data):
    """Errors and warnings of ``check``, by which ``fit`` must abide as well."""
    _, report = inspect(data)
    return [problem["message"] for problem in report["problems"]], report["warnings"]


def test_photographs_are_turned_with_their_labels(root):
    expected = read_photograph(root / "train" / "images" / "1.png")
    turn(root / "train" / "images" / "1.png")
    data = folder(root)
    source = data.build_dataset("train")
    data.prepare_data()
    np.testing.assert_array_equal(source.image(0), expected)
    assert source.size(0) == source.label(0, "semseg").shape == SIZE


def test_labels_that_lie_as_the_stored_pixels_are_refused(root):
    tags = Image.Exif()
    tags[0x0112] = 6
    path = root / "train" / "images" / "1.png"
    with Image.open(path) as image:  # its labels have the size of the stored pixels
        image.save(path, exif=tags)
    with pytest.raises(HTTError, match=r"semseg.1\.png must lie as its image .*1\.png does, which EXIF turns"):
        folder(root, image_size=SIZE).prepare_data()
    problems, _ = check(folder(root, image_size=SIZE))
    assert sum("which EXIF turns to (48, 32), got (32, 48)" in problem for problem in problems) == 3


def test_suffixes_in_capitals_are_read(root):
    for path in [*(root / "train").rglob("1.png"), *(root / "train").rglob("10.png")]:
        path.rename(path.with_suffix(".PNG"))
    source = folder(root).build_dataset("train")
    assert source.ids == ["1", "2", "3", "10", "11", "12"]
    assert source.image_path(0).name == "1.PNG"
    assert source.label(0, "semseg").shape == SIZE
    assert source.available("depth")[3]


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_names_are_found_in_either_unicode_form(root, stored, asked):
    for kind in ("images", "depth"):
        target = root / "train" / normalize(stored, "Räume") / kind
        target.mkdir(parents=True)
        form = stored if kind == "images" else {"NFC": "NFD", "NFD": "NFC"}[stored]
        shutil.copy(root / "train" / kind / "1.png", target / normalize(form, "Café.png"))
    name = normalize(asked, "Räume")
    files = LabelFiles(Depth(), f"train/{name}/depth/{{id}}.png", scale=0.001)
    pattern = folder(root, train=f"train/{name}/images/*.png", label_files=[files]).build_dataset("train")
    assert pattern.ids == [normalize("NFC", "Café")]
    assert pattern.label(0, "depth").shape == SIZE
    row = [normalize(asked, f"train/Räume/{kind}/Café.PNG") for kind in ("images", "depth")]
    write_table(root, [row], columns=["image", "depth"])
    column = LabelFiles(Depth(), "depth", scale=0.001)
    table = folder(root, train="train.csv", label_files=[column]).build_dataset("train")
    assert table.ids == [normalize("NFC", "train/Räume/images/Café")]
    np.testing.assert_array_equal(table.image(0), pattern.image(0))
    np.testing.assert_array_equal(table.label(0, "depth"), pattern.label(0, "depth"))
    moved = root.rename(root.with_name(normalize(stored, "Fotos für uns")))
    moved = moved.with_name(normalize(asked, moved.name))
    assert folder(moved, train="train.csv", label_files=[column]).build_dataset("train").ids == table.ids


def test_files_beside_the_patterns_are_counted_and_named(root, caplog):
    images = root / "train" / "images"
    for name in ("20.jpg", "21.webp"):
        save(images / name, np.zeros((*SIZE, 3), np.uint8))
    for name in ("22.heic", "23.NEF", "notes.txt", "._24.jpg"):
        (images / name).write_bytes(b"")
    save(images / "1.tiff", np.zeros((*SIZE, 3), np.uint8))  # a copy of an image that is read
    save(root / "train" / "depth" / "30.png", np.zeros(SIZE, np.uint8))
    save(root / "train" / "depth" / "11.tiff", np.zeros(SIZE, np.uint8))
    expected = [
        "train: 4 files do not match data.train 'train/images/*.png' and are not read: train/images/20.jpg, "
        "train/images/21.webp, train/images/22.heic and 1 more.",
        "train: 1 label files of depth have no image and are not read: train/depth/30.png.",
        "train: 1 files do not match the labels 'train/depth/{id}.png' of depth and are not read: train/depth/11.tiff.",
    ]
    caplog.set_level(logging.WARNING)
    data = folder(root)
    data.prepare_data()
    assert [message for message in caplog.messages if message.startswith("train: ")] == expected
    _, warnings = check(folder(root))
    assert [warning for warning in warnings if "not read" in warning] == expected


def test_nothing_is_said_of_labels_beside_their_images(root, caplog):
    for k in range(3):
        save(root / "all" / f"{k}.jpg", np.zeros((*SIZE, 3), np.uint8))
        save(root / "all" / f"{k}.png", np.full(SIZE, 1, np.uint8))
        save(root / "more" / f"{k}.jpg", np.full((*SIZE, 3), 9, np.uint8))
        save(root / "more" / f"{k}.png", np.full(SIZE, 1, np.uint8))
    files = LabelFiles(SemSeg(classes=("a", "b")), "all/{id}.png", "more/{id}.png")
    folder(root, train="all/*.jpg", val="more/*.jpg", label_files=[files]).prepare_data()
    assert caplog.messages == []


def test_classes_stored_as_jpeg_are_refused_by_fit_and_check(root):
    for name in ("1", "2", "10"):
        save(root / "train" / "mask" / f"{name}.jpg", np.zeros(SIZE, np.uint8))
    files = [LabelFiles(SemSeg(classes=("a", "b")), "train/mask/{id}.jpg")]
    with pytest.raises(HTTError, match=r"mask.1\.jpg must be lossless, got JPEG"):
        folder(root, label_files=files).prepare_data()
    problems, _ = check(folder(root, label_files=files))
    assert len([text for text in problems if "lossless" in text]) == 3


def test_depth_in_millimeters_is_warned_of_by_fit_and_check(root, caplog):
    files = [LabelFiles(Depth(), "train/depth/{id}.png", "val/depth/{id}.png")]  # without scale
    expected = "outside of the bins, 0 to 10. Set min_depth and max_depth, or scale: 0.001 if files hold millimeters."
    fit(folder(root, label_files=files))
    assert [message for message in caplog.messages if message.startswith("train: depth, first 3 labels: ")]
    _, warnings = check(folder(root, label_files=files))
    for texts in (caplog.messages, warnings):
        assert [text for text in texts if text.startswith("train") and text.endswith(expected.split(". ", 1)[1])]
    caplog.clear()
    fit(folder(root, label_files=[DEPTH_FILES]))
    assert not [message for message in caplog.messages if "bins" in message]


def test_normals_stored_as_colors_in_0_to_1_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(*SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    files = LabelFiles(Normals(), "", scale=(1.0, -1.0, 1.0))
    np.save(tmp_path / "a.npy", (vectors + 1) / 2)
    with pytest.raises(DataError, match=r"a\.npy must contain unit vectors .* store 2 \* color - 1"):
        files.read(tmp_path / "a.npy")
    for stored in (vectors, np.abs(vectors)):  # all may look one way
        np.save(tmp_path / "a.npy", stored)
        np.testing.assert_allclose(files.read(tmp_path / "a.npy"), stored * [1, -1, 1], atol=1e-6)


def test_fit_decodes_only_the_first_images(tmp_path, monkeypatch):
    root = write_tree(tmp_path, {str(k): ("semseg",) for k in range(30)})
    read = []

    def record(path):
        read.append(path.name)
        return read_photograph(path)

    monkeypatch.setattr("htt_lightning.data.datasets.folder.read_photograph", record)
    data = folder(root, label_files=MAPS[:1])
    fit(data)
    data.train_dataloader()
    assert read == ["0.png", "1.png", "2.png"] * 2  # of each split
