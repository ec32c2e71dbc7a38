import copy
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
from htt_lightning.errors import ConfigError, HTTError
from htt_lightning.models.layers import DepthwiseDownsample
from htt_lightning.tasks import Depth, Edges, Normals, Saliency, SemSeg
from tests.models.test_backbone_sizes import ANY, FIXED, MULTIPLES
from tests.run_if import RunIf
from tests.tiny import BACKBONE, tiny_trainer

SHAPES = [(1, 3, 33, 33), (2, 3, 33, 47), (1, 3, 130, 201)]
TASKS = [SemSeg(classes=("floor", "wall", "door")), Depth(num_bins=5, min_depth=0.5, max_depth=8.0)]
TINY = {"backbone": BACKBONE, "token_dim": 8, "dilations": (2,)}  # every layer costs the exporters time


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return perturbed(HTTModule(TASKS, network="multitask", **TINY))


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
def test_onnx_equals_network_at_any_size(module, checkpoint, capsys):
    export(checkpoint, "onnx", "net.onnx")
    printed = capsys.readouterr().out
    assert "depth: largest difference" in printed
    assert "semseg: 100.000 % of the pixels" in printed
    assert printed.splitlines()[-1] == "net.onnx"
    session = onnxruntime.InferenceSession("net.onnx")
    described = [(x.name, x.shape, x.type) for x in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("image", ["batch", 3, "height", "width"], "tensor(float)"),
        ("semseg", ["batch", "height", "width"], "tensor(int64)"),
        ("depth", ["batch", 1, "height", "width"], "tensor(float)"),
    ]
    for shape in [(1, 3, 33, 33), (2, 3, 33, 47), (4, 3, 96, 64), (1, 3, 130, 201)]:
        image = torch.rand(shape)
        expected, found = module.decode(image), session.run(None, {"image": image.numpy()})
        np.testing.assert_array_equal(found[0], expected["semseg"])
        largest = expected["depth"].abs().max().item()
        np.testing.assert_allclose(found[1], expected["depth"], rtol=0, atol=1e-4 * largest)
    stored = {entry.key: entry.value for entry in onnx.load("net.onnx").metadata_props}
    assert json.loads(stored["htt_lightning"]) == model_metadata(ExportWrapper(module))
    assert sorted(path.name for path in Path().iterdir()) == ["net.onnx"]


@pytest.mark.slow
@torch.no_grad()
def test_onnx_of_exchanging_tokens_on_same_padding(tmp_path):
    torch.manual_seed(0)
    module = HTTModule(
        TASKS, **TINY | {"backbone": "tf_mobilenetv3_small_minimal_100"}
    )  # convolutions with TensorFlow's padding
    for layer in [*module.net.global_tokens.restore, *(head.fine_tokens.mix[-1] for head in module.net.heads.values())]:
        nn.init.normal_(layer.weight)  # zero before training, which would hide exchange and scores
    module = perturbed(module)
    export(save(module, tmp_path / "a.ckpt"), "onnx", "net.onnx")
    session, image = onnxruntime.InferenceSession("net.onnx"), torch.rand(3, 3, 33, 47)
    expected = module.decode(image)["depth"]
    np.testing.assert_allclose(session.run(["depth"], {"image": image.numpy()})[0], expected, rtol=0, atol=1e-3)


FAMILIES = {
    "regnetx_002": None,
    "convnext_atto": None,
    "pvt_v2_b0": (64, 96),
    "vit_tiny_patch16_224": None,
    "hiera_tiny_224": None,
    "efficientformer_l1": None,
    "vit_small_patch16_dinov3": (64, 96),
    "swin_tiny_patch4_window7_224": (64, 96),
    "maxvit_tiny_tf_224": (64, 96),
}
"""Size at which a backbone of each family is exported; None for any."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_onnx_of_every_family_equals_network(name):
    options, size = {**MULTIPLES, **FIXED}.get(name, (ANY.get(name), 0))[0], FAMILIES[name]
    torch.manual_seed(0)
    sizes = {"backbone": name, "backbone_options": options}
    module = perturbed(HTTModule([Depth(num_bins=5)], network="multitask", **TINY | sizes))
    more = ["--image_size", str(list(size))] if size else []
    export(save(module, Path("a.ckpt")), "onnx", "net.onnx", *more)
    session = onnxruntime.InferenceSession("net.onnx")
    for batch, *image_size in [(1, 33, 47), (2, 96, 64), (3, 130, 150)]:
        image = torch.rand(batch, 3, *(size or image_size))
        expected = module.decode(image)["depth"]
        np.testing.assert_allclose(session.run(None, {"image": image.numpy()})[0], expected, rtol=1e-4)


@pytest.fixture(scope="module")
def program_with_tokens(tmp_path_factory):
    """A module with tokens, and the exported program with its metadata."""
    folder = tmp_path_factory.mktemp("program")
    torch.manual_seed(0)
    module = perturbed(HTTModule([Depth(num_bins=5)], **TINY))
    exporting.export(str(save(module, folder / "a.ckpt")), "torch-export", str(folder / "net.pt2"))
    files = {"htt_lightning.json": ""}
    return module, torch.export.load(folder / "net.pt2", extra_files=files).module(), files["htt_lightning.json"]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 and 2.12, of what they have saved
@torch.no_grad()
def test_exported_program_with_tokens_equals_network(program_with_tokens):
    module, program, metadata = program_with_tokens
    for shape in SHAPES:
        image = torch.rand(shape)
        torch.testing.assert_close(program(image)["depth"], module.decode(image)["depth"], rtol=0, atol=1e-4)
    assert json.loads(metadata)["outputs"]["depth"]["unit"] == "m"


@RunIf(min_gpus=1)
@torch.no_grad()
def test_exported_program_equals_network_on_gpu(program_with_tokens):
    module, program, _ = program_with_tokens
    on_gpu = copy.deepcopy(module).cuda()
    for shape in SHAPES:
        image = torch.rand(shape)
        expected = on_gpu.decode(image.cuda())["depth"].cpu()
        torch.testing.assert_close(program(image)["depth"], expected, rtol=0, atol=1e-2)


class Scores(nn.Module):
    """Score classes as a head does: each image's tokens are a transposed view."""

    def __init__(self):
        super().__init__()
        self.reduce = DepthwiseDownsample(6)

    def forward(self, feature, tokens):
        return self.reduce.token_scores(feature, tokens.mT)


@torch.no_grad()
def test_onnxruntime_scores_tokens_like_torch():
    """Its optimizer merges transposition and product, wrongly if the other factor is a vector."""
    torch.manual_seed(0)
    scores, inputs = Scores().eval(), (torch.rand(2, 6, 3, 4), torch.rand(2, 6, 5))
    assert scores.reduce.bias.abs().min() > 0  # zero, as in an untrained network, would hide it
    exported = torch.onnx.export(scores, inputs, dynamo=True, input_names=["feature", "tokens"], verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    (found,) = session.run(None, dict(zip(["feature", "tokens"], (x.numpy() for x in inputs), strict=True)))
    np.testing.assert_allclose(found, scores(*inputs), rtol=0, atol=1e-5)


def test_safetensors_holds_the_weights_and_replaces_on_demand(module, checkpoint):
    Path("net.safetensors").write_text("mine")
    export(checkpoint, "safetensors", "net.safetensors", "--overwrite", "true")
    with safe_open("net.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
        metadata = json.loads(file.metadata()["htt_lightning"])
    torch.testing.assert_close(stored, dict(module.net.state_dict()), rtol=0, atol=0)
    assert metadata["outputs"]["semseg"]["classes"] == ["floor", "wall", "door"]


def test_metadata_describes_every_output():
    tasks = [*TASKS, Normals(num_bins=6), Edges(), Saliency()]
    module = HTTModule(tasks, tokens="released", mean=[0.5, 0.25, 0.5], **TINY).eval()
    module.input_size = {"image_size": [96, 128], "min_size": None}  # as a checkpoint has it
    metadata = json.loads(json.dumps(model_metadata(ExportWrapper(module))))
    assert metadata["input"]["training_size"] == [96, 128]
    assert metadata["network"] == {"network": "htt", "backbone": BACKBONE, "tokens": "released"}
    assert metadata["input"]["normalization"]["mean"] == [0.5, 0.25, 0.5]
    outputs = {name: (x["axes"], x["type"], tuple(x["range"])) for name, x in metadata["outputs"].items()}
    assert outputs == {
        "semseg": ("b h w", "int64", (0, 2)),
        "depth": ("b 1 h w", "float32", (0.5, 8.0)),
        "normals": ("b 3 h w", "float32", (-1.0, 1.0)),
        "edges": ("b h w", "float32", (0.0, 1.0)),
        "saliency": ("b h w", "float32", (0.0, 1.0)),
    }


@torch.no_grad()
@pytest.mark.parametrize("task", ["depth", "semseg"])
@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x[..., :-1]], ids=["values", "shape"])
def test_parity_check_refuses_another_program(module, task, change):
    model = ExportWrapper(module)
    with pytest.raises(HTTError, match=f"exported {task} must"):
        check_parity(model, lambda image: {name: change(x) if name == task else x for name, x in model(image).items()})
    assert check_parity(model, model)["depth"].startswith("largest difference 0.0e+00")


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        ("tflite", "a.x", "--format must be one of onnx, torch-export, safetensors, got 'tflite'"),
        ("onnx", ".", r"--out must be a file, got the folder \."),
        ("safetensors", "there", "--out .*there.*--overwrite true"),
        ("safetensors", "there/a", "Cannot write there/a"),
        ("torch-export --opset 18", "a", r"--opset must be .* for --format onnx, got 18"),
        ("onnx --opset 9", "a", r"--opset must be from 18 to \d+, .* got 9"),
        ("onnx --opset 9000", "a", r"--opset must be from 18 to \d+, .* got 9000"),
        ("onnx --image_size [16,64]", "a", r"--image_size must be .* from 32 .* got \(16, 64\)"),
        ("safetensors --image_size [64,64]", "a", r"--image_size must be .* for a program"),
    ],
)
def test_export_errors_name_the_option(checkpoint, kind, out, message):
    Path("there").write_text("mine")
    kind, *more = kind.split()
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        export(checkpoint, kind, out, *more)
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("there", "mine")]


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("swin_tiny_patch4_window7_224", [], r"--image_size must be .* 'swin_tiny_patch4_window7_224'.*\[288, 384\]"),
        ("maxvit_tiny_tf_224", [], r"--image_size must be .* 'maxvit_tiny_tf_224'.*\[288, 384\]"),
        ("vit_small_patch16_dinov3", [], r"--image_size must be .* 'vit_small_patch16_dinov3'.*\[288, 384\]"),
        ("hiera_tiny_224", ["--image_size", "[64, 256]"], r"--image_size must be at most 224x224 .* got \(64, 256\)"),
    ],
)
def test_export_names_the_sizes_of_a_backbone_at_once(name, more, message):
    options = {**ANY, **{key: value[0] for key, value in (MULTIPLES | FIXED).items()}}[name]
    module = HTTModule(TASKS, network="multitask", **TINY | {"backbone": name, "backbone_options": options})
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        export(save(module, Path("a.ckpt")), "onnx", "net.onnx", *more)
    assert not Path("net.onnx").exists()


@torch.no_grad()
def test_onnx_of_one_size_has_the_opset_and_size_asked_for(module, checkpoint):
    export(checkpoint, "onnx", "net.onnx", "--opset", "20", "--image_size", "[40, 56]")
    proto = onnx.load("net.onnx")
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [20]
    session, image = onnxruntime.InferenceSession("net.onnx"), torch.rand(3, 3, 40, 56)
    assert session.get_inputs()[0].shape == ["batch", 3, 40, 56]
    found, expected = session.run(None, {"image": image.numpy()}), module.decode(image)
    np.testing.assert_array_equal(found[0], expected["semseg"])
    np.testing.assert_allclose(found[1], expected["depth"], rtol=1e-4)
    (stored,) = (json.loads(entry.value) for entry in proto.metadata_props if entry.key == "htt_lightning")
    assert (stored["input"]["min_size"], stored["input"]["max_size"]) == ([40, 56], [40, 56])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_export_to_a_read_only_folder_is_refused(checkpoint):
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(SystemExit, match=r"^error: Cannot write closed/a: Permission denied"):
        export(checkpoint, "onnx", "closed/a")


@pytest.mark.parametrize("content", [b"nothing", {"model": {}}, None])
def test_export_needs_a_checkpoint(content):
    if isinstance(content, bytes):
        Path("other.ckpt").write_bytes(content)
    elif content:
        torch.save(content, "other.ckpt")
    with pytest.raises(SystemExit, match=r"^error: --ckpt_path.*other\.ckpt"):
        export("other.ckpt", "safetensors", "a")
    assert not Path("a").exists()


def test_export_names_a_missing_package(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit, match=r'needs onnxruntime.*pip install "htt-lightning\[export\]"'):
        export(checkpoint, "onnx", "a.onnx")
    assert not Path("a.onnx").exists()


@pytest.mark.parametrize("format", ["onnx", "torch-export", "safetensors"])
def test_export_names_the_cause_of_a_failure(format, checkpoint, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("\n  the cause\nand pages of what led to it")

    for name in ("_write_onnx", "_write_program", "_write_weights"):
        monkeypatch.setattr(exporting, name, fail)
    with pytest.raises(ConfigError, match=rf"^--format {format} .*: ValueError: the cause\nTry another --format"):
        exporting.export(str(checkpoint), format, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
