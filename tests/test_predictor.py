import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import HTTPredictor
from htt_lightning.errors import HTTError
from tests.tiny import tiny_data, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = tiny_data(labels="full")
    trainer = tiny_trainer(folder)
    trainer.fit(tiny_module(data), data)
    trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return HTTPredictor.from_checkpoint(checkpoint)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


def test_a_checkpoint_is_all_it_takes(checkpoint, predictor):
    assert torch.load(checkpoint, weights_only=True)["input_size"] == {"image_size": [32, 48], "min_size": None}
    assert predictor.resizer.image_size == (32, 48)
    assert predictor.tasks["semseg"].class_names == tiny_data().tasks[0].class_names
    assert predictor.tasks["depth"].metric_unit == "m"
    assert not predictor.module.training


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (50, 70), (200, 31)])
@pytest.mark.parametrize("policy", ["training", "original"])
def test_maps_have_the_size_of_the_image(checkpoint, size, policy):
    predictor = HTTPredictor.from_checkpoint(checkpoint, input_size=policy)
    maps = predictor(np.zeros((*size, 3), np.uint8))
    shapes = {"normals": (3, *size), "depth": (1, *size)}
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        name: shapes.get(name, size) for name in predictor.tasks
    }
    assert maps["semseg"].dtype == torch.int64
    assert all(values.isfinite().all() for values in maps.values())


def test_every_kind_of_image_gives_the_same_maps(predictor, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "it.png")
    expected = predictor(pixels)
    floats = pixels.astype(np.float32) / 255
    first = pixels.transpose(2, 0, 1)
    for image in (
        tmp_path / "it.png",
        str(tmp_path / "it.png"),
        Image.fromarray(pixels),
        torch.from_numpy(first),
        pixels[:, ::-1][:, ::-1],  # strides that torch cannot have
    ):
        maps = predictor(image)
        assert all(torch.equal(maps[name], expected[name]) for name in expected)
    maps = predictor(floats)
    # Resized floats are not rounded to grey levels.
    assert (maps["depth"] - expected["depth"]).abs().max() < 0.05


def test_at_its_own_size_an_image_gives_what_the_module_decodes(checkpoint, pixels):
    predictor = HTTPredictor.from_checkpoint(checkpoint, input_size="original")
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        expected = predictor.module.decode(image[None].float() / 255)
    maps = predictor(image)
    assert all(torch.equal(maps[name], expected[name][0]) for name in expected)


def test_a_training_crop_is_the_least_size(tmp_path):
    data = tiny_data(labels="full", image_size=(32, 48))
    data.image_size, data.augment = None, type(data.augment)(crop=(64, 64))
    assert data.input_size == {"image_size": None, "min_size": [64, 64]}


def test_a_camera_held_upright_gives_an_upright_map(predictor, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "it.png", exif=exif)
    assert predictor(tmp_path / "it.png")["semseg"].shape == (70, 50)


def test_grey_pictures_palettes_and_four_inks_are_images(predictor, pixels, tmp_path):
    colour = Image.fromarray(pixels)
    for name, image in {
        "l.png": colour.convert("L"),
        "p.png": colour.convert("P"),
        "cmyk.jpg": colour.convert("CMYK"),
        "opaque.png": colour.convert("RGBA"),
        "one.png": colour.convert("1"),
    }.items():
        image.save(tmp_path / name)
        assert predictor(tmp_path / name)["semseg"].shape == (50, 70)
    assert predictor(pixels[..., 0])["semseg"].shape == (50, 70)


def test_bad_images_are_named(predictor, pixels, tmp_path):
    colour = Image.fromarray(pixels)
    colour.save(tmp_path / "moving.gif", save_all=True, append_images=[colour.rotate(90)])
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    transparent = colour.convert("RGBA")
    transparent.putpixel((3, 3), (0, 0, 0, 9))
    transparent.save(tmp_path / "glass.png")
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in {
        "moving.gif": "single frame, got 2",
        "deep.png": "must have 8 bits",
        "glass.png": "transparent",
        "text.jpg": "no image",
        "absent.jpg": "is missing",
    }.items():
        with pytest.raises(HTTError, match=rf"{name} .*{message}"):
            predictor(tmp_path / name)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "3 h w"),
        (np.zeros((3, 8, 8), np.uint8), r"h w 3 \(RGB\)"),
        (np.zeros((0, 8, 3), np.uint8), "h w 3"),
        (np.zeros((8, 8, 3), np.uint16), "not uint16"),
        (np.full((8, 8, 3), 255.0), "divide"),
        (np.full((8, 8, 3), np.nan), "divide"),
        (3, "not int"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, message):
    with pytest.raises(HTTError, match=message):
        predictor(image)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, tmp_path / "other.ckpt")
    with pytest.raises(HTTError, match=r"other\.ckpt is corrupt or no checkpoint of htt_lightning"):
        HTTPredictor.from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(HTTError, match=r"existing checkpoint, got .*none\.ckpt"):
        HTTPredictor.from_checkpoint(tmp_path / "none.ckpt")
