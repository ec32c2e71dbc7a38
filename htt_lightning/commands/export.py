"""Export of a trained network to one file: ONNX, ``torch.export``, or weights alone.

An exported program takes float32 RGB in [0, 1], ``b 3 h w``, and returns one decoded map per task, named like the task.
Normalization, padding and decoding are inside.
"""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from htt_lightning.errors import ConfigError, HTTError, did_you_mean, missing_extra
from htt_lightning.io.files import atomic_path
from htt_lightning.io.progress import status
from htt_lightning.models.backbone_sizes import STRIDE
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task
from htt_lightning.training.loading import load_module

REQUIRED_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "safetensors": (),
}
"""Packages of the extra ``export`` by format."""
MIN_SIZE, MAX_SIZE = 33, 8192
"""Smallest and largest height and width in pixels of a program for any size, whose coarsest map is not a single pixel.

Layers with channels last distinguish maps of a single pixel, and a program has one form for all sizes.
"""
MIN_OPSET = 18
"""Oldest version of ONNX's operators that PyTorch's exporter writes."""
TRACE_SHAPE = (2, 3, 72, 104)
"""Shape of the traced image. All lengths differ, so that none stands for another."""
PARITY_SHAPES = ((1, 3, 64, 96), (3, 3, 101, 75))
"""Shapes at which program and network are compared: two batch sizes and two image sizes, one of them odd."""
TOLERANCE = 1e-4
"""Largest difference of a field or probability, relative to the largest magnitude of the output."""
MAX_CLASS_DIFFERENCE = 1e-3
"""Largest fraction of different pixels of a class map; classes may swap where their scores are almost equal."""

Program = Callable[[Tensor], Mapping[str, Tensor]]


class ExportWrapper(nn.Module):
    """Network with decoding, from an image to its maps.

    Args:
        module: Module with the network and tasks.
        image_size: Only height and width of images; None exports for any size that the backbone takes.
    """

    def __init__(self, module: HTTModule, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.net, self.tasks, self.training_size = module.net, module.tasks, module.input_size.get("image_size")
        plan = getattr(self.net.backbone, "plan", None)
        largest = plan.multiple if plan and plan.fixed else (MAX_SIZE, MAX_SIZE)
        self.min_size, self.max_size = (image_size, image_size) if image_size else ((MIN_SIZE, MIN_SIZE), largest)
        self.network = {key: module.hparams[key] for key in ("network", "backbone", "tokens")}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict maps ``b h w`` or ``b c h w`` by task from RGB in [0, 1], ``b 3 h w``."""
        outputs, size = self.net(image), (image.shape[-2], image.shape[-1])
        return {task.name: task.decode(outputs[task.name], size) for task in self.tasks}

    def random_image(self, shape: tuple[int, int, int, int], generator: torch.Generator | None = None) -> Tensor:
        """Draw an image of a shape ``b 3 h w``, with a height and width clipped to those of the program."""
        clipped = [max(low, min(n, top)) for n, low, top in zip(shape[2:], self.min_size, self.max_size, strict=True)]
        return torch.rand((*shape[:2], *clipped), generator=generator)


def export(
    ckpt_path: str,
    format: str,
    out: str,
    overwrite: bool = False,
    opset: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Export a checkpoint's network to one file, and compare it with PyTorch.

    Args:
        ckpt_path: Checkpoint of this library; on the command line also ``last`` or ``best`` of the newest run.
        format: ``onnx``, ``torch-export`` (for ``torch.export.load``) or ``safetensors`` (weights of the network).
        out: Path of the new file.
        overwrite: Whether to replace an existing file.
        opset: Version of ONNX's operators, from 18 on; by default that of PyTorch's exporter.
        image_size: Height and width of all images; by default an exported program takes any. Swin, MaxViT, other
            backbones with windows, and DINOv3 need it.

    Raises:
        ConfigError: An option is wrong, the file exists, or the network cannot be exported. Nothing is written.
        CheckpointError: The checkpoint is missing, corrupt or of another library.
        HTTError: A package of the format is missing, or the exported program differs from the network.
    """
    _check_options(format, opset, image_size)
    path = Path(out)
    if path.is_dir():
        raise ConfigError(f"--out must be a file, got the folder {out}.")
    if path.exists() and not overwrite:
        raise ConfigError(f"--out must be a new file, got {out}, which exists. Set --overwrite true to replace it.")
    module = load_module(ckpt_path, "--ckpt_path")
    # With channels last, torch.export would distinguish sizes by the memory layouts they allow.
    module.net.to(memory_format=torch.contiguous_format)
    model = ExportWrapper(module, image_size).eval()
    if format != "safetensors":
        _check_image_size(model.net.backbone, image_size)
    console = Console(soft_wrap=True)
    with atomic_path(path) as partial_path, torch.no_grad():
        partial_path.touch()  # fails for a read-only folder before minutes of work
        with status(f"Exporting as {format}, which can take PyTorch minutes"):
            differences = _run_exporter(format, model, partial_path, opset)
        for task, text in differences.items():
            console.out(f"{task}: {text}", highlight=False)
    console.out(path, highlight=False)


def _check_options(format: str, opset: int | None, image_size: tuple[int, int] | None) -> None:
    """Check the options that need no checkpoint, and import the packages of the format."""
    if format not in REQUIRED_PACKAGES:
        hint = did_you_mean(format, REQUIRED_PACKAGES)
        raise ConfigError(f"--format must be one of {', '.join(REQUIRED_PACKAGES)}, got {format!r}.{hint}")
    for package in REQUIRED_PACKAGES[format]:
        try:
            import_module(package)
        except ImportError as error:
            raise missing_extra(f"--format {format} needs {package}", "export") from error
    if opset is not None:
        from onnx.defs import onnx_opset_version

        newest = onnx_opset_version()
        if format != "onnx" or not MIN_OPSET <= opset <= newest:
            raise ConfigError(f"--opset must be from {MIN_OPSET} to {newest}, for --format onnx, got {opset}.")
    if image_size is not None and (format == "safetensors" or not all(STRIDE <= n <= MAX_SIZE for n in image_size)):
        raise ConfigError(
            f"--image_size must be a height and a width from {STRIDE} to {MAX_SIZE}, for a program, got {image_size}."
        )


def _check_image_size(backbone: Any, image_size: tuple[int, int] | None) -> None:
    """Check that a backbone can be exported for images of one size, or of any.

    PyTorch takes minutes for windows on a grid of unknown size, and then fails.
    """
    plan = getattr(backbone, "plan", None)
    if plan is None:
        return
    if image_size and plan.fixed and any(n > limit for n, limit in zip(image_size, plan.multiple, strict=True)):
        limits = "x".join(map(str, plan.multiple))
        raise ConfigError(f"--image_size must be at most {limits} for backbone {backbone.name!r}, got {image_size}.")
    parts = [*backbone.modules()]
    windows = any(getattr(part, "window_size", None) or isinstance(part, RotaryEmbeddingDinoV3) for part in parts)
    if image_size is None and not plan.fixed and (windows or plan.multiple != (STRIDE, STRIDE)):
        raise ConfigError(
            f"--image_size must be a height and a width for backbone {backbone.name!r}, whose windows or positions fit "
            "one size only, got none. Set --image_size '[288, 384]' or that of your images, or --format safetensors."
        )


def _run_exporter(format: str, model: ExportWrapper, path: Path, opset: int | None) -> dict[str, str]:
    """Write the file, compare what it computes with the network, and describe the largest difference by task."""
    onnx = partial(_write_onnx, opset=opset)
    writers: dict[str, Callable[..., Program | None]]
    writers = {"onnx": onnx, "torch-export": _write_program, "safetensors": _write_weights}
    try:
        program = writers[format](model, model_metadata(model), path)
        return check_parity(model, program) if program else {}
    except (HTTError, OSError):  # they name their file elsewhere
        raise
    except Exception as error:  # exporters raise many types
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise ConfigError(
            f"--format {format} cannot express this network: {type(error).__name__}: {cause}\n"
            f"Try another --format ({', '.join(REQUIRED_PACKAGES)}) or --image_size, or other versions of its packages "
            "(`htt info`)."
        ) from error


def model_metadata(model: ExportWrapper) -> dict[str, Any]:
    """Describe an exported program in plain values: library, version, network, input, and the outputs by task."""
    normalization = {key: model.net.get_buffer(key).flatten().tolist() for key in ("mean", "std")}
    with torch.no_grad():
        maps = model(model.random_image((1, 3, MIN_SIZE, MIN_SIZE)))
    return {
        "library": "htt-lightning",
        "version": version("htt-lightning"),
        "network": model.network,
        "input": {
            "name": "image",
            "axes": "b 3 h w",
            "type": "float32",
            "colors": "RGB",
            "range": [0.0, 1.0],
            "min_size": list(model.min_size),
            "max_size": list(model.max_size),
            "training_size": model.training_size,
            "normalization": {"where": "inside the model", **normalization},
        },
        "outputs": {task.name: _output_metadata(task, maps[task.name]) for task in model.tasks},
    }


def _output_metadata(task: Task, decoded: Tensor) -> dict[str, Any]:
    """Describe the output of a task."""
    names, is_index = list(task.class_names), not decoded.is_floating_point()
    values = (0, len(names) - 1) if is_index else task.output_range
    return {
        "task": type(task).__name__,
        "axes": "b h w" if decoded.ndim == 3 else f"b {decoded.shape[1]} h w",
        "type": str(decoded.dtype).removeprefix("torch."),
        "range": None if values is None else list(values),
        "unit": task.output_unit,
        "classes": names,
        "settings": task.output_settings,
    }


def to_exported_program(model: ExportWrapper) -> ExportedProgram:
    """Export the computation for any batch size, and for any image size between those of the model.

    PyTorch requires each size to be on the same side of every comparison as the traced one. Comparisons of the network
    itself hold for all sizes. The others choose memory layouts, which values do not depend on. So they become
    assertions, which are removed here; ``check_parity`` runs sizes at which they would have failed.
    """
    axes = zip((2, 3), ("height", "width"), model.min_size, model.max_size, strict=True)
    free = {axis: Dim(name, min=low, max=high) for axis, name, low, high in axes if low < high}
    program = torch.export.export(
        model,
        (model.random_image(TRACE_SHAPE),),
        dynamic_shapes={"image": {0: Dim("batch", min=1), **free}},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def check_parity(model: ExportWrapper, program: Program) -> dict[str, str]:
    """Compare an exported program with the network, and describe the largest difference by task.

    Raises:
        HTTError: A map has another shape, or differs by more than ``TOLERANCE`` or ``MAX_CLASS_DIFFERENCE``.
    """
    worst: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for shape in PARITY_SHAPES:
        image = model.random_image(shape, generator)
        outputs = program(image)
        for name, expected in model(image).items():
            found = outputs[name]
            if found.shape != expected.shape:
                raise HTTError(f"The exported {name} must be of shape {[*expected.shape]}, got {[*found.shape]}.")
            if expected.is_floating_point():
                limit, difference = TOLERANCE, (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
            else:
                limit, difference = MAX_CLASS_DIFFERENCE, (found != expected).double().mean()
            if not difference <= limit:  # false for NaN as well
                raise HTTError(f"The exported {name} must differ by at most {limit:.0e}, got {difference:.1e}.")
            worst[name] = max(difference.item(), worst.get(name, 0.0))
    return {
        name: f"largest difference {value:.1e} of the largest magnitude"
        if outputs[name].is_floating_point()
        else f"{100 * (1 - value):.3f} % of the pixels have the same class"
        for name, value in worst.items()
    }


def _write_onnx(model: ExportWrapper, metadata: dict[str, Any], path: Path, opset: int | None = None) -> Program:
    """Write an ONNX file, and return what onnxruntime computes from it."""
    import onnx
    import onnxruntime
    from onnxscript.optimizer import optimize_ir

    names = [task.name for task in model.tasks]
    part: Any
    for part in model.modules():
        if hasattr(part, "fused_attn"):  # of timm; ONNX has no fused attention over five axes, as in Hiera
            part.fused_attn = False
    logging.disable(logging.WARNING)  # exporters report on themselves
    try:
        with warnings.catch_warnings(action="ignore"):
            exported: Any = torch.onnx.export(
                to_exported_program(model),
                dynamo=True,
                output_names=names,
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
            optimize_ir(exported.model, num_iterations=1)  # the second of two takes seconds and changes little
    finally:
        logging.disable(logging.NOTSET)
    proto = exported.model_proto
    written = next(entry.version for entry in proto.opset_import if not entry.domain)
    if opset not in (None, written):
        raise ConfigError(
            f"--opset must be one that the exporter can write for this network, got {opset}: try {written}."
        )
    axes = {"image": metadata["input"]["axes"]} | {name: out["axes"] for name, out in metadata["outputs"].items()}
    axis_names = {"b": "batch", "h": "height", "w": "width"}
    for value in (*proto.graph.input, *proto.graph.output):  # otherwise formulas name the free axes
        for axis, dimension in zip(axes[value.name].split(), value.type.tensor_type.shape.dim, strict=True):
            if axis in axis_names and dimension.dim_param:
                dimension.dim_param = axis_names[axis]
    onnx.helper.set_model_props(proto, {"htt_lightning": json.dumps(metadata)})
    path.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def program(image: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return program


def _write_program(model: ExportWrapper, metadata: dict[str, Any], path: Path) -> Program:
    """Write a file for ``torch.export.load``, and return what is loaded from it."""
    with path.open("wb") as file:
        torch.export.save(to_exported_program(model), file, extra_files={"htt_lightning.json": json.dumps(metadata)})
    with path.open("rb") as written:
        program: Program = torch.export.load(written).module()
    return program


def _write_weights(model: ExportWrapper, metadata: dict[str, Any], path: Path) -> None:
    """Write the weights of the network under their names in it; as copies they need no comparison."""
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in model.net.state_dict().items()}
    save_file(state, path, metadata={"htt_lightning": json.dumps(metadata)})
