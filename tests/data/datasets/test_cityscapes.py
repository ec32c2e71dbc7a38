import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from htt_lightning.cli import main
from htt_lightning.data.datasets.cityscapes import CLASSES, Cityscapes, CityscapesDataModule
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, InverseDepth
from tests.conftest import ROOT
from tests.tasks.samples import output_of
from tests.tiny import BACKBONE

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
    assert data.tasks[0].num_tokens == len(CLASSES[count]) == count
    assert len(set(CLASSES[count])) == count


def test_seven_classes_may_lie_in_a_folder_called_label(root):
    expected = Cityscapes(root, "train").label(2, "semseg")
    (root / "train" / "label_7").rename(root / "train" / "label")
    np.testing.assert_array_equal(Cityscapes(root, "train").label(2, "semseg"), expected)


def test_inverse_depth_stays_as_stored_and_zero_is_missing(root):
    depth = Cityscapes(root, "val").label(0, "depth")
    stored = np.load(root / "val" / "depth" / "0.npy")[..., 0]
    np.testing.assert_array_equal(np.isnan(depth), stored == 0)
    np.testing.assert_array_equal(np.nan_to_num(depth), stored)


@pytest.mark.parametrize("count", [7, 19])
def test_a_class_too_many_is_refused_by_the_check(root, count):
    path = root / "train" / f"label_{count}" / "3.npy"
    np.save(path, np.full(SIZE, count, np.float32))
    source = Cityscapes(root, "train", count)
    with pytest.raises(HTTError, match=f"{count}/3.npy holds.*to {count - 1}"):
        source.check(dict.fromkeys(source.ids, ("semseg", "depth")))


def test_a_missing_folder_is_answered_with_the_expected_tree(root):
    with pytest.raises(HTTError, match="label_19"):
        Cityscapes(root / "train", "val")
    (root / "train" / "depth" / "0.npy").unlink()
    source = Cityscapes(root, "train")
    with pytest.raises(HTTError, match=r"depth/0.npy is missing(.|\n)*2975 samples"):
        source.check(dict.fromkeys(source.ids, ("depth",)))


def test_other_numbers_of_classes_and_other_tasks_are_refused(root):
    with pytest.raises(HTTError, match=r"data.classes must be 7 or 19, not 8"):
        CityscapesDataModule(str(root), classes=8)
    with pytest.raises(HTTError, match="Cityscapes with 7 classes has no labels for normals"):
        Cityscapes(root, "train").label(0, "normals")


def test_tasks_have_the_released_bins_weights_and_thresholds(root):
    semseg, depth = CityscapesDataModule(str(root)).tasks
    assert (semseg.loss_weight, semseg.confidence_threshold, depth.loss_weight, depth.confidence_threshold) == (
        1,
        0.95,
        1,
        0.95,
    )
    bin_centers = depth.bin_centers(torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(bin_centers, np.geomspace(0.01, 0.4922, 50))


def test_random_label_is_refused_as_two_tasks_make_it_one_label(root):
    data = CityscapesDataModule(str(root), labels="random-label")
    with pytest.raises(HTTError, match="use one-label"):
        data.label_mask(data.build_dataset("train"))


def test_a_mask_in_the_published_format_is_read(root, tmp_path, caplog):
    weights = torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0]], dtype=torch.float32)
    torch.save({"labels_weights": weights}, tmp_path / "onelabel.pth")
    data = CityscapesDataModule(str(root), labels=str(tmp_path / "onelabel.pth"))
    np.testing.assert_array_equal(data.label_mask(data.build_dataset("train")).labeled, weights == 1)
    assert "no published label mask" in caplog.text


def test_stepping_closer_multiplies_inverse_depth_and_divides_depth():
    array = np.array([[0.1, np.nan]], np.float32)
    np.testing.assert_allclose(InverseDepth().rescale_values(array, 2.0), [[0.2, np.nan]], rtol=1e-6)
    np.testing.assert_allclose(
        1 / InverseDepth().rescale_values(1 / array, 1.3), Depth().rescale_values(array, 1.3), rtol=1e-6
    )


def test_inverse_depth_may_be_divided_as_earlier_code_does():
    array, divided = np.array([[0.1, np.nan]], np.float32), InverseDepth(scale_with_zoom="divide")
    np.testing.assert_allclose(divided.rescale_values(array, 2.0), [[0.05, np.nan]], rtol=1e-6)
    assert divided.output_settings == InverseDepth().output_settings
    with pytest.raises(HTTError, match="scale_with_zoom"):
        InverseDepth(scale_with_zoom="divided")


def test_inverse_depth_decodes_within_its_bins():
    decoded = InverseDepth().decode(output_of(torch.randn(2, 50, 4, 8) * 20), (16, 32))
    assert decoded.shape == (2, 1, 16, 32)
    assert 0.01 <= decoded.min() < decoded.max() <= 0.4922


def test_sources_travel_to_other_processes(root):
    source = pickle.loads(pickle.dumps(Cityscapes(root, "train")))
    np.testing.assert_array_equal(source.image(0), Cityscapes(root, "train").image(0))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [7, 19])
def test_the_config_fits_validates_and_tests_on_a_tree_that_the_check_passes(classes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])
    root = write_tree(tmp_path / "cityscapes", train=8, val=3)
    shutil.rmtree(root / "train" / f"label_{26 - classes}")  # the other classes are not needed
    torch.save({"labels_weights": torch.eye(2).repeat(4, 1)}, "onelabel.pth")  # the published format
    data = {
        "--data.root": str(root), "--data.classes": str(classes), "--data.labels": "onelabel.pth",
        "--data.augment.crop": "[16, 32]", "--data.num_workers": "0",
    }  # fmt: skip
    options = data | {
        "--data.batch_size": "2", "--model.backbone": BACKBONE, "--model.pretrained": "false", "--model.token_dim": "8",
        "--trainer.accelerator": "cpu", "--trainer.max_epochs": "1", "--trainer.enable_progress_bar": "false",
    }  # fmt: skip

    def htt(command, options):
        main([command, "--config", "cityscapes.yaml", *(word for pair in options.items() for word in pair)])

    htt("check", data)
    divided = re.search(r"--data\.task_overrides '(.*divide.*)'", (ROOT / "configs" / "cityscapes.yaml").read_text())[1]
    htt("fit", options | ({"--data.task_overrides": divided} if classes == 19 else {}))
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    for command in ("validate", "test"):
        htt(command, options | {"--ckpt_path": str(checkpoint)})
    stored = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["tasks"][1]["init_args"]
    assert (stored["scale_with_zoom"], stored["confidence_threshold"]) == (
        "divide" if classes == 19 else "multiply",
        0.95,
    )
    assert "test/depth/abs_err" in capsys.readouterr().out
