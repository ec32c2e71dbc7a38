"""Resumed runs, after kills and signals, end like an uninterrupted one; see also ``tools.kill_runs``."""

import random
import signal

import pytest

from tools.kill_runs import (
    AUTO,
    DISCOVER,
    FIT,
    Programs,
    Write,
    damaged,
    differences,
    discovered,
    outcome,
    signal_at,
)

SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "htt", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
}  # fmt: skip
"""Environment of a job that ``srun`` has started."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs():
    return Programs()


@pytest.fixture(scope="module")
def uninterrupted(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    attempt = programs.run(folder, FIT)
    assert attempt.status == 0, attempt.printed
    return folder


def test_killed_fit_resumes_to_same_result(programs, uninterrupted, tmp_path):
    share = random.random()  # of the file that is written before the kill
    deaths = [Write(0, share, "last.ckpt"), Write(0, share, "stage_1.ckpt"), Write(1, 1.0, "last.ckpt")]
    words = FIT
    for death in deaths:
        attempt = programs.run(tmp_path, words, death)
        assert attempt.status == -signal.SIGKILL, attempt.printed
        assert attempt.writes[-1] == death.name
        assert not damaged(tmp_path)
        words = [*FIT, AUTO]
    attempt = programs.run(tmp_path, words)
    assert attempt.status == 0, attempt.printed
    assert attempt.first == "-"  # only the results were missing
    assert not differences(outcome(uninterrupted), outcome(tmp_path))


def test_slurm_job_is_requeued_and_resumes(programs, uninterrupted, tmp_path):
    """SLURM signals the loaders as well; training stops between two steps."""
    requests, scontrol = tmp_path / "requests.txt", tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {requests}\n')
    scontrol.chmod(0o755)
    job = {**SLURM, "PATH": f"{scontrol.parent}:/usr/bin:/bin"}
    stop = signal_at(tmp_path, "epoch 1 step 0", signal.SIGUSR1, signal.SIGTERM)
    attempt = programs.run(tmp_path, FIT, interrupt=stop, **job)
    assert attempt.status == 128 + signal.SIGTERM, attempt.printed
    assert requests.read_text() == "requeue 4711\n"
    stop = signal_at(tmp_path, "epoch 2 step 0", signal.SIGINT)
    attempt = programs.run(tmp_path, FIT, interrupt=stop, **job, SLURM_RESTART_COUNT="1")
    assert attempt.status == 128 + signal.SIGINT, attempt.printed
    assert attempt.printed.rstrip().endswith("--ckpt_path auto.")
    assert "Traceback" not in attempt.printed
    assert attempt.first in ("epoch 1", "epoch 2")
    attempt = programs.run(tmp_path, [*FIT, "--ckpt_path=last"])
    assert attempt.status == 0, attempt.printed
    assert attempt.first in ("epoch 2", "epoch 3")
    assert not differences(outcome(uninterrupted), outcome(tmp_path))
    assert not list(tmp_path.glob("hpc_ckpt_*"))


def test_killed_discover_resumes_to_same_labels(programs, uninterrupted, tmp_path):
    words = [*DISCOVER, f"--ckpt_path={next(uninterrupted.glob('runs/*/checkpoints/last.ckpt'))}"]
    attempt = programs.run(tmp_path / "whole", words)
    assert attempt.status == 0, attempt.printed
    for death in (Write(0, 0.5, "manifest.json"), Write(attempt.writes.index("manifest.json") + 3, random.random())):
        assert programs.run(tmp_path / "killed", words, death).status == -signal.SIGKILL
    attempt = programs.run(tmp_path / "killed", words)
    assert attempt.status == 0, attempt.printed
    assert not differences(discovered(tmp_path / "whole"), discovered(tmp_path / "killed"))
