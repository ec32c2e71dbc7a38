"""The command ``discover`` with teachers from outside."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from htt_lightning import LabelDiscovery
from htt_lightning.cli.entry import main
from htt_lightning.commands.app.review import Review
from htt_lightning.commands.check.command import inspect
from htt_lightning.commands.discover import PseudoLabelWriter, discover
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore, pseudo_label_tasks
from htt_lightning.discovery.outside import TeacherOptions
from htt_lightning.errors import HTTError
from htt_lightning.training.trainer import HTTTrainer
from tests.commands.interruption import interrupted_after
from tests.commands.test_discover import FEW, QUIET, checkpoint, contents  # noqa: F401
from tests.ranks import run_ranks
from tests.tiny import tiny_data, tiny_module, tiny_trainer

SCALE, SHIFT = 2.5, 0.3
TEACHERS = {"depth": {}, "normals": {"axes": ("x", "-y", "-z")}, "semseg": {}}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of another program: depth of unknown scale with noise and outliers, normals with other axes, classes."""
    root, dataset = tmp_path_factory.mktemp("maps"), tiny_data(**FEW).build_dataset("train")
    rng = np.random.default_rng(0)
    for index, name in enumerate(dataset.ids):
        depth = (dataset.label(index, "depth") - SHIFT) / SCALE
        depth = depth * (1 + 0.05 * rng.standard_normal(depth.shape))
        wrong = rng.random(depth.shape) < 0.1
        depth[wrong] = rng.uniform(depth.min(), depth.max(), wrong.sum())
        save(root, "depth", name, depth.astype(np.float32))
        save(root, "normals", name, dataset.label(index, "normals") * np.float32([1, -1, -1]))
        save(root, "semseg", name, dataset.label(index, "semseg"))
    return root


def save(root, task, name, array):
    (root / task).mkdir(exist_ok=True)
    np.save(root / task / f"{name}.npy", array)


@pytest.fixture
def copied(maps, tmp_path):
    """Maps that a test may change."""
    return shutil.copytree(maps, tmp_path / "maps")


def maps_of(maps, teachers=TEACHERS):
    return {task: TeacherOptions(**{"maps": str(maps / task)} | settings) for task, settings in teachers.items()}


def ask(maps, out, data=None, teachers=TEACHERS, ckpt_path=None, **options):
    data = data or tiny_data(**FEW)
    given = maps_of(maps, teachers)
    discover(HTTTrainer(**QUIET), tiny_module(data), data, str(out), ckpt_path, given, **options)
    return PseudoLabelStore(out)


@pytest.fixture(scope="module")
def complete(maps, tmp_path_factory):
    """Labels from outside, to be read only."""
    return ask(maps, tmp_path_factory.mktemp("outside") / "out")


def test_tasks_without_labels_on_disk_are_no_problem(complete):
    assert inspect(tiny_data(**FEW, pseudo_labels=str(complete.folder)))[1]["problems"] == []


def stored_labels(store, task):
    """Yield the stored label, its confidence and the truth of each image that lacks a label of a task."""
    data = tiny_data(**FEW)
    dataset, kind = data.build_dataset("train"), next(each for each in data.tasks if each.name == task)
    for name, origins in store.manifest()["images"].items():
        if origins.get(task) != Origin.GIVEN and task in origins:
            arrays = store.read(name, [kind])
            truth = dataset.label(dataset.ids.index(name), task)
            yield arrays[f"{task}.pseudo_label"], arrays[f"{task}.confidence"], truth


def test_maps_become_labels_from_outside(complete):
    manifest, given = complete.manifest(), tiny_data(**FEW)
    labels = given.labels_per_image("train", given.build_dataset("train"))
    for name, origins in manifest["images"].items():
        expected = dict.fromkeys(TEACHERS, Origin.OUTSIDE) | dict.fromkeys(labels[name], Origin.GIVEN)
        assert origins == expected
    assert manifest["checkpoint"] is None
    assert pseudo_label_tasks(manifest) == TEACHERS.keys()
    for label, confidence, truth in stored_labels(complete, "semseg"):
        np.testing.assert_array_equal(label, truth)
        assert (confidence == 1).all()
    for label, _, truth in stored_labels(complete, "normals"):
        assert np.median((label * truth).sum(-1)) > np.cos(np.radians(1))


def test_alignment_finds_scale_and_shift(complete):
    found = complete.manifest()["teachers"]["depth"]["alignment"]
    assert found["scale"] == pytest.approx(SCALE, rel=0.02)
    assert found["shift"] == pytest.approx(SHIFT, abs=0.02)
    errors = [np.abs(label / truth - 1) for label, _, truth in stored_labels(complete, "depth")]
    assert np.median(errors) == pytest.approx(found["median_error"], abs=0.01)
    confidences = [confidence[label > 0.7] for label, confidence, _ in stored_labels(complete, "depth")]
    assert 0.8 < np.mean(np.concatenate(confidences)) < 1


def test_hidden_labels_change_nothing(maps, complete, tmp_path, monkeypatch):
    data = tiny_data(**FEW)
    labels, read = data.labels_per_image("train", data.build_dataset("train")), SyntheticScenes.label

    def mask(self, index, task):
        assert task in labels[self.ids[index]], "a hidden label was read"
        return read(self, index, task)

    monkeypatch.setattr(SyntheticScenes, "label", mask)
    assert contents(ask(maps, tmp_path / "out", data)) == contents(complete)


def test_interrupted_command_goes_on(maps, complete, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with interrupted_after(5, monkeypatch) as written:
        ask(maps, out)
    assert len(written) == 5
    stamps = {path: path.stat().st_mtime_ns for path in (out / "maps").iterdir()}
    monkeypatch.setattr("htt_lightning.discovery.outside.fit.fit_alignment", None)  # the first one stays
    assert contents(ask(maps, out)) == contents(complete)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert PseudoLabelStore(out).manifest() == complete.manifest()


@pytest.mark.slow
def test_two_processes_align_and_write_as_one(maps, complete, tmp_path):
    out = tmp_path / "out"
    done = run_ranks("tests.ddp_discover", out, "--maps", maps, output=tmp_path / "printed.txt")
    assert done.statuses == [0, 0], done.printed
    assert contents(PseudoLabelStore(out)) == contents(complete)
    assert PseudoLabelStore(out).manifest() == complete.manifest()


def test_labels_of_other_teacher_are_kept(copied, tmp_path):
    before = contents(store := ask(copied, tmp_path / "out"))
    others = [TEACHERS | {"depth": {"scale": 2.0}}, {key: TEACHERS[key] for key in ("depth", "normals")}]
    for other in others:
        with pytest.raises(HTTError, match=r"--out .*teachers|--out .*images"):
            ask(copied, store.folder, teachers=other)
    name = next(name for name, origins in store.manifest()["images"].items() if origins["depth"] == Origin.OUTSIDE)
    save(copied, "depth", name, np.ones((64, 96), np.float32))  # another file size
    with pytest.raises(HTTError, match=r"--out .*teachers"):
        ask(copied, store.folder)
    assert contents(store) == before
    assert contents(ask(copied, store.folder, overwrite=True)) != before


def lacking(task):
    """Return the id of an image without a label of a task."""
    data = tiny_data(**FEW)
    labels = data.labels_per_image("train", data.build_dataset("train"))
    return next(name for name, given in labels.items() if task not in given)


def remove_map(maps):
    (maps / "depth" / f"{lacking('depth')}.npy").unlink()


def cut_map(maps):
    save(maps, "depth", lacking("depth"), np.ones((32, 32), np.float32))


def flatten_maps(maps):
    for path in (maps / "depth").iterdir():
        np.save(path, np.ones((32, 48), np.float32))


def store_colors(maps):
    for path in (maps / "normals").iterdir():
        np.save(path, np.load(path) * 127 + 128)


def double_map(maps):
    Image.new("L", (48, 32)).save(maps / "depth" / f"{lacking('depth')}.png")


def leave(maps):
    """Change nothing."""


@pytest.mark.parametrize(
    ("damage", "teachers", "words"),
    [
        (remove_map, {"depth": {}}, r"teachers\.depth\.maps.* 1 are missing"),
        (cut_map, {"depth": {}}, r"depth.*\.npy .*32x48, got 32x32"),
        (double_map, {"depth": {}}, r"teachers\.depth\.maps must have one map"),
        (flatten_maps, {"depth": {}}, r"teachers\.depth .*vary"),
        (leave, {"depth": {"space": "inverse"}}, r"teachers\.depth .*space: depth"),
        (leave, {"depth": {"space": "log"}}, r"teachers\.depth\.space .*log"),
        (leave, {"depth": {"axes": "opencv"}}, r"teachers\.depth\.axes can only be set for normals"),
        (leave, {"depth": {"hub": "a/b"}}, r"teachers\.depth must have hub.*both"),
        (leave, {"depth": {"maps": None}}, r"teachers\.depth must have hub.*neither"),
        (leave, {"depth": {"maps": "nowhere"}}, r"teachers\.depth\.maps must be a folder.*nowhere"),
        (leave, {"depth": {"scale": 0.0}}, r"teachers\.depth: scale"),
        (leave, {"normals": {}}, r"teachers\.normals\.axes .*none"),
        (leave, {"normals": {"axes": "opengl"}}, r"teachers\.normals\.axes .*\[x, -y, -z\] is off by 0"),
        (leave, {"normals": {"maps": None, "hub": "a/b"}}, r"teachers\.normals must have maps"),
        (store_colors, {"normals": {"axes": "opencv"}}, r"normals.*\.npy must contain unit vectors"),
        (leave, {"semseg": {"classes": {1: "wal"}}}, r"teachers\.semseg\.classes .*Did you mean 'wall'"),
        (leave, {"semseg": {"classes": {"wall": "wall"}}}, r"teachers\.semseg\.classes .*'wall'"),
        (leave, {"deph": {}}, r"--teachers .*Did you mean 'depth'"),
        (leave, {}, "--ckpt_path .*--teachers"),
    ],
)
def test_bad_teacher_is_refused_before_writing(damage, teachers, words, copied, tmp_path):
    damage(copied)
    with pytest.raises(HTTError, match=words):
        ask(copied, tmp_path / "out", teachers=teachers)
    assert not (tmp_path / "out").exists()


def test_few_given_labels_are_refused(maps, tmp_path):
    data = tiny_data(**FEW | {"labels": "full"})
    mask = data.label_mask(data.build_dataset("train"))
    mask.labeled[:, mask.tasks.index("depth")] = False
    with pytest.raises(HTTError, match=r"teachers\.depth must have at least 100 pixels"):
        ask(maps, tmp_path / "out", data, {"depth": {}})
    assert not (tmp_path / "out").exists()


def test_maps_of_half_size_and_confidence(maps, tmp_path):
    data = tiny_data(**FEW)
    dataset = data.build_dataset("train")
    for index, name in enumerate(dataset.ids):
        save(tmp_path, "semseg", f"{name}_map", dataset.label(index, "semseg")[::2, ::2] + 100)
        (tmp_path / "sure").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 48), 51, np.uint8)).save(tmp_path / "sure" / f"{name}.png")
    classes = {str(100 + index): name for index, name in enumerate(data.tasks[0].class_names) if name != "wall"}
    place = {"maps": str(tmp_path / "semseg" / "{id}_map.npy"), "confidence": str(tmp_path / "sure")}
    store = ask(maps, tmp_path / "out", data, {"semseg": {**place, "classes": classes}})
    wall = data.tasks[0].class_names.index("wall")
    for label, confidence, truth in stored_labels(store, "semseg"):
        coarse = truth[::2, ::2].repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(label[coarse != wall], coarse[coarse != wall])
        np.testing.assert_allclose(confidence, np.where(coarse == wall, 0, 0.2), atol=1e-6)


def test_network_labels_the_other_tasks(maps, checkpoint, tmp_path):  # noqa: F811
    store = ask(maps, tmp_path / "out", teachers={"depth": {}}, ckpt_path=checkpoint)
    origins = {
        task: {images.get(task) for images in store.manifest()["images"].values()} for task in ("depth", "edges")
    }
    assert origins == {"depth": {Origin.GIVEN, Origin.OUTSIDE}, "edges": {Origin.GIVEN, Origin.DISCOVERED}}
    assert store.manifest()["checkpoint"]["name"] == "run.ckpt"
    assert store.manifest()["teachers"].keys() == {"depth"}


@pytest.mark.parametrize("stages", [1, 2])
def test_training_uses_labels_from_outside(stages, complete, tmp_path):
    data = tiny_data(**FEW, pseudo_labels=str(complete.folder))
    trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=stages)])
    trainer.fit(tiny_module(data), data)
    assert trainer.callback_metrics["train/depth/pseudo_label_coverage"] > 0.5
    assert "edges" not in data.train[0]["pseudo_labels"], "discovery labels the tasks that nobody else does"


def test_review_shows_labels_from_outside(complete):
    review = Review(complete, tiny_data(**FEW))
    assert {task.name for task in review.tasks} == TEACHERS.keys()
    assert review.draw(review.order("depth")[0]).ndim == 3


@pytest.mark.usefixtures("in_empty_folder")
def test_teachers_of_a_file(maps, complete, tmp_path):
    words = ["discover", "--data", "SyntheticDataModule", "--out", "out", "--trainer.accelerator", "cpu"]
    options = {"train_images": 12, "val_images": 4, "image_size": [32, 48], "batch_size": 4, "num_workers": 0, **FEW}
    words += [f"--data.{key}={value}" for key, value in options.items()]
    words += ["--model.backbone", "test_resnet", "--model.token_dim", "8", "--trainer.logger", "false"]
    given = {task: {"maps": str(maps / task), **settings} for task, settings in TEACHERS.items()}
    (tmp_path / "teachers.yaml").write_text(json.dumps(given))
    main([*words, "--teachers", "teachers.yaml"])
    assert contents(PseudoLabelStore(tmp_path / "out")) == contents(complete)
    with pytest.raises(SystemExit, match=r"^error: teachers\.depth\.alignment .*magic"):
        main([*words, "--teachers", json.dumps({"depth": {"maps": "m", "alignment": "magic"}})])


def test_images_are_read_for_models_alone(maps, complete, tmp_path, monkeypatch):
    monkeypatch.setattr(PseudoLabelWriter, "_run_models", None)
    assert contents(ask(maps, tmp_path / "out")) == contents(complete)


def test_missing_extra_is_named(maps, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(HTTError, match=r'teachers\.depth\.hub needs .*pip install "htt-lightning\[teachers\]"'):
        ask(maps, tmp_path / "out", teachers={"depth": {"maps": None, "hub": "a/b"}})
