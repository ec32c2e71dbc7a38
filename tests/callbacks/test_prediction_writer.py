import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning.callbacks import PredictionWriter
from htt_lightning.errors import HTTError
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def predict(folder, writer, data=None, module=None, **trainer):
    data = data or tiny_data()
    module = module or tiny_module(data)
    return tiny_trainer(folder, callbacks=[writer], **trainer).predict(module, data)


def test_every_validation_image_gets_a_file_of_numbers_and_a_picture_per_task(tmp_path):
    data = tiny_data(val_images=5)  # the last batch has a single image
    predict(tmp_path, PredictionWriter(), data)
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    tasks = [task.name for task in data.tasks]
    assert names == {f"{k}_{task}.{end}" for k in range(5) for task in tasks for end in ("npy", "png")}


def test_the_files_hold_what_the_module_decodes(tmp_path):
    data = tiny_data()
    module = tiny_module(data).eval()
    predict(tmp_path, PredictionWriter(), data, module)
    kinds = {"semseg": np.int64, "human_parts": np.int64}
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        maps = module.decode(batch["image"])
    for task in data.tasks:
        pictures = task.colour(maps[task.name]).permute(0, 2, 3, 1).numpy()
        for name, values, picture in zip(batch["id"], maps[task.name].numpy(), pictures, strict=True):
            stem = tmp_path / "predictions" / f"{name}_{task.name}"
            written = np.load(stem.with_suffix(".npy"))
            assert written.dtype == kinds.get(task.name, np.float32)
            assert written.shape == (() if task.channels is None else (task.channels,)) + (32, 48)
            np.testing.assert_array_equal(written, values)
            np.testing.assert_array_equal(np.asarray(Image.open(stem.with_suffix(".png"))), picture)


def test_predict_returns_nothing_so_that_memory_does_not_grow(tmp_path):
    assert not predict(tmp_path, PredictionWriter())


def test_predictions_go_where_they_are_asked_to(tmp_path):
    predict(tmp_path / "run", PredictionWriter(str(tmp_path / "mine")), tiny_data(tasks="depth", labels="full"))
    assert len(list((tmp_path / "mine").iterdir())) == 8
    assert not (tmp_path / "run" / "predictions").exists()


def test_predictions_of_another_run_are_refused_before_anything_is_written(tmp_path):
    data = tiny_data(tasks="depth", labels="full", val_images=1)
    predict(tmp_path, PredictionWriter(), data)
    before = {path: path.read_bytes() for path in (tmp_path / "predictions").iterdir()}
    with pytest.raises(HTTError, match="predictions is not empty"):
        predict(tmp_path, PredictionWriter(), data)
    assert before == {path: path.read_bytes() for path in (tmp_path / "predictions").iterdir()}


def test_predicting_again_replaces_the_files_when_asked_to(tmp_path):
    data = tiny_data(tasks="depth", labels="full", val_images=1)
    written = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        predict(tmp_path, PredictionWriter(overwrite=True), data, tiny_module(data))
        written.append(np.load(tmp_path / "predictions" / "0_depth.npy"))
    assert not np.array_equal(*written)
    assert len(list((tmp_path / "predictions").iterdir())) == 2


def test_a_trial_run_writes_no_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(tmp_path, PredictionWriter(), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_other_commands_write_no_predictions(tmp_path, verb):
    data = tiny_data(tasks="depth", labels="full")
    getattr(tiny_trainer(tmp_path, callbacks=[PredictionWriter()]), verb)(tiny_module(data), data)
    assert not (tmp_path / "predictions").exists()
