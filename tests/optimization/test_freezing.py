import pytest
import torch

from htt_lightning import LabelDiscovery
from htt_lightning.errors import ConfigError
from htt_lightning.models.backbone import Backbone
from htt_lightning.optimization.freezing import freeze_backbone
from tests.callbacks.test_label_discovery import few, fitted, stored, student_of
from tests.tiny import BACKBONE, tiny_module


def frozen(backbone):
    return {name.split(".")[1] for name, parameter in backbone.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (1, {"conv1", "bn1", "layer1"}),
        (3, {"conv1", "bn1", "layer1", "layer2", "layer3"}),
        (True, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_backbone_is_frozen_up_to_a_map(stages, expected):
    backbone = Backbone(BACKBONE)
    freeze_backbone(backbone, stages)
    assert frozen(backbone) == expected
    assert all(part.training for part in backbone.modules())


def test_transformer_is_frozen_up_to_a_depth():
    backbone = Backbone("test_vit")
    freeze_backbone(backbone, 2)
    last = len(backbone.model.model.blocks) * 2 // 4
    for index, block in enumerate(backbone.model.model.blocks):
        assert all(parameter.requires_grad == (index >= last) for parameter in block.parameters())


def changed(before, after):
    return {key for key in before if key.startswith("backbone.") and not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("stages", [True, 2])
def test_frozen_layers_and_their_statistics_stay(stages, tmp_path):
    module = tiny_module(few(), freeze_backbone=stages)
    starts = {key: value.clone() for key, value in module.net.state_dict().items()}
    fitted(tmp_path, LabelDiscovery(student_init="teacher"), module=module, limit_val_batches=1)
    first, second = (student_of(stored(tmp_path, epoch)) for epoch in (0, 1))
    for before, after in ((starts, first), (first, second)):
        parts = {key.split(".")[2] for key in changed(before, after)}
        assert parts == (set() if stages is True else {"layer3", "layer4"})
        assert not torch.equal(before["heads.depth.classify.weight"], after["heads.depth.classify.weight"])
    count = sum(len(group["params"]) for group in stored(tmp_path, 1)["optimizer_states"][0]["param_groups"])
    assert count == sum(parameter.requires_grad for parameter in module.parameters())


def test_tasks_agree_with_a_frozen_backbone(tmp_path):
    module = tiny_module(few(), freeze_backbone=True, consistency="cross_task")
    fitted(tmp_path, module=module, limit_train_batches=1, limit_val_batches=0)


@pytest.mark.parametrize("stages", [5, -1])
def test_number_of_frozen_maps_is_checked(stages, tmp_path):
    with pytest.raises(ConfigError, match=rf"model\.freeze_backbone must be true, false or from 1 to 4, got {stages}"):
        fitted(tmp_path, module=tiny_module(few(), freeze_backbone=stages))
