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
    height, width = CELL
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    assert picture.shape == (rows * height, columns * width, 3)
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


def batch_of(**changes):
    data = tiny_data(**changes)
    data.setup("fit")
    return data, next(iter(data.train_dataloader()))


def test_pictures_begin_with_the_second_stage_and_affinities_with_the_first(tmp_path):
    data = tiny_data(train_images=4)
    callbacks = [LabelDiscovery(), DiscoveryPanel(num_val_images=2, num_train_images=3)]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    assert names(tmp_path / "discovery") == ["epoch_001.png"]
    assert names(tmp_path / "affinity") == ["epoch_000.png", "epoch_001.png"]
    # Three rows for each of 2 + 3 images; a column for the image and one per task.
    assert cells(np.asarray(Image.open(tmp_path / "discovery" / "epoch_001.png"))).shape == (15, 7, *CELL, 3)


def test_a_network_without_tokens_has_no_affinity(tmp_path):
    data = tiny_data(train_images=4)
    module = tiny_module(data, network="multitask")
    tiny_trainer(tmp_path, callbacks=[DiscoveryPanel()]).fit(module, data)
    assert names(tmp_path / "affinity") == names(tmp_path / "discovery") == []


def test_labels_that_are_not_there_are_hatched_and_pixels_that_are_not_kept_are_grey():
    data, batch = batch_of()
    depth = next(task for task in data.tasks if task.name == "depth")
    confidence = torch.zeros(4, 32, 48)
    confidence[:, :16] = 1
    found = {"depth": PseudoLabel(torch.full((4, 1, 32, 48), 3.0), confidence)}
    batch["valid"][:] = True
    batch["labeled"]["depth"] = torch.tensor([True, False, True, False])
    drawn = [cells(picture) for picture in draw_pseudo_labels(batch, found, [depth])]
    assert [picture.shape[:2] for picture in drawn] == [(3, 2)] * 4
    lower = drawn[0][1, 1][TITLE + 60 : TITLE + 90, 10:100]
    assert (lower == 128).all()
    assert not (drawn[0][1, 1][TITLE + 5 : TITLE + 40, 10:100] == 128).all()
    assert (drawn[1][0, 1] == drawn[3][0, 1]).all()  # both hatched
    assert (drawn[0][0, 1] != drawn[1][0, 1]).any()


def test_nothing_discovered_is_nothing_drawn():
    data, batch = batch_of()
    assert draw_pseudo_labels(batch, {}, data.tasks) == []


@pytest.mark.parametrize("scales", [1, 4])
def test_an_affinity_has_a_cell_for_every_pair_and_scale(scales):
    even = torch.full((scales, 3, 3), 1 / 3)
    own = torch.eye(3).expand(scales, 3, 3)
    one, other = (draw_affinity(x, ["semseg", "depth", "normals"]) for x in (even, own))
    assert one.shape == other.shape
    assert one.shape[1] % scales == 0
    assert (one != other).any()


def test_labels_that_come_with_the_images_are_drawn_as_well(tmp_path):
    data = tiny_data(train_images=4)
    source, completed = data.build_dataset("train"), PseudoLabelStore(tmp_path / "completed")
    labels = data.labels_per_image("train", source)
    for k, name in enumerate(source.ids):
        lacking = [task for task in data.tasks if task.name not in labels[name]]
        certain = np.ones((32, 48), np.float32)
        completed.write(name, {task.name: (task, source.label(k, task.name), certain) for task in lacking})
    data.pseudo_labels = completed
    data.prepare_data = lambda: None
    callbacks = [LabelDiscovery(stages=1), DiscoveryPanel()]
    tiny_trainer(tmp_path, callbacks=callbacks).fit(tiny_module(data), data)
    picture = cells(np.asarray(Image.open(tmp_path / "discovery" / "epoch_000.png")))
    assert picture.shape == (9, 7, *CELL, 3)  # of three training images; nothing is discovered on validation images
    middle = picture[1::3, 1:, TITLE + 20 : TITLE + 70, 20:120].reshape(18, -1)
    assert (middle.std(1) > 0).sum() > 6  # not all grey
