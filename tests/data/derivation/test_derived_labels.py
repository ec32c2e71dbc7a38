"""Derived labels in the batches of a datamodule."""

import numpy as np
import pytest
import torch

from htt_lightning import SyntheticDataModule
from htt_lightning.data import MixedDataModule, PASCALContextDataModule
from htt_lightning.data.batch import SampleIndex
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.derivation.classes import edges_from_classes
from htt_lightning.data.derivation.derived_labels import DerivationRule
from htt_lightning.data.origin import NO_LABEL, Origin
from htt_lightning.errors import CheckpointError, ConfigError
from htt_lightning.tasks import Depth, Edges, Saliency
from tests.tiny import tiny_data

DERIVE = {"normals": "depth", "edges": {"from": "semseg"}}


def ready(**options):
    data = tiny_data(**({"derive": DERIVE} | options))
    data.setup("fit")
    return data


def codes(sample):
    return {task: [None, *Origin][int(code) + 1] for task, code in sample["origin"].items()}


@pytest.mark.parametrize("labels", ["one-label", "random-label", "full"])
def test_images_get_labels_that_follow_from_theirs(labels):
    data, derived = ready(labels=labels), 0
    kept = data.labels_per_image("train", data.train.dataset)
    for name, sample in zip(data.train.ids, data.train, strict=True):
        expected = dict.fromkeys(kept[name], Origin.GIVEN)
        for target, source in (("normals", "depth"), ("edges", "semseg")):
            if source in kept[name] and target not in kept[name]:
                expected[target] = Origin.DERIVED
                derived += 1
        assert {task: origin for task, origin in codes(sample).items() if origin} == expected
        assert {task for task, given in sample["labeled"].items() if given} == set(expected)
    assert bool(derived) == (labels != "full")
    assert all(str(count) in data.label_summary for count in data.train.derived.summary(kept.values()).split())


def test_only_training_images_get_derived_labels():
    data = ready(test_split="train")
    data.setup("test")
    kept = data.labels_per_image("train", data.train.dataset)
    for sample in (*data.test, *data.val):
        assert Origin.DERIVED not in codes(sample).values()
    assert [{task for task, given in sample["labeled"].items() if given} for sample in data.test] == [
        set(tasks) for tasks in kept.values()
    ]
    position = next(k for k, (_, tasks) in enumerate(data.train.items) if "depth" in tasks)
    padding = data.train[SampleIndex(position, is_padding=True)]
    assert not any(padding["labeled"].values())
    assert {int(code) for code in padding["origin"].values()} == {NO_LABEL}
    assert len(list(data.training_targets(data.tasks[3]))) == sum("normals" in tasks for tasks in kept.values())


def test_derived_labels_are_transformed_as_given_ones(monkeypatch):
    """Given edges that equal the derived ones make the same batches, but for the origin."""
    options = {"labels": "full", "tasks": "semseg,edges"}
    derived = ready(**options, derive={"edges": "semseg"})
    monkeypatch.setattr(derived, "labels_per_image", lambda _, dataset: dict.fromkeys(dataset.ids, ("semseg",)))
    derived.setup("fit")
    label, (semseg, edges) = SyntheticScenes.label, derived.tasks

    def replaced(self, index, task):
        return (
            edges_from_classes(label(self, index, "semseg"), semseg, edges, None)
            if task == "edges"
            else label(self, index, task)
        )

    samples = list(derived.train)
    monkeypatch.setattr(SyntheticScenes, "label", replaced)
    for sample, expected in zip(samples, ready(**options, derive=None).train, strict=True):
        assert (sample["edges"] == 1).any()
        assert codes(sample) == {"semseg": Origin.GIVEN, "edges": Origin.DERIVED}
        assert all(torch.equal(sample[key], expected[key]) for key in ("image", "semseg", "edges", "valid"))


def test_workers_derive_the_same_labels():
    one, two = (next(iter(ready(num_workers=count, labels="random-label").train_dataloader())) for count in (0, 2))
    assert all(torch.equal(one["origin"][task], two["origin"][task]) for task in one["origin"])
    for task in one["labeled"]:
        assert torch.equal(one[task].nan_to_num(9), two[task].nan_to_num(9))
    assert (torch.stack([*one["origin"].values()]) == Origin.DERIVED.code).any()


class Own(SyntheticDataModule):
    """Edges where depth is known, and saliency of what is near."""

    def derivation_rules(self):
        return DerivationRule(Saliency, Depth, nearer_than), *super().derivation_rules()


def nearer_than(label, source, target, camera, meters=2.0):
    assert camera is None or camera.size
    return (label < meters).astype(np.uint8)


def test_subclass_adds_a_rule():
    data = Own(train_images=12, val_images=2, image_size=(32, 48), labels="one-label", num_workers=0, seed=0,
               augment=None, derive={"saliency": {"from": "depth", "meters": 4.5}})  # fmt: skip
    data.setup("fit")
    sample = next(sample for sample in data.train if sample["labeled"]["depth"])
    assert torch.equal(sample["saliency"], (sample["depth"][0] < 4.5).long())
    with pytest.raises(ConfigError, match=r"data\.derive\.saliency .*meters.*'metres'.*Did you mean 'meters'"):
        Own(derive={"saliency": {"from": "depth", "metres": 1}})


@pytest.mark.parametrize(
    ("derive", "words"),
    [
        ({"normal": "depth"}, "data.derive must .*'normal'.*'normals'"),
        ({"normals": "dept"}, "data.derive.normals must .*'dept'.*'depth'"),
        ({"normals": {}}, "data.derive.normals must .*'None'"),
        ({"normals": "normals"}, "data.derive.normals .*itself"),
        ({"normals": "depth", "depth": "semseg"}, "data.derive.normals .*derived"),
        ({"normals": "semseg"}, "data.derive.normals .*Depth.*'semseg'"),
        ({"depth": "semseg"}, "data.derive.depth .*no rule"),
        ({"edges": "human_parts"}, "data.derive.edges .*SemSeg.*'human_parts'"),
        ({"edges": {"from": "semseg", "width": 2}}, "data.derive.edges .*'width'"),
        ({"normals": {"from": "depth", "radius": "two"}}, "data.derive.normals"),
        ({"saliency": "semseg"}, "data.derive.saliency.classes"),
    ],
)
def test_wrong_rules_are_named(derive, words):
    with pytest.raises(ConfigError, match=words):
        tiny_data(derive=derive)


@pytest.mark.parametrize("degrees", [0, 180, -1])
def test_field_of_view_must_be_an_angle(degrees):
    with pytest.raises(ConfigError, match=rf"data\.field_of_view .*got {degrees}"):
        tiny_data(field_of_view=degrees)


def test_normals_need_a_camera(monkeypatch):
    known = {
        name: sample["normals"]
        for name, sample in zip(ready(augment=None).train.ids, ready(augment=None).train, strict=True)
    }
    monkeypatch.setattr(SyntheticScenes, "camera_of", lambda self, index: None)
    with pytest.raises(ConfigError, match=r"data\.field_of_view .*normals from depth"):
        ready()
    angle = 2 * np.degrees(np.arctan(0.7))
    told = ready(augment=None, field_of_view=angle).train
    for name, sample in zip(told.ids, told, strict=True):
        torch.testing.assert_close(sample["normals"], known[name], equal_nan=True, rtol=0, atol=1e-5)
    ready(derive={"edges": "semseg"})


def test_mixture_derives_with_the_camera_of_each_dataset():
    parts = [tiny_data(tasks="depth,normals", scene_seed=seed) for seed in (0, 1)]
    data = MixedDataModule(parts, (32, 48), derive={"normals": "depth"}, batch_size=2, num_workers=0, seed=0)
    data.setup("fit")
    assert any(origin is Origin.DERIVED for sample in data.train for origin in codes(sample).values())
    assert data.train.dataset.camera_of(5) == parts[1].build_dataset("train").camera
    with pytest.raises(ConfigError, match=r"data\.datasets .*derive"):
        MixedDataModule([tiny_data(derive=DERIVE)], (32, 48))
    with pytest.raises(ConfigError, match=r"data\.datasets .*field_of_view of their own"):
        MixedDataModule([tiny_data(field_of_view=60)], (32, 48))


def test_resumed_run_must_derive_the_same():
    data = ready()
    state = data.state_dict()
    data.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"data\.derive must be .*'depth'"):
        ready(derive={"edges": "semseg"}).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"data\.derive .*'field_of_view': 60"):
        ready(field_of_view=60).load_state_dict(state)


def test_labels_of_weight_zero_are_not_derived():
    data = ready(origin_weights={"derived": {"normals": 0, "edges": 0.5}})
    assert list(data.derived.description) == ["edges"]
    assert Edges in [type(one.target) for one in data.derived.derivations]


def test_pascal_context_derives_thin_edges():
    data = PASCALContextDataModule("nowhere", derive={"edges": "semseg"})
    label = np.repeat([[3, 4]], 8, 0).repeat(8, 1).astype(np.uint8)
    thin, thick = (
        data.derived.derive({"semseg": label}, None)["edges"],
        edges_from_classes(label, data.tasks[0], data.tasks[4], None),
    )
    assert (thin == 1).any()
    assert not np.array_equal(thin, thick)
    assert np.array_equal(edges_from_classes(label, data.tasks[0], data.tasks[4], None, thin=True), thin)
