import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from htt_lightning import SyntheticDataModule
from htt_lightning.callbacks import PredictionWriter
from htt_lightning.callbacks.prediction_writer import write_map
from htt_lightning.errors import HTTError
from htt_lightning.io.images import read_gray, read_index, read_normals
from htt_lightning.tasks import Depth, InverseDepth, SemSeg
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def predict(folder, writer, data=None, module=None, **trainer):
    data = data or tiny_data(tasks="depth", labels="full")
    return tiny_trainer(folder, callbacks=[writer], **trainer).predict(module or tiny_module(data), data)


@pytest.fixture(scope="module")
def decoded():
    """Data, a module, and its maps of the first batch."""
    data = tiny_data(val_images=5)  # the last batch has a single image
    data.setup("predict")
    module = tiny_module(data).eval()
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        maps = module.decode(batch["image"])
    return data, module, batch["id"], maps


@pytest.fixture(scope="module")
def pngs(decoded, tmp_path_factory):
    data, module, *_ = decoded
    folder = tmp_path_factory.mktemp("pngs")
    assert not predict(folder, PredictionWriter(), data, module), "predictions stay in memory"
    return folder / "predictions"


def test_each_image_has_maps_visualizations_and_a_panel(decoded, pngs):
    tasks = [task.name for task in decoded[0].tasks]
    suffixes = {task: "npy" if task in ("saliency", "edges") else "png" for task in tasks}
    files = {f"{task}.{suffixes[task]}" for task in tasks} | {f"{task}_view.png" for task in tasks} | {"panel.png"}
    assert {path.name for path in pngs.iterdir()} == {f"{k}_{file}" for k in range(5) for file in files} | {"maps.json"}


def test_maps_of_padded_images_have_the_size_of_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(SyntheticDataModule, "_min_eval_size", (64, 96))
    data = tiny_data(tasks="depth", labels="full")
    module = tiny_module(data).eval()
    predict(tmp_path, PredictionWriter(format="npy"), data, module)
    batch = next(iter(data.predict_dataloader()))
    with torch.no_grad():
        whole = module.decode(batch["image"])["depth"].numpy()
    assert whole.shape[2:] == (64, 96)
    for name, depth in zip(batch["id"], whole, strict=True):
        np.testing.assert_array_equal(np.load(tmp_path / f"predictions/{name}_depth.npy"), depth[:, 16:48, 24:72])
        with Image.open(tmp_path / f"predictions/{name}_depth_view.png") as view:
            assert view.size == (48, 32)


def test_png_files_are_read_back_by_the_library(decoded, pngs):
    _, _, ids, maps = decoded
    for k, name in enumerate(ids):
        np.testing.assert_array_equal(read_index(pngs / f"{name}_semseg.png"), maps["semseg"][k].numpy())
        depth = read_gray(pngs / f"{name}_depth.png")
        assert depth.dtype == np.uint16
        assert np.abs(depth / 1000 - maps["depth"][k, 0].numpy()).max() < 0.00051
        normals = read_normals(pngs / f"{name}_normals.png", (32, 48))
        cosine = (normals * maps["normals"][k].numpy().transpose(1, 2, 0)).sum(-1).clip(-1, 1)
        assert np.degrees(np.arccos(cosine)).max() < 0.5
        saliency = np.load(pngs / f"{name}_saliency.npy")
        assert 0 <= saliency.min() <= saliency.max() <= 1


def test_maps_json_has_the_units_of_the_values(decoded, pngs):
    described = json.loads((pngs / "maps.json").read_text())
    units = dict.fromkeys(("semseg", "human_parts"), ("class index", "class index")) | {"depth": ("mm", "m")}
    units |= dict.fromkeys(("saliency", "edges"), (None, "probability"))
    units["normals"] = ("x y z = 2 * r g b / 255 - 1", "unit vector: x right, y up, z to the camera")
    for task in decoded[0].tasks:
        png, npy = units[task.name]
        assert described.pop(task.name) == {"png": png, "npy": npy, "classes": list(task.class_names)}
    assert not described


def test_npy_files_hold_the_decoded_maps(decoded, tmp_path):
    data, module, ids, maps = decoded
    predict(tmp_path, PredictionWriter(format="npy", save_panels=False), data, module)
    dtypes = {"semseg": np.int64, "human_parts": np.int64}
    for task in data.tasks:
        pictures = task.colorize(maps[task.name]).permute(0, 2, 3, 1).numpy()
        for name, values, picture in zip(ids, maps[task.name].numpy(), pictures, strict=True):
            stem = tmp_path / "predictions" / f"{name}_{task.name}"
            written = np.load(stem.with_suffix(".npy"))
            assert written.dtype == dtypes.get(task.name, np.float32)
            np.testing.assert_array_equal(written, values)
            np.testing.assert_array_equal(np.asarray(Image.open(f"{stem}_view.png")), picture)
    described = json.loads((tmp_path / "predictions" / "maps.json").read_text())
    assert {row["png"] for row in described.values()} == {None}


def test_values_beyond_png_stay_arrays(tmp_path):
    far, inverse = Depth(max_depth=66.0), InverseDepth()
    for task, values in ((far, np.full((1, 2, 3), 65.6)), (inverse, np.full((1, 2, 3), 0.4))):
        path = write_map(tmp_path / task.name, task, values.astype(np.float32))
        np.testing.assert_array_equal(np.load(path), values.astype(np.float32))
    classes = SemSeg(classes=tuple(map(str, range(301))))
    assert write_map(tmp_path / "many", classes, np.array([[0, 300]])).suffix == ".npy"


def test_a_write_error_spares_other_images(tmp_path):
    (tmp_path / "mine" / "2_depth.png").mkdir(parents=True)
    with pytest.raises(HTTError, match=r"1 of 4 images failed[\s\S]*2_depth\.png"):
        predict(tmp_path / "run", PredictionWriter(str(tmp_path / "mine"), overwrite=True))
    assert len(list((tmp_path / "mine").glob("*_panel.png"))) == 3
    assert not (tmp_path / "run" / "predictions").exists()


def test_an_unwritable_folder_is_named_before_prediction(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HTTError, match=r"Cannot write .*file"):
        predict(tmp_path, PredictionWriter(str(tmp_path / "file" / "maps")))


def test_files_are_written_in_threads(tmp_path, monkeypatch):
    def note(*_):
        threads.add(threading.current_thread().name)

    threads = set()
    monkeypatch.setattr("htt_lightning.callbacks.prediction_writer.write_map", note)
    predict(tmp_path, PredictionWriter())
    assert threads
    assert all(name.startswith("write") for name in threads)


def test_an_unknown_format_is_refused():
    with pytest.raises(HTTError, match=r"predictions\.format .*'tiff'"):
        PredictionWriter(format="tiff")


def test_predictions_are_overwritten_on_demand_only(tmp_path):
    def contents():
        return {path: path.read_bytes() for path in (tmp_path / "predictions").iterdir()}

    data = tiny_data(tasks="depth", labels="full", val_images=1)
    predict(tmp_path, PredictionWriter(), data)
    before = contents()
    with pytest.raises(HTTError, match="--overwrite"):
        predict(tmp_path, PredictionWriter(), data)
    assert contents() == before
    predict(tmp_path, PredictionWriter(overwrite=True), data)
    assert contents().keys() == before.keys()
    assert contents() != before


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_trials_and_other_commands_write_no_predictions(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    data = tiny_data(tasks="depth", labels="full")
    trainer = tiny_trainer(tmp_path, callbacks=[PredictionWriter()], fast_dev_run=command == "predict")
    getattr(trainer, command)(tiny_module(data), data)
    assert {path.name for path in tmp_path.iterdir()} <= {"label_mask.json"}
