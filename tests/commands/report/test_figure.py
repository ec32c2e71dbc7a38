import sys

import numpy as np
import pytest
from PIL import Image

from htt_lightning.commands.report.command import read_runs
from htt_lightning.commands.report.comparison import compare
from htt_lightning.commands.report.figure import WRAP, draw, wrapped
from htt_lightning.errors import HTTError
from tests.commands.report.folders import fitted_run


@pytest.fixture
def found(tmp_path):
    for seed in (0, 1):
        fitted_run(tmp_path / f"a_{seed}", {"semseg/miou": 30.0 + seed, "depth/abs_err": 0.5}, seed=seed)
        fitted_run(
            tmp_path / f"b_{seed}", {"semseg/miou": 35.0 + seed, "depth/abs_err": None}, seed=seed, labels="full"
        )
    return compare(read_runs([str(tmp_path)])[0], None, [])


def test_a_picture_shows_every_run(found, tmp_path):
    draw(found, tmp_path / "out" / "comparison.png")
    picture = np.asarray(Image.open(tmp_path / "out" / "comparison.png").convert("RGB")).astype(int)
    assert picture.shape[1] > picture.shape[0] > 100
    grey = (np.abs(picture - 153).max(-1) < 6).sum()
    blue = (picture[..., 2] - picture[..., 0] > 100).sum()
    assert grey > 100  # points of runs
    assert blue > 20  # the best row
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.png"]


def test_without_matplotlib_the_error_says_what_to_install(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(HTTError, match=r'comparison\.png .* matplotlib.*: pip install "htt-lightning\[report\]"'):
        draw(found, tmp_path / "comparison.png")


def test_names_break_between_settings():
    name = "labels=one-label network=multitask token_dim=256 lr=0.001"
    lines = wrapped(name)
    assert " ".join(lines) == name
    assert len(lines) == 2
    assert all(len(line) <= WRAP for line in lines)
    assert wrapped("short") == ["short"]
