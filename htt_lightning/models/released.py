"""Conversion of checkpoints of the method's public release (docs/differences.md, Network)."""

import re
from pathlib import Path

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
_PYRAMID = "multi_scale_task_prompter"
_PREFIXES = {
    "tokens$": "global_tokens.tokens",
    r"backbone\.": "backbone.model.",
    r"token_reduction\.": "global_tokens.restore.",
    r"fusion\.combine_conv\.": "global_tokens.fuse.conv.",
    rf"{_PYRAMID}\.combine_conv\.(\d+)\.": r"global_tokens.fuse.\1.conv.",
    rf"{_PYRAMID}\.token_projector\.(\d+)\.(\d+)\.": r"global_tokens.project.\2.\1.",
    rf"{_PYRAMID}\.token_restore\.(\d+)\.(\d+)\.": r"global_tokens.restore.\2.\1.",
    **{rf"{_PYRAMID}\.{_PYRAMID}\.(\d+)\.{old}\.": rf"global_tokens.scales.\1.{new}." for old, new in _PROMPT.items()},
    **{rf"task_prompter\.{old}\.": f"global_tokens.scale.{new}." for old, new in _PROMPT.items()},
    **{rf"decoders\.(\w+)\.{old}\.": rf"heads.\1.{new}." for old, new in _HEAD.items()},
}
"""Prefixes in ``HTTNet`` by those in the release, as regular expressions; the first match counts."""


def convert_key(name: str) -> str:
    """Convert the name of a released tensor to its name in ``HTTNet``; an unknown one raises ``KeyError``.

    Examples:
        >>> convert_key("decoders.sal.conv.weight")
        'heads.saliency.conv.weight'
    """
    for task, ours in RELEASE_ALIASES.items():
        name = re.sub(rf"^decoders\.{task}\.", f"decoders.{ours}.", name)
    for old, new in _PREFIXES.items():
        if match := re.match(old, name):
            return match.expand(new) + name[match.end() :]
    raise KeyError(name)


def load_released(path: str | Path) -> tuple[dict[str, Tensor], dict[str, int], int]:
    """Load a checkpoint of the public release: weights under ``model``, names with or without ``module.``.

    Returns:
        Weights by their name in ``HTTNet`` (few files have ``global_tokens.tokens``), number K of classes or bins by
        task in the order of the tokens, and the token width D.

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
    return state, num_tokens, dim
