"""The command ``app``."""

import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from htt_lightning.commands.app.review import Review
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.masks.label_mask import natural_key
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import ConfigError, missing_extra
from htt_lightning.io.run_directory import CHECKPOINTS, CONFIG
from htt_lightning.predictor import HTTPredictor
from htt_lightning.training.loading import load_module


def app(
    datamodule: PartialLabelDataModule,
    ckpt_path: str | None = None,
    compare_ckpt_path: str | None = None,
    run: str | None = None,
    pseudo_labels: str | None = None,
    port: int | None = None,
    browser: bool = True,
) -> None:
    """Open a local page: maps of your photographs, and a review of discovered labels.

    The page is served to this machine alone until the command is ended by Ctrl-C.

    Args:
        datamodule: Dataset of the discovered labels.
        ckpt_path: Checkpoint whose maps are shown.
        compare_ckpt_path: Second checkpoint, whose maps are shown beside those of the first. The page offers those of
            the same run and of runs beside it, too.
        run: Run directory. By default the checkpoint is its last one, and the dataset that of its config.
        pseudo_labels: Folder written by the command ``discover``, to review; by default ``data.pseudo_labels``.
        port: Port of the page; by default the first free one from 7860.
        browser: Whether to open the page in the browser.

    Raises:
        HTTError: A checkpoint or folder is missing, corrupt or does not fit, or gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise missing_extra("htt app needs gradio", "app")
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port must be between 1 and 65535, got {port}.")
    if run and not (Path(run) / CONFIG).is_file():
        raise ConfigError(f"--run must be a folder with a {CONFIG}, got {run}. Name a folder such as runs/version_0.")
    if run and not ckpt_path:
        ckpt_path = str(Path(run) / "checkpoints" / "last.ckpt")
    predictors = load_predictors(ckpt_path, compare_ckpt_path)
    store = PseudoLabelStore(Path(pseudo_labels)) if pseudo_labels else datamodule.pseudo_labels
    if not predictors and store is None:
        raise ConfigError("--ckpt_path must be a checkpoint, or --pseudo_labels a folder of discover, got neither.")
    others = other_checkpoints(ckpt_path) if ckpt_path else []
    serve(predictors, others, Review(store, datamodule) if store else None, port, browser)


def serve(
    predictors: Mapping[str, HTTPredictor],
    others: Sequence[str],
    review: Review | None,
    port: int | None,
    browser: bool,
) -> None:
    """Serve the page until a signal ends the process; uploaded files are deleted then."""
    # Read when gradio is imported, and when it keeps uploaded files.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own page whether it is up
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
    with tempfile.TemporaryDirectory(prefix="htt-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        from htt_lightning.commands.app.page import build_page, launch

        page = build_page(predictors, others, load_predictor, review)
        signal.signal(signal.SIGTERM, _end)  # or the uploads would stay
        try:
            address = launch(page, port, browser)
            Console(soft_wrap=True).out(f"The page is at {address} until you press Ctrl-C.", highlight=False)
            Event().wait()
        finally:
            page.close(verbose=False)


def _end(*_: object) -> None:
    raise SIGTERMException


def load_predictors(ckpt_path: str | None, compare_ckpt_path: str | None) -> dict[str, HTTPredictor]:
    """Load one or two checkpoints, or none, by the names that the page shows."""
    if compare_ckpt_path and not ckpt_path:
        raise ConfigError(f"--compare_ckpt_path must come with --ckpt_path, got only {compare_ckpt_path}.")
    if ckpt_path and ckpt_path == compare_ckpt_path:
        raise ConfigError(f"--compare_ckpt_path must be another checkpoint than --ckpt_path, got {ckpt_path} twice.")
    given = {"--ckpt_path": ckpt_path, "--compare_ckpt_path": compare_ckpt_path}
    return {path: load_predictor(path, option) for option, path in given.items() if path}


def load_predictor(path: str, option: str = "--compare_ckpt_path") -> HTTPredictor:
    """Load a checkpoint that an option names."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HTTPredictor(load_module(path, option, device=device))


def other_checkpoints(path: str) -> list[str]:
    """Find the other checkpoints of a run, and those of the runs beside it."""
    folder = Path(path).parent
    found = {*folder.glob("*.ckpt")}
    if folder.name == CHECKPOINTS:
        found |= {*folder.parent.parent.glob(f"*/{CHECKPOINTS}/*.ckpt")}
    return sorted(map(str, found - {Path(path)}), key=natural_key)
