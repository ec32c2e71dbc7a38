import json

import pytest
import torch

from htt_lightning.errors import CheckpointError
from htt_lightning.models import HTTNet
from tests.tiny import BACKBONE

SETTINGS = {"token_dim": 8, "backbone": BACKBONE, "backbone_options": {"drop_path_rate": 0.1}, "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_saved_network_is_loaded_exactly(tmp_path, layout):
    # Tasks not in alphabetical order: each has its own tokens, by position.
    net = HTTNet({"semseg": 3, "depth": 5}, **SETTINGS).eval().to(memory_format=layout)
    net.save_pretrained(tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} >= {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "net" / "config.json").read_text())["token_dim"] == 8
    again = HTTNet.from_pretrained(tmp_path / "net", strict=True)
    assert (again.tasks, again.training) == (net.tasks, False)
    torch.testing.assert_close(dict(again.state_dict()), dict(net.state_dict()), rtol=0, atol=0)
    image = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        expected, found = net.to(memory_format=torch.contiguous_format)(image), again(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_folder_without_network_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HTTNet.from_pretrained(tmp_path)
