"""Classes with a side, which a mirror image swaps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from htt_lightning import HTTModule, LabelDiscovery, PASCALContextDataModule
from htt_lightning.data.pseudo_labels import PseudoLabelMap
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.discovery.loss import soft_targets
from htt_lightning.errors import ConfigError
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import IGNORE_INDEX, HumanParts, SemSeg, Task
from htt_lightning.tasks.semseg import unpaired_sides
from htt_lightning.tasks.serialization import check_same_tasks
from tests.data.aligned import train
from tests.data.datasets.folder_tree import MAPS, folder, write_tree
from tests.tiny import BACKBONE, tiny_trainer

CLASSES = ("left arm", "torso", "right arm", "left leg", "right leg")
PAIRS = (("left arm", "right arm"), ("right leg", "left leg"))
PARTS = HumanParts(classes=CLASSES, flip_pairs=PAIRS)
MAP = np.array([[0, 1, 2, IGNORE_INDEX], [3, 3, 4, 1]], np.uint8)
MIRRORED = np.array([[IGNORE_INDEX, 0, 1, 2], [1, 3, 4, 4]], np.uint8)


def test_flip_swaps_paired_classes():
    np.testing.assert_array_equal(PARTS.flip(MAP), MIRRORED)
    np.testing.assert_array_equal(replace(PARTS, flip_pairs=()).flip(MAP), MAP[:, ::-1])
    np.testing.assert_array_equal(PseudoLabelMap(PARTS).flip(MAP), MIRRORED)


def test_augmentation_swaps_paired_classes():
    augment = AugmentConfig(scale_range=(1, 1), hflip_prob=1, photometric_prob=0)
    arrays = {"image": np.zeros((2, 4, 3), np.uint8), "human_parts": MAP}
    flipped, _ = train(arrays, augment, tasks=[PARTS])
    np.testing.assert_array_equal(flipped["human_parts"], MIRRORED)


def test_unflip_swaps_channels_of_paired_classes():
    mirrored = torch.rand(2, 5, 3, 4)
    assert torch.equal(PARTS.unflip(mirrored), mirrored[:, [2, 1, 0, 4, 3]].flip(-1))
    assert torch.equal(replace(PARTS, flip_pairs=()).unflip(mirrored), mirrored.flip(-1))


def test_soft_targets_average_a_class_with_its_partner(monkeypatch):
    monkeypatch.setattr("htt_lightning.discovery.loss.MAX_VIEW_SHIFT", 0)
    labels = torch.from_numpy(MAP[1:].astype(np.int64)).expand(4, 4)  # rows of left leg, left leg, right leg, torso

    def teacher(image):
        """See the true class, also in the mirror image."""
        mirrored = PARTS.flip(labels.numpy().astype(np.uint8))
        seen = labels if image[0, 0, 0, 0] == 0 else torch.from_numpy(mirrored).long()
        logits = 50.0 * torch.nn.functional.one_hot(seen, 5).permute(2, 0, 1)[None].float()
        return {"human_parts": TaskOutput(logits, logits, torch.ones_like(logits[:, :1]))}

    image = torch.arange(4.0).expand(1, 3, 4, 4)
    target = soft_targets([PARTS], teacher(image), image, teacher)["human_parts"]
    assert torch.equal(target.argmax(1)[0], labels)
    torch.testing.assert_close(target.amax(1), torch.ones(1, 4, 4))


def test_flip_pairs_survive_a_config():
    assert Task.from_config(json.loads(json.dumps(PARTS.to_config()))) == PARTS
    assert HTTModule([PARTS], backbone=BACKBONE).hparams["tasks"][0]["init_args"]["flip_pairs"] == [
        ["left arm", "right arm"],
        ["right leg", "left leg"],
    ]
    check_same_tasks([PARTS], [replace(PARTS, flip_pairs=()).to_config()], "A checkpoint")  # a setting of training


def test_flip_pairs_of_a_dataset_are_overridden():
    settings = {"classes": list(CLASSES), "flip_pairs": [list(pair) for pair in PAIRS]}
    (parts,) = PASCALContextDataModule("unread", tasks="human_parts", task_overrides={"human_parts": settings}).tasks
    assert (parts.classes, parts.flip_pairs) == (CLASSES, PAIRS)
    assert hash(parts) == hash(replace(parts))


@pytest.mark.parametrize(
    ("pairs", "got"),
    [
        ((("left arm", "right army"),), "right army.*Did you mean 'right arm'"),
        ((("left arm", "left arm"),), "left arm"),
        ((("left arm", "right arm"), ("left arm", "torso")), "left arm"),
        ((("left arm",),), "left arm"),
    ],
)
def test_wrong_flip_pairs_are_refused(pairs, got):
    with pytest.raises(ConfigError, match=f"flip_pairs of human_parts must .*{got}"):
        HumanParts(classes=CLASSES, flip_pairs=pairs)


def test_unpaired_sides_name_the_option_and_the_pairs():
    (warning,) = unpaired_sides([PARTS, replace(PARTS, flip_pairs=PAIRS[:1]), HumanParts()])
    assert "data.task_overrides.human_parts.flip_pairs" in warning
    assert warning.endswith('[["left leg", "right leg"]].')
    (warning,) = unpaired_sides([SemSeg(classes=("Left_Hand", "right_hand", "left over"))])
    assert warning.endswith('[["Left_Hand", "right_hand"]].')


@pytest.mark.parametrize(("hflip", "target_type", "count"), [(0.5, "hard", 1), (0.0, "hard", 0), (0.0, "soft_tta", 1)])
def test_fit_warns_where_sides_are_mirrored_unpaired(tmp_path, recwarn, hflip, target_type, count):
    sided = [replace(files, task=SemSeg(classes=("left", "right", "c"))) for files in MAPS[:1]]
    augment = AugmentConfig(scale_range=(1, 1), hflip_prob=hflip, photometric_prob=0)
    data = folder(write_tree(tmp_path / "data"), label_files=sided, augment=augment)
    callbacks = [LabelDiscovery(target_type=target_type)]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, limit_train_batches=0, limit_val_batches=0)
    trainer.fit(HTTModule(data.tasks, backbone=BACKBONE, token_dim=8), data)
    found = [str(item.message) for item in recwarn if "flip_pairs" in str(item.message)]
    assert len(found) == count
