"""Maps over a photograph as HTML."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import HTTPredictor
from htt_lightning.commands.app.photograph import DrawnMaps, draw_maps, legend_html, maps_html, reduce_photograph
from tests.tiny import tiny_data, tiny_module

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))


class Pictures(HTMLParser):
    """Pictures of a page by their text, and its words."""

    def __init__(self, html):
        super().__init__()
        self.pictures, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "img":
            assert given["src"].startswith("data:image/"), "no file and no other site"
            picture = Image.open(BytesIO(base64.b64decode(given["src"].partition(",")[2])))
            self.pictures.append((given["alt"], picture))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return HTTPredictor(tiny_module(tiny_data()))


def test_photograph_is_reduced_and_opaque():
    assert reduce_photograph(Image.new("RGBA", (3000, 1500)), 100).size == (100, 50)
    small = reduce_photograph(Image.new("L", (30, 20)))
    assert (small.size, small.mode) == ((30, 20), "RGB")


def test_photograph_is_upright_and_transparent_pixels_are_white():
    tags, stored = Image.Exif(), np.zeros((4, 6, 4), np.uint8)
    tags[0x0112] = 6
    stored[0, :, 3] = 255  # a black upper row, which is the right column when it is upright
    file = BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=tags)
    small = np.asarray(reduce_photograph(Image.open(file)))
    assert small.shape == (6, 4, 3)
    assert (small[:, -1] == 0).all()
    assert (small[:, :-1] == 255).all()


def test_maps_are_colored_predictions(predictor):
    drawn, maps = draw_maps(predictor, IMAGE), predictor(IMAGE)
    assert drawn.maps.keys() == drawn.legends.keys() == predictor.tasks.keys()
    for name, task in predictor.tasks.items():
        assert drawn.maps[name].shape == (48, 64, 3)
        expected = task.colorize(maps[name][None])[0].permute(1, 2, 0)
        np.testing.assert_array_equal(drawn.maps[name], expected)
    classes = {predictor.tasks["semseg"].class_names[k] for k in maps["semseg"].unique()}
    assert {item for item in drawn.legends["semseg"] if isinstance(item, str)} == classes


def test_each_map_lies_on_the_photograph(predictor):
    drawn = draw_maps(predictor, IMAGE)
    html = maps_html(IMAGE, {"a.ckpt": drawn})
    found = Pictures(html)
    named = [(text, picture) for text, picture in found.pictures if text]
    assert [text for text, _ in named[::2]] == ["photograph"] * 6
    assert [text for text, _ in named[1::2]] == list(drawn.maps)
    for text, picture in named[1::2]:
        np.testing.assert_array_equal(np.asarray(picture), drawn.maps[text])
    assert "a.ckpt" not in html, "one network needs no name"


def test_two_networks_are_side_by_side(predictor):
    drawn = draw_maps(predictor, IMAGE)
    fewer = DrawnMaps({"depth": drawn.maps["depth"]}, {"depth": drawn.legends["depth"]})
    html = maps_html(IMAGE, {"a.ckpt": drawn, "<b>.ckpt": fewer})
    assert "--columns: 2" in html
    words = Pictures(html).words
    assert words[:2] == ["a.ckpt", "<b>.ckpt"]
    assert sum("not predicted" in word for word in words) == 5
    assert len(re.findall('alt="depth"', html)) == 2


def test_legend_keeps_colors_with_their_text():
    items = [Image.new("RGB", (1, 1)), "wall & floor", Image.new("RGB", (64, 1)), "0 to 1"]
    html = legend_html(items)
    assert re.sub(' ?(src|alt)="[^"]*"', "", html) == (
        '<span><img style="width: 1em">wall &amp; floor</span><span><img style="width: 6em">0 to 1</span>'
    )
