import numpy as np
import torch
from torch.utils.data import default_collate

from htt_lightning.data import DenseDataset, PartialLabelDataset
from htt_lightning.data.batch import SampleIndex
from htt_lightning.data.derivation.classes import edges_from_classes
from htt_lightning.data.derivation.derived_labels import RULES, DerivedLabels, build_derivations
from htt_lightning.data.input_size import InputResizer
from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from htt_lightning.tasks import Depth, Edges, Normals, SemSeg

TASKS = [SemSeg(classes=("a", "b", "c")), Depth(), Normals(), Edges()]
LABELS = {"7": ("semseg", "depth"), "12": ("normals",)}


class Noise(DenseDataset):
    """Random maps; notes what is read."""

    ids = ("1", "7", "12")

    def __init__(self):
        self.read = []

    def image(self, index):
        return np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def label(self, index, task):
        self.read.append((self.ids[index], task))
        rng = np.random.default_rng([index, len(task)])
        if task == "depth":
            return rng.uniform(1, 5, (20, 30)).astype(np.float32)
        if task == "normals":
            return np.tile(np.float32([0, 0, 1]), (20, 30, 1))
        return rng.integers(0, 2, (20, 30)).astype(np.uint8)


def dataset(transform=None, size=None, seed=0):
    return PartialLabelDataset(Noise(), TASKS, LABELS, transform or EvalTransform(TASKS, None), size, seed)


def test_hidden_labels_are_not_read():
    data = dataset()
    samples = [data[0], data[1]]
    assert data.dataset.read == [("7", "semseg"), ("7", "depth"), ("12", "normals")]
    assert [s["id"] for s in samples] == ["7", "12"]


def test_unlabeled_maps_are_entirely_missing():
    sample = dataset()[0]
    assert (sample["edges"] == 255).all()
    assert sample["normals"].isnan().all()
    assert {task: bool(given) for task, given in sample["labeled"].items()} == {
        "semseg": True, "depth": True, "normals": False, "edges": False,
    }  # fmt: skip


def test_batches_have_the_documented_shapes():
    batch = default_collate([dataset()[0], dataset()[1]])
    shapes = {"image": (2, 3, 20, 30), "semseg": (2, 20, 30), "edges": (2, 20, 30), "valid": (2, 20, 30)}
    shapes |= {"depth": (2, 1, 20, 30), "normals": (2, 3, 20, 30)}
    types = {"image": torch.float32, "depth": torch.float32, "normals": torch.float32, "valid": torch.bool}
    for key, shape in shapes.items():
        assert batch[key].shape == shape
        assert batch[key].dtype == types.get(key, torch.int64)
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    assert batch["labeled"]["semseg"].tolist() == [True, False]
    assert batch["id"] == ["7", "12"]


def test_large_images_are_averaged_as_for_predict(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    monkeypatch.setattr(Noise, "image", lambda self, index: noise)
    expected, _ = InputResizer((20, 30))(noise, "7")
    image = dataset(size=(20, 30))[0]["image"]
    np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0), expected)
    assert expected.std() < 15  # interpolation would keep most of the noise


def test_edges_follow_from_resized_classes():
    derived = DerivedLabels(build_derivations({"edges": "semseg"}, TASKS, RULES))
    transform = EvalTransform(TASKS, None)
    sample = PartialLabelDataset(Noise(), TASKS, LABELS, transform, (5, 8), derived=derived)[0]
    edges = edges_from_classes(sample["semseg"].numpy().astype(np.uint8), TASKS[0], TASKS[3], None)
    np.testing.assert_array_equal(sample["edges"], edges)


def test_padding_counts_as_unlabeled():
    data = dataset()
    sample = data[SampleIndex(0, is_padding=True)]
    assert not any(sample["labeled"].values())
    assert sample["depth"].isnan().all()
    assert data.dataset.read == []


def test_augmentation_depends_on_seed_epoch_and_id():
    def draw(epoch, seed=0, position=0):
        return dataset(TrainTransform(TASKS, AugmentConfig(), (16, 16)), seed=seed)[SampleIndex(position, epoch)][
            "image"
        ]

    torch.manual_seed(1)
    first = draw(0)
    np.random.default_rng(5).random()
    torch.manual_seed(2)
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))
    assert not torch.equal(first, draw(0, seed=1))
    assert not torch.equal(first, draw(0, position=1))


def test_augmentation_ignores_hidden_labels():
    transform = TrainTransform(TASKS, AugmentConfig(), (16, 16))
    some = PartialLabelDataset(Noise(), TASKS, {"7": ("depth",)}, transform)[SampleIndex(0, 3)]
    more = PartialLabelDataset(Noise(), TASKS, {"7": ("depth", "normals", "edges")}, transform)[SampleIndex(0, 3)]
    assert torch.equal(some["image"], more["image"])
    assert torch.equal(some["depth"].nan_to_num(0), more["depth"].nan_to_num(0))


def test_resizing_keeps_label_values():
    sample = dataset(size=(10, 15))[0]
    assert sample["image"].shape == (3, 10, 15)
    assert set(sample["semseg"].unique().tolist()) <= {0, 1}
    assert torch.isin(sample["depth"], dataset()[0]["depth"]).all()
