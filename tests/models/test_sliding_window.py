from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from htt_lightning.data.input_size import MAX_PIXELS, InputResizer
from htt_lightning.errors import HTTError
from htt_lightning.models.sliding_window import predict_at_original_size, window_starts
from htt_lightning.output import ImageView, TaskOutput
from htt_lightning.tasks import Depth, Edges, Normals, Saliency, SemSeg
from tests.flow import Height

TASKS = [SemSeg(classes=("a", "b", "c")), Saliency(), Normals(num_bins=6), Edges(), Depth(num_bins=5), Height()]


class Local(torch.nn.Module):
    """A network of stride 4 whose cells see nothing but their own pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weights = {task.name: torch.randn(task.num_tokens, 3, 4, 4) for task in TASKS}
        self.sizes = []

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        padded = F.pad(image, (0, -image.shape[-1] % 32, 0, -image.shape[-2] % 32))
        rows, columns = -(-image.shape[-2] // 4), -(-image.shape[-1] // 4)
        outputs = {}
        for name, weight in self.weights.items():
            logits = F.conv2d(padded - 0.5, weight, stride=4)[..., :rows, :columns]
            outputs[name] = TaskOutput(logits, logits[:, :0], torch.ones_like(logits[:, :1]))
        return outputs


def whole(size):
    return ImageView(size, size, (0, 0))


@pytest.mark.parametrize("size", [(150, 97), (64, 200), (65, 65), (300, 40)])
def test_windows_of_a_local_network_equal_one_pass(size):
    network, image = Local(), torch.rand(2, 3, *size)
    at_once = predict_at_original_size(network, TASKS, image, whole(size))
    network.sizes.clear()
    blended = predict_at_original_size(network, TASKS, image, whole(size), tile_size=64)
    assert len(network.sizes) > 1
    assert all(max(window) <= 64 for window in network.sizes)
    for task in TASKS:
        ours, theirs = blended[task.name], at_once[task.name]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if task.name == "semseg":  # rounding decides between classes of equal probability
            assert (ours == theirs).float().mean() > 0.999
        else:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_window_as_large_as_the_image_changes_nothing():
    network, image = Local(), torch.rand(1, 3, 60, 64)
    one, other = (predict_at_original_size(network, TASKS, image, whole((60, 64)), size) for size in (None, 64))
    assert all(torch.equal(one[task.name], other[task.name]) for task in TASKS)


def disagreeing(image):
    """Depth whose logits depend on the start of a window: bin 0 in the first, then the others."""
    cells = image.shape[-2] // 4, image.shape[-1] // 4
    logits = torch.full((1, 5, *cells), -20.0)
    logits[:, int(image[0, 0, 0, 0])] = 20
    return {"depth": TaskOutput(logits, logits[:, :0], logits[:, :1])}


def test_disagreeing_windows_are_blended_without_a_seam():
    image = torch.zeros(1, 3, 64, 96)
    image[..., 32:] = 4  # the second window starts here and predicts the farthest bin
    task = Depth(num_bins=5, min_depth=1.0, max_depth=9.0)
    line = predict_at_original_size(disagreeing, [task], image, whole((64, 96)), tile_size=64)["depth"][0, 0, 30]
    torch.testing.assert_close(line[:30], torch.full((30,), 1.0))
    torch.testing.assert_close(line[68:], torch.full((28,), 9.0))
    steps = line.diff()
    assert (steps >= -1e-5).all()
    assert steps.max() < 0.5  # of 8 meters between the two


def test_blended_normals_have_unit_length():
    image, view = torch.rand(1, 3, 100, 150), whole((100, 150))
    values = predict_at_original_size(Local(), TASKS, image, view, tile_size=64)["normals"]
    torch.testing.assert_close(values.norm(dim=1), torch.ones(1, 100, 150))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 500])
def test_window_starts_are_on_the_grid_and_cover_the_axis(length):
    starts = window_starts(length, 64)
    assert starts == sorted(set(starts))
    assert all(start % 32 == 0 for start in starts)
    assert starts[-1] < length <= starts[-1] + 64
    assert all(after - before < 64 for before, after in pairwise(starts))


def test_maps_of_a_resized_image_have_its_original_size():
    resized, view = InputResizer(image_size=(32, 48))(np.zeros((200, 75, 3), np.uint8), "it")
    assert view == ImageView((200, 75), resized.shape[:2], (0, 0))
    assert abs(resized.shape[0] * resized.shape[1] - 32 * 48) < 64
    assert abs(resized.shape[0] / resized.shape[1] - 200 / 75) < 0.1
    maps = predict_at_original_size(Local(), TASKS, torch.rand(1, 3, *resized.shape[:2]), view)
    assert all(values.shape[-2:] == (200, 75) for values in maps.values())


def test_upsampling_matches_pixel_centers():
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)

    def depths(image):
        logits = torch.stack([1 - image[:, 0, ::4, ::4], image[:, 0, ::4, ::4]], 1).log()
        return {"depth": TaskOutput(logits, logits[:, :0], logits[:, :1])}

    task = Depth(num_bins=2, min_depth=1.0, max_depth=2.0)
    own = predict_at_original_size(depths, [task], ramp, whole((16, 16)))["depth"]
    larger = predict_at_original_size(depths, [task], ramp, ImageView((32, 32), (16, 16), (0, 0)))["depth"]
    expected = F.interpolate(own, size=(32, 32), mode="bilinear", align_corners=False)
    assert (larger - expected)[..., 4:-4].abs().max() < 0.01


def test_padding_is_cropped():
    pixels = np.random.default_rng(0).integers(0, 255, (30, 80, 3), dtype=np.uint8)
    padded, view = InputResizer(min_size=(64, 64))(pixels, "it")
    assert (padded.shape, view) == ((64, 80, 3), ImageView((30, 80), (30, 80), (17, 0)))
    image = torch.from_numpy(padded / 255).float().permute(2, 0, 1)[None]
    maps, uncropped = (predict_at_original_size(Local(), TASKS, image, v) for v in (view, whole((64, 80))))
    assert torch.equal(maps["depth"], uncropped["depth"][..., 17:47, :])


def test_input_size_argument_overrides_the_checkpoint():
    stored = {"image_size": [32, 48], "min_size": None}
    assert InputResizer.of(stored) == InputResizer((32, 48))
    assert InputResizer.of(stored, "original", 64) == InputResizer(tile_size=64)
    assert InputResizer.of(stored, (20, 30)) == InputResizer((20, 30))
    assert InputResizer.of({"image_size": None, "min_size": [64, 64]}) == InputResizer(min_size=(64, 64))
    assert InputResizer.of(None) == InputResizer()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tile_size": 100}, "tile_size .*100"), ({"tile_size": 32}, "tile_size .*32"), ({"input_size": "big"}, "'big'"),
     ({"input_size": (0, 5)}, r"size .*\(0, 5\)")],
)  # fmt: skip
def test_input_resizer_errors_name_the_option(arguments, message):
    with pytest.raises(HTTError, match=message):
        InputResizer.of(None, **arguments)


def test_image_too_large_at_once_asks_for_tiles():
    large = np.broadcast_to(np.zeros(3, np.uint8), (MAX_PIXELS // 1000 + 1, 1000, 3))
    with pytest.raises(HTTError, match=r"big\.png .*1000x33555.*tile_size"):
        InputResizer()(large, "big.png")
