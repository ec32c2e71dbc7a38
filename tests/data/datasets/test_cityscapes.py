"""Cityscapes with 7 and 19 classes and inverse depth."""

import pickle

import numpy as np
import pytest
import torch

from htt_lightning.data.datasets.cityscapes import CLASSES, Cityscapes, CityscapesDataModule
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, InverseDepth
from tests.tasks.samples import output_of

SIZE = (16, 32)


def write_tree(folder, train=4, val=2):
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            rng = np.random.default_rng([index, count])
            arrays = {
                "image": rng.random((*SIZE, 3)),
                "label_7": rng.integers(-1, 7, SIZE).astype(np.float32),
                "label_19": rng.integers(-1, 19, SIZE).astype(np.float64),
                "depth": rng.uniform(0.01, 0.49, (*SIZE, 1)).astype(np.float32) * (rng.random((*SIZE, 1)) > 0.2),
            }
            for kind, array in arrays.items():
                path = folder / split / kind / f"{index}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
    return folder


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "cityscapes")


@pytest.mark.parametrize("count", [7, 19])
def test_classes_come_from_the_folder_of_their_number(root, count):
    label = Cityscapes(root, "train", count).label(1, "semseg")
    stored = np.load(root / "train" / f"label_{count}" / "1.npy")
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.where(stored < 0, 255, stored))
    data = CityscapesDataModule(str(root.parent), classes=count)
    assert data.tasks[0].num_tokens == len(set(CLASSES[count])) == count
    np.save(root / "train" / f"label_{count}" / "3.npy", np.full(SIZE, count, np.float32))
    with pytest.raises(HTTError, match=rf"{count}/3\.npy must have classes.* to {count - 1}"):
        Cityscapes(root, "train", count).label(3, "semseg")


def test_seven_classes_may_be_in_a_folder_called_label(root):
    expected = Cityscapes(root, "train").label(2, "semseg")
    (root / "train" / "label_7").rename(root / "train" / "label")
    np.testing.assert_array_equal(Cityscapes(root, "train").label(2, "semseg"), expected)


def test_inverse_depth_is_as_stored_and_missing_where_zero(root):
    depth = Cityscapes(root, "val").label(0, "depth")
    stored = np.load(root / "val" / "depth" / "0.npy")[..., 0]
    np.testing.assert_array_equal(np.isnan(depth), stored == 0)
    np.testing.assert_array_equal(np.nan_to_num(depth), stored)


def test_missing_folders_are_reported_with_the_layout(root):
    with pytest.raises(HTTError, match="label_19"):
        Cityscapes(root / "train", "val")


def test_unknown_class_counts_and_tasks_are_rejected(root):
    with pytest.raises(HTTError, match=r"data\.classes must be 7 or 19, got 8"):
        CityscapesDataModule(str(root), classes=8)
    with pytest.raises(HTTError, match="semseg, depth, got normals"):
        Cityscapes(root, "train").label(0, "normals")


def test_tasks_have_the_released_bins_weights_and_thresholds(root):
    for task in (tasks := CityscapesDataModule(str(root)).tasks):
        assert (task.loss_weight, task.confidence_threshold) == (1, 0.95)
    bin_centers = tasks[1].bin_centers(torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(bin_centers, np.geomspace(0.01, 0.4922, 50))


def test_random_label_of_two_tasks_is_rejected(root):
    data = CityscapesDataModule(str(root), labels="random-label")
    with pytest.raises(HTTError, match="one-label"):
        data.label_mask(data.build_dataset("train"))


def test_zoom_multiplies_inverse_depth_and_divides_depth():
    array, divided = np.array([[0.1, np.nan]], np.float32), InverseDepth(scale_with_zoom="divide")
    multiplied = InverseDepth().rescale_values(array, 2.0)
    np.testing.assert_allclose(multiplied, [[0.2, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(1 / multiplied, Depth().rescale_values(1 / array, 2.0), rtol=1e-6)
    np.testing.assert_allclose(divided.rescale_values(array, 2.0), [[0.05, np.nan]], rtol=1e-6)
    assert divided.output_settings == InverseDepth().output_settings


def test_inverse_depth_decodes_within_its_bins():
    decoded = InverseDepth().decode(output_of(torch.randn(2, 50, 4, 8) * 20), (16, 32))
    assert decoded.shape == (2, 1, 16, 32)
    assert 0.01 <= decoded.min() < decoded.max() <= 0.4922


def test_datasets_can_be_pickled(root):
    dataset = pickle.loads(pickle.dumps(Cityscapes(root, "train")))
    np.testing.assert_array_equal(dataset.image(0), Cityscapes(root, "train").image(0))
