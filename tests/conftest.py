"""Shared fixtures."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import hypothesis
import pytest
import wandb

ROOT = Path(__file__).parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # downloads fail at once, instead of after retries
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look at its latest version, whichever test imports it first
# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def render_once() -> None:
    """Keep rendered scenes: most tests take the same few, of which datasets give copies."""
    from htt_lightning.data.datasets import synthetic  # after the variables above

    synthetic.render = lru_cache(maxsize=1000)(synthetic.render)


@pytest.fixture(autouse=True)
def forget_notices() -> None:
    """Let every kind of notice be given again."""
    from htt_lightning.io import notices  # after the variables above

    notices._given.clear()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Run commands in a folder, without pytest's own command line in ``sys.argv``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["htt"])
        yield


@pytest.fixture
def in_empty_folder(tmp_path: Path) -> Iterator[None]:
    """Run the commands of a test in an empty folder."""
    with working_in(tmp_path):
        yield


@pytest.fixture
def logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test its own service of Weights & Biases, without a login.

    A service writes below the directory in which it was started, and keeps its address in the environment.
    """
    wandb.teardown()  # first, because it removes the address
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")  # set, so that the logger's change is undone
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    yield
    wandb.teardown()
