import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from htt_lightning.callbacks import PredictionPanel
from htt_lightning.callbacks.drawing import save_and_log
from htt_lightning.callbacks.prediction_panel import draw_images
from tests.tiny import tiny_data, tiny_module, tiny_trainer

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def fit(folder, panel, data=None, **trainer):
    data = data or tiny_data(tasks="depth", labels="full", train_images=4)
    tiny_trainer(folder, callbacks=[panel], **trainer).fit(tiny_module(data), data)
    return panel


def panels(folder):
    return sorted(path.name for path in folder.glob("panels/*"))


@pytest.fixture
def entries(monkeypatch):
    """Entries of every panel that a callback draws."""

    def keep(drawn, legend):
        panels.append(drawn)
        return PICTURE

    panels = []
    monkeypatch.setattr("htt_lightning.callbacks.prediction_panel.draw_panel", keep)
    return panels


@pytest.fixture(scope="module")
def training_batch():
    data = tiny_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    with torch.no_grad():
        maps = tiny_module(data).eval().decode(batch["image"])
    return data, batch, maps


def test_panel_has_validation_images_before_training_images(tmp_path, entries):
    panel = fit(tmp_path, PredictionPanel(num_val_images=3, num_train_images=2), tiny_data(batch_size=2))
    assert panel.path == tmp_path / "panels" / "epoch_000.png"
    assert panels(tmp_path) == ["epoch_000.png"]
    (drawn,) = entries
    assert [[name for name, _ in entry.rows] for entry in drawn] == [["label", "prediction", "error"]] * 5
    hidden = [[isinstance(cell, str) for cell in entry.rows[0][1].values()] for entry in drawn]
    assert [sum(row) for row in hidden] == [0, 0, 0, 5, 5], "one-label"
    assert [entry.title.rpartition(" ")[0] for entry in drawn] == 3 * ["image"] + 2 * ["training image"]
    assert not np.array_equal(drawn[0].image, drawn[2].image), "images of two batches"


def test_derived_labels_are_named(tmp_path, entries):
    data = tiny_data(derive={"normals": "depth", "edges": "semseg"}, batch_size=12)
    fit(tmp_path, PredictionPanel(num_val_images=1, num_train_images=12), data)
    headers = [[*entry.rows[0][1]] for entry in entries[0]]
    assert sum("normals (derived)" in row for row in headers) == sum("edges (derived)" in row for row in headers) == 2
    assert not any("(derived)" in header for header in headers[0]), "of validation"


def test_a_panel_has_no_more_images_than_the_data(tmp_path, entries):
    data = tiny_data(tasks="depth", labels="full", train_images=4, val_images=2)
    fit(tmp_path, PredictionPanel(num_val_images=9, num_train_images=9), data)
    assert [len(drawn) for drawn in entries] == [2 + 4]


def test_hidden_labels_leave_no_trace_in_the_panel(training_batch):
    data, batch, maps = training_batch
    for task in data.tasks:
        labeled = {**batch["labeled"], task.name: torch.zeros_like(batch["labeled"][task.name])}
        label, prediction, error = draw_images({**batch, "labeled": labeled}, maps, data.tasks)[0].rows
        assert label[1][task.name] == error[1][task.name] == "no label"
        assert not isinstance(prediction[1][task.name], str)


def test_predictions_are_drawn_in_the_colors_of_their_task(training_batch):
    data, batch, maps = training_batch
    _, (_, row), _ = draw_images(batch, maps, data.tasks)[1].rows
    for task in data.tasks:
        expected = task.colorize(maps[task.name])[1].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(row[task.name], expected)


def test_errors_of_the_truth_are_black_and_missing_pixels_gray(training_batch):
    data, batch, _ = training_batch
    full = {task.name: torch.ones(4, dtype=torch.bool) for task in data.tasks}
    targets = {task.name: batch[task.name] for task in data.tasks}
    for entry in draw_images({**batch, "labeled": full}, targets, data.tasks):
        for task in data.tasks:
            colors = np.unique(entry.rows[2][1][task.name].reshape(-1, 3), axis=0).tolist()
            assert all(color in ([0, 0, 4], [0, 0, 3], [128, 128, 128]) for color in colors), task.name


def test_panels_follow_every_n_epochs_and_the_last(tmp_path):
    fit(tmp_path, PredictionPanel(every_n_epochs=2), max_epochs=4)
    assert panels(tmp_path) == ["epoch_000.png", "epoch_002.png", "epoch_003.png"]


def test_validate_draws_no_training_images(tmp_path, entries):
    data, panel = tiny_data(tasks="depth", labels="full"), PredictionPanel(num_val_images=2)
    tiny_trainer(tmp_path, callbacks=[panel]).validate(tiny_module(data), data, verbose=False)
    assert [len(drawn) for drawn in entries] == [2]


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
