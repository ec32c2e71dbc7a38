"""Readers of what the library itself has written: completed datasets, checkpoints, networks; and of photographs."""

import contextlib
import io
import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from htt_lightning import HTTModule, HTTNet, HTTPredictor, ImageFolder, NYUDDataModule
from htt_lightning.commands.discover import discover
from htt_lightning.commands.export import export
from htt_lightning.data.datasets.nyud import CLASSES
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import FORMAT, PseudoLabelStore
from htt_lightning.errors import combine_errors
from htt_lightning.tasks import IGNORE_INDEX, SemSeg, Task
from htt_lightning.training.loading import load_teacher
from htt_lightning.training.trainer import HTTTrainer
from tests.data.datasets import test_nyud
from tests.models.test_released import NUM_TOKENS, TINY, released_file
from tests.tiny import BACKBONE, tiny_module, tiny_trainer
from tools.damage_campaign.commands import command
from tools.damage_campaign.damage import ANY, OTHER, VALID, Damage, put
from tools.damage_campaign.formats import PICTURES, WEIGHTS, WRONG, changed, checkpoint, places, write_json
from tools.damage_campaign.reader import COUNTED, OPEN, Reader, Target, Values

SMALL = {"batch_size": 2, "num_workers": 0, "seed": 0, "labels": "random-label", "augment": None}
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def data_of(root: Path, **changes: Any) -> NYUDDataModule:
    """Return a small NYUD datamodule."""
    return NYUDDataModule(str(root / "NYUDv2"), **(SMALL | changes))


def _invented(task: Task, rng: np.random.Generator) -> np.ndarray:
    """Return a map like a pseudo-label of a network."""
    if task.field_channels is None:
        return rng.integers(0, task.num_tokens, test_nyud.SIZE)
    values = rng.random(test_nyud.SIZE if task.field_channels == 1 else (*test_nyud.SIZE, task.field_channels)) + 0.1
    return values if task.field_channels == 1 else values / np.linalg.norm(values, axis=-1, keepdims=True)


def make_completed(root: Path) -> None:
    """Write a dataset with stored pseudo-labels."""
    test_nyud.write_tree(root / "NYUDv2")
    data, completed, rng = data_of(root), PseudoLabelStore(root / "completed"), np.random.default_rng(0)
    labels = data.labels_per_image("train", data.build_dataset("train"))
    images = {}
    for name, given in labels.items():
        lacking = [task for task in data.tasks if task.name not in given]
        completed.write(name, {t.name: (t, _invented(t, rng), rng.random(test_nyud.SIZE)) for t in lacking})
        images[name] = dict.fromkeys(given, Origin.GIVEN) | {task.name: Origin.DISCOVERED for task in lacking}
    made_by = {"name": "x.ckpt", "sha256": "0", "thresholds": {}}
    completed.write_manifest({"dataset": data.fingerprint(), "checkpoint": made_by, "images": images})


def read_completed(root: Path) -> Values:
    """Every training sample with its discovered labels."""
    data = data_of(root, pseudo_labels=str(root / "completed"))
    data.prepare_data()
    data.setup("fit")
    found = {}
    for sample in data.train:
        for task, discovered in sample["pseudo_labels"].items():
            found[f"{sample['id']} {task}"] = discovered.label
            found[f"{sample['id']} {task} confidence"] = discovered.confidence
    return found


def archived(name: str, what: str, change: Callable[[dict[str, np.ndarray]], None]) -> Damage:
    """Other arrays in an archive of numpy's."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        with np.load(path) as archive:
            arrays = dict(archive)
        change(arrays)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        put(path, buffer.getvalue())

    return Damage(name, what, apply)


def _each(change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda arrays: arrays.update({key: change(value) for key, value in arrays.items()})


ARCHIVES = [
    archived("a row too few", OTHER, _each(lambda array: array[1:])),
    archived("no row", OTHER, _each(lambda array: array[:0])),
    archived("one axis", OTHER, _each(np.ravel)),
    archived("an axis more", OTHER, _each(lambda array: array[None])),
    archived("as texts", OTHER, _each(lambda array: array.astype("U8"))),
    archived("as objects", OTHER, _each(lambda array: array.astype(object))),
    archived("complex", OTHER, _each(lambda array: array.astype(complex))),
    archived("NaN", OTHER, _each(lambda array: np.full(array.shape, np.nan))),
    archived("1e30 everywhere", OTHER, _each(lambda array: np.full(array.shape, 1e30))),
    archived("-5 everywhere", OTHER, _each(lambda array: np.full(array.shape, -5.0))),
    archived("a class too many", OTHER, _each(lambda array: np.full_like(array, IGNORE_INDEX - 1, shape=array.shape)
                                              if array.dtype == np.uint8 else array.astype(np.float64))),
    archived("a task lost", OTHER, lambda arrays: arrays.pop(next(iter(arrays)))),
    archived("no confidence", OTHER, lambda arrays: arrays.pop(next(key for key in arrays if "conf" in key))),
    archived("a map more", VALID, lambda arrays: arrays.update(other=np.zeros(3))),
]  # fmt: skip
MANIFEST: dict[str, Any] = {
    "format": FORMAT,
    "dataset": {"kind": "NYUD", "images": "0", "image_size": None, "tasks": {"semseg": {}}},
    "checkpoint": {"name": "x.ckpt", "sha256": "0", "thresholds": {}},
    "images": {"0": {"semseg": Origin.DISCOVERED}},
}


def _manifest(at: tuple[Any, ...], value: Any) -> Callable[[Path, np.random.Generator], None]:
    def apply(path: Path, rng: np.random.Generator) -> None:
        write_json(changed(json.loads(path.read_text()), at, value), path)

    return apply


MANIFESTS = [
    Damage(f"{'.'.join(map(str, at))}: {name}", VALID if at[0] == "checkpoint" else OTHER, _manifest(at, value))
    for at in places(MANIFEST, 3)
    if at != ("dataset", "tasks", "semseg")
    for name, value in ({"lost": KeyError} | WRONG).items()
    if not (at == ("dataset", "image_size") and name in ("lost", "null"))
]


def make_checkpoint(root: Path) -> None:
    """Write a checkpoint and a small dataset of its tasks."""
    torch.manual_seed(0)
    test_nyud.write_tree(root / "NYUDv2")
    module = tiny_module(data_of(root), dilations=(1, 2, 3))
    module.input_size = {"image_size": None, "min_size": None}  # as its data would say
    trainer = tiny_trainer(root)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(root / "last.ckpt", weights_only=True)
    Image.fromarray(PHOTO).save(root / "photo.png")


def read_predictor(root: Path) -> Values:
    """Predict the maps of an image."""
    return HTTPredictor.from_checkpoint(root / "last.ckpt")(PHOTO)


def as_teacher(root: Path) -> Values:
    """Predict an image with the teacher."""
    student = tiny_module(data_of(root), dilations=(1, 2, 3))
    with torch.no_grad():
        return HTTPredictor(load_teacher(str(root / "last.ckpt"), student))(PHOTO)


def exported(root: Path) -> Values:
    """Export the weights."""
    out = root.with_name("exported.safetensors")
    with contextlib.redirect_stdout(io.StringIO()):
        export(str(root / "last.ckpt"), "safetensors", str(out), overwrite=True)
    return {"file": out.read_bytes()}


def discovered(root: Path) -> Values:
    """Return the pseudo-labels of the command ``discover``."""
    data, out = data_of(root, tasks="semseg,depth,normals"), root.with_name("completed")
    module = tiny_module(data, dilations=(1, 2, 3))
    trainer = HTTTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with contextlib.redirect_stdout(io.StringIO()):
        discover(trainer, module, data, str(out), str(root / "last.ckpt"), overwrite=True)
    return {path.name: path.read_bytes() for path in sorted((out / "maps").iterdir())}


def predicted(root: Path) -> Values:
    """Return the files of the command ``predict``."""
    out = root.with_name("maps")
    command(
        "predict", "--ckpt_path", str(root / "last.ckpt"), "--data", "ImageFolder", "--data.root",
        str(root / "photo.png"), "--out", str(out), "--overwrite", "true", "--trainer.accelerator", "cpu",
        "--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--data.num_workers", "1",
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def make_photos(root: Path) -> None:
    """Write photographs of two formats, and a checkpoint."""
    make_checkpoint(root)
    (root / "photos" / "deep").mkdir(parents=True)
    for name in ("one.png", "two.jpg", "deep/three.png"):
        Image.fromarray(PHOTO).save(root / "photos" / name)


def read_photos(root: Path) -> Values:
    """Read photographs as for ``predict``; unreadable ones are an error at the end."""
    data = ImageFolder(str(root / "photos"), str(root / "last.ckpt"), num_workers=1)
    data.setup("predict")
    found: dict[str, Any] = {}
    for batch in data.predict_dataloader():
        found |= zip(batch["id"], batch["image"], strict=True)
    if data.errors:
        raise combine_errors(data.errors)
    return found


def make_released(root: Path) -> None:
    """Write a checkpoint like those of the public release."""
    torch.manual_seed(0)
    released_file(root / "released.pth", HTTNet(NUM_TOKENS, tokens="released", **TINY), with_tokens=True)


def load_released(root: Path) -> Values:
    """Load its weights."""
    return HTTNet.from_official_checkpoint(root / "released.pth", backbone=BACKBONE).state_dict()


def make_pretrained(root: Path) -> None:
    """Write a network in the format of the hub."""
    torch.manual_seed(0)
    HTTNet(NUM_TOKENS, dilations=(1, 2, 3), **TINY).save_pretrained(root / "net")


def read_pretrained(root: Path) -> Values:
    """Load its weights, and predict an image."""
    net = HTTNet.from_pretrained(root / "net")
    with torch.no_grad():
        seen = net(torch.from_numpy(PHOTO / np.float32(255)).permute(2, 0, 1)[None])
    return {**net.state_dict(), **{f"seen {task}": output.logits for task, output in seen.items()}}


def make_backbone(root: Path) -> None:
    """Write the weights of a backbone."""
    torch.manual_seed(0)
    torch.save(HTTNet(NUM_TOKENS, **TINY).backbone.model.state_dict(), root / "backbone.pth")


def read_backbone(root: Path) -> Values:
    """Load the weights into a network."""
    return HTTNet(NUM_TOKENS, pretrained=str(root / "backbone.pth"), **TINY).backbone.state_dict()


def _hyper(at: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda stored: changed(stored, at, value)


_SAID: dict[str, Any] = {
    "hyper_parameters": {key: parameter.default for key, parameter in signature(HTTModule).parameters.items()}
    | {"tasks": [SemSeg(classes=CLASSES).to_config()]},
    "input_size": {"image_size": None, "min_size": None},
}
"""Values of a checkpoint, besides its weights, that change predictions."""
_TRAINED_WITH = (
    "lr",
    "weight_decay",
    "poly_power",
    "loss_weights",
    "image_weighting",
    "single_task_baselines",
    "pretrained",
    "dropout",
)
HYPERPARAMETERS = [
    checkpoint(f"{'.'.join(map(str, at))}: {name}", VALID if at[0] == "input_size" or at[-1] in _TRAINED_WITH
               else OTHER,
               _hyper(at, value))
    for at in places(_SAID, 5)
    for name, value in ({"lost": KeyError} | WRONG).items()
]  # fmt: skip
HUB_CONFIG = [
    Damage(f"{key}: {name}", OTHER, _manifest((key,), value))
    for key in ("num_tokens", "token_dim", "dilations", "token_stride", "backbone")
    for name, value in ({"lost": KeyError} | WRONG).items()
    if (key, name) != ("dilations", "lost")  # the default takes its place
]
UNFIT = ["The weights of the checkpoint", "The checkpoint was trained"]
"""Names of a command's checkpoint in its messages."""
CHECKPOINT = [Target("last.ckpt", [*ANY, *WEIGHTS, *HYPERPARAMETERS])]
RESULTS = [
    Reader("completed dataset", make_completed, read_completed, [
        Target("completed/manifest.json", [*ANY, *MANIFESTS], OPEN),
        Target("completed/maps/1.npz", [*ANY, *ARCHIVES]),
    ], speaks=["completed"]),
    Reader("checkpoint, predictor", make_checkpoint, read_predictor, CHECKPOINT, slow=True),
    Reader("checkpoint, teacher", make_checkpoint, as_teacher, CHECKPOINT, slow=True),
    Reader("checkpoint, export", make_checkpoint, exported, CHECKPOINT, slow=True),
    Reader("checkpoint, discover", make_checkpoint, discovered, CHECKPOINT, UNFIT, slow=True),
    Reader("checkpoint, predict", make_checkpoint, predicted, CHECKPOINT, UNFIT, slow=True),
    Reader("ImageFolder", make_photos, read_photos, [
        Target("photos/one.png", [*ANY, *PICTURES], optional=True),
        Target("photos/two.jpg", [*ANY, *PICTURES], OPEN, optional=True),
    ]),
    Reader("from_released", make_released, load_released, [Target("released.pth", [*ANY, *WEIGHTS])]),
    Reader("from_pretrained", make_pretrained, read_pretrained, [
        Target("net/config.json", [*ANY, *HUB_CONFIG], OPEN),
        Target("net/model.safetensors", ANY, COUNTED),
    ]),
    Reader("backbone weights", make_backbone, read_backbone, [Target("backbone.pth", [*ANY, *WEIGHTS])]),
]  # fmt: skip
