"""Transforms of albumentations that a config names."""

import inspect
import random
import warnings
from dataclasses import replace

import albumentations as A
import numpy as np
import pytest
from albumentations.pytorch import ToTensorV2

from htt_lightning.callbacks.save_config import SaveConfig
from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import HTTCLI
from htt_lightning.data.extra_transforms import KEEPS_VALUES, ExtraTransforms
from htt_lightning.data.pseudo_labels import with_pseudo_label_maps
from htt_lightning.data.transforms import AugmentConfig, TrainTransform
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Depth, HumanParts, Normals, SemSeg
from tests.data.aligned import STILL, TASKS, assert_same, scene, train
from tests.tiny import tiny_data

INDEX_TASKS = [task for task in TASKS if task.field_channels is None]
SIZE = (36, 48)
ARGUMENTS = {
    "CenterCrop": {"height": 20, "width": 24},
    "Crop": {"x_min": 3, "y_min": 2, "x_max": 30, "y_max": 30},
    "CropAndPad": {"px": (-5, 5)},
    "GridElasticDeform": {"num_grid_xy": (4, 4), "magnitude": 3},
    "LongestMaxSize": {"max_size": 32},
    "PadIfNeeded": {"min_height": 36, "min_width": 48},
    "RandomCrop": {"height": 20, "width": 24},
    "RandomResizedCrop": {"size": (30, 40)},
    "RandomScale": {"scale_limit": (-0.5, -0.1)},
    "RandomSizedCrop": {"min_max_height": (10, 30), "size": (30, 40)},
    "Resize": {"height": 20, "width": 30},
    "SmallestMaxSize": {"max_size": 24},
    "Transpose": None,  # would be too high
    "TextImage": None,  # needs a font
    "BBoxSafeRandomCrop": None, "AtLeastOneBBoxRandomCrop": None, "RandomSizedBBoxSafeCrop": None,  # need boxes
    "ConstrainedCoarseDropout": None, "ToRGB": None,  # needs boxes, a gray image
    "CropNonEmptyMaskIfExists": None, "RandomCropNearBBox": None, "MaskDropout": None, "Mosaic": None,  # refused
    "TemplateTransform": None, "OverlayElements": None, "FDA": None, "HistogramMatching": None,
    "PixelDistributionAdaptation": None,
    "Normalize": None, "ToFloat": None, "FromFloat": None,  # of floats
    "PixelDropout": {"dropout_prob": 0.3}, "RandomGridShuffle": {"grid": (2, 2)}, "D4": None, "SquareSymmetry": None,
    "RandomRotate90": None,
}  # fmt: skip
CLASSES = {
    name: kind
    for name, kind in vars(A).items()
    if inspect.isclass(kind)
    and issubclass(kind, A.ImageOnlyTransform | A.DualTransform)
    and not issubclass(kind, A.Transform3D | A.Morphological)
    and kind not in (A.ImageOnlyTransform, A.DualTransform, A.Lambda)
    and ARGUMENTS.get(name, {}) is not None
}


def make(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow ones and aliases
        return CLASSES[name](p=1.0, **ARGUMENTS.get(name, {}))


IMAGE_ONLY = [name for name, kind in CLASSES.items() if issubclass(kind, A.ImageOnlyTransform)]
DUAL = [name for name, kind in CLASSES.items() if issubclass(kind, A.DualTransform)]


def with_extra(*steps, **changes):
    return replace(STILL, extra=steps, **changes)


def drawn_later(arrays, augment, tasks):
    """The result of the same generator after another draw."""
    transform = TrainTransform(tasks, augment, None)
    transform(arrays, np.random.default_rng(1))
    return transform(arrays, np.random.default_rng(0))[0]


@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_image_transform_leaves_the_maps(name):
    arrays, augment = scene(*SIZE), with_extra(make(name))
    first, valid = train(arrays, augment)
    assert_same(first, drawn_later(arrays, augment, TASKS))
    assert valid.all()
    assert_same(
        {key: first[key] for key in arrays if key != "image"}, {k: v for k, v in arrays.items() if k != "image"}
    )


@pytest.mark.parametrize("name", DUAL)
def test_transform_moves_class_maps_with_the_image(name):
    arrays = {key: array for key, array in scene(*SIZE, holes=0).items() if key in ("image", "semseg", "edges")}
    augment = with_extra(make(name))
    moved, valid = train(arrays, augment, tasks=INDEX_TASKS)
    assert_same(moved, drawn_later(arrays, augment, INDEX_TASKS))
    assert moved["image"].shape == (*SIZE, 3)
    assert valid.sum() > 300
    for key in ("semseg", "edges"):
        assert ((moved[key] == 255) == ~valid).all()
    if name not in ("CoarseDropout", "Erasing", "GridDropout", "PixelDropout", "XYMasking",
                    "TimeMasking", "FrequencyMasking"):  # fmt: skip
        image, columns, rows = (moved[key].astype(float) for key in ("image", "semseg", "edges"))
        apart = np.maximum(abs(image[..., 0] - 5 * columns), abs(image[..., 1] - 5 * rows))[valid]
        assert np.median(apart) <= 5
        assert np.mean(apart > 12) < 0.15  # the image is interpolated where the map is not


@pytest.mark.parametrize("name", [name for name in DUAL if name in KEEPS_VALUES])
def test_transform_that_keeps_values_moves_fields_alike(name):
    arrays = scene(*SIZE, holes=0.1)
    moved, valid = train(arrays, with_extra(make(name)))
    semseg = moved["semseg"]
    known = valid & (semseg != 255)
    assert known.sum() > 100
    np.testing.assert_allclose(moved["depth"][known], 1 + semseg[known])
    rows, columns = moved["edges"][known].astype(int), semseg[known].astype(int)
    np.testing.assert_array_equal(moved["normals"][known], arrays["normals"][rows, columns])
    for key in ("depth", "normals"):
        assert np.isnan(moved[key][~known]).all()


@pytest.mark.parametrize("name", ["Rotate", "HorizontalFlip", "VerticalFlip", "Perspective", "RandomScale", "Affine"])
@pytest.mark.parametrize("task", [Normals(), Depth()], ids=lambda task: task.name)
def test_moving_transform_is_refused_for_geometry(name, task):
    with pytest.raises(ConfigError, match=rf"data\.augment\.extra .*{task.name}.*{name}"):
        tiny_data(augment=with_extra(make(name)), tasks=["semseg", task])
    with pytest.raises(ConfigError, match=task.name):
        TrainTransform(with_pseudo_label_maps([task]), with_extra(A.OneOf([A.ToGray(), make(name)])), SIZE)
    assert tiny_data(augment=with_extra(make(name)), tasks=["semseg", "edges"]).augment


@pytest.mark.parametrize("step", [A.HorizontalFlip(), A.VerticalFlip(), A.D4(), A.Rotate(border_mode=4)])
def test_mirroring_is_refused_for_classes_with_a_side(step):
    sided = HumanParts(classes=("left", "right"), flip_pairs=(("left", "right"),))
    with pytest.raises(ConfigError, match=rf"human_parts.*{type(step).__name__}, which mirrors"):
        TrainTransform([sided], with_extra(step), SIZE)
    assert TrainTransform([HumanParts()], with_extra(step), SIZE)
    assert TrainTransform([sided], with_extra(A.Rotate()), SIZE)


def test_pixels_from_outside_are_missing_and_not_valid():
    arrays = {key: scene(*SIZE, holes=0)[key] for key in ("image", "semseg")}
    shift = A.Affine(translate_px={"x": 10, "y": 0}, p=1.0)
    moved, valid = train(arrays, with_extra(shift), size=(40, 48), tasks=INDEX_TASKS)
    assert not valid[:, :10].any()
    assert valid[2:38, 10:].all()
    np.testing.assert_array_equal(moved["semseg"][2:38, 10:], arrays["semseg"][:, :38])
    assert (moved["semseg"][~valid] == 255).all()


def test_pseudo_labels_and_confidence_move_with_the_image():
    task, arrays = SemSeg(classes=("a",)), scene(*SIZE, holes=0)
    maps = {"semseg.pseudo_label": arrays["semseg"], "semseg.confidence": arrays["depth"] / 100}
    shift = with_extra(A.Affine(translate_px={"x": 10, "y": 0}, p=1.0))
    moved, _ = train({"image": arrays["image"]} | maps, shift, tasks=with_pseudo_label_maps([task]))
    np.testing.assert_array_equal(moved["semseg.pseudo_label"][:, 10:], arrays["semseg"][:, :38])
    np.testing.assert_array_equal(moved["semseg.confidence"][:, 10:], maps["semseg.confidence"][:, :38])
    assert (moved["semseg.confidence"][:, :10] == 0).all()


def test_draws_depend_on_the_generator_alone():
    steps = A.OneOf([A.Rotate(), A.GaussNoise(), A.CoarseDropout()], p=0.7), A.ElasticTransform(), A.RandomFog(p=0.5)
    augment = AugmentConfig(extra=steps)
    arrays = {key: scene(*SIZE)[key] for key in ("image", "semseg")}
    one, other = (TrainTransform(INDEX_TASKS, augment, SIZE) for _ in range(2))
    random.seed(1)
    first = [one(arrays, np.random.default_rng(seed))[0] for seed in range(8)]
    random.seed(2)
    second = [other(arrays, np.random.default_rng(seed))[0] for seed in reversed(range(8))]
    for ours, theirs in zip(first, reversed(second), strict=True):
        assert_same(ours, theirs)
    assert len({found["image"].tobytes() for found in first}) == 8


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (A.Morphological(), "Morphological"),
        (A.CubicSymmetry(), "CubicSymmetry"),
        (ToTensorV2(), "ToTensorV2"),
        (A.MaskDropout(), "MaskDropout needs mask"),
        (A.RandomSizedBBoxSafeCrop(9, 9), "RandomSizedBBoxSafeCrop needs boxes"),
        (A.ConstrainedCoarseDropout(), "ConstrainedCoarseDropout needs boxes or a mask"),
        (A.OneOf([A.OverlayElements()]), "OverlayElements needs overlay_metadata"),
        (A.Rotate(mask_interpolation=1), "Rotate .*mask_interpolation"),
    ],
)
def test_unsuitable_transform_is_refused_by_name(step, name):
    with pytest.raises(ConfigError, match=rf"data\.augment\.extra .*{name}"):
        AugmentConfig(extra=(step,))


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (A.ToFloat(p=1), "uint8"),
        (A.ToRGB(p=1), "failed: "),
    ],
)
def test_unsuitable_result_is_refused_by_name(step, rule):
    with pytest.raises(ConfigError, match=rf"data\.augment\.extra \({type(step).__name__}\).*{rule}"):
        train({"image": scene(*SIZE)["image"]}, with_extra(step), tasks=INDEX_TASKS)


def test_larger_result_is_refused():
    with pytest.raises(ConfigError, match=r"data\.augment\.extra must return at most 36x48 pixels, got 64x64"):
        train({"image": scene(*SIZE)["image"]}, with_extra(A.Resize(64, 64, p=1)), tasks=INDEX_TASKS)


def test_transforms_are_copied():
    step = A.Rotate()
    run = ExtraTransforms([step], INDEX_TASKS)
    assert run.compose.transforms[0] is not step


@pytest.mark.usefixtures("in_empty_folder")
def test_config_names_any_transform(monkeypatch):
    built = []

    def note(self, _):
        built.append(self.datamodule.augment.extra)
        (saver,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SaveConfig))
        saver.parser.save(saver.config, "saved.yaml", skip_none=False, overwrite=True, multifile=False)

    monkeypatch.setattr(HTTCLI, "_run_subcommand", note)
    rotate = "{class_path: albumentations.Rotate, init_args: {limit: 10, p: 1.0}}"
    gray = "{class_path: albumentations.ToGray, init_args: {p: 0.5}}"
    choice = f"{{class_path: albumentations.OneOf, init_args: {{transforms: [{gray}, {rotate}], p: 1.0}}}}"
    words = ["--data.tasks=semseg", f"--data.augment.extra=[{rotate}, {choice}]", "--model.backbone=test_resnet"]
    main(["fit", "--data=SyntheticDataModule", *words, "--trainer.accelerator=cpu"])
    main(["fit", "--config=saved.yaml"])
    for first, second in built:
        assert (type(first), first.limit, first.p) == (A.Rotate, (-10, 10), 1)
        assert [type(step) for step in second.transforms] == [A.ToGray, A.Rotate]
    assert len(built) == 2
