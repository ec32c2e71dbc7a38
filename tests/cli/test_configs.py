"""What a config may say where the parser would look away, or Lightning answer with a traceback."""

import sys
from pathlib import Path

import pytest

from htt_lightning.cli.entry import CALLBACKS, HTTCLI, main

GROUPS = ("trainer", "model", "discovery.loss_weights", *CALLBACKS)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


def said_of(text, *words):
    Path("run.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "run.yaml", *words])
    return str(stop.value)


@pytest.mark.parametrize("value", ["3", "null", "[1]", "false", ".nan"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_value_where_options_belong_is_refused(group, value):
    outer, _, inner = group.partition(".")
    said = said_of(f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}")
    assert said.startswith(f"error: {group} is {'NaN' if value == '.nan' else value}; give it options")


def test_it_is_refused_in_a_config_among_the_words_as_well():
    with pytest.raises(SystemExit, match="discovery is 3; give it options"):
        main(["fit", "--config={discovery: 3}"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: {lr: null}", "model.lr"),
        ("discovery: {teacher: null}", "discovery.teacher"),
        ("data: {class_path: SyntheticDataModule, init_args: {train_images: null}}", "data.train_images"),
        ("data: {class_path: SyntheticDataModule, init_args: {labels: null}}", "data.labels"),
        ("data: {class_path: SyntheticDataModule, init_args: {augment: {hflip_prob: null}}}", "augment.hflip_prob"),
    ],
)
def test_null_is_refused_where_a_value_is_needed(text, key):
    assert said_of(text).startswith(f"error: {key} cannot be null")


def test_null_is_a_value_where_it_means_something(monkeypatch):
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, name: None)
    Path("run.yaml").write_text(
        "{model: {backbone: test_resnet, single_task_baselines: null}, discovery: {class_balance_powers: null}}"
    )
    words = ["--data.augment=null", "--data.cache=null", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["fit", "--config=run.yaml", *words])


def test_a_group_of_options_may_lie_in_a_file_of_its_own(monkeypatch):
    found = {}
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, name: found.update(self.config[name].model))
    Path("model.yaml").write_text("{backbone: test_resnet, token_dim: 16}")
    Path("run.yaml").write_text("model: model.yaml")
    main(["fit", "--config=run.yaml", "--trainer.accelerator=cpu", "--trainer.logger=false"])
    assert found["token_dim"] == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {accelerator: hello}", "error: trainer: You selected an invalid accelerator name"),
        ("trainer: {accelerator: cpu, strategy: hello}", "error: trainer: You selected an invalid strategy name"),
        ("trainer: {accelerator: cpu, devices: hello}", "error: trainer: `devices`"),
        ("trainer: {accelerator: tpu}", "error: trainer: "),
        ("model: {dropout: !!int x}", "error: --config or an option: invalid literal for int"),
        ("seed_everything: 1000000000000000000000", "error: seed_everything: 1000000000000000000000 is not in bounds"),
    ],
)
def test_what_lightning_refuses_is_one_message_that_names_the_option(text, message):
    assert said_of(text, "--model.backbone=test_resnet").startswith(message)
