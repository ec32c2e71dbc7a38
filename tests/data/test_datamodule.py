import hashlib
import json
import logging
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning.data import NYUDDataModule
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.loader import worker_init
from htt_lightning.data.masks.published import PUBLISHED
from htt_lightning.data.task_selection import limit_val_labels, select_tasks
from htt_lightning.errors import CheckpointError, HTTError
from htt_lightning.tasks import Depth, Normals, SemSeg
from tests.tiny import tiny_data, tiny_module, tiny_trainer

AVAILABLE = [SemSeg(classes=("a", "b")), Depth(), Normals()]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "NYUDv2"
    write_nyud_tree(root, train=9, val=3, size=(24, 32))
    return root


def nyud(tree, **changes):
    data = NYUDDataModule(**({"root": str(tree), "num_workers": 0, "batch_size": 3, "seed": 0} | changes))
    data.setup("fit")
    return data


def counts(data):
    samples = [data.train[k] for k in range(len(data.train))]
    return {task.name: sum(bool(s["labeled"][task.name]) for s in samples) for task in data.tasks}


def test_validation_images_keep_all_labels(tree):
    data = nyud(tree)
    assert counts(data) == {"semseg": 3, "depth": 3, "normals": 3}
    batch = next(iter(data.val_dataloader()))
    assert all(marks.all() for marks in batch["labeled"].values())


def test_label_mask_ignores_the_tasks_of_the_run(tree):
    everything = nyud(tree).labels_per_image("train", nyud(tree).build_dataset("train"))
    for task in ("semseg", "depth", "normals"):
        single = nyud(tree, tasks=task)
        assert single.train.ids == [name for name, given in everything.items() if task in given]
        assert counts(single) == {task: 3}


def test_seed_defaults_to_that_of_the_run(tree, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert nyud(tree, seed=None).mask.fingerprint == nyud(tree, seed=3).mask.fingerprint


@pytest.mark.parametrize("kind", ["published", "drawn"])
def test_resumed_masks_keep_the_protocol_and_threshold(tree, tmp_path, monkeypatch, kind):
    labels, checkpoint, taus = "random-label", None, []
    if kind == "published":
        path = tmp_path / "randomlabels.pth"
        kept = [[1, 0, 0], [0, 1, 1], [1, 0, 1]]
        torch.save({"labels_weights": torch.tensor(kept).repeat(3, 1)}, path)
        labels = str(path)
        known = next(mask for mask in PUBLISHED.values() if mask.origin == "the published NYUD random-label mask")
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr("htt_lightning.data.masks.published.PUBLISHED", {md5: known})
    for run in ("first", "second"):
        keep = ModelCheckpoint(dirpath=tmp_path / run / "kept", filename="last")
        data = NYUDDataModule(root=str(tree), labels=labels, num_workers=0, batch_size=3, seed=1)
        trainer = tiny_trainer(tmp_path / run, max_epochs=len(taus) + 1, callbacks=[keep], enable_checkpointing=True,
                               limit_train_batches=1, limit_val_batches=1)  # fmt: skip
        trainer.fit(tiny_module(data), data, ckpt_path=checkpoint)
        labels, checkpoint = str(tmp_path / run / "label_mask.json"), tmp_path / run / "kept" / "last.ckpt"
        stored = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["tasks"]
        taus.append(
            next(task["init_args"]["confidence_threshold"] for task in stored if task["init_args"]["name"] == "depth")
        )
        mask = json.loads(Path(labels).read_text())
        assert mask["protocol"] == "random-label"
        assert (mask["seed"], mask["origin"]) == ((None, known.origin) if kind == "published" else (1, None))
    assert taus == [0.95] * 2


def test_setup_logs_the_number_of_labels(tree, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    nyud(tree, seed=4).mask.save(tmp_path / "label_mask.json")
    nyud(tree, labels=str(tmp_path / "label_mask.json"))
    line = "Labels of 9 training images (one-label, seed 4): semseg 3, depth 3, normals 3"
    assert caplog.messages == [line, line]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labels": "one-lable"}, r"data\.labels.*'one-lable'"),
        ({"labels": "masks/missing.json"}, r"data\.labels.*missing\.json"),
        ({"tasks": "dpeth"}, r"data\.tasks.*'dpeth'.*'depth'"),
        ({"tasks": []}, r"data\.tasks"),
        ({"tasks": "depth,depth"}, r"data\.tasks.*'depth'"),
        ({"batch_size": 0}, r"data\.batch_size.*0"),
        ({"batch_size": 10}, r"data\.batch_size.*9.*10"),
        ({"num_workers": -1}, r"data\.num_workers.*-1"),
        ({"root": "nowhere"}, "nowhere"),
    ],
)
def test_datamodule_validates_its_arguments(tree, changes, named):
    with pytest.raises(HTTError, match=named):
        nyud(tree, **changes)


def test_mask_file_needs_no_suffix_and_is_read_once(tree, tmp_path):
    nyud(tree).mask.save(tmp_path / "mask")
    data = nyud(tree, labels=str(tmp_path / "mask"))
    assert data.mask.fingerprint == nyud(tree).mask.fingerprint
    (tmp_path / "mask").unlink()
    data.prepare_data()
    assert sum(len(list(data.training_targets(task))) for task in data.tasks) == 9


def test_resuming_with_another_mask_is_refused(tree):
    state = nyud(tree).state_dict()
    nyud(tree).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"data\.labels.*label_mask\.json"):
        nyud(tree, seed=1).load_state_dict(state)


def test_worker_init_ignores_signals():
    def survive():
        worker_init(0)
        os.kill(os.getpid(), signal.SIGTERM)

    process = multiprocessing.get_context("fork").Process(target=survive)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_empty_split_is_refused(tree, tmp_path):
    for folder in ("image", "label", "depth", "normal"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    (tmp_path / "train").symlink_to(tree / "train")
    with pytest.raises(HTTError, match="val"):
        nyud(tmp_path)


def test_hidden_labels_are_not_checked(tree, tmp_path):
    write_nyud_tree(tmp_path, train=6, val=2, size=(24, 32))
    data = NYUDDataModule(root=str(tmp_path), num_workers=0, batch_size=2, seed=0)
    for name, kept in data.labels_per_image("train", data.build_dataset("train")).items():
        if "depth" not in kept:
            (tmp_path / "train" / "depth" / f"{name}.npy").write_bytes(b"")
    data.prepare_data()
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3


def test_training_targets_are_the_kept_labels():
    data = tiny_data()
    data.setup("fit")
    kept = [name for name, own in data.labels_per_image("train", data.train.dataset).items() if "depth" in own]
    targets = list(data.training_targets(data.tasks[-1]))
    assert len(targets) == len(kept)
    truth = data.train.dataset.label(int(kept[0]), "depth")
    np.testing.assert_array_equal(targets[0][0], truth)


def test_select_tasks_takes_names_and_tasks():
    assert [task.name for task in select_tasks(AVAILABLE, "normals, semseg")] == ["normals", "semseg"]
    assert select_tasks(AVAILABLE, ["semseg", Depth(num_bins=5)])[1].num_bins == 5
    assert select_tasks(AVAILABLE, None) == AVAILABLE


def test_setup_builds_the_splits_of_a_stage(tree):
    data = nyud(tree)
    data.setup("fit")
    for stage in ("validate", "test", "predict"):
        fresh = NYUDDataModule(root=str(tree), num_workers=0)
        fresh.setup(stage)
        assert not hasattr(fresh, "train")
        assert len(fresh.test if stage == "test" else fresh.val) == 3
    assert [name for batch in data.predict_dataloader() for name in batch["id"]] == ["0", "1", "2"]


def test_max_val_images_applies_to_fit_alone(tree):
    data = NYUDDataModule(
        root=str(tree), num_workers=0, batch_size=3, tasks=["semseg", Depth(max_val_images=2)], seed=0
    )

    def labelled(stage):
        data.setup(stage)
        (batch,) = data.test_dataloader() if stage == "test" else data.val_dataloader()
        return {task: marks.tolist() for task, marks in batch["labeled"].items()}

    assert labelled("fit") == {"semseg": [True] * 3, "depth": [True, True, False]}
    for stage in ("validate", "test"):
        assert labelled(stage) == {"semseg": [True] * 3, "depth": [True] * 3}


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_limit_val_labels_spreads_them_evenly(images, limit, draw):
    labels = {str(k): ("depth",) * draw.draw(st.booleans()) + ("semseg",) for k in range(images)}
    kept = limit_val_labels(labels, [SemSeg(classes=("a", "b")), Depth(max_val_images=limit)])
    owners = [name for name in labels if "depth" in labels[name]]
    chosen = [name for name in labels if "depth" in kept[name]]
    assert list(kept) == list(labels)
    assert all("semseg" in names for names in kept.values())
    assert set(chosen) <= set(owners)
    assert len(chosen) == min(limit, len(owners))
    gaps = np.diff([owners.index(name) for name in chosen] + ([len(owners)] if owners else []))
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
