"""A trained network as one file that other programs read: ONNX, PyTorch's own export, or weights alone.

Exported programs take float32 RGB in [0, 1], ``b 3 h w``, and return what ``Task.decode`` does, one output by the name
of each task: normalisation, padding and decoding are inside.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from htt_lightning.errors import HTTError, did_you_mean, missing_extra
from htt_lightning.io.files import atomic_path
from htt_lightning.io.progress import status
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task
from htt_lightning.training.loading import load_module

REQUIRED_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "safetensors": (),
}
"""Packages of the extra ``export`` by format."""
SMALLEST, LARGEST = 32, 8192
"""Height and width of the images that an exported program takes, in pixels."""
TRACE_SHAPE = (2, 3, 72, 104)
"""Shape of the image that the network is followed with: no length that another one could be taken for."""
PARITY_SHAPES = ((1, 3, 64, 96), (3, 3, 101, 75))
"""Shapes at which an exported program is compared with the network: two batch sizes and two sizes, one of them odd."""
TOLERANCE = 1e-4
"""Largest difference of a field or a probability, as a share of the output's largest magnitude."""
MIN_CLASS_AGREEMENT = 0.999
"""Smallest share of equal pixels of a class map: classes may change places where their scores are as good as equal."""


class ExportWrapper(nn.Module):
    """What is exported: from an image to the decoded maps.

    Args:
        module: A trained network with its tasks.
    """

    def __init__(self, module: HTTModule) -> None:
        super().__init__()
        self.net, self.tasks = module.net, module.tasks

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """RGB in [0, 1], ``b 3 h w``, to ``b h w`` (classes, probabilities) or ``b c h w`` (fields) by task."""
        outputs, size = self.net(image), (image.shape[-2], image.shape[-1])
        return {task.name: task.decode(outputs[task.name], size) for task in self.tasks}


def export(ckpt_path: str, format: str, out: str, overwrite: bool = False) -> None:
    """Write a checkpoint's network as one file, compare it with PyTorch, and print the largest differences.

    Args:
        ckpt_path: A checkpoint of this library.
        format: ``onnx``, ``torch-export`` (read by ``torch.export.load``) or ``safetensors`` (weights of the network).
        out: The file.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        HTTError: The format is unknown, its packages are not installed, the checkpoint is none of this library, the
            file exists or cannot be written, or what it computes is not what the network does. Nothing is written then.
    """
    if format not in REQUIRED_PACKAGES:
        hint = did_you_mean(format, REQUIRED_PACKAGES)
        raise HTTError(f"--format is {format!r}; it must be one of {', '.join(REQUIRED_PACKAGES)}.{hint}")
    for package in REQUIRED_PACKAGES[format]:
        try:
            import_module(package)
        except ImportError as error:
            raise missing_extra(f"--format {format} needs {package}", "export") from error
    path = Path(out)
    if path.is_dir():
        raise HTTError(f"--out {out} is a folder; name a file.")
    if path.exists() and not overwrite:
        raise HTTError(f"{out} exists; choose another file with --out, or give --overwrite true.")
    model = ExportWrapper(load(ckpt_path)).eval()
    metadata = model_metadata(model)
    write: Callable[[ExportWrapper, dict[str, Any], Path], Callable[[Tensor], Mapping[str, Tensor]] | None]
    write = {"onnx": _write_onnx, "torch-export": _write_program, "safetensors": _write_weights}[format]
    console = Console(soft_wrap=True)
    with atomic_path(path) as partial, torch.no_grad():
        partial.touch()  # a folder that cannot be written to is found before minutes of work
        with status(f"Exporting as {format}: PyTorch may need minutes"), export_errors(format):
            compute = write(model, metadata, partial)
            differences = check_parity(model, compute) if compute else {}
        for task, text in differences.items():
            console.out(f"{task}: {text}", highlight=False)
    console.out(path, highlight=False)


@contextmanager
def export_errors(format: str) -> Iterator[None]:
    """What an exporter raises inside the block, each a different one for every mishap, becomes one error.

    Raises:
        HTTError: Names the format and the cause.
    """
    try:
        yield
    except (HTTError, OSError):  # whose file is named elsewhere
        raise
    except Exception as error:
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise HTTError(
            f"--format {format}: this network cannot be exported: {type(error).__name__}: {cause}\n"
            f"Try another --format ({', '.join(REQUIRED_PACKAGES)}), or other versions of its packages (`htt info`)."
        ) from error


def load(ckpt_path: str) -> HTTModule:
    """The model of a checkpoint, on the CPU; its weights are read as plain tensors.

    Raises:
        HTTError: The file is missing, damaged, or no checkpoint of this library.
    """
    module = load_module(ckpt_path, "--ckpt_path")
    # As formats have it; where channels lie last, PyTorch's export distinguishes sizes by the layouts they allow.
    module.net.to(memory_format=torch.contiguous_format)
    return module


def model_metadata(model: ExportWrapper) -> dict[str, Any]:
    """What a reader of an exported file has to know, in plain values.

    Returns:
        ``library``, ``version``, ``input`` and, by task, ``outputs``: axes, type, range, unit, class names, settings.
    """
    with torch.no_grad():
        maps = model(torch.rand(1, 3, SMALLEST, SMALLEST))
    return {
        "library": "htt-lightning",
        "version": version("htt-lightning"),
        "input": {
            "name": "image",
            "axes": "b 3 h w",
            "type": "float32",
            "colours": "RGB",
            "range": [0.0, 1.0],
            "size": [SMALLEST, LARGEST],
            "normalisation": "inside the model",
        },
        "outputs": {task.name: _described(task, maps[task.name]) for task in model.tasks},
    }


def _described(task: Task, decoded: Tensor) -> dict[str, Any]:
    """Axes, type, range, unit, class names and settings of a task's output."""
    names, index = list(task.class_names), not decoded.is_floating_point()
    values = (0, len(names) - 1) if index else task.output_range
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
    """The computation for any batch and, from 32 pixels on, any image size.

    PyTorch asks of every size that it be on the same side of each comparison as the traced one. Those that the network
    itself makes hold for all sizes; the others choose memory layouts, on which values do not depend. So they become
    assertions, and those are taken out; ``check_parity`` looks at sizes for which they would not have held.
    """
    axes = {
        0: Dim("batch", min=1),
        2: Dim("height", min=SMALLEST, max=LARGEST),
        3: Dim("width", min=SMALLEST, max=LARGEST),
    }
    program = torch.export.export(
        model,
        (torch.rand(TRACE_SHAPE),),
        dynamic_shapes={"image": axes},
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


def check_parity(model: ExportWrapper, compute: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, str]:
    """What an exported program and the network differ by, in words, by task.

    Args:
        model: The network.
        compute: The program: an image ``b 3 h w`` to decoded maps by task.

    Raises:
        HTTError: They differ by more than ``TOLERANCE``, or agree on fewer pixels than ``MIN_CLASS_AGREEMENT``.
    """
    worst: dict[str, tuple[bool, float]] = {}
    generator = torch.Generator().manual_seed(0)
    for shape in PARITY_SHAPES:
        image = torch.rand(shape, generator=generator)
        expected, found = model(image), compute(image)
        for name, values in expected.items():
            index, other = not values.is_floating_point(), found[name]
            if other.shape != values.shape:
                raise HTTError(f"The exported {name} is {tuple(other.shape)}, not {tuple(values.shape)}.")
            if index:
                difference = (other != values).double().mean().item()
            else:
                difference = ((other - values).abs().max() / values.abs().max().clamp(min=1e-12)).item()
            worst[name] = index, max(difference, worst.get(name, (index, 0.0))[1])
    words = {
        name: f"{100 * (1 - value):.3f} % of the pixels have the same class"
        if index
        else f"largest difference {value:.1e} of the largest magnitude"
        for name, (index, value) in worst.items()
    }
    for name, (index, value) in worst.items():
        if not value <= (1 - MIN_CLASS_AGREEMENT if index else TOLERANCE):  # NaN is no agreement either
            raise HTTError(f"The exported model is not the network, so it is not written: {name}: {words[name]}.")
    return words


def _write_onnx(model: ExportWrapper, metadata: dict[str, Any], path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """Write ONNX; what it computes is computed by onnxruntime, from the file."""
    import onnx
    import onnxruntime

    names, loggers = [task.name for task in model.tasks], [logging.getLogger(x) for x in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)  # exporters report on themselves
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                to_exported_program(model), dynamo=True, input_names=["image"], output_names=names, verbose=False
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None
    proto = exported.model_proto
    _name_axes(proto, metadata)
    onnx.helper.set_model_props(proto, {"htt_lightning": json.dumps(metadata)})
    path.write_bytes(proto.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def compute(image: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return compute


def _name_axes(proto: Any, metadata: dict[str, Any]) -> None:
    """Call the free axes of inputs and outputs by their names instead of formulas."""
    axes = {"image": metadata["input"]["axes"]} | {name: output["axes"] for name, output in metadata["outputs"].items()}
    words = {"b": "batch", "h": "height", "w": "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, dimension in zip(axes[value.name].split(), value.type.tensor_type.shape.dim, strict=True):
            if axis in words:
                dimension.dim_param = words[axis]


def _write_program(model: ExportWrapper, metadata: dict[str, Any], path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """Write what ``torch.export.load`` reads; what it computes is computed from the file."""
    with path.open("wb") as file:
        torch.export.save(to_exported_program(model), file, extra_files={"htt_lightning.json": json.dumps(metadata)})
    with path.open("rb") as written:
        program = torch.export.load(written).module()

    def compute(image: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = program(image)
        return found

    return compute


def _write_weights(model: ExportWrapper, metadata: dict[str, Any], path: Path) -> None:
    """Write the weights of the network alone, under their names in it; nothing to compare, as they are copies."""
    from safetensors.torch import save_file

    state = {name: value.contiguous() for name, value in model.net.state_dict().items()}
    save_file(state, path, metadata={"htt_lightning": json.dumps(metadata)})
