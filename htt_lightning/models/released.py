"""Conversion of checkpoints of the method's public release (docs/differences.md, Network)."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from htt_lightning.errors import CheckpointError
from htt_lightning.io.weights import check_finite, safe_torch_load
from htt_lightning.tasks.base import RELEASE_ALIASES

_HEAD = {
    "aspp.convs.4.1": "aspp.pool.0",
    "aspp.convs.4.2": "aspp.pool.1",
    "aspp.convs": "aspp.branches",
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
_PROMPT = {"task_spatial_reduction": "reduce", "qk_producer.0": "query", "qk_producer.1": "key", "FFN": "refine"}


class ReleasedWeights(NamedTuple):
    """Hold a released checkpoint with the names of ``HTTNet``.

    Attributes:
        state: Weights by their name in ``HTTNet``; without ``global_tokens.tokens`` if the file lacks them.
        num_tokens: Number K of classes or bins by task, in the order of the tokens.
        token_dim: Token width D.
    """

    state: dict[str, Tensor]
    num_tokens: dict[str, int]
    token_dim: int


def convert_key(name: str) -> str:
    """Convert the name of a released tensor to its name in ``HTTNet``.

    Examples:
        >>> convert_key("decoders.sal.conv.weight")
        'heads.saliency.conv.weight'

    Raises:
        KeyError: The release has no such tensor.
    """
    first, _, rest = name.partition(".")
    if name == "tokens":
        return "global_tokens.tokens"
    if first == "backbone":
        return f"backbone.model.{rest}"
    if first == "decoders":
        task, rest = rest.split(".", 1)
        return f"heads.{RELEASE_ALIASES.get(task, task)}.{_renamed(rest, _HEAD)}"
    if first == "multi_scale_task_prompter":
        kind, rest = rest.split(".", 1)
        if kind == "multi_scale_task_prompter":
            scale, rest = rest.split(".", 1)
            return f"global_tokens.scales.{scale}.{_renamed(rest, _PROMPT)}"
        if kind == "combine_conv":
            task, rest = rest.split(".", 1)
            return f"global_tokens.fuse.{task}.conv.{rest}"
        task, scale, rest = rest.split(".", 2)
        layers = {"token_projector": "project", "token_restore": "restore"}[kind]
        return f"global_tokens.{layers}.{scale}.{task}.{rest}"
    if first == "task_prompter":
        return f"global_tokens.scale.{_renamed(rest, _PROMPT)}"
    if first == "token_reduction":
        return f"global_tokens.restore.{rest}"
    if name.startswith("fusion.combine_conv."):
        return "global_tokens.fuse.conv." + name.removeprefix("fusion.combine_conv.")
    raise KeyError(name)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Replace the beginning of a name by a table."""
    for old, new in table.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    raise KeyError(name)


def load_released(path: str | Path) -> ReleasedWeights:
    """Load a checkpoint of the public release: weights under ``model``, names with or without ``module.``.

    Raises:
        CheckpointError: The file is missing, corrupt or of another kind.
    """
    try:
        content = safe_torch_load(path)
        stored = {name.removeprefix("module."): value for name, value in content.get("model", content).items()}
        state = {convert_key(name): value for name, value in stored.items()}
        classify = {name.split(".")[1]: x for name, x in state.items() if name.endswith(".classify.weight")}
        num_tokens = {task: weight.shape[0] for task, weight in classify.items()}
        dim = next(iter(classify.values())).shape[1]
        check_finite(state)
    except Exception as error:  # files of other kinds fail in many ways
        raise CheckpointError(
            f"{path} must be a checkpoint of the public release of HiTTs: {type(error).__name__}: {error}\n"
            "Load checkpoints of this library with HTTModule.load_from_checkpoint."
        ) from error
    if "global_tokens.tokens" in state:
        state["global_tokens.tokens"] = state["global_tokens.tokens"].flatten(1)
    return ReleasedWeights(state, num_tokens, dim)
