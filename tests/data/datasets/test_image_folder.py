import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import HTTModule, HTTPredictor, ImageFolder
from htt_lightning.callbacks.prediction_writer import crop_padding
from htt_lightning.cli import main
from htt_lightning.data.datasets.image_search import find_images
from htt_lightning.errors import ConfigError, DataError
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("run"), tasks="semseg,depth,edges")


def paint(path, height=4, width=4, seed=0):
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
    (folder / "4.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    return folder


def batches(data):
    data.setup("predict")
    return list(data.predict_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_consecutive_images_of_one_size_make_a_batch(photos, checkpoint, workers, caplog):
    data = ImageFolder(str(photos), checkpoint, batch_size=2, num_workers=workers)
    found = batches(data)
    assert [batch["id"] for batch in found] == [["0", "1"], ["2"], ["3"], ["10"]]
    assert found[0]["image"].shape[:2] == (2, 3)
    assert [batch["view"].size for batch in found] == [(40, 60), (40, 60), (70, 30), (90, 33)]
    (error,) = data.errors
    assert isinstance(error, DataError)
    assert "4.jpg" in error.message
    assert "4.jpg" in caplog.text
    assert len(list(data.predict_dataloader())) == 4
    assert data.count == 6


def test_images_that_need_a_window_go_alone(photos, checkpoint):
    found = batches(ImageFolder(f"{photos}/[0-2].png", checkpoint, input_size=(100, 150), tile_size=64))
    assert [batch["id"] for batch in found] == [["0"], ["1"], ["2"]]
    assert {batch["tile_size"] for batch in found} == {64}


def test_images_are_read_one_batch_ahead_at_most(photos, checkpoint, monkeypatch):
    read = []
    monkeypatch.setattr(
        "htt_lightning.data.datasets.image_folder.read_photograph",
        lambda path: read.append(path) or np.zeros((8, 8, 3), np.uint8),
    )
    data = ImageFolder(str(photos), checkpoint, batch_size=2, num_workers=0)
    data.setup("predict")
    data.images = {str(k): Path(str(k)) for k in range(50)}
    stream = iter(data.predict_dataloader())
    for _ in range(5):
        next(stream)
    assert len(read) <= 5 * 2 + 1


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
def test_root_is_an_image_a_folder_or_a_pattern(tmp_path, monkeypatch, root, names):
    for name in ("a.jpg", "b.jpg", "b.png", "sub/c.png"):
        paint(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = find_images(root)
    assert list(found) == names
    assert all(path.is_file() for path in found.values())


@pytest.mark.parametrize("root", [".", "*.png", "**/*.png"])
def test_hidden_files_and_folders_are_skipped(tmp_path, monkeypatch, root):
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/a.png", "sub/.thumbnails/b.png"):
        paint(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert list(find_images(root)) == ["a"]


def test_a_root_inside_a_hidden_folder_is_read(tmp_path):
    paint(tmp_path / ".cache" / "photos" / "a.png")
    assert list(find_images(str(tmp_path / ".cache" / "photos"))) == ["a"]


@pytest.mark.parametrize("root", [".", "**/*.png"])
def test_folders_of_predictions_are_skipped_and_named(tmp_path, monkeypatch, caplog, root):
    for name in ("a.png", "b.png", "maps/a_depth.png", "maps/sub/b_depth.png"):
        paint(tmp_path / name)
    (tmp_path / "maps" / "maps.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING)
    assert list(find_images(root)) == ["a", "b"]
    assert len(caplog.messages) == 1
    assert "maps" in caplog.text


@pytest.mark.parametrize("root", ["nowhere", "*.tif", "."])
def test_a_root_without_images_is_named(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.root ") as error:
        find_images(root)
    assert root in error.value.message


def test_image_folder_serves_predict_alone(photos, checkpoint):
    with pytest.raises(ConfigError, match="no labels"):
        ImageFolder(str(photos), checkpoint).setup("fit")
    with pytest.raises(ConfigError, match="--ckpt_path"):
        ImageFolder(str(photos))


def predict(*argv):
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    main(["predict", "--data", "ImageFolder", *argv, *quiet])


@pytest.mark.usefixtures("in_empty_folder")
def test_predict_skips_corrupt_images_and_names_them(photos, checkpoint, capsys):
    argv = ["--data.root", str(photos), "--ckpt_path", checkpoint, "--out", "photos/maps"]
    with pytest.raises(SystemExit, match=r"^error: 1 of 6 images[\s\S]*4\.jpg"):
        predict(*argv)
    maps = photos / "maps"
    assert capsys.readouterr().out.strip() == "photos/maps"
    suffixes = ("semseg.png", "depth.png", "edges.npy", "semseg_view.png", "depth_view.png", "edges_view.png")
    names = {f"{k}_{suffix}" for k in (0, 1, 2, 3, 10) for suffix in (*suffixes, "panel.png")}
    assert {path.name for path in maps.iterdir()} == names | {"maps.json"}
    alone = HTTPredictor.from_checkpoint(checkpoint)(photos / "3.png")
    depth = np.asarray(Image.open(maps / "3_depth.png"))
    assert depth.shape == (70, 30)
    assert np.abs(depth / 1000 - alone["depth"][0].numpy()).max() < 0.001
    (photos / "4.jpg").unlink()
    with pytest.raises(SystemExit, match=r"^error: .*photos/maps"):
        predict(*argv)
    options = ("--data.input_size", "original", "--data.tile_size", "64", "--predictions.format", "npy")
    predict(*argv, "--overwrite", "true", *options)
    assert np.load(maps / "10_semseg.npy").shape == (90, 33)
    assert not list(maps.glob("maps*npy"))  # predictions are not predicted on


@pytest.mark.usefixtures("in_empty_folder")
def test_predict_names_what_is_missing(photos, checkpoint):
    torch.save({"model": {}}, "other.ckpt")
    for argv, named in (
        (["--data.root", str(photos)], "--ckpt_path"),
        (["--data.root", "nowhere", "--ckpt_path", checkpoint], "nowhere"),
        (["--data.root", str(photos), "--ckpt_path", "other.ckpt"], "other.ckpt"),
        (["--data.root", str(photos / "4.jpg"), "--ckpt_path", checkpoint, "--out", "maps"], "1 of 1 images"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{named}"):
            predict(*argv)


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


@pytest.mark.usefixtures("in_empty_folder")
def test_predict_reads_a_folder_of_phone_photographs(tmp_path, checkpoint, caplog):
    pillow_heif = pytest.importorskip("pillow_heif")
    upright = np.kron(np.random.default_rng(0).integers(0, 256, (9, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    stored, turned = Image.fromarray(np.rot90(upright)), Image.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "DCIM"
    folder.mkdir()
    stored.save(folder / "IMG_1.JPG", exif=turned, quality=100, subsampling=0)
    pillow_heif.from_pillow(stored).save(folder / "IMG_2.HEIC", exif=turned.tobytes(), quality=-1, chroma=444)
    stored.save(folder / "IMG_3.PNG", exif=turned)
    for name in ("IMG_4.DNG", "IMG_1.MOV", "IMG_1.AAE", "._IMG_1.JPG"):
        (folder / name).write_bytes(b"")
    predict("--data.root", str(folder), "--ckpt_path", checkpoint, "--out", "maps", "--predictions.format", "npy")
    expected = HTTPredictor.from_checkpoint(checkpoint)(upright)["depth"].numpy()
    for k in (1, 2, 3):
        depth = np.load(f"maps/IMG_{k}_depth.npy")
        assert depth.shape == expected.shape == (1, 72, 48)
        assert np.abs(depth / expected - 1).mean() < 0.02
    (message,) = [text for text in caplog.messages if text.startswith("Skipping")]
    assert message.startswith("Skipping 3 files that are not read as images: IMG_")
