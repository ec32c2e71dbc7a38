"""The command ``discover`` with models of transformers, which are tiny and random."""

import numpy as np
import pytest
import torch

from htt_lightning.discovery.outside import TeacherOptions
from htt_lightning.discovery.outside.fit import fit_to_given_labels
from htt_lightning.discovery.outside.hub import HubTeacher
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, SemSeg
from tests.commands.test_discover import FEW, contents
from tests.commands.test_discover_outside import ask, stored_labels
from tests.discovery.outside.models import save_class_model, save_depth_model, transformers
from tests.tiny import tiny_data

THEIRS = ["wall", "sky", "Floor", "seat"]
CLASSES = {"wall": "wall", "seat": "chair"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"depth": save_depth_model(folder / "depth"), "semseg": save_class_model(folder / "semseg", THEIRS)}


def options(models):
    depth = {"maps": None, "hub": models["depth"], "alignment": "none"}
    return {"depth": depth, "semseg": {"maps": None, "hub": models["semseg"], "classes": CLASSES}}


def test_models_label_images(models, tmp_path):
    store = ask(tmp_path, tmp_path / "out", teachers=options(models))
    names = tiny_data(**FEW).tasks[0].class_names
    for label, confidence, _ in stored_labels(store, "semseg"):
        assert set(np.unique(label[confidence > 0])) <= {names.index("wall"), names.index("chair")}
        assert confidence.max() <= 1
    teachers = store.manifest()["teachers"]
    assert len(teachers["depth"]["sha256"]) == 64
    assert teachers["depth"]["alignment"]["scale"] == 1
    for label, _, _ in stored_labels(store, "depth"):
        assert label.min() >= 0.66
    assert contents(ask(tmp_path, tmp_path / "again", teachers=options(models))) == contents(store)


def test_model_gives_maps_of_the_image_size(models):
    teacher = HubTeacher(SemSeg(classes=("floor", "wall")), TeacherOptions(hub=models["semseg"]))
    assert teacher.table == {0: 1, 2: 0}
    ((label, confidence),) = teacher.predict([torch.rand(3, 30, 50)])
    assert (label.shape, label.dtype, confidence.shape, confidence.dtype) == ((30, 50), np.uint8, (30, 50), np.float32)


@pytest.mark.parametrize("processor", ["DPTImageProcessor", "ZoeDepthImageProcessor"])
def test_images_of_several_sizes_are_processed(models, processor):
    """Both keep the aspect ratio, and the second one pads."""
    teacher = HubTeacher(Depth(), TeacherOptions(hub=models["depth"], alignment="none"))
    size = {"height": 64, "width": 64}
    teacher.processor = getattr(transformers, processor)(size=size, keep_aspect_ratio=True, ensure_multiple_of=32)
    found = teacher.predict([torch.rand(3, 30, 50), torch.rand(3, 50, 30)])
    assert [depth.shape for depth, _ in found] == [(30, 50), (50, 30)]


def test_model_is_aligned_with_given_labels(models):
    """A random model has no depth, but the fit must not depend on the batch or on hidden labels."""
    teacher = HubTeacher(Depth(), TeacherOptions(hub=models["depth"], alignment="none"))
    assert "given pixels" in fit_to_given_labels(teacher, tiny_data(**FEW))
    assert 0 <= teacher.alignment.inliers <= 1


@pytest.mark.parametrize(
    ("task", "hub", "words"),
    [
        (
            Depth(),
            "nobody/nothing",
            r"teachers\.depth\.hub .*cannot be fetched .*hf download nobody/nothing --local-dir",
        ),
        (Depth(), "semseg", r"teachers\.depth\.hub cannot be loaded from the folder"),
        (SemSeg(classes=("door",)), "semseg", r"teachers\.semseg\.classes .*none"),
    ],
    ids=["unreachable", "other kind", "no class"],
)
def test_other_models_are_refused(task, hub, words, models):
    with pytest.raises(HTTError, match=words):
        HubTeacher(task, TeacherOptions(hub=models.get(hub, hub)))


def test_unknown_class_of_model_is_refused(models):
    given = TeacherOptions(hub=models["semseg"], classes={"seet": "floor"})
    with pytest.raises(HTTError, match=r"teachers\.semseg\.classes .*'seet'.*Did you mean 'seat'"):
        HubTeacher(SemSeg(classes=("floor",)), given)
