"""Sweeps, expanded into commands by the agent of Weights & Biases."""

import math
import os
import random
import sys
from pathlib import Path

import pytest
import yaml
from wandb import wandb_agent

from htt_lightning.cli.entry import main, resolve_config
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.conftest import ROOT

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))

TRIAL = {
    "trainer.fast_dev_run": 1,
    "trainer.accelerator": "cpu",
    "model.backbone": "test_resnet",
    "model.pretrained": "false",
    "model.token_dim": 8,
    "data.augment.crop": "[32,48]",
    "data.batch_size": 3,
    "data.num_workers": 0,
}
"""Options that replace a run of the sweep by a trial run of the smallest network."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_nyud_tree(root / "NYUDv2", train=6, val=3, size=(32, 48))
    return root


@pytest.fixture
def agent(tree, tmp_path, monkeypatch, in_empty_folder, logged_out):
    """An agent without a sweep, offline."""
    settings = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SWEEP_ID": "s1", "HTT_DATA": str(tree)}
    # The agent passes id and parameters of a run in its own environment.
    for name, value in ({"WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": ""} | settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return wandb_agent.Agent(api=None, queue=None)


def draws(parameters, count):
    """Yield both ends of every range and list, then drawn values, as the sampler of the server does."""
    rng = random.Random(0)
    for k in range(count):
        yield {name: draw(range_of, k if k < 2 else rng.random()) for name, range_of in parameters.items()}


def draw(range_of, share):
    """Return the value at a share, from 0 to 1, of a range or list."""
    if "values" in range_of:
        return range_of["values"][min(int(share * len(range_of["values"])), len(range_of["values"]) - 1)]
    assert set(range_of) - {"distribution"} == {"min", "max"}
    low, high = range_of["min"], range_of["max"]
    assert {type(low), type(high)} == {float}, "between two integers, the server draws integers"
    if range_of.get("distribution", "uniform") == "uniform":
        return low + share * (high - low)
    assert range_of["distribution"] == "log_uniform_values"
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def start(agent, sweep, values):
    """Start a trial run, as the agent does for a run of the server."""
    agent._sweep_command = [*sweep["command"], *(f"--{key}={value}" for key, value in TRIAL.items())]
    arguments = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"type": "run", "run_id": "r1", "program": sweep["program"], "args": arguments})


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_draw_of_a_sweep_is_a_valid_command(path, agent, monkeypatch, capsys):
    commands = []

    class Recorded:
        def __init__(self, command, env, **options):
            commands.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Recorded)
    sweep = yaml.safe_load(path.read_text())
    for values in draws(sweep["parameters"], 3):
        start(agent, sweep, values)
        assert commands[-1][:3] == ["/usr/bin/env", "htt", "fit"]
        words = commands[-1][2:]
        main(words)
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*words, "--print_config"])
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["trainer"]["logger"]["class_path"].endswith(".WandbLogger")
        for name, value in values.items():
            place = config
            for key in name.split("."):
                place = place[key]
            assert place == pytest.approx(value), name
    assert len({tuple(command) for command in commands}) == 3
    assert not Path("runs").exists(), "a trial run leaves no files"


@pytest.mark.slow
def test_agent_starts_program(agent):
    sweep = yaml.safe_load(SWEEPS[0].read_text())
    start(agent, sweep, next(draws(sweep["parameters"], 1)))
    assert agent._run_processes["r1"].wait(timeout=300) == 0


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_names_its_metric_and_ranges(path):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"] == {"name": "val/delta_m", "goal": "maximize"}
    assert resolve_config(f"sweeps/{path.name}") == str(path)
    assert {path.stem for path in SWEEPS} == {"loss_weights", "thresholds"}
