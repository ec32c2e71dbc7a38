"""``--seed_everything`` and ``--trainer.deterministic true`` give one run, whatever loads its images."""

import csv
from pathlib import Path

import pytest
import torch

from tests.cli.test_entry import SCENES, elsewhere, htt, run_directory  # noqa: F401  # a fixture among them
from tests.test_module import assert_same


@pytest.fixture(autouse=True)
def undone(monkeypatch):
    """What the option switches on for the whole process ends with the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    yield
    torch.use_deterministic_algorithms(False)


def run(seed, workers=0, validate=1.0):
    """Weights, figures and label mask of two stages of augmented training, dropout included."""
    over = {"--discovery.stages": "2", "--data.num_workers": str(workers), "--data.tasks": "semseg,depth"} | SCENES
    over |= {"--trainer.deterministic": "true", "--trainer.num_sanity_val_steps": "0"}
    words = [
        "--seed_everything",
        str(seed),
        "--trainer.val_check_interval",
        str(validate),
        "--discovery.target_type",
        "soft",
    ]
    htt("fit", "--data", "SyntheticDataModule", *words, over=over)
    folder = run_directory().rename(Path(f"seed{seed}_workers{workers}_{validate}"))
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    with (folder / "metrics.csv").open(newline="") as file:
        return weights, list(csv.DictReader(file)), (folder / "label_mask.json").read_bytes()


def test_seed_fixes_the_run_for_any_loading_and_validation():
    weights, figures, mask = run(7)
    again = run(7, workers=2)
    assert_same(weights, again[0])
    assert figures == again[1]
    assert mask == again[2]
    assert len(figures) > 2
    assert_same(weights, run(7, validate=0.5)[0])
    other = run(8)
    assert mask != other[2]
    assert any(not torch.equal(weights[key], other[0][key]) for key in weights)
