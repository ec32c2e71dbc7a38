"""Checkpoints of releases keep loading, and damaged ones do not pass for sound ones.

``checkpoints/version_0.1.0.ckpt.xz`` was written by version 0.1.0, with weights alone: two epochs on twelve embedded
scenes of 32 x 48 pixels, tasks ``Depth(bins=6)`` and edges, ``backbone="test_resnet"``, ``backbone_options={"channels":
[4, 4, 4, 4], "stem_width": 4}``, ``token_dim=4``, ``dilations=[1, 2, 3]``.
"""

import lzma
import zipfile

import numpy as np
import pytest
import torch

from htt_lightning import HTTModule, HTTPredictor
from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.training.loading import load_module, load_teacher
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")  # by 2.6.6
IMAGE = (2 * np.indices((40, 56)).sum(0))[..., None].repeat(3, -1).astype(np.uint8)
EXPECTED = {
    "depth": [3.783749580383301, 3.7654104232788086, 3.7636542320251465, 3.7625691890716553, 3.762666702270508],
    "edges": [0.5029028654098511, 0.5043945908546448, 0.5041341781616211, 0.5040870904922485, 0.5040698051452637],
}
"""Every 500th value of its maps of that image."""


@pytest.fixture
def released(tmp_path):
    path = tmp_path / "version_0.1.0.ckpt"
    path.write_bytes(lzma.decompress((ROOT / "tests" / "checkpoints" / f"{path.name}.xz").read_bytes()))
    return path


def test_a_checkpoint_of_version_0_1_predicts_as_it_did(released):
    maps = HTTPredictor.from_checkpoint(released)(IMAGE)
    for task, expected in EXPECTED.items():
        torch.testing.assert_close(maps[task].flatten()[::500], torch.tensor(expected), rtol=0, atol=2e-5)


def test_a_checkpoint_of_version_0_1_teaches(released):
    student = HTTModule.load_from_checkpoint(released, weights_only=True)
    teacher = load_teacher(str(released), student)
    assert [task.name for task in teacher.tasks] == list(EXPECTED)
    assert all(torch.equal(x, y) for x, y in zip(teacher.parameters(), student.parameters(), strict=True))


def test_a_changed_byte_among_the_weights_is_noticed(released):
    content = bytearray(released.read_bytes())
    with zipfile.ZipFile(released) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content[largest.header_offset + 1000] ^= 1
    released.write_bytes(content)
    torch.load(released, weights_only=True)  # which does not notice
    with pytest.raises(HTTError, match=r"version_0\.1\.0\.ckpt is corrupt .*its record .*/data/\d+ has changed"):
        read_checkpoint(released, "--ckpt_path")


def test_the_message_names_the_file_where_its_parts_do_not_fit(released):
    stored = torch.load(released, weights_only=True)
    stored["hyper_parameters"]["token_dim"] = 5
    torch.save(stored, released)
    with pytest.raises(HTTError, match=r"discovery\.teacher: the weights of .*version_0\.1\.0\.ckpt do not fit"):
        load_module(released, "discovery.teacher")
