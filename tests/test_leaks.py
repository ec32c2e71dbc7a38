"""Whole runs on files that differ in hidden labels alone are one run: weights, figures, masks, choice of a model."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import LabelDiscovery, NYUDDataModule
from htt_lightning.callbacks import ResultsTable
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.test_module import weights
from tests.tiny import tiny_module, tiny_trainer

SIZE = (32, 48)
KINDS = {"semseg": "label", "depth": "depth", "normals": "normal"}
OTHER = {"semseg": lambda a: (a + 2) % 13, "depth": lambda a: 0.7 * a + 1, "normals": lambda a: -a}


def rooms(root, workers=0, derive=None):
    return NYUDDataModule(str(root), labels="random-label", batch_size=3, num_workers=workers, seed=1, derive=derive)


def ruin(root, out, given=False):
    """A copy of the tree whose hidden labels, or else those that are given, are others that are as plausible."""
    shutil.copytree(root, out)
    data = rooms(root)
    labels = data.labels_per_image("train", data.build_dataset("train"))
    changed = [(name, task) for name, kept in labels.items() for task in KINDS if (task in kept) == given]
    assert len(changed) > 5
    assert len({task for _, task in changed}) == 3
    for name, task in changed:
        path = out / "train" / KINDS[task] / f"{name}.npy"
        np.save(path, OTHER[task](np.load(path)).astype(np.float32))
    return out


def outcome(root, folder, workers=0, derive=None):
    """All that two stages of augmented training leave behind."""
    torch.manual_seed(0)
    data = rooms(root, workers, derive)
    module = tiny_module(data)
    best = ModelCheckpoint(dirpath=folder / "kept", monitor="val/semseg/pixel_acc", mode="max", filename="{epoch}")
    callbacks = [LabelDiscovery(target_type="soft_tta"), best, ResultsTable()]
    trainer = tiny_trainer(folder, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(module, data)
    return {
        "weights": weights(module),
        "figures": {key: float(value) for key, value in trainer.callback_metrics.items()},
        "chosen": best.best_model_path.removeprefix(str(folder)),
        "best": weights(type(module).load_from_checkpoint(best.best_model_path)),
        "files": {name: (folder / name).read_bytes() for name in ("label_mask.json", "val_metrics.json")},
    }


def differences(one, other):
    """List the differences between two outcomes."""
    found = [key for key in ("chosen", "files") if one[key] != other[key]]
    found += [key for key in ("weights", "best") if any(not torch.equal(one[key][x], other[key][x]) for x in one[key])]
    assert one["figures"].keys() == other["figures"].keys()
    return found + [
        key for key, value in one["figures"].items() if not np.array_equal(value, other["figures"][key], True)
    ]


@pytest.fixture(scope="module", params=[None, {"normals": "depth"}], ids=["", "derived"])
def derive(request):
    return request.param


@pytest.fixture(scope="module")
def true(tmp_path_factory, derive):
    folder = tmp_path_factory.mktemp("true")
    write_nyud_tree(folder / "NYUDv2", train=9, val=3, size=SIZE)
    return folder / "NYUDv2", outcome(folder / "NYUDv2", folder / "run", derive=derive)


@pytest.mark.parametrize("workers", [0, 2])
def test_hidden_labels_change_nothing(workers, derive, true, tmp_path):
    other = outcome(ruin(true[0], tmp_path / "NYUDv2"), tmp_path / "run", workers, derive)
    assert differences(true[1], other) == []


def test_kept_labels_change_the_run(true, derive, tmp_path):
    other = outcome(ruin(true[0], tmp_path / "NYUDv2", given=True), tmp_path / "run", derive=derive)
    found = differences(true[1], other)
    assert {
        "weights",
        "best",
        "files",
        "val/depth/abs_err",
        "train/semseg/pseudo_label_confidence",
        "train/loss",
    } <= set(found)
