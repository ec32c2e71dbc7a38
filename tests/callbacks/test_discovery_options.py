import pytest

from htt_lightning import LabelDiscovery
from htt_lightning.discovery import DiscoveryLossWeights
from htt_lightning.errors import ConfigError, HTTError
from tests.callbacks.test_label_discovery import few, fitted
from tests.tiny import tiny_module


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"stages": 0}, "stages"),
        ({"stages": None}, "stages"),
        ({"stages": 1, "teacher": "x.ckpt"}, "stages"),
        ({"teacher": []}, "teacher"),
        ({"num_teachers": 0}, "num_teachers"),
        ({"num_teachers": 2}, "num_teachers"),
        ({"num_teachers": 2, "stages": 3, "teacher": "ema"}, "num_teachers"),
        ({"num_teachers": 2, "stages": 3, "loss_weights": DiscoveryLossWeights(1, 1, 1)}, "loss_weights"),
        ({"teacher": ["a.ckpt", "b.ckpt"], "loss_weights": DiscoveryLossWeights(1, 0, 1)}, "loss_weights"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"rampup_epochs": -1}, "rampup_epochs"),
        ({"target_type": "firm"}, "target_type"),
        ({"teacher_precision": "half"}, "teacher_precision"),
        ({"confidence_thresholds": {"depth": 1.5}}, "confidence_thresholds.depth"),
        ({"confidence_thresholds": {"dpeth": 0.5}}, "confidence_thresholds"),
        ({"pseudo_label_weights": {"dpeth": 0.5}}, "pseudo_label_weights"),
        ({"class_balance_powers": {"depth": 0.5}}, "class_balance_powers"),
    ],
)
def test_wrong_arguments_are_named(arguments, option):
    with pytest.raises(ConfigError, match=rf"discovery\.{option} must"):
        LabelDiscovery(**arguments).tasks_with_overrides(tiny_module(few()))


def test_missing_teacher_is_named(tmp_path):
    with pytest.raises(HTTError, match=r"discovery\.teacher.*absent\.ckpt"):
        fitted(tmp_path, LabelDiscovery(teacher="absent.ckpt"))
