"""Runs with equal seeds are equal, whatever loads their images and whenever they validate."""

import csv
from pathlib import Path

import pytest
import torch

from tests.cli.test_entry import SCENES, htt, run_directory
from tests.test_module import assert_same

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture(autouse=True)
def restored_settings(monkeypatch):
    """Undo what ``--trainer.deterministic`` switches on for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    yield
    torch.use_deterministic_algorithms(False)


def train(folder, seed, workers=0, val_check_interval=1.0):
    """Return weights, metrics and label mask of two stages with augmentation and dropout."""
    options = SCENES | {
        "--data.num_workers": str(workers),
        "--data.tasks": "semseg,depth",
        "--discovery.stages": "2",
        "--discovery.target_type": "soft",
        "--seed_everything": str(seed),
        "--trainer.deterministic": "true",
        "--trainer.num_sanity_val_steps": "0",
        "--trainer.val_check_interval": str(val_check_interval),
    }
    htt("fit", "--data", "SyntheticDataModule", over=options)
    run = run_directory().rename(folder)
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    with (run / "metrics.csv").open(newline="") as file:
        return stored["state_dict"], list(csv.DictReader(file)), (run / "label_mask.json").read_bytes()


def test_seed_determines_weights_metrics_and_mask():
    weights, metrics, mask = train(Path("first"), seed=7)
    assert len(metrics) > 2
    again = train(Path("workers"), seed=7, workers=2)
    assert_same(weights, again[0])
    assert (metrics, mask) == again[1:]
    assert_same(weights, train(Path("validation"), seed=7, val_check_interval=0.5)[0])
    other, _, other_mask = train(Path("other"), seed=8)
    assert mask != other_mask
    assert any(not torch.equal(weights[key], other[key]) for key in weights)
