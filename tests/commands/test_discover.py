"""The command ``discover``, and training on its pseudo-labels."""

import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import LabelDiscovery
from htt_lightning.commands.discover import discover
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.module import HTTModule
from htt_lightning.tasks import IGNORE_INDEX, Depth
from htt_lightning.training.trainer import HTTTrainer
from tests.commands.interruption import interrupted_after
from tests.flow import HeightDataModule
from tests.ranks import run_ranks
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


def discover_into(folder, checkpoint, data=None, **options):
    data = data or tiny_data(**FEW)
    discover(HTTTrainer(**QUIET), tiny_module(data), data, str(folder), checkpoint, **options)
    return PseudoLabelStore(folder)


@pytest.fixture(scope="module")
def complete(tmp_path_factory, checkpoint):
    """Pseudo-labels of the tiny dataset, to be read only."""
    return discover_into(tmp_path_factory.mktemp("complete") / "out", checkpoint)


@pytest.fixture
def copied(complete, tmp_path):
    """Pseudo-labels that a test may change."""
    return PseudoLabelStore(Path(shutil.copytree(complete.folder, tmp_path / "out")))


def discovered(store, name):
    return [task for task, kind in store.manifest()["images"][name].items() if kind == Origin.DISCOVERED]


def contents(store):
    return {path.name: path.read_bytes() for path in (store.folder / "maps").iterdir()}


def assert_same_labels(one, other):
    """Compare files up to rounding: batches of another size may add in another order."""
    assert contents(one).keys() == contents(other).keys()
    for path in (one.folder / "maps").iterdir():
        with np.load(path) as ours, np.load(other.folder / "maps" / path.name) as theirs:
            for key in ours.files:
                difference = np.abs(ours[key].astype(float) - theirs[key].astype(float))
                assert np.percentile(difference, 98) <= 1, key


def test_discover_writes_missing_labels_only(complete):
    data = tiny_data(**FEW)
    manifest, labels = complete.manifest(), data.labels_per_image("train", data.build_dataset("train"))
    assert manifest["images"].keys() == labels.keys()
    assert manifest["checkpoint"]["name"] == "run.ckpt"
    assert manifest["checkpoint"]["thresholds"]["edges"] == 0.99
    dtypes = {"semseg": np.uint8, "normals": np.int8, "depth": np.float16, "edges": np.uint8}
    for name, labeled in labels.items():
        kinds = manifest["images"][name].items()
        assert {task for task, kind in kinds if kind == Origin.GIVEN} == set(labeled)
        with np.load(complete.path(name)) as archive:
            tasks = dtypes.keys() - set(labeled)
            assert set(archive.files) == tasks | {f"{task}.confidence" for task in tasks}
            for task in tasks:
                assert (archive[task].dtype, archive[f"{task}.confidence"].dtype) == (dtypes[task], np.uint8)
                assert archive[task].shape[:2] == archive[f"{task}.confidence"].shape == (32, 48)


def test_discover_writes_predictions_of_network(complete, checkpoint):
    module = HTTModule.load_from_checkpoint(checkpoint).eval()
    images = tiny_data(**FEW).train_images_for_eval()
    sample, missing = images[0], images.missing_tasks(0)
    with torch.no_grad():
        outputs = module(sample["image"][None])
    stored = complete.read(images.ids[0], missing)
    for task in missing:
        found = task.pseudo_label(outputs[task.name], (32, 48))
        label, confidence = stored[f"{task.name}.pseudo_label"], stored[f"{task.name}.confidence"]
        np.testing.assert_allclose(confidence, found.confidence[0], atol=0.6 / 255)
        expected = found.label[0].numpy()
        expected = expected.transpose(1, 2, 0).squeeze() if task.field_channels else expected
        np.testing.assert_allclose(label.squeeze(), expected, rtol=1e-3, atol=0.01 if task.field_channels == 3 else 0)


def stored_confidences(store, task):
    names = [name for name in store.manifest()["images"] if task.name in discovered(store, name)]
    return torch.tensor(np.stack([store.read(name, [task])[f"{task.name}.confidence"] for name in names]))


def test_discover_prints_share_of_confident_pixels(tmp_path, complete, checkpoint, capsys):
    data, out = tiny_data(**FEW), tmp_path / "out"
    module, depth = tiny_module(data), next(task for task in data.tasks if task.name == "depth")
    above_lowest = stored_confidences(complete, depth).min().item() + 0.5 / 255  # between two values of files
    callback = LabelDiscovery(confidence_thresholds={"depth": above_lowest})
    discover(HTTTrainer(callbacks=[callback], **QUIET), module, data, str(out), checkpoint)
    summary, shares, path = capsys.readouterr().out.splitlines()[-3:]
    store = PseudoLabelStore(out)
    assert (summary, path) == (store.summary(), str(store.manifest_path))
    printed = {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+) %", shares)}
    for task in callback.tasks_with_overrides(module):
        expected = task.confidence_mask(stored_confidences(store, task)).float().mean().item()
        assert printed[task.name] == pytest.approx(100 * expected, abs=0.1 if task.name == "depth" else 1)
    assert 0 < printed["depth"] < 100
    discover(HTTTrainer(**QUIET), module, data, str(out), checkpoint)
    assert "Confident pixels" not in capsys.readouterr().out  # nothing was left to write


def test_discover_resumes(tmp_path, complete, checkpoint, monkeypatch):
    out = tmp_path / "out"
    with interrupted_after(5, monkeypatch):
        discover_into(out, checkpoint)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    assert len(stamps) == 5
    assert_same_labels(discover_into(out, checkpoint), complete)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    monkeypatch.setattr(PseudoLabelStore, "write", None)
    discover_into(out, checkpoint)  # nothing is left to write


def test_discover_keeps_rejections_and_redoes_none(copied, checkpoint, monkeypatch):
    (first, *tasks), second = discovered(copied, "0"), discovered(copied, "1")[0]
    for task in (first, *tasks):
        copied.set_rejected("0", task)
    copied.set_rejected("1", second)
    for name in ("0", "1"):
        copied.path(name).unlink()
    written, write = [], PseudoLabelStore.write
    monkeypatch.setattr(PseudoLabelStore, "write", lambda self, *args: [written.append(args[0]), write(self, *args)])
    discover_into(copied.folder, checkpoint)
    assert written == ["1"]
    assert copied.rejected() == {"0": sorted([first, *tasks]), "1": [second]}
    copied.check(tiny_data(**FEW).labels_per_image("train", tiny_data(**FEW).build_dataset("train")), [], {"tasks": {}})
    discover_into(copied.folder, checkpoint, tiny_data(**FEW, seed=3), overwrite=True)
    assert copied.rejected() == {}, "labels of another mask are new ones"


def test_discover_keeps_folder_of_other_run(tmp_path, copied, checkpoint):
    before, other = contents(copied), tmp_path / "other.ckpt"
    torch.save(torch.load(checkpoint, weights_only=True) | {"epoch": 7}, other)
    with pytest.raises(ConfigError, match=r"--out .*checkpoint"):
        discover_into(copied.folder, str(other))
    with pytest.raises(ConfigError, match=r"--out .*images"):
        discover_into(copied.folder, checkpoint, tiny_data(**FEW, seed=3))
    assert contents(copied) == before
    discover_into(copied.folder, checkpoint, tiny_data(**FEW, seed=3), overwrite=True)
    assert contents(copied) != before


@pytest.mark.parametrize("out", ["notes", "notes/mine.txt"])
def test_discover_keeps_foreign_files(out, tmp_path, checkpoint):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=f"--out .*{out}"):
        discover_into(tmp_path / out, checkpoint, overwrite=True)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_discover_leaves_no_partial_file_on_full_disk(tmp_path, checkpoint, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(HTTError, match="No space left on device"):
        discover_into(tmp_path / "out", checkpoint)
    assert not list((tmp_path / "out" / "maps").iterdir())


def test_task_without_pseudo_labels_is_left_out(tmp_path):
    data = HeightDataModule(train_images=12, val_images=2, image_size=(32, 48), batch_size=4, num_workers=0, seed=0)
    torch.manual_seed(0)
    callbacks = [ModelCheckpoint(dirpath=tmp_path / "kept", filename="run"), LabelDiscovery()]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(tiny_module(data), data)
    assert "train/depth/pseudo_label_coverage" in trainer.callback_metrics
    assert "train/height/pseudo_label_coverage" not in trainer.callback_metrics
    data.pseudo_labels = discover_into(tmp_path / "out", str(tmp_path / "kept" / "run.ckpt"), data)
    images = data.pseudo_labels.manifest()["images"].values()
    assert {kinds.get("height") for kinds in images} == {Origin.GIVEN, None}
    tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=1)]).fit(tiny_module(data), data)


def test_fit_on_pseudo_labels_needs_no_teacher(tmp_path, complete):
    thresholds = {task.name: 0.0 for task in tiny_data(**FEW).tasks}

    def fit(**options):
        torch.manual_seed(0)
        module, callback = tiny_module(tiny_data(**FEW)), LabelDiscovery(stages=1, confidence_thresholds=thresholds)
        trainer = tiny_trainer(tmp_path, callbacks=[callback], max_epochs=1)
        trainer.fit(module, tiny_data(**FEW, **options))
        return weights(module), trainer.callback_metrics

    taught, metrics = fit(pseudo_labels=str(complete.folder))
    assert 0 < metrics["train/depth/pseudo_label_confidence"] <= 1
    assert any(not torch.equal(taught[key], value) for key, value in fit()[0].items())
    assert_same(taught, fit(pseudo_labels=str(complete.folder), num_workers=2)[0])


def test_pseudo_labels_are_augmented_with_their_image(tmp_path):
    """Ground truth in place of pseudo-labels must equal the labels of the full dataset after augmentation."""
    data, few = tiny_data(**(FEW | {"labels": "full"})), tiny_data(**FEW)
    store, dataset = PseudoLabelStore(tmp_path / "truth"), data.build_dataset("train")
    labels = few.labels_per_image("train", few.build_dataset("train"))
    images, certain = {}, np.ones((32, 48), np.float32)
    for k, name in enumerate(dataset.ids):
        missing = [task for task in data.tasks if task.name not in labels[name]]
        store.write(name, {task.name: (task, dataset.label(k, task.name), certain) for task in missing})
        images[name] = dict.fromkeys(labels[name], Origin.GIVEN) | {task.name: Origin.DISCOVERED for task in missing}
    store.write_manifest({"dataset": data.fingerprint(), "checkpoint": {"sha256": ""}, "images": images})
    few = tiny_data(**FEW, pseudo_labels=str(store.folder))
    few.setup("fit")
    data.setup("fit")
    pairs = [(few.train[k], data.train[k]) for k in range(len(few.train))]
    # Crops are chosen by the labels of an image, so some differ.
    pairs = [(sample, truth) for sample, truth in pairs if torch.equal(sample["image"], truth["image"])]
    assert len(pairs) > 3
    for (sample, truth), task in itertools.product(pairs, data.tasks):
        label, confidence = sample["pseudo_labels"][task.name]
        if sample["labeled"][task.name]:
            assert (confidence == 0).all()
            continue
        assert torch.equal(confidence, sample["valid"].float())
        empty = truth[task.name] == IGNORE_INDEX if task.field_channels is None else truth[task.name].isnan()
        expected = torch.where(empty, label, truth[task.name])
        torch.testing.assert_close(label, expected, rtol=2e-3, atol=0 if task.field_channels is None else 0.02)


def test_derived_labels_get_no_pseudo_label(tmp_path, checkpoint):
    derive = {"normals": "depth", "edges": "semseg"}
    data = tiny_data(**FEW, derive=derive)
    store = discover_into(tmp_path / "out", checkpoint, data)
    kept, found = data.labels_per_image("train", data.build_dataset("train")), 0
    for name, origins in store.manifest()["images"].items():
        follow = {task for task, source in derive.items() if source in kept[name] and task not in kept[name]}
        assert {task for task, origin in origins.items() if origin == Origin.DERIVED} == follow
        assert set(discovered(store, name)) == {"semseg", "normals", "depth", "edges"} - follow - {*kept[name]}
        found += len(follow)
    assert found > 3
    complete = tiny_data(**FEW, derive=derive, pseudo_labels=str(store.folder))
    complete.prepare_data()
    complete.setup("fit")
    batch = next(iter(complete.train_dataloader()))
    for task, codes in batch["origin"].items():
        confident = batch["pseudo_labels"][task].confidence.flatten(1).any(1)
        assert torch.equal(confident, codes == Origin.DISCOVERED.code)
        assert torch.equal(batch["labeled"][task], codes < Origin.DISCOVERED.code)
    with pytest.raises(HTTError, match=r"data\.derive"):
        tiny_data(**FEW, pseudo_labels=str(store.folder)).prepare_data()


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1}'), "manifest.json"),
        (lambda folder: (folder / "maps" / "3.npz").unlink(), "3.npz"),
    ],
    ids=["no manifest", "corrupt manifest", "empty manifest", "missing archive"],
)
def test_corrupt_pseudo_labels_are_rejected_before_training(damage, file, tmp_path, copied):
    damage(copied.folder)
    data = tiny_data(**FEW, pseudo_labels=str(copied.folder))
    with pytest.raises(HTTError, match=file):
        tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=1)]).fit(tiny_module(data), data)


def test_corrupt_archive_is_named(copied):
    copied.path("3").write_bytes(b"PK")
    with pytest.raises(HTTError, match=r"3\.npz"):
        copied.read("3", tiny_data(**FEW).tasks[:1])


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"scene_seed": 7}, "images differ.*run discover again"),
        ({"seed": 3}, "data.labels"),
        ({"tasks": ["semseg", "normals", Depth(num_bins=9), "edges"]}, "depth"),
    ],
    ids=["scenes", "labels", "bins"],
)
def test_pseudo_labels_of_other_dataset_are_rejected(other, word, tmp_path, complete):
    data = tiny_data(**(FEW | {"pseudo_labels": str(complete.folder)} | other))
    with pytest.raises(HTTError, match=word):
        tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=1)]).fit(tiny_module(data), data)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(copied, complete, checkpoint, tmp_path):
    for path in sorted((copied.folder / "maps").iterdir())[:3]:
        path.unlink()  # an odd number for two processes
    done = run_ranks("tests.ddp_discover", copied.folder, "--checkpoint", checkpoint, output=tmp_path / "printed.txt")
    assert done.statuses == [0, 0], done.printed
    assert copied.manifest() == complete.manifest()
    assert_same_labels(complete, copied)
