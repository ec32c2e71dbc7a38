"""The program in a process of its own, by its first name; tests of sweeps and of the wheel run it by the others."""

import subprocess
import sys
from pathlib import Path

from tests.cli.test_entry import SCENES, TINY, words_of


def test_program_runs_and_prints_one_line_of_labels(tmp_path):
    program = str(Path(sys.executable).with_name("htt"))
    command = [program, "fit", "--config=synthetic.yaml", *words_of(TINY | SCENES), "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Labels of 9 training images (random-label, seed 0): semseg ") == 1
    assert not (tmp_path / "runs").exists()
