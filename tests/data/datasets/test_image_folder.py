import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import HTTModule, HTTPredictor, ImageFolder
from htt_lightning.callbacks.prediction_writer import crop_padding
from htt_lightning.cli import main
from htt_lightning.data.datasets import image_folder
from htt_lightning.data.datasets.image_folder import find_images
from htt_lightning.errors import HTTError
from tests.tiny import tiny_data, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = tiny_data(labels="full", tasks="semseg,depth,edges")
    trainer = tiny_trainer(folder)
    trainer.fit(tiny_module(data), data)
    trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)
    return str(folder / "last.ckpt")


def paint(path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k in range(3):
        paint(folder / f"{k}.png", 40, 60, k)
    paint(folder / "10.png", 90, 33)
    paint(folder / "3.png", 70, 30)
    (folder / "4.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an image")
    return folder


def batches(data):
    data.setup("predict")
    return list(data.predict_dataloader())


def test_images_of_one_size_that_follow_each_other_make_a_batch(photos, checkpoint):
    data = ImageFolder(str(photos), checkpoint, batch_size=2)
    found = batches(data)
    assert [batch["id"] for batch in found] == [["0", "1"], ["2"], ["3"], ["10"]]
    assert found[0]["image"].shape[:2] == (2, 3)
    assert [batch["view"].size for batch in found] == [(40, 60), (40, 60), (70, 30), (90, 33)]
    assert [error.message for error in data.errors if "4.jpg" in error.message] == [e.message for e in data.errors]
    assert len(data.errors) == 1
    assert len(list(data.predict_dataloader())) == 4


def test_what_needs_a_window_goes_alone(photos, checkpoint):
    found = batches(ImageFolder(f"{photos}/[0-2].png", checkpoint, input_size=(100, 150), tile_size=64))
    assert [batch["id"] for batch in found] == [["0"], ["1"], ["2"]]
    assert {batch["tile_size"] for batch in found} == {64}


def test_no_more_than_two_batches_are_read_ahead(photos, checkpoint, monkeypatch):
    read = []
    monkeypatch.setattr(
        image_folder, "read_photograph", lambda path: read.append(path) or np.zeros((8, 8, 3), np.uint8)
    )
    data = ImageFolder(str(photos), checkpoint, batch_size=1)
    monkeypatch.setattr(image_folder, "find_images", lambda root: {str(k): Path(str(k)) for k in range(50)})
    data.setup("predict")
    stream = iter(data.predict_dataloader())
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(read) <= 5 + 1 + 3


def test_a_batch_gives_what_each_image_gives_alone(photos, checkpoint):
    predictor = HTTPredictor.from_checkpoint(checkpoint)
    with torch.inference_mode():
        for batch in batches(ImageFolder(str(photos), checkpoint)):
            maps = predictor.module.predict_step(batch, 0)
            for k, name in enumerate(batch["id"]):
                alone = predictor(photos / f"{name}.png")
                torch.testing.assert_close(maps["depth"][k], alone["depth"])
                assert (maps["semseg"][k] == alone["semseg"]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("root", "names"),
    [("a.jpg", ["a"]), (".", ["a", "b.jpg", "b.png", "sub/c"]), ("*.jpg", ["a", "b"]), ("**/*.png", ["b", "sub/c"]),
     ("sub", ["c"])],
)  # fmt: skip
def test_a_path_is_an_image_a_folder_or_a_pattern(tmp_path, monkeypatch, root, names):
    for name in ("a.jpg", "b.jpg", "b.png", "sub/c.png"):
        paint(tmp_path / name, 4, 4)
    monkeypatch.chdir(tmp_path)
    found = find_images(root)
    assert list(found) == names
    assert all(path.is_file() for path in found.values())


@pytest.mark.parametrize(
    ("root", "message"),
    [("nowhere", "no image, folder or pattern nowhere"), ("*.tif", "no file matches"), (".", "no images in")],
)
def test_where_there_are_no_images_the_place_is_named(tmp_path, monkeypatch, root, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HTTError, match=message):
        find_images(root)


def test_there_is_nothing_to_train_on_and_nothing_without_a_checkpoint(photos, checkpoint):
    with pytest.raises(HTTError, match="no labels"):
        ImageFolder(str(photos), checkpoint).setup("fit")
    with pytest.raises(HTTError, match="--ckpt_path"):
        ImageFolder(str(photos))


def predict(*words):
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    main(["predict", "--data", "ImageFolder", *words, *quiet])


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.mark.usefixtures("elsewhere")
def test_the_command_needs_no_config_and_goes_on_where_an_image_is_broken(photos, checkpoint, capsys):
    words = ["--data.root", str(photos), "--ckpt_path", checkpoint, "--out", "maps"]
    with pytest.raises(SystemExit, match=r"^error: 1 of 6 images failed[\s\S]*4\.jpg"):
        predict(*words)
    assert capsys.readouterr().out.strip() == "maps"
    parts = ("semseg.png", "depth.png", "edges.npy", "semseg_view.png", "depth_view.png", "edges_view.png", "panel.png")
    names = {f"{k}_{part}" for k in (0, 1, 2, 3, 10) for part in parts}
    assert {path.name for path in Path("maps").iterdir()} == names | {"maps.json"}
    alone = HTTPredictor.from_checkpoint(checkpoint)(photos / "3.png")
    depth = np.asarray(Image.open("maps/3_depth.png"))
    assert depth.shape == (70, 30)
    assert np.abs(depth / 1000 - alone["depth"][0].numpy()).max() < 0.001
    (photos / "4.jpg").unlink()
    with pytest.raises(SystemExit, match="error: maps is not empty"):
        predict(*words)
    predict(
        *words,
        "--overwrite",
        "true",
        "--data.input_size",
        "original",
        "--data.tile_size",
        "64",
        "--predictions.format",
        "npy",
    )
    assert np.load("maps/10_semseg.npy").shape == (90, 33)


@pytest.mark.usefixtures("elsewhere")
def test_the_command_ends_badly_where_no_image_can_be_read(photos, checkpoint):
    with pytest.raises(SystemExit, match="error: 1 of 1 images failed"):
        predict("--data.root", str(photos / "4.jpg"), "--ckpt_path", checkpoint, "--out", "maps")


@pytest.mark.usefixtures("elsewhere")
def test_the_command_says_what_is_missing(photos, checkpoint):
    torch.save({"model": {}}, "other.ckpt")
    for words, message in (
        (["--data.root", str(photos)], "give --ckpt_path"),
        (["--data.root", "nowhere", "--ckpt_path", checkpoint], "no image, folder or pattern nowhere"),
        (["--data.root", str(photos), "--ckpt_path", "other.ckpt"], "other.ckpt is corrupt or no checkpoint"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            predict(*words)


def test_the_panel_of_a_padded_image_shows_the_image_alone(photos, checkpoint, tmp_path):
    stored = torch.load(checkpoint, weights_only=True)
    stored["input_size"] = {"image_size": None, "min_size": [128, 128]}
    torch.save(stored, tmp_path / "padded.ckpt")
    data = ImageFolder(str(photos / "0.png"), str(tmp_path / "padded.ckpt"))
    (batch,) = batches(data)
    assert batch["image"].shape == (1, 3, 128, 128)
    expected = torch.from_numpy(np.asarray(Image.open(photos / "0.png")).copy()).permute(2, 0, 1)
    assert torch.equal((crop_padding(batch)[0] * 255).round().byte(), expected)
    module = HTTModule.load_from_checkpoint(tmp_path / "padded.ckpt", weights_only=True).eval()
    with torch.inference_mode():
        assert module.predict_step(batch, 0)["depth"].shape == (1, 1, 40, 60)
