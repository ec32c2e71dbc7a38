"""Names of the program, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_entry import SCENES, TINY, words_of


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([str(Path(sys.executable).with_name("htt"))], id="htt"),
        pytest.param([str(Path(sys.executable).with_name("lightning"))], id="lightning", marks=pytest.mark.slow),
        pytest.param([sys.executable, "-m", "htt_lightning"], id="module", marks=pytest.mark.slow),
    ],
)
def test_program_has_three_names(words, tmp_path):
    command = [*words, "fit", "--config=synthetic.yaml", *words_of(TINY | SCENES), "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Labels of 9 training images (random-label, seed 0): semseg ") == 1
    assert not (tmp_path / "runs").exists()
