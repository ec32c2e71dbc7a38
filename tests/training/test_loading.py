"""Loading of modules and teachers from checkpoints of releases.

``tools/make_checkpoint.py`` makes ``checkpoints/version_0.1.0.ckpt.xz``.
"""

import lzma

import numpy as np
import pytest
import torch

from htt_lightning import HTTModule, HTTPredictor
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth
from htt_lightning.training.loading import load_module, load_teacher
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")  # by 2.6.6
IMAGE = (2 * np.indices((40, 56)).sum(0))[..., None].repeat(3, -1).astype(np.uint8)
EXPECTED = {
    "depth": [3.6839847564697266, 3.7767527103424072, 3.7498838901519775, 3.782578945159912, 3.845914363861084],
    "edges": [0.47777581214904785, 0.4984653890132904, 0.4979594051837921, 0.4973863661289215, 0.49770814180374146],
}
"""Every 500th value of its maps of that image."""


@pytest.fixture
def released(tmp_path):
    path = tmp_path / "version_0.1.0.ckpt"
    path.write_bytes(lzma.decompress((ROOT / "tests" / "checkpoints" / f"{path.name}.xz").read_bytes()))
    return path


def test_predictor_reproduces_version_0_1(released):
    maps = HTTPredictor.from_checkpoint(released)(IMAGE)
    for task, expected in EXPECTED.items():
        torch.testing.assert_close(maps[task].flatten()[::500], torch.tensor(expected), rtol=0, atol=2e-5)


def test_load_teacher_reads_version_0_1(released):
    student = HTTModule.load_from_checkpoint(released, weights_only=True)
    teacher = load_teacher(str(released), student)
    assert [task.name for task in teacher.tasks] == list(EXPECTED)
    assert all(torch.equal(x, y) for x, y in zip(teacher.parameters(), student.parameters(), strict=True))


def test_load_module_names_file_whose_weights_do_not_fit(released):
    stored = torch.load(released, weights_only=True)
    stored["hyper_parameters"]["token_dim"] = 5
    torch.save(stored, released)
    with pytest.raises(HTTError, match=r"discovery\.teacher: the weights of .*version_0\.1\.0\.ckpt do not fit"):
        load_module(released, "discovery.teacher")


@pytest.mark.parametrize(
    ("student", "words"),
    [({"token_dim": 8}, ["model.token_dim must be 4", "got 8"]), ({"tasks": [Depth(num_bins=6)]}, ["edges"])],
    ids=["token_dim", "tasks"],
)
def test_load_teacher_rejects_teacher_that_does_not_fit(student, words, released):
    hyperparameters = torch.load(released, weights_only=True)["hyper_parameters"]
    with pytest.raises(HTTError) as error:
        load_teacher(str(released), HTTModule(**(hyperparameters | student)))
    assert all(word in str(error.value) for word in [*words, str(released)])
