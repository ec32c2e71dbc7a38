import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import HTTPredictor
from htt_lightning.errors import CheckpointError, ConfigError, HTTError
from tests.tiny import tiny_checkpoint, tiny_data


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return HTTPredictor.from_checkpoint(checkpoint)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


def test_predictor_needs_only_a_checkpoint(checkpoint, predictor):
    assert torch.load(checkpoint, weights_only=True)["input_size"] == {"image_size": [32, 48], "min_size": None}
    assert predictor.resizer.image_size == (32, 48)
    assert predictor.tasks["semseg"].class_names == tiny_data().tasks[0].class_names
    assert predictor.tasks["depth"].metric_unit == "m"
    assert not predictor.module.training


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (50, 70), (200, 31)])
@pytest.mark.parametrize("input_size", ["training", "original"])
def test_maps_have_the_size_of_the_image(predictor, size, input_size):
    predictor = HTTPredictor(predictor.module, input_size)
    maps = predictor(np.zeros((*size, 3), np.uint8))
    shapes = {"normals": (3, *size), "depth": (1, *size)}
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        name: shapes.get(name, size) for name in predictor.tasks
    }
    assert maps["semseg"].dtype == torch.int64
    assert all(values.isfinite().all() for values in maps.values())


def test_every_type_of_image_gives_equal_maps(predictor, pixels, tmp_path):
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
    # Resized floats are not rounded to gray levels.
    assert (maps["depth"] - expected["depth"]).abs().max() < 0.05


def test_original_size_equals_module_decode(predictor, pixels):
    predictor = HTTPredictor(predictor.module, "original")
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    with torch.no_grad():
        expected = predictor.module.decode(image[None].float() / 255)
    maps = predictor(image)
    assert all(torch.equal(maps[name], expected[name][0]) for name in expected)


def test_training_crop_is_the_minimum_size():
    data = tiny_data(labels="full", image_size=(32, 48))
    data.image_size, data.augment = None, type(data.augment)(crop=(64, 64))
    assert data.input_size == {"image_size": None, "min_size": [64, 64]}


def test_photographs_are_seen_at_the_one_size_of_training_images():
    data = tiny_data(labels="full", image_size=(32, 48))
    data.setup("fit")
    data.image_size = None  # as of archives whose images have one size
    assert data.input_size == {"image_size": [32, 48], "min_size": None}


def test_gray_palette_and_cmyk_images_are_read(predictor, pixels, tmp_path):
    color = Image.fromarray(pixels)
    for name, image in {
        "l.png": color.convert("L"),
        "p.png": color.convert("P"),
        "cmyk.jpg": color.convert("CMYK"),
        "opaque.png": color.convert("RGBA"),
        "one.png": color.convert("1"),
    }.items():
        image.save(tmp_path / name)
        assert predictor(tmp_path / name)["semseg"].shape == (50, 70)
    assert predictor(pixels[..., 0])["semseg"].shape == (50, 70)


def test_batches_equal_images_one_at_a_time(predictor, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "it.png")
    images = [pixels[:, ::-1], tmp_path / "it.png", pixels[:40], pixels / 255.0, pixels[::-1], pixels]
    for given in (images, tuple(images), torch.from_numpy(np.stack([pixels, pixels[::-1]])).movedim(-1, 1)):
        found = predictor(given, batch_size=2)
        assert len(found) == len(given)
        for image, maps in zip(given, found, strict=True):
            alone = predictor(image)
            assert maps.keys() == alone.keys()
            torch.testing.assert_close(maps["depth"], alone["depth"])
            torch.testing.assert_close(maps["edges"], alone["edges"])
            assert (maps["semseg"] == alone["semseg"]).float().mean() > 0.999
    assert predictor([]) == []
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        predictor(images, batch_size=0)


def test_batches_pass_the_network_together(predictor, pixels, monkeypatch):
    sizes = []
    monkeypatch.setattr(predictor.module.net, "forward", track(predictor.module.net.forward, sizes))
    predictor([pixels] * 5, batch_size=4)
    assert sizes == [4, 1]


def track(forward, sizes):
    return lambda image: (sizes.append(len(image)), forward(image))[1]


def test_bad_image_files_are_named(predictor, pixels, tmp_path):
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("deep.png", "text.jpg", "absent.jpg"):
        with pytest.raises(HTTError, match=name):
            predictor(tmp_path / name)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(4, 8, 8), r"3 h w, got \(4, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"3 h w, got \(4, 8, 8\)"),
        ([np.zeros((8, 8, 3), np.uint8), 3], "int"),
        (np.zeros((3, 8, 8), np.uint8), r"h w 3 .*\(3, 8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"h w 3 .*\(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint16), "uint16"),
        (np.full((8, 8, 3), 255.0), "255"),
        (np.full((8, 8, 3), np.nan), "nan"),
        (3, "int"),
    ],
)
def test_arrays_that_are_no_image_are_refused(predictor, image, message):
    with pytest.raises(ConfigError, match=message):
        predictor(image)


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1}}, tmp_path / "other.ckpt")
    for name in ("other.ckpt", "none.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            HTTPredictor.from_checkpoint(tmp_path / name)
