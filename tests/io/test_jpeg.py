import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from htt_lightning.commands.check.inspection import inspect
from htt_lightning.errors import HTTError
from htt_lightning.io.images import read_rgb
from htt_lightning.io.jpeg import damage, is_jpeg
from tests.data.datasets.folder_tree import folder, write_tree

SIZE = (240, 320)


def photograph(path, size=SIZE, **options):
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    picture = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(path, quality=90, **options)
    return path


def zeroed(content, at):
    return content[:at] + bytes(4096) + content[at + 4096 :]


def inserted(content, at):
    return content[:at] + np.random.default_rng(1).integers(0, 256, 300, np.uint8).tobytes() + content[at:]


def cut(content, at):
    return content[:at] + content[at + 2000 :]


def unfinished(content, at):
    """What an interrupted copy leaves where room was set aside for all of it."""
    return content[:at] + bytes(len(content) - at)


DAMAGE = [zeroed, inserted, cut, unfinished]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Every kind of damage to every kind of file, and sound files between them; what of it is sound."""
    root, sound = tmp_path_factory.mktemp("pictures"), {}
    for kind, options in {"plain": {}, "progressive": {"progressive": True}, "optimised": {"optimize": True}}.items():
        whole = photograph(root / f"{kind}.jpg", **options)
        sound[whole] = True
        for change in DAMAGE:
            path = root / f"{kind}_{change.__name__}.jpg"
            path.write_bytes(change(whole.read_bytes(), 3000))
            sound[path] = False
    return sound


def test_damage_inside_a_file_is_noticed_whatever_its_kind(pictures):
    said = dict(zip(pictures, damage(list(pictures)), strict=True))
    assert {path.name: not text for path, text in said.items()} == {p.name: sound for p, sound in pictures.items()}
    assert all(
        text.startswith(("Corrupt JPEG data", "Premature end")) for path, text in said.items() if not pictures[path]
    )


def test_some_of_it_is_read_without_complaint_otherwise(pictures):
    read = [path for path, sound in pictures.items() if not sound and "unfinished" not in path.name]
    assert [read_rgb(path).shape for path in read] == [(*SIZE, 3)] * len(read)


def test_no_other_output_is_touched(pictures, capfd):
    print("before", file=sys.stderr)
    list(damage(list(pictures)))
    print("after", file=sys.stderr)
    assert capfd.readouterr() == ("", "before\nafter\n")


def test_names_of_any_kind_and_files_that_are_none(tmp_path):
    names = ["new\nline.jpg", "grün.jpg", "no.jpg", "empty.jpg", "text.jpg"]
    paths = [tmp_path / name for name in names]
    content = photograph(paths[1]).read_bytes()
    paths[0].write_bytes(cut(content, 3000))
    paths[3].touch()
    paths[4].write_text("text")
    assert [bool(text) for text in damage(paths)] == [True, False, False, False, False]
    assert [is_jpeg(path) for path in paths] == [True, True, False, False, False]
    assert list(damage([])) == []


def test_a_process_that_ends_early_is_an_error_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("htt_lightning.io.jpeg.READ", "import os; os.write(2, b'\\0')")
    with pytest.raises(HTTError, match=r"b\.jpg cannot be decoded"):
        list(damage([tmp_path / "a.jpg", tmp_path / "b.jpg"]))


def test_whoever_stops_listening_leaves_no_process_behind(pictures, monkeypatch):
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("htt_lightning.io.jpeg.Popen", Watched)
    said = damage(list(pictures) * 40)
    next(said)
    said.close()
    assert started[0].poll() is not None


@pytest.fixture
def root(tmp_path):
    """Images 1 to 12 as JPEG, of which 3 is damaged inside."""
    write_tree(tmp_path, size=(120, 160), suffix="jpg")
    path = tmp_path / "train" / "images" / "3.jpg"
    path.write_bytes(cut(photograph(path, (120, 160)).read_bytes(), 3000))
    return tmp_path


def data_of(root):
    return folder(root, train="train/images/*.jpg", val="val/images/*.jpg")


def test_the_check_names_images_that_are_damaged_inside(root):
    broken = root / "train" / "images" / "10.jpg"
    broken.write_bytes(broken.read_bytes()[:-2000])
    faults = inspect(data_of(root))["faults"]
    assert [(fault["split"], fault["id"], fault["what"]) for fault in faults] == [
        ("train", "10", "image"), ("train", "3", "image")
    ]  # fmt: skip
    assert "images/3.jpg is damaged inside (Corrupt JPEG data" in faults[1]["message"]


def test_a_run_warns_of_them(root, caplog):
    data_of(root).prepare_data()
    assert [text.split(" (")[0] for text in caplog.messages if "damaged" in text] == [
        f"{root}/train/images/3.jpg is damaged inside"
    ]
