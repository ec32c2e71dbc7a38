import json
import logging

import pytest
import torch

from htt_lightning.errors import CheckpointError
from htt_lightning.models import HTTNet
from htt_lightning.models.released import convert_key
from htt_lightning.tasks.base import RELEASE_ALIASES
from tests.vectors import FOLDER

TINY = {"backbone": "test_resnet", "token_dim": 8}
NUM_TOKENS = {"semseg": 5, "saliency": 2, "edges": 1}


@pytest.fixture
def released_keys():
    """Names and shapes of the published networks."""
    return json.loads((FOLDER / "released_state_dict_keys.json").read_text())


@pytest.mark.parametrize("benchmark", ["nyud", "pascal"])
def test_every_released_weight_is_converted(benchmark, released_keys, tmp_path):
    shapes = released_keys[benchmark]
    weights = {f"module.{name}": torch.zeros(shape) for name, shape in shapes.items() if name != "tokens"}
    torch.save({"model": weights, "optimizer": {"lr": 1.0}, "epoch": 100}, tmp_path / "checkpoint.pth")
    net = HTTNet.from_official_checkpoint(tmp_path / "checkpoint.pth")
    theirs = {convert_key(name): shape for name, shape in shapes.items()}
    ours = {name: list(value.shape) for name, value in net.state_dict().items() if name not in ("mean", "std")}
    assert ours == {name: shape[:2] if name.endswith("tokens") else shape for name, shape in theirs.items()}
    assert len(theirs) == len(shapes)


def released_file(path, net, with_tokens=False):
    """A file as the release would save this network."""
    heads = {
        "aspp.pool.0": "aspp.convs.4.1", "aspp.pool.1": "aspp.convs.4.2", "aspp.branches": "aspp.convs",
        "aspp.project": "aspp.project", "conv": "conv", "attention.project": "task_token_attention.qkv_projection",
        "attention.reduce": "task_token_attention.spatial_reduction",
        "attention.feature_out": "task_token_attention.channel_restore",
        "attention.token_out": "task_token_attention.token_restore", "attention.refine": "task_token_attention.FFN",
        "reduce": "pred_prompter.task_spatial_reduction", "classify": "pred_prompter.FFN",
        "refine": "pred_prompter.refine", "fine_tokens.embed": "pred_prompter.sep_token_generator.embedding_layers",
        "fine_tokens.mix.0": "pred_prompter.sep_token_generator.fc1.0",
        "fine_tokens.mix.1": "pred_prompter.sep_token_generator.fc1.1",
        "fine_tokens.mix.3": "pred_prompter.sep_token_generator.fc2.0",
        "fine_tokens.mix.4": "pred_prompter.sep_token_generator.fc2.1",
        "fine_tokens.mix.6": "pred_prompter.sep_token_generator.fc3",
    }  # fmt: skip
    scales = {"reduce": "task_spatial_reduction", "query": "qk_producer.0", "key": "qk_producer.1", "refine": "FFN"}
    prompter, back = "multi_scale_task_prompter", {ours: theirs for theirs, ours in RELEASE_ALIASES.items()}

    def renamed(rest, table):
        old = next(old for old in table if rest.startswith(old + "."))
        return table[old] + rest.removeprefix(old)

    def theirs(name):
        first, rest = name.split(".", 1)
        if first == "backbone":
            return f"backbone.{rest.removeprefix('model.')}"
        if first == "heads":
            task, rest = rest.split(".", 1)
            return f"decoders.{back.get(task, task)}.{renamed(rest, heads)}"
        if rest == "tokens":
            return "tokens"
        kind, index, rest = rest.split(".", 2)
        if kind == "scales":
            return f"{prompter}.{prompter}.{index}.{renamed(rest, scales)}"
        if kind == "fuse":
            return f"{prompter}.combine_conv.{index}.{rest.removeprefix('conv.')}"
        task, rest = rest.split(".", 1)
        layers = {"project": "token_projector", "restore": "token_restore"}[kind]
        return f"{prompter}.{layers}.{task}.{index}.{rest}"

    state = {theirs(name): value for name, value in net.state_dict().items() if name not in ("mean", "std")}
    state["tokens"] = state["tokens"][..., None]
    if not with_tokens:
        del state["tokens"]
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


def predictions(net, image):
    with torch.no_grad():
        return {task: output.logits for task, output in net.eval()(image).items()}


@pytest.mark.parametrize("how", ["in the file", "given"])
def test_released_network_with_its_tokens_predicts_the_same(tmp_path, how, caplog):
    net, image = HTTNet(NUM_TOKENS, **TINY, tokens="released"), torch.rand(2, 3, 64, 96)
    path = released_file(tmp_path / "checkpoint.pth", net, with_tokens=how == "in the file")
    tokens = net.state_dict()["global_tokens.tokens"] if how == "given" else None
    again = HTTNet.from_official_checkpoint(path, backbone="test_resnet", tokens=tokens)
    assert list(again.heads) == list(NUM_TOKENS)
    expected = predictions(net, image)
    for task, logits in predictions(again, image).items():
        torch.testing.assert_close(logits, expected[task], rtol=0, atol=0)
    assert not caplog.text


def test_released_network_without_tokens_warns(tmp_path, caplog):
    net = HTTNet(NUM_TOKENS, **TINY, tokens="released")
    path = released_file(tmp_path / "checkpoint.pth", net)
    with caplog.at_level(logging.WARNING):
        again = HTTNet.from_official_checkpoint(path, backbone="test_resnet")
    assert "lacks the global tokens" in caplog.text
    assert not torch.equal(again.global_tokens.tokens, net.global_tokens.tokens)
    for name, value in net.state_dict().items():
        assert name == "global_tokens.tokens" or torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize("arguments", [{}, {"backbone": "test_resnet", "tokens": torch.zeros(2, 3)}])
def test_released_weights_must_fit(tmp_path, arguments):
    path = released_file(tmp_path / "checkpoint.pth", HTTNet(NUM_TOKENS, **TINY, tokens="released"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth must fit"):
        HTTNet.from_official_checkpoint(path, **arguments)


@pytest.mark.parametrize(
    "content", [{"model": {"other": torch.zeros(1)}}, torch.zeros(3), {"model": {}}, b"hello", None]
)
def test_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth must be a checkpoint of the public release"):
        HTTNet.from_official_checkpoint(path)
