"""Progress displays."""

import io
from types import SimpleNamespace

import pytest

from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import HTTCLI
from htt_lightning.io import progress
from htt_lightning.io.progress import status, track


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_terminal_only(terminal, monkeypatch):
    stream, console = io.StringIO(), progress.Console
    monkeypatch.setattr(progress, "Console", lambda **_: console(file=stream, force_terminal=terminal, width=80))
    assert list(track(iter(range(3)), "Counting", 3)) == [0, 1, 2]
    with status("Thinking"):
        pass
    assert ("Counting" in stream.getvalue()) == terminal
    assert ("Thinking" in stream.getvalue()) == terminal
    assert terminal or stream.getvalue() == ""


@pytest.mark.parametrize(
    ("terminal", "words"), [(True, []), (False, []), (False, ["--trainer.enable_progress_bar=true"])]
)
def test_fit_has_progress_bar_on_terminal_or_demand(terminal, words, monkeypatch, in_empty_folder):
    monkeypatch.setattr("htt_lightning.cli.lightning_cli.Console", lambda: SimpleNamespace(is_terminal=terminal))
    found = []
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, _: found.append(self.trainer.progress_bar_callback))
    main(["fit", "--data.tasks", "depth", "--model.backbone", "test_resnet", "--trainer.accelerator", "cpu", *words])
    assert (found[0] is not None) == (terminal or bool(words))
