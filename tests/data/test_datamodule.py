import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning.data import NYUDDataModule
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.masks.published import PUBLISHED
from htt_lightning.data.task_selection import limit_val_labels, select_tasks
from htt_lightning.errors import HTTError
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


def test_one_label_is_the_default_and_validation_is_fully_labelled(tree):
    data = nyud(tree)
    assert counts(data) == {"semseg": 3, "depth": 3, "normals": 3}
    batch = next(iter(data.val_dataloader()))
    assert all(marks.all() for marks in batch["labeled"].values())


def test_the_mask_does_not_depend_on_the_tasks_a_run_lists(tree):
    everything = nyud(tree).labels_per_image("train", nyud(tree).build_dataset("train"))
    for task in ("semseg", "depth", "normals"):
        single = nyud(tree, tasks=task)
        assert single.train.ids == [name for name, given in everything.items() if task in given]
        assert counts(single) == {task: 3}


def test_the_mask_depends_on_the_seed_and_on_nothing_else(tree):
    torch.manual_seed(0)
    first = nyud(tree).mask.fingerprint
    np.random.default_rng(0).random(10)
    torch.manual_seed(1)
    assert nyud(tree, batch_size=1, num_workers=2).mask.fingerprint == first
    assert nyud(tree, seed=1).mask.fingerprint != first


def test_the_seed_follows_the_run_unless_given(tree, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert nyud(tree, seed=None).mask.fingerprint == nyud(tree, seed=3).mask.fingerprint


def test_published_and_own_mask_files_are_read(tree, tmp_path, caplog):
    kept = np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    torch.save({"labels_weights": torch.from_numpy(kept)}, tmp_path / "onelabel.pth")
    data = nyud(tree, labels=str(tmp_path / "onelabel.pth"))
    assert data.labels_per_image("train", data.build_dataset("train"))["4"] == ("depth",)
    assert "no published label mask" in caplog.text
    data.mask.save(tmp_path / "mine.json")
    assert nyud(tree, labels=str(tmp_path / "mine.json")).mask.fingerprint == data.mask.fingerprint


@pytest.mark.parametrize("kind", ["published", "drawn"])
def test_a_random_label_mask_keeps_its_threshold_however_often_a_run_is_resumed(tree, tmp_path, monkeypatch, kind):
    labels, checkpoint, taus = "random-label", None, []
    if kind == "published":
        path = tmp_path / "randomlabels.pth"
        kept = [[1, 0, 0], [0, 1, 1], [1, 0, 1]]
        torch.save({"labels_weights": torch.tensor(kept).repeat(3, 1)}, path)
        labels = str(path)
        known = next(mask for mask in PUBLISHED.values() if mask.name == "the published NYUD random-label mask")
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr("htt_lightning.data.masks.published.PUBLISHED", {md5: known})
    for run in ("first", "second", "third"):
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
        assert (mask["seed"], mask["origin"]) == ((None, known.name) if kind == "published" else (1, None))
    assert taus == [0.95] * 3


def test_the_labels_of_a_run_are_told_as_it_begins(tree, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    nyud(tree, seed=4).mask.save(tmp_path / "label_mask.json")
    nyud(tree, labels=str(tmp_path / "label_mask.json"))
    line = "Labels of 9 training images (one-label, seed 4): semseg 3, depth 3, normals 3"
    assert caplog.messages == [line, line]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "one-lable"}, "one-label"),
        ({"labels": "masks/missing.json"}, "missing.json"),
        ({"tasks": "dpeth"}, r"data\.tasks must name .*'dpeth'.*Did you mean 'depth'"),
        ({"tasks": []}, r"data\.tasks must name"),
        ({"tasks": "depth,depth"}, "twice"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10}, "do not fill one batch of 10"),
        ({"root": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_arguments_are_named(tree, changes, message):
    with pytest.raises(HTTError, match=message):
        nyud(tree, **changes)


def test_the_mask_file_is_read_once(tree, tmp_path):
    nyud(tree).mask.save(tmp_path / "mask.json")
    data = nyud(tree, labels=str(tmp_path / "mask.json"))
    (tmp_path / "mask.json").unlink()
    data.prepare_data()
    assert sum(len(list(data.training_targets(task))) for task in data.tasks) == 9


def test_a_mask_file_needs_no_suffix(tree, tmp_path):
    nyud(tree).mask.save(tmp_path / "mask")
    assert nyud(tree, labels=str(tmp_path / "mask")).mask.fingerprint == nyud(tree).mask.fingerprint


def test_a_mask_of_other_images_is_refused(tree, tmp_path):
    nyud(tree).mask.save(tmp_path / "mask.json")
    stored = json.loads((tmp_path / "mask.json").read_text())
    stored["labels"]["99"] = stored["labels"].pop("4")
    (tmp_path / "mask.json").write_text(json.dumps(stored))
    with pytest.raises(HTTError, match=r"mask\.json"):
        nyud(tree, labels=str(tmp_path / "mask.json"))


def test_an_empty_split_is_refused(tree, tmp_path):
    for folder in ("image", "label", "depth", "normal"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    (tmp_path / "train").symlink_to(tree / "train")
    with pytest.raises(HTTError, match="val"):
        nyud(tmp_path)


def test_broken_files_are_found_before_training(tree, tmp_path):
    write_nyud_tree(tmp_path, train=6, val=2, size=(24, 32))
    data = NYUDDataModule(root=str(tmp_path), num_workers=0, batch_size=2, seed=0, labels="full")
    data.prepare_data()
    path = tmp_path / "train" / "label" / "3.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HTTError, match=r"label.3\.npy"):
        data.prepare_data()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HTTError, match=r"label.3\.npy"):
        data.prepare_data()


def test_hidden_labels_may_be_broken_for_all_we_care(tree, tmp_path):
    write_nyud_tree(tmp_path, train=6, val=2, size=(24, 32))
    data = NYUDDataModule(root=str(tmp_path), num_workers=0, batch_size=2, seed=0)
    for name, kept in data.labels_per_image("train", data.build_dataset("train")).items():
        if "depth" not in kept:
            (tmp_path / "train" / "depth" / f"{name}.npy").write_bytes(b"")
    data.prepare_data()
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3


def test_training_targets_are_the_labels_that_are_kept():
    data = tiny_data()
    data.setup("fit")
    kept = [name for name, own in data.labels_per_image("train", data.train.dataset).items() if "depth" in own]
    targets = list(data.training_targets(data.tasks[-1]))
    assert len(targets) == len(kept)
    truth = data.train.dataset.label(int(kept[0]), "depth")
    np.testing.assert_array_equal(targets[0][0], truth)


def test_tasks_are_chosen_by_name_or_replaced_by_ones_with_other_settings():
    assert [task.name for task in select_tasks(AVAILABLE, "normals, semseg")] == ["normals", "semseg"]
    assert select_tasks(AVAILABLE, ["semseg", Depth(num_bins=5)])[1].num_bins == 5
    assert select_tasks(AVAILABLE, None) == AVAILABLE


def test_setup_can_be_called_again_and_stage_by_stage(tree):
    data = nyud(tree)
    data.setup("fit")
    for stage in ("validate", "test", "predict"):
        fresh = NYUDDataModule(root=str(tree), num_workers=0)
        fresh.setup(stage)
        assert not hasattr(fresh, "train")
        assert len(fresh.val) == 3
    assert [name for batch in data.predict_dataloader() for name in batch["id"]] == ["0", "1", "2"]


def test_some_validation_images_are_scored_while_fitting_and_all_in_test(tree):
    data = NYUDDataModule(
        root=str(tree), num_workers=0, batch_size=3, tasks=["semseg", Depth(max_val_images=2)], seed=0
    )

    def labelled(stage):
        data.setup(stage)
        (batch,) = data.val_dataloader()
        return {task: marks.tolist() for task, marks in batch["labeled"].items()}

    assert labelled("fit") == {"semseg": [True] * 3, "depth": [True, True, False]}
    for stage in ("validate", "test"):
        assert labelled(stage) == {"semseg": [True] * 3, "depth": [True] * 3}


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_scored_images_are_spread_evenly_over_those_with_a_label(images, limit, draw):
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


def test_a_task_scores_at_least_one_image():
    with pytest.raises(HTTError, match="val_images"):
        Depth(max_val_images=0)
