"""Equality of two processes (gloo, CPU) with one, and their end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from htt_lightning.models import HTTNet
from tests.conftest import ROOT
from tests.ranks import run_ranks
from tests.tiny import BACKBONE
from tools.kill_runs import AUTO, COMMON

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0", "PYTHONPATH": str(ROOT)}


SLOW_RUNS = ["soft_tta cross_task", "soft fixmatch", "soft joint_task ema"]


@pytest.fixture(scope="module", params=["hard", *(pytest.param(run, marks=pytest.mark.slow) for run in SLOW_RUNS)])
def records(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    for devices in (1, 2):
        words = [folder, devices, *request.param.split()]
        done = run_ranks("tests.ddp_run", *words, output=folder / f"printed{devices}.txt", ranks=devices)
        assert done.statuses == [0] * devices, done.printed
    read = [torch.load(folder / f"devices{devices}.pt", weights_only=True) for devices in (1, 2)]
    for devices, record in enumerate(read, start=1):
        for split in ("val", "test"):
            record[split] = json.loads((folder / f"run{devices}" / f"{split}_metrics.json").read_text())
    return read


def assert_close(one, two):
    for name, theirs in one.items():
        torch.testing.assert_close(two[name], theirs, rtol=1e-6, atol=1e-9, msg=name)


def test_two_processes_have_gradients_of_one(records):
    one, two = records
    assert len(one["steps"]) == len(two["steps"]) >= 4
    for ours, theirs in zip(two["steps"], one["steps"], strict=True):
        assert set(ours["ids"]) < set(theirs["ids"])
        torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-6, atol=1e-9)
        assert_close(theirs["gradients"], ours["gradients"])


def test_rank_without_labels_does_not_block_others(records):
    one, two = records
    pairs = zip(two["steps"], one["steps"], strict=True)
    # Gradients are equal, see above, although the data leaves a rank without labels that the other has.
    assert any(set(ours["unlabeled"]) - set(theirs["unlabeled"]) for ours, theirs in pairs)


def test_two_processes_have_weights_and_metrics_of_one(records):
    one, two = records
    assert_close(one["weights"], two["weights"])
    assert one["metrics"].keys() == two["metrics"].keys()
    for key, value in one["metrics"].items():
        assert two["metrics"][key] == pytest.approx(value, rel=1e-5, nan_ok=True), key


@pytest.mark.parametrize("split", ["val", "test"])
def test_two_processes_write_metrics_of_one(records, split):
    one, two = (record[split] for record in records)
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert two[key]["value"] == pytest.approx(row["value"], rel=1e-5)


def test_two_processes_write_scores_per_class_of_one(records):
    one, two = (record["test"]["test/semseg/miou"]["classes"] for record in records)
    assert list(one) == list(two)
    assert sum(scores["share"] for scores in two.values()) == pytest.approx(100)
    for name, scores in one.items():
        assert [key for key, value in two[name].items() if value is None] == [k for k in scores if scores[k] is None]
        known = {key: value for key, value in scores.items() if value is not None}
        assert {key: two[name][key] for key in known} == pytest.approx(known, rel=1e-5), name


@pytest.mark.slow
def test_killed_process_ends_the_other(tmp_path):
    """Kill rank 0, which launched the other."""
    command = [sys.executable, "-m", "tests.ddp_fail", str(tmp_path), "0"]
    output = (tmp_path / "output.txt").open("w")
    with output, subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output) as first:
        both = 0  # a process that has just started has no command line yet
        while first.poll() is None:
            both = max(both, len(still_running(command)))
            time.sleep(0.2)
        assert both == 2
        assert first.wait() == -signal.SIGKILL
    ended = time.monotonic()
    while still_running(command):
        assert time.monotonic() - ended < 60
        time.sleep(0.2)
    assert "killed" in (tmp_path / "output.txt").read_text()


def still_running(command):
    """Return the command lines of the processes that run a command."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process may have ended
            lines.append(path.read_bytes())
    return [line for line in lines if line.split(b"\0")[1:-1] == [word.encode() for word in command[1:]]]


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [True, False])
def test_sigterm_ends_all_processes_and_run_resumes(everyone, tmp_path):
    """Schedulers signal every process, ``kill`` only the first."""
    words = [*COMMON, "--discovery.stages=1", "--data.train_images=16", "--data.batch_size=2"]
    words += ["--trainer.num_sanity_val_steps=0", "--trainer.devices=2", "--trainer.strategy=ddp", AUTO]
    command = [sys.executable, "-m", "htt_lightning", "fit", *words]
    settings = {"cwd": tmp_path, "env": ENVIRONMENT, "start_new_session": True}
    with (tmp_path / "output.txt").open("w") as output:
        run = subprocess.Popen([*command, "--trainer.max_epochs=1000"], stdout=output, stderr=output, **settings)
        while run.poll() is None and not list(tmp_path.glob("runs/*/checkpoints/last.ckpt")):
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM) if everyone else run.terminate()
        try:
            status = run.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    printed = (tmp_path / "output.txt").read_text()
    assert status == 128 + signal.SIGTERM, printed
    assert "Traceback" not in printed
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    done = torch.load(last, weights_only=True)["epoch"] + 1
    assert done < 1000
    if not everyone:
        return  # the file is the same
    again = subprocess.run([*command, f"--trainer.max_epochs={done + 1}"], capture_output=True, timeout=300, **settings)
    assert again.returncode == 0, again.stderr
    newest = max(tmp_path.glob("runs/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["epoch"] == done


def test_batchnorm_converts_to_syncbatchnorm():
    """Test the conversion only: synchronized BatchNorm itself runs on GPUs."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(HTTNet({"depth": 4}, backbone=BACKBONE, token_dim=8))
    kinds = {type(module) for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    done = run_ranks("tests.ddp_guard", folder, output=folder / "printed.txt")
    return done, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_processes_skip_nonfinite_step_of_one(guarded):
    _, records = guarded
    assert [len(record["images"]) for record in records] == [0, 1]
    for record in records:
        assert record["skipped"] == 1
        assert all(torch.equal(record["after"][key], value) for key, value in record["before"].items())
        moved = [key for key, value in record["before"].items() if " " not in key and not key.endswith(("mean", "std"))]
        assert any(not torch.equal(record["end"][f"net.{key}"], record["before"][key]) for key in moved)
    one, two = (record["end"] for record in records)
    parameters = [key for key in one if not key.endswith(("running_mean", "running_var"))]  # a rank's own until a step
    assert all(torch.equal(one[key], two[key]) for key in parameters)


@pytest.mark.slow
def test_processes_end_with_error_of_one(guarded):
    done, records = guarded
    assert done.statuses == [1, 1]
    message = f"depth, supervised: image '{records[1]['images'][0]}'"
    printed = re.sub(r"^\[rank\d\]: ", "", done.printed, flags=re.MULTILINE)
    assert printed.count(f"The loss of step 1 (epoch 0) is not finite:\n  {message}\n") == 2
