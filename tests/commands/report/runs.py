"""Run directories without a run."""

import json

import yaml

SPECS = {
    "semseg/miou": ("%", True, True),
    "semseg/pixel_acc": ("%", True, False),
    "depth/abs_err": ("m", False, True),
    "delta_m": ("%", True, True),
}
"""Unit, direction, and True for primary metrics."""


def config_of(seed=0, labels="one-label", network="htt", **changed):
    """A config with options that distinguish runs, and some that do not."""
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


def write_run(folder, split, metrics, **settings):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(**settings), sort_keys=False))
    names = ("unit", "higher_is_better", "primary")
    rows = {
        f"{split}/{key}": {"value": value, **dict(zip(names, SPECS[key], strict=True)), "epoch": 3}
        for key, value in metrics.items()
    }
    (folder / f"{split}_metrics.json").write_text(json.dumps(rows))
    return folder


def fitted_run(folder, metrics, **settings):
    """The directory of a ``fit``."""
    return write_run(folder, "val", metrics, **settings)


def evaluated_run(folder, metrics, training, steps=100, labels=None, **settings):
    """The directory of a ``test`` of a network trained with the config ``training``."""
    write_run(folder, "test", metrics, **settings)
    info = {"checkpoint": "last.ckpt", "steps": steps, "labels": labels, "config": training}
    (folder / "train_config.yaml").write_text(yaml.safe_dump(info, sort_keys=False))
    return folder
