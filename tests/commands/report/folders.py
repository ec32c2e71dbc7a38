"""Folders as runs leave them, without running anything."""

import json

import yaml

FIGURES = {
    "semseg/miou": ("%", True, True),
    "semseg/pixel_acc": ("%", True, False),
    "depth/abs_err": ("m", False, True),
    "delta_m": ("%", True, True),
}
"""Unit, direction, and whether it is a headline."""


def config_of(seed=0, labels="one-label", network="htt", **changed):
    """A config with the keys that tell runs apart, and some that do not."""
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": changed.pop("epochs", 4), "logger": {"init_args": {"save_dir": "runs"}}},
        "model": {"network": network, "lr": 1e-3, "loss_weights": None, **changed.pop("model", {})},
        "data": {
            "class_path": "htt_lightning.SyntheticDataModule",
            "init_args": {"labels": labels, "seed": None, "num_workers": 0, **changed},
        },
        "checkpoint": {"dirpath": None},
        "ckpt_path": None,
    }


def write_values(path, split, values):
    rows = {}
    for key, value in values.items():
        unit, higher, primary = FIGURES[key]
        row = {"value": value, "unit": unit, "higher_is_better": higher, "primary": primary, "epoch": 3}
        rows[f"{split}/{key}"] = row
    path.write_text(json.dumps(rows))


def fitted_run(folder, values, **settings):
    """What ``fit`` leaves."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(**settings), sort_keys=False))
    write_values(folder / "val_metrics.json", "val", values)
    return folder


def scored_run(folder, values, training, steps=100, labels=None, **settings):
    """What ``test`` leaves, of a network that was trained with the config ``training``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(**settings), sort_keys=False))
    note = {"checkpoint": "last.ckpt", "steps": steps, "labels": labels, "config": training}
    (folder / "train_config.yaml").write_text(yaml.safe_dump(note, sort_keys=False))
    write_values(folder / "test_metrics.json", "test", values)
    return folder
