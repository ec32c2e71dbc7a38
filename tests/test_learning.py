import numpy as np
import pytest
import torch

from htt_lightning import HTTModule
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.losses import labeled_sum
from tests.tiny import tiny_data


def test_every_task_learns_two_images():
    """Every task's loss falls below two fifths of its start."""
    torch.manual_seed(2)
    # Crops of large images, and borders of three pixels: logits at a quarter of the size cannot draw a line of one.
    augment = AugmentConfig(scale_range=(1, 1), crop=(64, 96), hflip_prob=0, photometric_prob=0)
    images = {"train_images": 2, "batch_size": 2, "image_size": (192, 288), "scene_seed": 2}
    data = tiny_data(**images, labels="full", augment=augment)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    batch["edges"] = torch.nn.functional.max_pool2d(batch["edges"].float(), 3, 1, 1).long()
    channels = {"channels": [32, 48, 64, 96]}
    module = HTTModule(data.tasks, backbone_options=channels, token_dim=32, dilations=[2], dropout=0.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=6e-3)
    first: dict[str, float] = {}
    for _ in range(60):
        outputs = module(batch["image"])
        losses = {
            t.name: labeled_sum(t.loss(outputs[t.name], batch[t.name]), batch["labeled"][t.name]) for t in data.tasks
        }
        last = {name: float(loss.detach()) for name, loss in losses.items()}
        assert all(np.isfinite(list(last.values())))
        first = first or last
        shares = {name: last[name] / first[name] for name in first}
        if max(shares.values()) < 0.4:
            return
        total = sum(module.loss_weights[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    pytest.fail(f"after 60 steps there is left {shares}")
