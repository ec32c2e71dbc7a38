"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import wandb

ROOT = Path(__file__).parents[1]
# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user of Weights & Biases who has not logged in; its service is the test's own.

    A service writes below the directory in which it was started, and its address stays in the environment.
    """
    wandb.teardown()  # first, since it forgets the address: what is unset afterwards comes back with the test's end
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")  # set, so that what the logger makes of it is undone
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    yield
    wandb.teardown()
