import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from htt_lightning.callbacks import PredictionPanel
from htt_lightning.callbacks.drawing import MARGIN, TITLE, vstack_images
from htt_lightning.callbacks.prediction_panel import draw_images
from tests.tiny import tiny_data, tiny_module, tiny_trainer

CELL = (32 * 3 + TITLE + MARGIN, 48 * 3 + MARGIN)
"""Height and width of a cell: images of 48 pixels are enlarged three times."""


def fit(folder, panel, data=None, **trainer):
    data = data or tiny_data()
    tiny_trainer(folder, callbacks=[panel], **trainer).fit(tiny_module(data), data)
    return panel


def panels(folder):
    return sorted(path.name for path in (folder / "panels").iterdir())


def cells(picture):
    """Rows of cells, ``row column h w 3``."""
    height, width = CELL
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    assert picture.shape == (rows * height, columns * width, 3)
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


def training_batch():
    data = tiny_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    with torch.no_grad():
        maps = tiny_module(data).eval().decode(batch["image"])
    return data, batch, maps


def without_labels(data, batch, maps):
    """The cells of a picture whose labels are all hidden."""
    none = {task: torch.zeros_like(labeled) for task, labeled in batch["labeled"].items()}
    return cells(draw_images({**batch, "labeled": none}, maps, data.tasks)[0])[0]


def test_a_panel_of_the_last_epoch_lies_in_the_run_directory(tmp_path):
    panel = fit(tmp_path, PredictionPanel(num_val_images=3, num_train_images=2))
    assert panel.path == tmp_path / "panels" / "epoch_000.png"
    assert panels(tmp_path) == ["epoch_000.png"]
    # Two rows for each of 3 + 2 images; a column for the image and one per task.
    assert cells(np.asarray(Image.open(panel.path))).shape == (10, 7, *CELL, 3)


def test_validation_images_show_all_labels_and_training_images_the_one_they_keep(tmp_path):
    data, batch, maps = training_batch()
    placeholder = without_labels(data, batch, maps)
    panel = fit(tmp_path, PredictionPanel(num_val_images=2, num_train_images=3), data)
    labels = cells(np.asarray(Image.open(panel.path)))[::2]
    hidden = [sum(np.array_equal(row[k], placeholder[k]) for k in range(1, 7)) for row in labels]
    assert hidden == [0, 0, 5, 5, 5]


def test_the_images_are_collected_over_several_batches(tmp_path):
    panel = fit(tmp_path, PredictionPanel(num_val_images=3, num_train_images=0), tiny_data(batch_size=2))
    pictures = cells(np.asarray(Image.open(panel.path)))[::2, 0]
    assert len(pictures) == 3
    assert not np.array_equal(pictures[0], pictures[2])


def test_a_panel_asks_for_no_more_images_than_there_are(tmp_path):
    panel = fit(tmp_path, PredictionPanel(num_val_images=9, num_train_images=9), tiny_data(val_images=2, batch_size=4))
    assert len(cells(np.asarray(Image.open(panel.path)))) == 2 * (2 + 4)


def test_a_hidden_label_is_hatched_and_leaves_no_trace_in_the_picture():
    data, batch, maps = training_batch()
    for k, task in enumerate(data.tasks, 1):
        pictures = []
        for given in (True, False):
            for content in (batch[task.name], torch.ones_like(batch[task.name])):
                labeled = {**batch["labeled"], task.name: torch.full_like(batch["labeled"][task.name], given)}
                drawn = draw_images({**batch, task.name: content, "labeled": labeled}, maps, data.tasks)[0]
                pictures.append(cells(drawn)[0, k])
        *drawings, hidden, other_hidden = pictures
        assert np.array_equal(hidden, other_hidden)
        assert not any(np.array_equal(hidden, drawing) for drawing in drawings)
        inside = hidden[TITLE:-MARGIN, MARGIN:-MARGIN]
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) >= 2, "stripes, unlike a map that is missing everywhere"


def test_predictions_are_drawn_in_their_tasks_colours():
    data, batch, maps = training_batch()
    picture = cells(draw_images(batch, maps, data.tasks)[1])[1]
    for k, task in enumerate(data.tasks, 1):
        expected = task.colorize(maps[task.name])[1].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
        drawn = picture[k][TITLE : TITLE + 96, MARGIN // 2 : MARGIN // 2 + 144]
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("width", [32, 64, 100, 150])
def test_titles_fit_into_the_cells_of_images_of_any_width(width):
    data = tiny_data(image_size=(32, width), tasks="human_parts", labels="full")
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    picture = draw_images(batch, batch, data.tasks)[0]
    cell = picture[picture.shape[0] // 2 :, picture.shape[1] // 2 :]  # human_parts: prediction
    assert (cell[: TITLE - 2] < 128).any(), "a title"
    assert (cell[: TITLE - 2, -MARGIN // 2 :] == 255).all(), "that ends before the border"


def test_pictures_of_unequal_width_are_filled_up_with_white():
    narrow, wide = np.zeros((2, 3, 3), np.uint8), np.zeros((1, 5, 3), np.uint8)
    picture = vstack_images([narrow, wide])
    assert picture.shape == (3, 5, 3)
    assert (picture[:2, 3:] == 255).all()
    assert picture.sum() == 255 * 2 * 2 * 3


def test_panels_come_every_few_epochs_and_with_the_last_one(tmp_path):
    fit(tmp_path, PredictionPanel(every_n_epochs=2), tiny_data(train_images=4, val_images=1), max_epochs=4)
    assert panels(tmp_path) == ["epoch_000.png", "epoch_002.png", "epoch_003.png"]


def test_validating_alone_draws_a_panel_without_training_images(tmp_path):
    data, panel = tiny_data(), PredictionPanel(num_val_images=2)
    tiny_trainer(tmp_path, callbacks=[panel]).validate(tiny_module(data), data, verbose=False)
    assert len(cells(np.asarray(Image.open(panel.path)))) == 4


def test_no_images_no_panel(tmp_path):
    panel = fit(tmp_path, PredictionPanel(num_val_images=0))
    assert panel.path is None
    assert not (tmp_path / "panels").exists()


def test_the_check_before_training_draws_nothing(tmp_path):
    panel = PredictionPanel()
    fit(tmp_path, panel, num_sanity_val_steps=1, check_val_every_n_epoch=2)
    assert panel.path is None
    assert not (tmp_path / "panels").exists()


def test_a_trial_run_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, PredictionPanel(), fast_dev_run=True).path is None
    assert list(tmp_path.iterdir()) == []


def test_drawing_changes_nothing_in_training(tmp_path):
    states = []
    for panel in (PredictionPanel(), PredictionPanel(num_val_images=0)):
        torch.manual_seed(0)
        data = tiny_data()
        module = tiny_module(data)
        tiny_trainer(tmp_path, callbacks=[panel], max_epochs=2).fit(module, data)
        states.append(module.net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_weights_and_biases_gets_the_picture_offline(tmp_path, monkeypatch, stranger):
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(project="test", offline=True, save_dir=tmp_path)
    try:
        panel = fit(tmp_path, PredictionPanel(), logger=logger)
    finally:
        logger.experiment.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    (logged,) = (run / "files" / "media" / "images").glob("panel_*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(logged)), np.asarray(Image.open(panel.path)))


def test_tensorboard_gets_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="")
    panel = fit(tmp_path, PredictionPanel(), logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["panel"]
    picture = np.asarray(Image.open(panel.path))
    (event,) = events.Images("panel")
    assert (event.height, event.width) == picture.shape[:2]
    assert event.step == 3


@pytest.mark.parametrize("logger", [True, False])
def test_loggers_without_pictures_are_left_in_peace(tmp_path, logger):
    panel = fit(tmp_path, PredictionPanel(), logger=CSVLogger(tmp_path, name="") if logger else False)
    assert panel.path.is_file()
    assert panel.path.parents[1] == (tmp_path / "version_0" if logger else tmp_path)
