import numpy as np
import pytest
import torch

from htt_lightning import LabelDiscovery
from htt_lightning.callbacks import DiscoveryPanel
from htt_lightning.callbacks.discovery_panel import draw_affinity, draw_pseudo_labels
from htt_lightning.tasks import PseudoLabel
from tests.data.test_pseudo_labels import store_truth
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def entries(monkeypatch):
    """Entries of the last picture that a callback draws."""

    def keep(drawn, legend):
        kept[:] = drawn
        return np.zeros((2, 2, 3), np.uint8)

    kept = []
    monkeypatch.setattr("htt_lightning.callbacks.discovery_panel.draw_panel", keep)
    return kept


def test_panel_draws_affinities_first_and_pseudo_labels_later(tmp_path, entries):
    data = tiny_data(train_images=4)
    callbacks = [LabelDiscovery(), DiscoveryPanel(num_val_images=2, num_train_images=3)]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    assert names(tmp_path / "discovery") == ["epoch_001.png"]
    assert names(tmp_path / "affinity") == ["epoch_000.png", "epoch_001.png"]
    assert [[(name, len(row)) for name, row in entry.rows] for entry in entries] == 5 * [
        [("label", 6), ("pseudo-label", 6), ("confidence", 6)]
    ]
    assert [entry.title.rpartition(" ")[0] for entry in entries] == 2 * ["image"] + 3 * ["training image"]


def test_network_without_tokens_has_no_affinity(tmp_path):
    data = tiny_data(train_images=4, tasks="depth", labels="full")
    module = tiny_module(data, network="multitask")
    tiny_trainer(tmp_path, callbacks=[DiscoveryPanel()]).fit(module, data)
    assert names(tmp_path / "affinity") == names(tmp_path / "discovery") == []


def test_missing_labels_are_hatched_and_dropped_pixels_gray():
    data = tiny_data()
    data.setup("fit")
    batch, depth = next(iter(data.train_dataloader())), next(task for task in data.tasks if task.name == "depth")
    confidence = torch.zeros(4, 32, 48)
    confidence[:, :16] = 1
    labels = {"depth": PseudoLabel(torch.full((4, 1, 32, 48), 3.0), confidence)}
    batch["valid"][:] = True
    batch["labeled"]["depth"] = torch.tensor([True, False, True, False])
    rows = [dict(entry.rows) for entry in draw_pseudo_labels(batch, labels, [depth])]
    assert [isinstance(row["label"]["depth"], str) for row in rows] == [False, True, False, True]
    assert (rows[0]["pseudo-label"]["depth"][16:] == 128).all()
    assert not (rows[0]["pseudo-label"]["depth"][:16] == 128).all()
    assert draw_pseudo_labels(batch, {}, data.tasks) == []


@pytest.mark.parametrize("scales", [1, 4])
def test_affinity_has_a_cell_for_every_pair_and_scale(scales):
    uniform, identity = torch.full((scales, 3, 3), 1 / 3), torch.eye(3).expand(scales, 3, 3)
    one, other = (draw_affinity(x, ["semseg", "depth", "normals"]) for x in (uniform, identity))
    assert one.shape == other.shape
    assert one.shape[1] % scales == 0
    assert (one != other).any()


def test_stored_pseudo_labels_are_drawn(tmp_path, entries):
    data = tiny_data(train_images=4)
    data.pseudo_labels = store_truth(tmp_path / "store", data)
    callbacks = [LabelDiscovery(stages=1), DiscoveryPanel()]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    assert len(entries) == 3, "training images; validation images have none"
    drawn = [picture.std() > 0 for entry in entries for picture in dict(entry.rows)["pseudo-label"].values()]
    assert len(drawn) == 18
    assert sum(drawn) > 6, "not all gray"
