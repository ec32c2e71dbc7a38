"""The whole network against reference vectors of the published implementation."""

import pytest
import torch
from torch import nn

from htt_lightning.models import HTTNet
from htt_lightning.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task
from tests.vectors import NETWORK_PRECISION, available, load

REFERENCE_NAME = {"saliency": "sal", "edges": "edge"}
CITYSCAPES_DEPTH = Depth(num_bins=50, min_depth=0.01, max_depth=0.4922)
NORMALS = Normals(bin_directions="published")
RUNS = {
    "network_nyud": [SemSeg(classes=("",) * 13), Depth(), NORMALS],
    "network_nyud_single_scale": [SemSeg(classes=("",) * 13), Depth(), NORMALS],
    "network_cityscapes": [SemSeg(classes=("",) * 7), CITYSCAPES_DEPTH],
    "network_pascal": [SemSeg(classes=("",) * 21), HumanParts(), Saliency(), NORMALS, Edges()],
}


class Given(nn.Module):
    """A backbone that returns the maps it is told to."""

    def __init__(self, maps: list[torch.Tensor], strides: list[int]) -> None:
        super().__init__()
        self.maps, self.strides, self.channels = maps, strides, [m.shape[1] for m in maps]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.maps


@pytest.mark.parametrize("dtype", NETWORK_PRECISION, ids=str)
@pytest.mark.parametrize("run", available(RUNS))
def test_network_agrees_with_the_published_one(run, dtype, tmp_path):
    vectors = load(run)
    tasks: list[Task] = RUNS[run]
    maps = [torch.from_numpy(vectors[f"in.features.{s}"]).to(dtype) for s in range(4)]
    height, width = (int(x) for x in vectors["in.image_size"])
    strides = [height // m.shape[-2] for m in maps]
    weights = {k.removeprefix("weights."): torch.from_numpy(v) for k, v in vectors.items() if k.startswith("weights.")}
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "checkpoint.pth")
    net = HTTNet.from_official_checkpoint(tmp_path / "checkpoint.pth", Given(maps, strides)).to(dtype).eval()
    assert list(net.tasks) == [task.name for task in tasks]
    with torch.no_grad():
        outputs = net(torch.rand(1, 3, height, width, dtype=dtype))

    def assert_close(ours: torch.Tensor, key: str) -> None:
        theirs = torch.from_numpy(vectors[key]).double()
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= NETWORK_PRECISION[dtype] * theirs.abs().max(), key

    for task in tasks:
        output, name = outputs[task.name], REFERENCE_NAME.get(task.name, task.name)
        assert_close(output.feature, f"out.feature.{name}")
        assert_close(output.confidence, f"out.confidence.{name}")
        logits = torch.nn.functional.interpolate(output.logits, (height, width), mode="bilinear")
        if task.field_channels is None:
            assert_close(logits, f"out.prediction.{name}")
            continue
        if f"out.bin_logits.{name}" in vectors:
            assert_close(logits, f"out.bin_logits.{name}")
        theirs = torch.from_numpy(vectors[f"out.prediction.{name}"]).to(dtype)
        if isinstance(task, Normals):  # the reference leaves resized normals shorter than one
            theirs = nn.functional.normalize(theirs, dim=1)
        vectors[f"out.prediction.{name}"] = theirs.numpy()
        assert_close(task.decode(output, (height, width)), f"out.prediction.{name}")
