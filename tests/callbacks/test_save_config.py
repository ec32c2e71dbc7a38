from types import SimpleNamespace

import torch
import yaml
from jsonargparse import ArgumentParser

from htt_lightning.callbacks.save_config import SaveConfig
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def saving(*words):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_argument("--ckpt_path", type=str | None)
    return SaveConfig(parser, parser.parse_args(words))


def test_checkpoint_holds_its_config_and_test_writes_it(tmp_path):
    data = tiny_data(tasks=["depth"], labels="full")
    module = tiny_module(data)
    trainer = tiny_trainer(tmp_path / "run", callbacks=[saving("--seed_everything", "7")], limit_val_batches=0)
    trainer.fit(module, data)
    path = str(tmp_path / "moved.ckpt")
    trainer.save_checkpoint(path)
    noted = torch.load(path, weights_only=True)["training"]
    assert yaml.safe_load(noted["config"])["seed_everything"] == 7
    assert noted["labels"] == data.mask.provenance
    assert noted["labels"]["protocol"] == "full"

    again = tiny_trainer(tmp_path / "test", callbacks=[saving("--ckpt_path", path)])
    again.test(module, data, ckpt_path=path, verbose=False)
    assert yaml.safe_load((tmp_path / "test" / "config.yaml").read_text())["seed_everything"] == 0
    training = yaml.safe_load((tmp_path / "test" / "train_config.yaml").read_text())
    assert training["config"]["seed_everything"] == 7
    assert (training["steps"], training["checkpoint"]) == (trainer.global_step, path)
    assert training["labels"] == noted["labels"]
    assert not (tmp_path / "run" / "train_config.yaml").exists()


def test_without_a_datamodule_labels_are_unknown():
    checkpoint = {}
    saving().on_save_checkpoint(SimpleNamespace(datamodule=None), None, checkpoint)
    assert checkpoint["training"]["labels"] is None
