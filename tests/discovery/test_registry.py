"""Names and options of consistency losses."""

import inspect

import pytest
from torch import nn

from htt_lightning.discovery.registry import CONSISTENCY_LOSSES, build_consistency_loss
from htt_lightning.errors import ConfigError
from htt_lightning.models import MultiTaskNet
from htt_lightning.tasks import Depth, Edges, Normals
from tests.conftest import ROOT
from tests.flow import Height
from tests.tiny import BACKBONE

TASKS = [Normals(), Depth(), Edges()]
each_name = pytest.mark.parametrize("name", CONSISTENCY_LOSSES)


def build(name, options=None, tasks=TASKS, net=None):
    weights = {task.name: task.loss_weight for task in tasks}
    net = net or MultiTaskNet({task.name: task.num_tokens for task in tasks}, backbone=BACKBONE, token_dim=4)
    return build_consistency_loss(name, options, tasks, weights, net)


def test_no_name_builds_nothing():
    assert build(None) is None
    assert build(None, {}) is None


@each_name
def test_options_reach_the_loss(name):
    assert build(name).weight == 1
    assert build(name, {"weight": 0.25}).weight == 0.25


@each_name
def test_documentation_lists_every_option(name):
    text = (ROOT / "docs" / "consistency.md").read_text()
    for parameter in inspect.signature(CONSISTENCY_LOSSES[name].__init__).parameters.values():
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY:
            assert f"| `{parameter.name}` | {parameter.default:g} |" in text


@each_name
def test_single_task_is_refused(name):
    with pytest.raises(ConfigError, match=rf"model\.consistency must be null .*{name} for depth"):
        build(name, tasks=[Depth()])


@each_name
def test_task_without_encoding_or_pseudo_label_is_refused(name):
    with pytest.raises(ConfigError, match=rf"model\.consistency {name} .*height"):
        build(name, tasks=[Depth(), Height()])


def test_network_without_backbone_is_refused():
    with pytest.raises(ConfigError, match=r"model\.consistency must be joint_task or fixmatch"):
        build("cross_task", net=nn.Identity())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixmatsh", None, r"model\.consistency must be .*'fixmatsh'.*'fixmatch'"),
        (None, {"weight": 1}, r"model\.consistency_options must be empty.*weight"),
        ("fixmatch", {"colour": 1}, r"model\.consistency_options .*'colour'.*'color'"),
        ("fixmatch", {"shift": 0.6}, r"model\.consistency_options\.shift .*\[0, 0\.5\], got 0\.6"),
        ("cross_task", {"weight": -1.0}, r"model\.consistency_options\.weight .*-1"),
        ("cross_task", {"width": 0}, r"model\.consistency_options\.width .*integer.*got 0"),
        ("joint_task", {"width": 1.5}, r"model\.consistency_options\.width .*integer.*got 1\.5"),
        ("joint_task", {"weight": "much"}, r"model\.consistency_options\.weight .*'much'"),
        ("joint_task", {"weight": float("nan")}, r"model\.consistency_options\.weight .*nan"),
        ("joint_task", {"weight": True}, r"model\.consistency_options\.weight .*True"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, options)
