"""Which files of a folder are predicted on, and what is said of the others."""

import json
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from htt_lightning.data.datasets import image_search
from htt_lightning.data.datasets.image_search import find_images
from htt_lightning.errors import ConfigError


def paint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def empty(*paths):
    for path in paths:
        path.write_bytes(b"")


@pytest.mark.parametrize("root", ["{}", "{}/*.jpg", "{}/*.JPG"])
def test_suffixes_in_capitals_are_found(tmp_path, root):
    for name in ("a.jpg", "b.JPG", "c.Jpg"):
        paint(tmp_path / name)
    assert list(find_images(root.format(tmp_path))) == ["a", "b", "c"]


@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_names_are_in_nfc_whatever_form_is_stored(tmp_path, asked):
    paint(tmp_path / normalize("NFD", "Räume") / normalize("NFD", "Café.png"))
    folder = tmp_path / normalize(asked, "Räume")
    for root in (folder, folder / "*.png", folder / normalize(asked, "Café.png")):
        assert list(find_images(str(root))) == [normalize("NFC", "Café")]


def test_files_that_are_no_images_are_counted_and_named(tmp_path, caplog):
    for name in ("a.jpg", "sub/b.jpg"):
        paint(tmp_path / name)
    empty(*(tmp_path / name for name in ("c.NEF", "d.mov", "sub/e.dng", "notes.txt", ".hidden.nef")))
    assert list(find_images(str(tmp_path))) == ["a", "sub/b"]
    (message,) = caplog.messages
    assert message.startswith("Skipping 4 files that are not read as images: ")
    assert "c.NEF" in message


def test_files_beside_a_pattern_are_counted_and_named(tmp_path, caplog):
    paint(tmp_path / "a.jpg")
    paint(tmp_path / "b.png")
    empty(tmp_path / "c.dng")
    assert list(find_images(f"{tmp_path}/*.jpg")) == ["a"]
    assert caplog.messages == ["Skipping 2 files that are not read as images: b.png, c.dng."]


@pytest.mark.parametrize("root", ["{}", "{}/*"])
def test_heic_without_its_package_is_named_once(tmp_path, monkeypatch, caplog, root):
    monkeypatch.setattr(image_search, "has_heif", lambda: False)
    monkeypatch.setattr(image_search, "readable_suffixes", lambda: {".jpg"})
    for name in ("1.HEIC", "2.heic"):
        empty(tmp_path / name)
    with pytest.raises(ConfigError, match="got none"):
        find_images(root.format(tmp_path))
    paint(tmp_path / "a.jpg")
    caplog.clear()
    assert list(find_images(root.format(tmp_path))) == ["a"]
    (message,) = caplog.messages
    assert message.startswith("Skipping 2 files")
    assert 'pip install "htt-lightning[heic]"' in message


def test_predictions_beside_their_images_are_skipped(tmp_path, caplog):
    for name in ("a.png", "a_depth.png", "a_depth_view.png", "a_panel.png", "deep_end.png"):
        paint(tmp_path / name)
    empty(tmp_path / "a_edges.npy")
    (tmp_path / "maps.json").write_text(json.dumps({"depth": {}, "edges": {}}))
    assert list(find_images(str(tmp_path))) == ["a", "deep_end"]
    (message,) = caplog.messages
    assert message.startswith(f"Skipping 3 earlier predictions in {tmp_path}: a_")
