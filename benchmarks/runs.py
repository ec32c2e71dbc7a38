"""Runs of ``htt`` for the studies: a process each, with one log and one folder per run."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gap import Row


def fit_words(out: Path, key: str) -> list[str]:
    """Return arguments of ``htt fit`` for a run without pictures whose results go to ``out/runs/key/run``."""
    words = ["fit", "--config", "synthetic.yaml"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    for option in ("panel.num_val_images", "discovery_panel.num_val_images", "discovery_panel.num_train_images"):
        words += [f"--{option}", "0"]
    words += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(out / "runs")]
    return [*words, "--trainer.logger.name", key, "--trainer.logger.version", "run"]


def run_folder(out: Path, key: str) -> Path:
    """Return the folder of a run."""
    return out / "runs" / key / "run"


def run_htt(words: Sequence[str], out: Path, key: str) -> None:
    """Run ``htt`` with one thread, and write what it prints to ``out/logs/key.txt``."""
    log = out / "logs" / f"{key}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # runs share the cores, not their threads
    command = [sys.executable, "-m", "htt_lightning", *words]
    with log.open("a") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{key} failed; see {log}")


def metrics_of(out: Path, key: str) -> list[Row]:
    """Return task, metric and value of a run; nothing before it has ended."""
    path = run_folder(out, key) / "val_metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    return [{"task": name.split("/")[1], "metric": name, "value": x["value"]} for name, x in metrics.items()]
