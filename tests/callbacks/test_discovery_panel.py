import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import LabelDiscovery
from htt_lightning.callbacks import DiscoveryPanel
from htt_lightning.callbacks.discovery_panel import draw_affinity, draw_pseudo_labels
from htt_lightning.callbacks.drawing import MARGIN, TITLE
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.tasks import PseudoLabel
from tests.tiny import tiny_data, tiny_module, tiny_trainer

CELL = (32 * 3 + TITLE + MARGIN, 48 * 3 + MARGIN)


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def cells(picture):
    """Split a picture into rows of cells, ``row column h w 3``."""
    height, width = CELL
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    assert picture.shape == (rows * height, columns * width, 3)
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


def read_cells(path):
    return cells(np.asarray(Image.open(path)))


def test_panel_draws_affinities_first_and_pseudo_labels_later(tmp_path):
    data = tiny_data(train_images=4)
    callbacks = [LabelDiscovery(), DiscoveryPanel(num_val_images=2, num_train_images=3)]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    assert names(tmp_path / "discovery") == ["epoch_001.png"]
    assert names(tmp_path / "affinity") == ["epoch_000.png", "epoch_001.png"]
    # Three rows for each of 2 + 3 images; a column for the image and one per task.
    assert read_cells(tmp_path / "discovery" / "epoch_001.png").shape == (15, 7, *CELL, 3)


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
    drawn = [cells(picture) for picture in draw_pseudo_labels(batch, labels, [depth])]
    assert [picture.shape[:2] for picture in drawn] == [(3, 2)] * 4
    assert (drawn[0][1, 1][TITLE + 60 : TITLE + 90, 10:100] == 128).all()
    assert not (drawn[0][1, 1][TITLE + 5 : TITLE + 40, 10:100] == 128).all()
    assert (drawn[1][0, 1] == drawn[3][0, 1]).all()  # both hatched
    assert (drawn[0][0, 1] != drawn[1][0, 1]).any()
    assert draw_pseudo_labels(batch, {}, data.tasks) == []


@pytest.mark.parametrize("scales", [1, 4])
def test_affinity_has_a_cell_for_every_pair_and_scale(scales):
    uniform, identity = torch.full((scales, 3, 3), 1 / 3), torch.eye(3).expand(scales, 3, 3)
    one, other = (draw_affinity(x, ["semseg", "depth", "normals"]) for x in (uniform, identity))
    assert one.shape == other.shape
    assert one.shape[1] % scales == 0
    assert (one != other).any()


def test_stored_pseudo_labels_are_drawn(tmp_path):
    data = tiny_data(train_images=4)
    dataset, store = data.build_dataset("train"), PseudoLabelStore(tmp_path / "store")
    labels, certain = data.labels_per_image("train", dataset), np.ones((32, 48), np.float32)
    for k, name in enumerate(dataset.ids):
        unlabeled = [task for task in data.tasks if task.name not in labels[name]]
        store.write(name, {task.name: (task, dataset.label(k, task.name), certain) for task in unlabeled})
    data.pseudo_labels, data.prepare_data = store, lambda: None
    callbacks = [LabelDiscovery(stages=1), DiscoveryPanel()]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    picture = read_cells(tmp_path / "discovery" / "epoch_000.png")
    assert picture.shape == (9, 7, *CELL, 3)  # of three training images; validation images have none
    middle = picture[1::3, 1:, TITLE + 20 : TITLE + 70, 20:120].reshape(18, -1)
    assert (middle.std(1) > 0).sum() > 6  # not all gray
