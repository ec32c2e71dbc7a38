import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning.callbacks import PredictionWriter
from htt_lightning.callbacks.prediction_writer import write_map
from htt_lightning.errors import HTTError
from htt_lightning.io.images import read_gray, read_index, read_normals
from htt_lightning.tasks import Depth, InverseDepth, SemSeg
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def predict(folder, writer, data=None, module=None, **trainer):
    data = data or tiny_data()
    module = module or tiny_module(data)
    return tiny_trainer(folder, callbacks=[writer], **trainer).predict(module, data)


def test_every_validation_image_gets_a_map_and_a_view_per_task_and_a_panel(tmp_path):
    data = tiny_data(val_images=5)  # the last batch has a single image
    predict(tmp_path, PredictionWriter(), data)
    names = {path.name for path in (tmp_path / "predictions").iterdir()}
    tasks = [task.name for task in data.tasks]
    ends = {task: "npy" if task in ("saliency", "edges") else "png" for task in tasks}
    files = {f"{task}.{ends[task]}" for task in tasks} | {f"{task}_view.png" for task in tasks} | {"panel.png"}
    assert names == {f"{k}_{file}" for k in range(5) for file in files} | {"maps.json"}


def test_the_files_hold_what_the_module_decodes(tmp_path):
    data = tiny_data()
    module = tiny_module(data).eval()
    predict(tmp_path, PredictionWriter(format="npy"), data, module)
    kinds = {"semseg": np.int64, "human_parts": np.int64}
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        maps = module.decode(batch["image"])
    for task in data.tasks:
        pictures = task.colorize(maps[task.name]).permute(0, 2, 3, 1).numpy()
        for name, values, picture in zip(batch["id"], maps[task.name].numpy(), pictures, strict=True):
            stem = tmp_path / "predictions" / f"{name}_{task.name}"
            written = np.load(stem.with_suffix(".npy"))
            assert written.dtype == kinds.get(task.name, np.float32)
            assert written.shape == (() if task.field_channels is None else (task.field_channels,)) + (32, 48)
            np.testing.assert_array_equal(written, values)
            np.testing.assert_array_equal(np.asarray(Image.open(f"{stem}_view.png")), picture)


def test_pictures_hold_classes_millimetres_and_directions_that_the_library_reads_back(tmp_path):
    data = tiny_data()
    module = tiny_module(data).eval()
    predict(tmp_path, PredictionWriter(save_visualizations=False, save_panels=False), data, module)
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        maps = {task: values.numpy() for task, values in module.decode(batch["image"]).items()}
    for k, name in enumerate(batch["id"]):
        stem = f"{tmp_path}/predictions/{name}_"
        np.testing.assert_array_equal(read_index(Path(f"{stem}semseg.png")), maps["semseg"][k])
        depth = read_gray(Path(f"{stem}depth.png"))
        assert depth.dtype == np.uint16
        assert np.abs(depth / 1000 - maps["depth"][k, 0]).max() < 0.00051
        directions = read_normals(Path(f"{stem}normals.png"), (32, 48))
        cosine = (directions * maps["normals"][k].transpose(1, 2, 0)).sum(-1).clip(-1, 1)
        assert np.degrees(np.arccos(cosine)).max() < 0.5
    legend = json.loads((tmp_path / "predictions" / "maps.json").read_text())
    assert legend["depth"] == {"png": "mm", "npy": "m", "classes": []}
    assert legend["semseg"]["classes"] == list(data.tasks[0].class_names)
    assert not list((tmp_path / "predictions").glob("*_view.png"))


def test_numbers_that_no_picture_holds_stay_arrays(tmp_path):
    far, inverse = Depth(max_depth=66.0), InverseDepth()
    for task, values in ((far, np.full((1, 2, 3), 65.6)), (inverse, np.full((1, 2, 3), 0.4))):
        path = write_map(tmp_path / task.name, task, values.astype(np.float32))
        np.testing.assert_array_equal(np.load(path), values.astype(np.float32))
    classes = np.array([[0, 300]])
    assert write_map(tmp_path / "many", SemSeg(classes=tuple(map(str, range(301)))), classes).suffix == ".npy"


def test_an_image_that_cannot_be_written_costs_no_other(tmp_path):
    data = tiny_data(tasks="depth", labels="full")
    (tmp_path / "mine" / "2_depth.png").mkdir(parents=True)
    with pytest.raises(HTTError, match=r"1 of 4 images failed[\s\S]*2_depth\.png"):
        predict(tmp_path, PredictionWriter(str(tmp_path / "mine"), overwrite=True), data)
    assert len(list((tmp_path / "mine").glob("*_panel.png"))) == 3


def test_a_folder_that_cannot_be_written_is_named_before_the_network_runs(tmp_path):
    (tmp_path / "file").touch()
    data = tiny_data(tasks="depth", labels="full")
    with pytest.raises(HTTError, match=r"Cannot write .*file"):
        predict(tmp_path, PredictionWriter(str(tmp_path / "file" / "maps")), data)


def test_writing_happens_beside_the_network(tmp_path, monkeypatch):
    threads = set()
    monkeypatch.setattr(
        "htt_lightning.callbacks.prediction_writer.write_map", lambda *_: threads.add(threading.current_thread().name)
    )
    predict(tmp_path, PredictionWriter(), tiny_data(tasks="depth", labels="full"))
    assert threads
    assert all(name.startswith("write") for name in threads)


def test_an_unknown_format_is_refused():
    with pytest.raises(HTTError, match=r"predictions\.format is 'tiff'"):
        PredictionWriter(format="tiff")


def test_predict_returns_nothing_so_that_memory_does_not_grow(tmp_path):
    assert not predict(tmp_path, PredictionWriter())


def test_predictions_go_where_they_are_asked_to(tmp_path):
    predict(tmp_path / "run", PredictionWriter(str(tmp_path / "mine")), tiny_data(tasks="depth", labels="full"))
    assert len(list((tmp_path / "mine").glob("*_*"))) == 12
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
        written.append(np.asarray(Image.open(tmp_path / "predictions" / "0_depth.png")))
    assert not np.array_equal(*written)
    assert len(list((tmp_path / "predictions").iterdir())) == 4


def test_a_trial_run_writes_no_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(tmp_path, PredictionWriter(), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_other_commands_write_no_predictions(tmp_path, verb):
    data = tiny_data(tasks="depth", labels="full")
    getattr(tiny_trainer(tmp_path, callbacks=[PredictionWriter()]), verb)(tiny_module(data), data)
    assert not (tmp_path / "predictions").exists()
