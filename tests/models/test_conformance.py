"""The whole network against reference vectors of the published implementation."""

import numpy as np
import pytest
import torch
from torch import nn

from htt_lightning.models import HTTNet
from htt_lightning.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task

REFERENCE_NAME = {"saliency": "sal", "edges": "edge"}
CITYSCAPES_DEPTH = Depth(bins=50, near=0.01, far=0.4922)
NORMALS = Normals(directions="published")
RUNS = {
    "network_nyud": [SemSeg(classes=("",) * 13), Depth(), NORMALS],
    "network_nyud_single_scale": [SemSeg(classes=("",) * 13), Depth(), NORMALS],
    "network_cityscapes": [SemSeg(classes=("",) * 7), CITYSCAPES_DEPTH],
    "network_pascal": [SemSeg(classes=("",) * 21), HumanParts(), Saliency(), NORMALS, Edges()],
}
HEAD = {
    "aspp.convs.0": "aspp.branches.0",
    "aspp.convs.1": "aspp.branches.1",
    "aspp.convs.2": "aspp.branches.2",
    "aspp.convs.3": "aspp.branches.3",
    "aspp.convs.4.1": "aspp.pool.0",
    "aspp.convs.4.2": "aspp.pool.1",
    "aspp.project": "aspp.project",
    "conv": "conv",
    "task_token_attention.qkv_projection": "attention.project",
    "task_token_attention.spatial_reduction": "attention.reduce",
    "task_token_attention.channel_restore": "attention.feature_out",
    "task_token_attention.token_restore": "attention.token_out",
    "task_token_attention.FFN": "attention.refine",
    "pred_prompter.task_spatial_reduction": "reduce",
    "pred_prompter.sep_token_generator.fc1.0": "fine_tokens.mix.0",
    "pred_prompter.sep_token_generator.fc1.1": "fine_tokens.mix.1",
    "pred_prompter.sep_token_generator.fc2.0": "fine_tokens.mix.3",
    "pred_prompter.sep_token_generator.fc2.1": "fine_tokens.mix.4",
    "pred_prompter.sep_token_generator.fc3": "fine_tokens.mix.6",
    "pred_prompter.sep_token_generator.embedding_layers": "fine_tokens.embed",
    "pred_prompter.FFN": "classify",
    "pred_prompter.refine": "refine",
}
PROMPT = {
    "task_spatial_reduction": "reduce",
    "qk_producer.0": "query",
    "qk_producer.1": "key",
    "FFN": "refine",
}


class Given(nn.Module):
    """A backbone that returns the maps it is told to."""

    def __init__(self, maps: list[torch.Tensor], strides: list[int]) -> None:
        super().__init__()
        self.maps, self.strides, self.channels = maps, strides, [m.shape[1] for m in maps]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return self.maps


def replace_prefix(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    raise KeyError(name)


def our_name(name: str) -> str:
    """The name in ``HTTNet`` of a tensor of the published state dict."""
    if name == "tokens":
        return "global_tokens.tokens"
    first, rest = name.split(".", 1)
    if first == "decoders":
        task, rest = rest.split(".", 1)
        ours = {theirs: ours for ours, theirs in REFERENCE_NAME.items()}.get(task, task)
        return f"heads.{ours}.{replace_prefix(rest, HEAD)}"
    if first == "multi_scale_task_prompter":
        kind, rest = rest.split(".", 1)
        if kind == "multi_scale_task_prompter":
            scale, rest = rest.split(".", 1)
            return f"global_tokens.scales.{scale}.{replace_prefix(rest, PROMPT)}"
        if kind == "combine_conv":
            task, rest = rest.split(".", 1)
            return f"global_tokens.fuse.{task}.conv.{rest}"
        task, scale, rest = rest.split(".", 2)
        return f"global_tokens.{'project' if kind == 'token_projector' else 'restore'}.{scale}.{task}.{rest}"
    if first == "task_prompter":
        return f"global_tokens.scale.{replace_prefix(rest, PROMPT)}"
    if first == "token_reduction":
        return f"global_tokens.restore.{rest}"
    return "global_tokens.fuse.conv." + name.removeprefix("fusion.combine_conv.")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("run", RUNS)
def test_network_agrees_with_the_published_one(run, dtype, oracle):
    vectors = oracle(run)
    tasks: list[Task] = RUNS[run]
    maps = [torch.from_numpy(vectors[f"in.features.{s}"]).to(dtype) for s in range(4)]
    height, width = (int(x) for x in vectors["in.image_size"])
    strides = [height // m.shape[-2] for m in maps]
    net = HTTNet({t.name: t.num_tokens for t in tasks}, backbone=Given(maps, strides), token_dim=16).to(dtype).eval()
    weights = {our_name(k.removeprefix("weights.")): v for k, v in vectors.items() if k.startswith("weights.")}
    buffers = {"mean", "std"}
    assert set(weights) == set(net.state_dict()) - buffers
    state = {k: torch.from_numpy(np.asarray(v)).view_as(net.state_dict()[k]) for k, v in weights.items()}
    net.load_state_dict(state | {k: net.state_dict()[k] for k in buffers})
    with torch.no_grad():
        outputs = net(torch.rand(1, 3, height, width, dtype=dtype))

    tolerance = 1e-5 if dtype == torch.float64 else 1e-3

    def assert_close(ours: torch.Tensor, key: str) -> None:
        theirs = torch.from_numpy(vectors[key]).double()
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max(), key

    for task in tasks:
        output, name = outputs[task.name], REFERENCE_NAME.get(task.name, task.name)
        assert_close(output.feature, f"out.feature.{name}")
        assert_close(output.confidence, f"out.confidence.{name}")
        logits = torch.nn.functional.interpolate(output.logits, (height, width), mode="bilinear")
        if task.channels is None:
            assert_close(logits, f"out.prediction.{name}")
            continue
        assert_close(logits, f"out.bin_logits.{name}")
        theirs = torch.from_numpy(vectors[f"out.prediction.{name}"]).to(dtype)
        if isinstance(task, Normals):  # the reference leaves resized normals shorter than one
            theirs = nn.functional.normalize(theirs, dim=1)
        vectors[f"out.prediction.{name}"] = theirs.numpy()
        assert_close(task.decode(output, (height, width)), f"out.prediction.{name}")
