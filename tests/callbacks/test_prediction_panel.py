import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from htt_lightning.callbacks import PredictionPanel
from htt_lightning.callbacks.drawing import MARGIN, TITLE, save_and_log, vstack_images
from htt_lightning.callbacks.prediction_panel import draw_images
from tests.tiny import tiny_data, tiny_module, tiny_trainer

CELL = (32 * 3 + TITLE + MARGIN, 48 * 3 + MARGIN)
"""Height and width of a cell: images of 48 pixels are enlarged three times."""
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def fit(folder, panel, data=None, **trainer):
    data = data or tiny_data(tasks="depth", labels="full", train_images=4)
    tiny_trainer(folder, callbacks=[panel], **trainer).fit(tiny_module(data), data)
    return panel


def panels(folder):
    return sorted(path.name for path in folder.glob("panels/*"))


def cells(picture):
    """Split a panel into cells, ``row column h w 3``."""
    height, width = CELL
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    assert picture.shape == (rows * height, columns * width, 3)
    return picture.reshape(rows, height, columns, width, 3).swapaxes(1, 2)


@pytest.fixture(scope="module")
def training_batch():
    data = tiny_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    with torch.no_grad():
        maps = tiny_module(data).eval().decode(batch["image"])
    return data, batch, maps


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A panel of 3 images from two validation batches and 2 training images."""
    folder = tmp_path_factory.mktemp("run")
    panel = fit(folder, PredictionPanel(num_val_images=3, num_train_images=2), tiny_data(batch_size=2))
    return folder, panel, cells(np.asarray(Image.open(panel.path)))


def test_a_panel_lies_in_the_run_directory(fitted):
    folder, panel, drawn = fitted
    assert panel.path == folder / "panels" / "epoch_000.png"
    assert panels(folder) == ["epoch_000.png"]
    # Two rows for each of 3 + 2 images; a column for the image and one per task.
    assert drawn.shape == (10, 7, *CELL, 3)
    assert not np.array_equal(drawn[0, 0], drawn[4, 0]), "images of two batches"


def test_training_images_show_only_the_labels_they_keep(fitted, training_batch):
    data, batch, maps = training_batch
    none = {task: torch.zeros_like(labeled) for task, labeled in batch["labeled"].items()}
    hidden = cells(draw_images({**batch, "labeled": none}, maps, data.tasks)[0])[0]
    labels = fitted[2][::2]
    assert [sum(np.array_equal(row[k], hidden[k]) for k in range(1, 7)) for row in labels] == [0, 0, 0, 5, 5]


def test_a_panel_has_no_more_images_than_the_data(tmp_path):
    data = tiny_data(tasks="depth", labels="full", train_images=4, val_images=2)
    panel = fit(tmp_path, PredictionPanel(num_val_images=9, num_train_images=9), data)
    assert len(cells(np.asarray(Image.open(panel.path)))) == 2 * (2 + 4)


def test_hidden_labels_leave_no_trace_in_the_panel(training_batch):
    data, batch, maps = training_batch
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
        assert len(np.unique(inside.reshape(-1, 3), axis=0)) >= 2, "hatched, unlike a label that is missing everywhere"


def test_predictions_are_drawn_in_the_colors_of_their_task(training_batch):
    data, batch, maps = training_batch
    picture = cells(draw_images(batch, maps, data.tasks)[1])[1]
    for k, task in enumerate(data.tasks, 1):
        expected = task.colorize(maps[task.name])[1].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
        drawn = picture[k][TITLE : TITLE + 96, MARGIN // 2 : MARGIN // 2 + 144]
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("width", [32, 64, 100, 150])
def test_titles_fit_the_cells_of_any_image_width(width):
    data = tiny_data(image_size=(32, width), tasks="human_parts", labels="full")
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    picture = draw_images(batch, batch, data.tasks)[0]
    cell = picture[picture.shape[0] // 2 :, picture.shape[1] // 2 :]  # human_parts: prediction
    assert (cell[: TITLE - 2] < 128).any(), "a title"
    assert (cell[: TITLE - 2, -MARGIN // 2 :] == 255).all(), "the title ends before the border"


def test_narrow_pictures_are_padded_with_white():
    narrow, wide = np.zeros((2, 3, 3), np.uint8), np.zeros((1, 5, 3), np.uint8)
    picture = vstack_images([narrow, wide])
    assert picture.shape == (3, 5, 3)
    assert (picture[:2, 3:] == 255).all()
    assert picture.sum() == 255 * 2 * 2 * 3


def test_panels_follow_every_n_epochs_and_the_last(tmp_path):
    fit(tmp_path, PredictionPanel(every_n_epochs=2), max_epochs=4)
    assert panels(tmp_path) == ["epoch_000.png", "epoch_002.png", "epoch_003.png"]


def test_validate_draws_no_training_images(tmp_path):
    data, panel = tiny_data(tasks="depth", labels="full"), PredictionPanel(num_val_images=2)
    tiny_trainer(tmp_path, callbacks=[panel]).validate(tiny_module(data), data, verbose=False)
    assert len(cells(np.asarray(Image.open(panel.path)))) == 4


SANITY_CHECK = {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2}


@pytest.mark.parametrize(("num_val_images", "options"), [(0, {}), (3, SANITY_CHECK), (3, {"fast_dev_run": True})])
def test_no_panel_is_drawn(tmp_path, monkeypatch, num_val_images, options):
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, PredictionPanel(num_val_images), **options).path is None
    assert panels(tmp_path) == []


def test_drawing_does_not_change_training(tmp_path):
    states = []
    for panel in (PredictionPanel(), PredictionPanel(num_val_images=0)):
        torch.manual_seed(0)
        data = tiny_data(tasks="depth,semseg", labels="full")
        module = tiny_module(data)
        tiny_trainer(tmp_path, callbacks=[panel], max_epochs=2).fit(module, data)
        states.append(module.net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_wandb_logs_the_panel_offline(tmp_path, monkeypatch, logged_out):
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(project="test", offline=True, save_dir=tmp_path)
    try:
        save_and_log(tiny_trainer(tmp_path, logger=logger), tmp_path / "a.png", "panel", PICTURE)
    finally:
        logger.experiment.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (logged,) = (run / "files" / "media" / "images").glob("panel_*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(logged)), PICTURE)


def test_tensorboard_logs_the_panel_beside_other_loggers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="")
    trainer = tiny_trainer(tmp_path, logger=[CSVLogger(tmp_path), logger])
    save_and_log(trainer, tmp_path / "panels" / "a.png", "panel", PICTURE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "panels" / "a.png")), PICTURE)
    logger.save()
    (event,) = EventAccumulator(logger.log_dir).Reload().Images("panel")
    assert (event.height, event.width, event.step) == (20, 30, 0)
