"""Several datasets in one run."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import MixedDataModule, NYUD40DataModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.cli import main
from htt_lightning.commands.discover import discover
from htt_lightning.data import LabelFiles
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.tasks import Depth, Edges, HumanParts
from htt_lightning.training.trainer import HTTTrainer
from tests.data.datasets.folder_tree import MAPS, folder, write_tree
from tests.tiny import tiny_data, tiny_module, tiny_trainer

SIZE = (32, 48)
DEPTH = MAPS[1]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Six rooms as NYUD, and four of somebody's pictures with depth alone."""
    root = tmp_path_factory.mktemp("data")
    write_nyud_tree(root / "NYUDv2", train=6, val=2, size=(24, 36))
    write_tree(root / "mine", dict.fromkeys(("1", "2", "3", "10"), ("depth",)), (40, 60))
    return root


def rooms(roots, **changes):
    return NYUDDataModule(**({"root": str(roots), "labels": "full", "tasks": "semseg,normals"} | changes))


def mine(roots, **changes):
    return folder(roots / "mine", **({"label_files": [DEPTH]} | changes))


def mixed(*parts, **changes):
    return MixedDataModule([*parts], **({"image_size": SIZE, "batch_size": 2, "num_workers": 0, "seed": 0} | changes))


def both(roots, **changes):
    return mixed(rooms(roots), mine(roots), **changes)


def given(sample):
    return {task for task, labeled in sample["labeled"].items() if labeled}


def test_images_have_the_labels_of_their_own_dataset(roots):
    data = both(roots)
    data.prepare_data()
    data.setup("fit")
    assert [task.name for task in data.tasks] == ["semseg", "normals", "depth"]
    first, second = [f"0/{k}" for k in range(6)], [f"1/{k}" for k in (1, 2, 3, 10)]
    assert data.train.ids == first + second
    assert data.val.ids == ["0/0", "0/1", *second]
    for split in (data.train, data.val):
        for k in range(len(split)):
            sample = split[k]
            assert given(sample) == ({"semseg", "normals"} if sample["id"].startswith("0/") else {"depth"})
            assert sample["image"].shape == (3, *SIZE)
    assert data.mask.summary == {"semseg": 6, "normals": 6, "depth": 4}


def test_images_and_labels_are_read_from_their_datasets(roots):
    source, theirs = both(roots).build_dataset("train"), mine(roots).build_dataset("train")
    np.testing.assert_array_equal(source.image(9), theirs.image(3))
    np.testing.assert_array_equal(source.label(9, "depth"), theirs.label(3, "depth"))


def test_every_dataset_draws_its_own_mask(roots):
    part = rooms(roots, labels="one-label", seed=3)
    alone = rooms(roots, labels="one-label", seed=3)
    kept = alone.labels_per_image("train", alone.build_dataset("train"))
    data = mixed(part, mine(roots))
    data.setup("fit")
    labels = data.labels_per_image("train", data.train.dataset)
    assert labels == {f"0/{name}": tasks for name, tasks in kept.items()} | dict.fromkeys(
        data.train.ids[-4:], ("depth",)
    )
    assert len(kept) == 4, "two of six images keep depth, which this part is not asked for"


def test_one_label_may_be_drawn_over_all_datasets(roots):
    data = mixed(rooms(roots), mine(roots), labels="one-label")
    data.setup("fit")
    assert all(len(given(data.train[k])) == 1 for k in range(10))
    assert data.mask.summary["depth"] == 4


def test_datasets_without_a_seed_use_that_of_the_mixture(roots, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    for part, same in ((rooms(roots), 7), (rooms(roots, seed=1), 1)):
        mixed(part, seed=7)
        assert part.run_seed == same
    part = rooms(roots, labels="one-label", tasks=None)
    data = mixed(part, seed=None)
    first = data.label_mask(data.build_dataset("train")).fingerprint
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert data.label_mask(data.build_dataset("train")).fingerprint != first
    assert data.mask.labeled.tolist() == part.mask.labeled.tolist()


def test_a_mask_file_of_the_mixture_is_read(roots, tmp_path):
    data = mixed(rooms(roots, labels="one-label"), mine(roots))
    data.setup("fit")
    data.mask.save(tmp_path / "label_mask.json")
    again = mixed(rooms(roots, labels="one-label"), mine(roots), labels=str(tmp_path / "label_mask.json"))
    again.setup("fit")
    assert again.state_dict() == data.state_dict()
    again.load_state_dict(data.state_dict())
    other = mixed(rooms(roots, labels="full"), mine(roots))
    other.setup("fit")
    with pytest.raises(HTTError, match=r"data\.labels must be"):
        other.load_state_dict(data.state_dict())


def test_hidden_labels_are_never_read(tmp_path):
    write_nyud_tree(tmp_path / "NYUDv2", train=6, val=2, size=SIZE)
    data = mixed(rooms(tmp_path, labels="one-label", tasks=None), rooms(tmp_path, tasks="semseg"))
    kept = data.datasets[0].labels_per_image("train", data.datasets[0].build_dataset("train"))
    hidden = [name for name, tasks in kept.items() if "depth" not in tasks]
    for name in hidden:
        (tmp_path / "NYUDv2" / "train" / "depth" / f"{name}.npy").write_bytes(b"corrupt")
    data.prepare_data()
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 6
    everything = mixed(rooms(tmp_path, tasks=None))
    with pytest.raises(HTTError, match=rf"depth.{hidden[0]}\.npy is corrupt"):
        everything.prepare_data()


def test_a_run_may_use_some_of_the_tasks(roots):
    data = both(roots, tasks="depth")
    data.setup("fit")
    assert data.train.ids == ["1/1", "1/2", "1/3", "1/10"]
    assert len(data.val) == 6


def test_one_task_of_two_datasets_is_one_task(roots):
    first = rooms(roots, tasks="semseg", task_overrides={"semseg": {"loss_weight": 3}})
    data = mixed(first, rooms(roots, tasks="semseg,depth"))
    assert [task.name for task in data.tasks] == ["semseg", "depth"]
    assert data.tasks[0].loss_weight == 3
    data.setup("fit")
    assert data.mask.summary == {"semseg": 12, "depth": 6}


@pytest.mark.parametrize(
    ("task", "differ"),
    [
        (Depth(min_depth=0.01, max_depth=0.4922), "min_depth, max_depth"),
        (HumanParts(name="semseg"), "class, classes"),
    ],
)
def test_one_name_for_two_meanings_is_rejected(roots, task, differ):
    def other():
        return mine(roots, label_files=[LabelFiles(task, "train/depth/{id}.png")])

    with pytest.raises(ConfigError, match=rf"{task.name} .* data\.datasets 0 and 1, got another {differ}\.") as error:
        mixed(rooms(roots, tasks=None), other())
    key, name = re.search(r"data\.task_names {(.*?): (.*?)}", str(error.value)).groups()
    data = mixed(rooms(roots, tasks=None), other(), task_names={key: name})
    assert [task.name for task in data.tasks] == ["semseg", "depth", "normals", f"{task.name}_1"]


def test_a_renamed_task_has_the_labels_of_its_dataset(roots):
    near = rooms(roots, tasks=[Depth(min_depth=0.5), "normals"], labels="one-label", seed=3)
    data = mixed(rooms(roots, tasks="depth"), near, task_names={"1/depth": "near"})
    data.prepare_data()
    data.setup("fit")
    assert {task.name: getattr(task, "min_depth", None) for task in data.tasks} == {
        "depth": 0.67, "near": 0.5, "normals": None,
    }  # fmt: skip
    own = near.labels_per_image("train", near.build_dataset("train"))
    assert set(own.values()) == {("depth",), ("normals",)}
    expected = {f"0/{k}": {"depth"} for k in range(6)}
    expected |= {f"1/{name}": {"near" if task == "depth" else task for task in kept} for name, kept in own.items()}
    samples = [data.train[k] for k in range(len(data.train))]
    assert {sample["id"]: given(sample) for sample in samples} == expected
    name = next(name for name, kept in own.items() if kept == ("depth",))
    source = data.train.dataset
    truth = near.build_dataset("train").label(int(name), "depth")
    np.testing.assert_array_equal(source.label(source.ids.index(f"1/{name}"), "near"), truth)
    assert sum(len(list(data.training_targets(task))) for task in data.tasks) == 6 + len(own)


@pytest.mark.parametrize(
    ("task_names", "message"),
    [
        ({"1/edges": "borders"}, r"data\.task_names .*0/semseg, 0/normals, 1/depth, got '1/edges'"),
        ({"0/semseg": "normals"}, r"data\.task_names .*data\.datasets 0 the name normals"),
    ],
)
def test_invalid_task_names_are_rejected(roots, task_names, message):
    with pytest.raises(ConfigError, match=message):
        both(roots, task_names=task_names)


def test_training_settings_of_the_first_dataset_count():
    def parts():
        return NYUD40DataModule("unread", tasks="edges,depth"), PASCALContextDataModule("unread", tasks="edges")

    def edges(*parts, **settings):
        return next(task for task in mixed(*parts, **settings).tasks if task.name == "edges")

    assert (edges(*parts()).tolerance, edges(*parts()[::-1]).tolerance) == (0.011, 0.0075)
    assert edges(*parts(), task_overrides={"edges": {"tolerance": 0.02}}) == Edges(
        loss_weight=50, confidence_threshold=0.99, tolerance=0.02
    )
    with pytest.raises(HTTError, match="got another classes"):
        mixed(NYUD40DataModule("unread", tasks="semseg"), PASCALContextDataModule("unread", tasks="semseg"))


def test_a_mask_file_cannot_show_hidden_labels(roots, tmp_path, caplog):
    everything = mixed(rooms(roots, tasks=None))
    everything.setup("fit")
    everything.mask.save(tmp_path / "label_mask.json")
    less = mixed(rooms(roots, tasks=None, labels="one-label"), labels=str(tmp_path / "label_mask.json"))
    with pytest.raises(HTTError, match=r"0/0 has no label of \w+ in its dataset"):
        less.prepare_data()
    assert "4 images" in caplog.text
    source = less.build_dataset("train")
    kept = less.datasets[0].labels_per_image("train", less.datasets[0].build_dataset("train"))["0"]
    with pytest.raises(HTTError, match="0/0 has no label of"):
        source.label(0, next(task for task in ("semseg", "depth") if task not in kept))


def test_label_masks_of_all_datasets_are_logged(roots, caplog):
    caplog.set_level(logging.INFO)
    mixed(rooms(roots, labels="one-label", tasks=None, seed=3), mine(roots)).setup("fit")
    assert [record.message.splitlines() for record in caplog.records if "Labels" in record.message] == [[
        "Labels of 10 training images (full): semseg 2, depth 6, normals 2",
        "data.datasets 0: Labels of 6 training images (one-label, seed 3): semseg 2, depth 2, normals 2",
        "data.datasets 1: Labels of 4 training images (full): depth 4",
    ]]  # fmt: skip


def test_empty_mixtures_and_pseudo_labels_of_parts_are_rejected(roots):
    with pytest.raises(ConfigError, match=r"data\.datasets .* got none"):
        mixed()
    with pytest.raises(ConfigError, match=r"data\.datasets must not have pseudo_labels"):
        mixed(rooms(roots, pseudo_labels="completed"))


def test_metrics_are_those_of_each_dataset_alone(roots, tmp_path):
    data = both(roots)
    module = tiny_module(data)
    (whole,) = tiny_trainer(tmp_path).validate(module, data, verbose=False)
    for part in (rooms(roots, image_size=SIZE), mine(roots, image_size=SIZE)):
        part.setup("validate")
        metrics = {task.name: task.metrics()[task.primary_metric] for task in part.tasks}
        for k in range(len(part.val)):
            sample = part.val[k]
            maps = module.eval().decode(sample["image"][None])
            for name, metric in metrics.items():
                metric.update(maps[name], sample[name][None])
        for task in part.tasks:
            figure = float(metrics[task.name].compute())
            assert whole[f"val/{task.name}/{task.primary_metric}"] == pytest.approx(figure, rel=1e-4)


def test_scenes_are_rendered_at_the_common_size(roots):
    scenes = tiny_data(image_size=(20, 20), train_images=3, val_images=1, labels="full", tasks="edges,saliency")
    data = mixed(scenes, mine(roots))
    data.setup("fit")
    assert data.train.dataset.image(0).shape == (*SIZE, 3)
    assert {tuple(batch["image"].shape) for batch in data.train_dataloader()} == {(2, 3, *SIZE)}


def test_missing_labels_of_all_datasets_are_discovered(roots, tmp_path):
    data = both(roots)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    torch.manual_seed(0)
    tiny_trainer(tmp_path, callbacks=[keep], enable_checkpointing=True).fit(tiny_module(data), data)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    out = tmp_path / "completed"
    discover(HTTTrainer(**quiet), tiny_module(data), both(roots), str(out), str(tmp_path / "kept" / "run.ckpt"))
    with np.load(out / "maps" / "0" / "3.npz") as room, np.load(out / "maps" / "1" / "10.npz") as picture:
        assert set(room.files) == {"depth", "depth.confidence"}
        assert set(picture.files) == {"semseg", "semseg.confidence", "normals", "normals.confidence"}
    completed = both(roots, pseudo_labels=str(out))
    completed.prepare_data()
    completed.setup("fit")
    assert (completed.train[0]["pseudo_labels"]["depth"].confidence > 0).any()
    with pytest.raises(HTTError, match="must be of this dataset"):
        mixed(mine(roots), rooms(roots), pseudo_labels=str(out)).prepare_data()


def test_a_mixture_trains_from_a_config(roots, in_empty_folder):
    Path("mixed.yaml").write_text(f"""
model: {{backbone: test_resnet, token_dim: 8}}
trainer: {{fast_dev_run: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
data:
  class_path: MixedDataModule
  init_args:
    image_size: [32, 48]
    batch_size: 4
    num_workers: 0
    task_names: {{1/depth: range}}
    datasets:
      - class_path: NYUDDataModule
        init_args: {{root: {roots}, labels: one-label}}
      - class_path: FolderDataModule
        init_args:
          root: {roots}/mine
          train: train/images/*.png
          val: val/images/*.png
          label_files: [{{task: Depth, train: "train/depth/{{id}}.png", val: "val/depth/{{id}}.png", scale: 0.001}}]
""")
    main(["fit", "--config", "mixed.yaml"])
    with pytest.raises(SystemExit, match=r"error: data\.tasks must name .*semseg, depth, normals, range, got 'edges'"):
        main(["fit", "--config", "mixed.yaml", "--data.tasks", "edges"])
