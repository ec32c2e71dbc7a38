"""Rejection of stored pseudo-labels, and training without them."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from htt_lightning import LabelDiscovery
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import ConfigError, DataError
from tests.tiny import tiny_data, tiny_module, tiny_trainer

FEW = {"tasks": "semseg,normals,depth,edges", "labels": "random-label"}


def store_truth(folder, data, confidence=1.0):
    """Store the hidden labels of the tiny dataset as its pseudo-labels."""
    store, dataset, images = PseudoLabelStore(folder), data.build_dataset("train"), {}
    labels = data.labels_per_image("train", dataset)
    for k, name in enumerate(dataset.ids):
        missing = [task for task in data.tasks if task.name not in labels[name]]
        maps = {task.name: (task, dataset.label(k, task.name), np.full((32, 48), confidence)) for task in missing}
        store.write(name, maps)
        images[name] = dict.fromkeys(labels[name], Origin.GIVEN) | dict.fromkeys(maps, Origin.DISCOVERED)
    store.write_manifest({"dataset": data.fingerprint(), "checkpoint": {"sha256": ""}, "images": images})
    return store


@pytest.fixture
def store(tmp_path):
    return store_truth(tmp_path / "store", tiny_data(**FEW))


def of_kind(store, name, kind):
    return next(task for task, found in store.manifest()["images"][name].items() if found == kind)


def test_rejection_is_written_and_taken_back(store):
    task, before = of_kind(store, "3", Origin.DISCOVERED), store.manifest_path.read_bytes()
    for _ in range(2):
        store.set_rejected("3", task)
        assert store.rejected() == {"3": [task]}
    assert store.manifest()["images"]["3"][task] == Origin.DISCOVERED
    store.set_rejected("3", task, rejected=False)
    assert store.manifest_path.read_bytes() == before
    assert [path.name for path in store.folder.iterdir() if path.is_file()] == ["manifest.json"]


def test_only_pseudo_labels_can_be_rejected(store):
    for name, task in (("3", of_kind(store, "3", Origin.GIVEN)), ("3", "sound"), ("nobody", "depth")):
        with pytest.raises(ConfigError, match=f"{task} of image '{name}'"):
            store.set_rejected(name, task)
    assert store.rejected() == {}


def test_summary_counts_labels_that_are_not_rejected(store):
    task = of_kind(store, "3", Origin.DISCOVERED)
    count = sum(origins[task] == Origin.DISCOVERED for origins in store.manifest()["images"].values())
    assert f"{task} {count}" in store.summary()
    store.set_rejected("3", task)
    assert f"{task} {count - 1}" in store.summary()


def test_run_counts_the_pseudo_labels_that_it_uses(store, caplog):
    """A run of a single task leaves out images without its label, and pseudo-labels with them."""
    with caplog.at_level("INFO"):
        tiny_data(**(FEW | {"tasks": "depth"}), pseudo_labels=str(store.folder), batch_size=1).setup("fit")
    assert f"Pseudo-labels of {store.folder}: none" in caplog.text


def test_training_without_the_callback_is_warned_of():
    """Only ``LabelDiscovery`` turns pseudo-labels into a loss."""
    module = tiny_module(tiny_data(tasks="depth"))
    module.trainer = Mock(datamodule=Mock(pseudo_labels="store"), callbacks=[], state=Mock(fn="fit"))
    with pytest.warns(UserWarning, match=r"data\.pseudo_labels.*LabelDiscovery"):
        module.configure_callbacks()
    module.trainer.callbacks.append(LabelDiscovery())
    module.configure_callbacks()


CORRUPT = [{"rejected": rejected} for rejected in (3, None, ["3"], {"3": "depth"}, {"3": [1]})]


@pytest.mark.parametrize("change", [*CORRUPT, {"format": 1}, {"images": {"3": {"depth": "pseudo_label"}}}])
def test_corrupt_manifest_is_named(change, store):
    store.manifest_path.write_text(json.dumps(json.loads(store.manifest_path.read_text()) | change))
    with pytest.raises(DataError, match=r"manifest\.json"):
        store.manifest()


def test_labels_from_outside_can_be_rejected(store):
    manifest = store.manifest()
    manifest["images"]["3"] |= {of_kind(store, "3", Origin.DISCOVERED): Origin.OUTSIDE}
    store.write_manifest(manifest)
    task = of_kind(store, "3", Origin.OUTSIDE)
    store.set_rejected("3", task)
    assert store.rejected() == {"3": [task]}


def test_mean_confidences_are_those_of_the_archive(tmp_path):
    store = store_truth(tmp_path / "store", tiny_data(**FEW), 0.4)
    task = of_kind(store, "3", Origin.DISCOVERED)
    assert store.mean_confidences("3", [task]) == {task: pytest.approx(0.4)}
    with pytest.raises(DataError, match=r"3\.npz"):
        store.mean_confidences("3", [of_kind(store, "3", Origin.GIVEN)])


def test_setup_reads_manifest_for_dataset_and_summary_alone(store, monkeypatch):
    reads, read = [], PseudoLabelStore.manifest
    monkeypatch.setattr(PseudoLabelStore, "manifest", lambda self: reads.append(self.folder) or read(self))
    tiny_data(**FEW, pseudo_labels=str(store.folder)).setup("fit")
    assert reads == [store.folder] * 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_have_no_rejected_label(num_workers, store, caplog):
    rejected = {(name, of_kind(store, name, Origin.DISCOVERED)) for name in ("0", "3", "5")}
    for name, task in rejected:
        store.set_rejected(name, task)
    data = tiny_data(**FEW, pseudo_labels=str(store.folder), num_workers=num_workers, batch_size=3, augment=None)
    data.prepare_data()
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert store.summary() in caplog.text
    assert "3 rejected pseudo-labels" in caplog.text
    seen = set()
    for batch in data.train_dataloader():
        for task, (_, confidence) in batch["pseudo_labels"].items():
            absent = (confidence == 0).all(-1).all(-1)
            unlabeled = ~batch["labeled"][task]
            seen |= {(name, task) for name, gone in zip(batch["id"], absent & unlabeled, strict=True) if gone}
    assert seen == rejected


def test_rejected_labels_add_no_loss(tmp_path, store):
    """With every label rejected, a run equals one without pseudo-labels."""
    for name, kinds in store.manifest()["images"].items():
        for task in (task for task, kind in kinds.items() if kind == Origin.DISCOVERED):
            store.set_rejected(name, task)

    def fit(**options):
        torch.manual_seed(0)
        overrides = {"edges": {"confidence_rule": "below_as_released"}, "semseg": {"class_weights": "median_frequency"}}
        data = tiny_data(**FEW, task_overrides=overrides, augment=None, **options)
        module = tiny_module(data)
        trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=1)])
        trainer.fit(module, data)
        return module.state_dict()

    taught, plain = fit(pseudo_labels=str(store.folder)), fit()
    assert all(torch.equal(value, plain[key]) for key, value in taught.items())
