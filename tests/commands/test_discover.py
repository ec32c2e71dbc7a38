"""The command that completes a dataset, and training on what it has written."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import LabelDiscovery
from htt_lightning.commands.discover import discover
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import HTTError
from htt_lightning.module import HTTModule
from htt_lightning.tasks import IGNORE_INDEX, Depth
from htt_lightning.training.trainer import HTTTrainer
from tests.conftest import ROOT
from tests.flow import HeightDataModule
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer

FEW = {"tasks": "semseg,normals,depth,edges", "labels": "random-label"}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = tiny_data(**FEW)
    torch.manual_seed(0)
    keep = ModelCheckpoint(dirpath=folder / "kept", filename="run")
    tiny_trainer(folder, callbacks=[keep], enable_checkpointing=True).fit(tiny_module(data), data)
    return str(folder / "kept" / "run.ckpt")


def discovered(out, checkpoint, data=None, **options):
    data = data or tiny_data(**FEW)
    discover(HTTTrainer(**QUIET), tiny_module(data), data, checkpoint, str(out), **options)
    return PseudoLabelStore(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "maps").iterdir()}


def assert_same_labels(one, other):
    """But for rounding: in a batch of another size, sums may be taken in another order."""
    assert contents(one).keys() == contents(other).keys()
    for path in (one / "maps").iterdir():
        with np.load(path) as ours, np.load(other / "maps" / path.name) as theirs:
            for key in ours.files:
                difference = np.abs(ours[key].astype(float) - theirs[key].astype(float))
                assert np.percentile(difference, 98) <= 1, key


def test_every_missing_map_is_written_and_no_given_one(tmp_path, checkpoint):
    data = tiny_data(**FEW)
    completed = discovered(tmp_path / "out", checkpoint, data)
    manifest = completed.manifest()
    labels = data.labels_per_image("train", data.build_dataset("train"))
    assert manifest["images"].keys() == labels.keys()
    assert manifest["checkpoint"]["name"] == "run.ckpt"
    assert manifest["checkpoint"]["thresholds"]["edges"] == 0.99
    kinds = {"semseg": np.uint8, "normals": np.int8, "depth": np.float16, "edges": np.uint8, "saliency": np.uint8}
    for name, given in labels.items():
        assert {task for task, what in manifest["images"][name].items() if what == "ground_truth"} == set(given)
        with np.load(completed.path(name)) as archive:
            tasks = {task.name for task in data.tasks} - set(given)
            assert set(archive.files) == tasks | {f"{task}.confidence" for task in tasks}
            for task in tasks:
                assert archive[task].dtype == kinds.get(task, np.uint8)
                assert archive[task].shape[:2] == archive[f"{task}.confidence"].shape == (32, 48)
                assert archive[f"{task}.confidence"].dtype == np.uint8


def test_what_is_written_is_what_the_network_discovers(tmp_path, checkpoint):
    data = tiny_data(**FEW)
    completed = discovered(tmp_path / "out", checkpoint, data)
    module = HTTModule.load_from_checkpoint(checkpoint).eval()
    images = data.train_images_for_eval()
    sample, lacking = images[0], images.missing_tasks(0)
    with torch.no_grad():
        outputs = module(sample["image"][None])
    stored = completed.read(images.ids[0], lacking)
    for task in lacking:
        found = task.pseudo_label(outputs[task.name], (32, 48))
        label, confidence = stored[f"{task.name}.pseudo_label"], stored[f"{task.name}.confidence"]
        np.testing.assert_allclose(confidence, found.confidence[0], atol=0.6 / 255)
        theirs = found.label[0].numpy()
        theirs = theirs.transpose(1, 2, 0).squeeze() if task.field_channels else theirs
        np.testing.assert_allclose(label.squeeze(), theirs, rtol=1e-3, atol=0.01 if task.field_channels == 3 else 0)


def test_an_interrupted_command_goes_on_and_a_finished_one_has_nothing_to_do(tmp_path, checkpoint, monkeypatch):
    whole = discovered(tmp_path / "whole", checkpoint)
    write, written = PseudoLabelStore.write, []

    def failing(self, name, maps):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, maps)

    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabelStore, "write", failing)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # as Lightning pleases
            discovered(tmp_path / "out", checkpoint)
    assert len(contents(tmp_path / "out")) == 5
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "maps").iterdir()}
    assert_same_labels(discovered(tmp_path / "out", checkpoint).folder, whole.folder)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    monkeypatch.setattr(PseudoLabelStore, "write", None)
    discovered(tmp_path / "out", checkpoint)


def test_a_folder_of_another_dataset_or_checkpoint_is_refused_and_kept(tmp_path, checkpoint):
    out = discovered(tmp_path / "out", checkpoint).folder
    before = contents(out)
    other = tmp_path / "other.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    torch.save(stored | {"epoch": 7}, other)
    with pytest.raises(HTTError, match="another checkpoint"):
        discovered(out, str(other))
    with pytest.raises(HTTError, match="another images"):
        discovered(out, checkpoint, tiny_data(**FEW, seed=3))
    assert contents(out) == before
    discovered(out, checkpoint, tiny_data(**FEW, seed=3), overwrite=True)
    assert contents(out) != before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for out, message in (("notes", "a folder of pseudo-labels"), ("notes/mine.txt", "the file")):
        with pytest.raises(HTTError, match=message):
            discovered(tmp_path / out, checkpoint, overwrite=True)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_training_on_a_completed_dataset_needs_no_teacher_and_no_hidden_label(tmp_path, checkpoint):
    out = str(discovered(tmp_path / "out", checkpoint).folder)
    all_kept = {task.name: 0.0 for task in tiny_data(**FEW).tasks}

    def trained(stages, **data):
        torch.manual_seed(0)
        module, source = tiny_module(tiny_data(**FEW)), tiny_data(**FEW, **data)
        trainer = tiny_trainer(
            tmp_path, callbacks=[LabelDiscovery(stages=stages, confidence_thresholds=all_kept)], max_epochs=1
        )
        trainer.fit(module, source)
        return weights(module), trainer.callback_metrics

    taught, metrics = trained(1, pseudo_labels=out)
    assert 0 < metrics["train/depth/pseudo_label_confidence"] <= 1
    plain, _ = trained(1)
    assert any(not torch.equal(taught[key], value) for key, value in plain.items())
    workers, _ = trained(1, pseudo_labels=out, num_workers=2)
    assert_same(taught, workers)


def test_discovered_maps_move_with_their_image(tmp_path, checkpoint):
    """The networks' own maps are put where given labels are: after augmentation the two still agree."""
    data = tiny_data(**(FEW | {"labels": "full"}))
    completed = PseudoLabelStore(tmp_path / "truth")
    source = data.build_dataset("train")
    hidden = tiny_data(**FEW)
    labels = hidden.labels_per_image("train", hidden.build_dataset("train"))
    for k, name in enumerate(source.ids):
        lacking = [task for task in data.tasks if task.name not in labels[name]]
        certain = np.ones((32, 48), np.float32)
        completed.write(name, {task.name: (task, source.label(k, task.name), certain) for task in lacking})
    images = {
        name: {t.name: "ground_truth" if t.name in labels[name] else "pseudo_label" for t in data.tasks}
        for name in source.ids
    }
    completed.write_manifest({"dataset": data.fingerprint(), "checkpoint": {}, "images": images})
    hidden = tiny_data(**FEW, pseudo_labels=str(completed.folder))
    hidden.setup("fit")
    data.setup("fit")
    seen = 0
    for k in range(len(hidden.train)):
        sample, truth = hidden.train[k], data.train[k]
        if not torch.equal(sample["image"], truth["image"]):
            continue  # crops are chosen by the given labels, so some differ
        seen += 1
        for task in data.tasks:
            label, confidence = sample["pseudo_labels"][task.name]
            if sample["labeled"][task.name]:
                assert (confidence == 0).all()
                continue
            assert torch.equal(confidence, sample["valid"].float())
            missing = truth[task.name] == IGNORE_INDEX if task.field_channels is None else truth[task.name].isnan()
            expected = torch.where(missing, label, truth[task.name])
            atol = 0 if task.field_channels is None else 0.02
            torch.testing.assert_close(label, expected, rtol=2e-3, atol=atol)
    assert seen > 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "maps" / "3.npz").unlink(), "3.npz is missing"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"format": 1})), "is damaged"),
    ],
    ids=["no manifest", "damaged manifest", "missing archive", "empty manifest"],
)
def test_a_broken_completed_dataset_is_refused_before_training(damage, message, tmp_path, checkpoint):
    folder = discovered(tmp_path / "out", checkpoint).folder
    damage(folder)
    data = tiny_data(**FEW, pseudo_labels=str(folder))
    with pytest.raises(HTTError, match=message):
        tiny_trainer(tmp_path).fit(tiny_module(data), data)


def test_a_damaged_archive_is_named(tmp_path, checkpoint):
    completed = discovered(tmp_path / "out", checkpoint)
    completed.path("3").write_bytes(b"PK")
    with pytest.raises(HTTError, match=r"3\.npz is missing, damaged"):
        completed.read("3", tiny_data(**FEW).tasks[:1])


def test_an_id_cannot_lead_out_of_the_folder(tmp_path):
    with pytest.raises(HTTError, match="leads out"):
        PseudoLabelStore(tmp_path / "out").path("../../elsewhere")


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(tmp_path, checkpoint, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(HTTError, match="No space left on device"):
        discovered(tmp_path / "out", checkpoint)
    assert not list((tmp_path / "out" / "maps").iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"scene_seed": 7}, "its images differ"),
        ({"seed": 3}, "has no discovered"),
        ({"tasks": ["semseg", "normals", Depth(num_bins=9), "edges"]}, "its depth differ"),
    ],
    ids=["other scenes", "other labels", "other bins"],
)
def test_a_completed_dataset_of_other_images_labels_or_tasks_is_refused(other, message, tmp_path, checkpoint):
    data = tiny_data(**(FEW | {"pseudo_labels": str(discovered(tmp_path / "out", checkpoint).folder)} | other))
    with pytest.raises(HTTError, match=message):
        tiny_trainer(tmp_path).fit(tiny_module(data), data)


def test_a_task_that_discovers_nothing_is_left_out(tmp_path):
    data = HeightDataModule(train_images=12, val_images=2, image_size=(32, 48), batch_size=4, num_workers=0, seed=0)
    torch.manual_seed(0)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    callbacks = [keep, LabelDiscovery()]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(tiny_module(data), data)
    assert "train/depth/pseudo_label_coverage" in trainer.callback_metrics
    assert "train/height/pseudo_label_coverage" not in trainer.callback_metrics
    completed = discovered(tmp_path / "out", str(tmp_path / "kept" / "run.ckpt"), data)
    images = completed.manifest()["images"].values()
    assert {what.get("height") for what in images} == {"ground_truth", None}
    data.pseudo_labels = completed
    tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=1)]).fit(tiny_module(data), data)


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path, checkpoint):
    one = discovered(tmp_path / "one", checkpoint)
    shutil.copytree(one.folder, tmp_path / "two")
    for path in sorted((tmp_path / "two" / "maps").iterdir())[:3]:
        path.unlink()  # an odd number for two processes
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    command = [sys.executable, "-m", "tests.ddp_discover", str(tmp_path / "two"), checkpoint]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(one.manifest_path.read_text()) == json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert_same_labels(one.folder, tmp_path / "two")
