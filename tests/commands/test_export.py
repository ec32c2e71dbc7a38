import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import nn

from htt_lightning import HTTModule
from htt_lightning.cli import main
from htt_lightning.commands import export as exporting
from htt_lightning.commands.export import ExportWrapper, check_parity, model_metadata
from htt_lightning.errors import HTTError
from htt_lightning.models.layers import DepthwiseDownsample
from htt_lightning.tasks import Depth, Edges, Normals, Saliency, SemSeg
from tests.tiny import BACKBONE, tiny_trainer

TASKS = [SemSeg(classes=("floor", "wall", "door")), Depth(num_bins=5, min_depth=0.5, max_depth=8.0)]


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    module = HTTModule(TASKS, network="multitask", backbone=BACKBONE, token_dim=8)
    return perturbed(module)


def perturbed(module):
    """Statistics as after some training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module.eval()


def save(module, path):
    trainer = tiny_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(module, tmp_path_factory):
    return save(module, tmp_path_factory.mktemp("run") / "last.ckpt")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


def export(checkpoint, kind, out, *more):
    main(["export", "--ckpt_path", str(checkpoint), "--format", kind, "--out", out, *more])


@torch.no_grad()
def test_onnx_equals_the_network_at_any_batch_and_size_and_says_what_it_is(module, checkpoint, capsys):
    export(checkpoint, "onnx", "net.onnx")
    printed = capsys.readouterr().out
    assert "depth: largest difference" in printed
    assert "semseg: 100.000 % of the pixels have the same class" in printed
    assert printed.splitlines()[-1] == "net.onnx"
    session = onnxruntime.InferenceSession("net.onnx")
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape, taken.type) == ("image", ["batch", 3, "height", "width"], "tensor(float)")
    assert [x.name for x in session.get_outputs()] == ["semseg", "depth"]
    assert [x.shape for x in session.get_outputs()] == [
        ["batch", "height", "width"], ["batch", 1, "height", "width"],
    ]  # fmt: skip
    for shape in [(1, 3, 32, 32), (2, 3, 33, 47), (4, 3, 96, 64), (1, 3, 130, 201)]:
        image = torch.rand(shape)
        expected, found = module.decode(image), session.run(None, {"image": image.numpy()})
        np.testing.assert_array_equal(found[0], expected["semseg"])
        largest = expected["depth"].abs().max().item()
        np.testing.assert_allclose(found[1], expected["depth"], rtol=0, atol=1e-4 * largest)
    stored = {entry.key: entry.value for entry in onnx.load("net.onnx").metadata_props}
    assert json.loads(stored["htt_lightning"]) == model_metadata(ExportWrapper(module))
    assert sorted(path.name for path in Path().iterdir()) == ["net.onnx"]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 and 2.12, of what they have saved
@torch.no_grad()
def test_an_exported_program_equals_the_network_with_tokens(tmp_path):
    torch.manual_seed(0)
    module = perturbed(HTTModule([Depth(num_bins=5)], backbone=BACKBONE, token_dim=8))
    export(save(module, tmp_path / "a.ckpt"), "torch-export", "net.pt2")
    files = {"htt_lightning.json": ""}
    program = torch.export.load("net.pt2", extra_files=files).module()
    for shape in [(1, 3, 32, 32), (2, 3, 33, 47), (1, 3, 130, 201)]:
        image = torch.rand(shape)
        torch.testing.assert_close(program(image)["depth"], module.decode(image)["depth"], rtol=0, atol=1e-4)
    assert json.loads(files["htt_lightning.json"])["outputs"]["depth"]["unit"] == "m"


class Scores(nn.Module):
    """How a head scores its classes: each image's tokens are a transposed view."""

    def __init__(self):
        super().__init__()
        self.reduce = DepthwiseDownsample(6)

    def forward(self, feature, tokens):
        return self.reduce.token_scores(feature, tokens.mT)


@torch.no_grad()
def test_onnxruntime_scores_classes_as_the_network_does():
    """Its optimiser merges transposition and product, wrongly if the other factor is a vector."""
    torch.manual_seed(0)
    scores, inputs = Scores().eval(), (torch.rand(2, 6, 3, 4), torch.rand(2, 6, 5))
    assert scores.reduce.bias.abs().min() > 0  # zero hides it, as in a network that was never trained
    exported = torch.onnx.export(scores, inputs, dynamo=True, input_names=["feature", "tokens"], verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (found,) = session.run(None, dict(zip(["feature", "tokens"], (x.numpy() for x in inputs), strict=True)))
    np.testing.assert_allclose(found, scores(*inputs), rtol=0, atol=1e-5)


def test_weights_alone_are_those_of_the_network(module, checkpoint):
    export(checkpoint, "safetensors", "net.safetensors")
    with safe_open("net.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        metadata = json.loads(file.metadata()["htt_lightning"])
    state = module.net.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], values) for name, values in state.items())
    assert metadata["outputs"]["semseg"]["classes"] == ["floor", "wall", "door"]


def test_what_outputs_mean_is_described():
    tasks = [*TASKS, Normals(num_bins=6), Edges(), Saliency()]
    metadata = model_metadata(
        ExportWrapper(HTTModule(tasks, network="multitask", backbone=BACKBONE, token_dim=8).eval())
    )
    assert json.loads(json.dumps(metadata))["input"]["normalisation"] == "inside the model"
    short = {name: (x["axes"], x["type"], tuple(x["range"])) for name, x in metadata["outputs"].items()}
    assert short == {
        "semseg": ("b h w", "int64", (0, 2)),
        "depth": ("b 1 h w", "float32", (0.5, 8.0)),
        "normals": ("b 3 h w", "float32", (-1.0, 1.0)),
        "edges": ("b h w", "float32", (0.0, 1.0)),
        "saliency": ("b h w", "float32", (0.0, 1.0)),
    }


@torch.no_grad()
@pytest.mark.parametrize("task", ["depth", "semseg"])
@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[..., :-1]], ids=["values", "shape"])
def test_a_program_that_computes_something_else_is_refused(module, task, change):
    model = ExportWrapper(module)
    with pytest.raises(HTTError, match=task):
        check_parity(model, lambda image: {name: change(x) if name == task else x for name, x in model(image).items()})
    assert check_parity(model, model)["depth"].startswith("largest difference 0.0e+00")


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        ("tflite", "a.x", "--format is 'tflite'; it must be one of onnx, torch-export, safetensors"),
        ("onnx", ".", r"--out \. is a folder"),
        ("safetensors", "there", "there exists.*--overwrite true"),
        ("safetensors", "there/a", "Cannot write there/a"),
    ],
)
def test_bad_input_ends_with_one_message(checkpoint, kind, out, message):
    Path("there").write_text("mine")
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        export(checkpoint, kind, out)
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("there", "mine")]


def test_an_existing_file_is_replaced_on_demand(checkpoint):
    Path("there").write_text("mine")
    export(checkpoint, "safetensors", "there", "--overwrite", "true")
    assert Path("there").stat().st_size > 1000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(checkpoint):
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(SystemExit, match=r"^error: Cannot write closed/a: Permission denied"):
        export(checkpoint, "onnx", "closed/a")


@pytest.mark.parametrize("content", [b"nothing", None])
def test_a_file_that_is_no_checkpoint_is_named(content):
    Path("other.ckpt").write_bytes(content) if content else torch.save({"model": {}}, "other.ckpt")
    with pytest.raises(SystemExit, match=r"error: --ckpt_path: other\.ckpt is corrupt or no checkpoint"):
        export("other.ckpt", "safetensors", "a")
    with pytest.raises(SystemExit, match=r"existing checkpoint, got missing\.ckpt"):
        export("missing.ckpt", "safetensors", "a")
    assert not Path("a").exists()


def test_a_missing_extra_is_named_with_the_line_that_installs_it(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match=r'needs onnxruntime.*pip install "htt-lightning\[export\]"'):
        export(checkpoint, "onnx", "a.onnx")
    assert not Path("a.onnx").exists()


@pytest.mark.parametrize("format", ["onnx", "torch-export", "safetensors"])
def test_an_exporter_that_fails_is_named_with_its_cause(format, checkpoint, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("\n  the cause\nand pages of what led to it")

    for name in ("_write_onnx", "_write_program", "_write_weights"):
        monkeypatch.setattr(exporting, name, fail)
    with pytest.raises(HTTError) as error:
        exporting.export(str(checkpoint), format, str(tmp_path / "out"))
    first, second = str(error.value).splitlines()
    assert first == f"--format {format}: this network cannot be exported: ValueError: the cause"
    assert "Try another --format" in second
    assert not (tmp_path / "out").exists()
