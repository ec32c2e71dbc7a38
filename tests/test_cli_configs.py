"""What a config may say where the parser would look away, or Lightning answer with a traceback."""

import sys
from pathlib import Path

import pytest

from htt_lightning.cli import HTTCLI, main

GROUPS = ("trainer", "model", "discovery", "guard", "checkpoint", "panel", "discovery_panel", "results")


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
    assert said_of(f"{group}: {value}").startswith(f"error: --config run.yaml: {group} is ")


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
        ("seed_everything: 1000000000000000000000", "error: seed_everything: 1000000000000000000000 is not in bounds"),
    ],
)
def test_what_lightning_refuses_is_one_message_that_names_the_option(text, message):
    assert said_of(text, "--model.backbone=test_resnet").startswith(message)
