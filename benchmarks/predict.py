"""Measure images per second of ``predict``, and of the bare network at the same batch.

    python benchmarks/predict.py
    python benchmarks/predict.py --images 64 --batch 8 --device cuda

The bare network gets random images that are in memory already, and its outputs are thrown away. ``predict`` reads JPEG
files, decodes every task and writes maps, views and panels. Both take turns on the same device. Weights are random;
they change no time but that of compressing maps. First, the peak memory of the process is printed after a folder
and after one of ``--longer`` times as many images, with the smallest network.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from htt_lightning import HTTModule, ImageFolder
from htt_lightning.callbacks import PredictionWriter
from htt_lightning.data.synthetic_scenes import render
from htt_lightning.tasks import Depth, Edges, Normals, Saliency, SemSeg, Task

TASKS: list[Task] = [SemSeg(classes=tuple(map(str, range(13)))), Saliency(), Normals(), Edges(), Depth()]
QUIET: dict[str, Any] = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write eight rendered scenes repeatedly as JPEG files."""
    folder.mkdir()
    scenes = [Image.fromarray(render(0, k, size)["image"]) for k in range(min(count, 8))]
    for k in range(count):
        scenes[k % 8].save(folder / f"{k}.jpg", quality=92)
    return folder


def save(module: HTTModule, path: Path) -> str:
    """Write a checkpoint of random weights."""
    version = {"pytorch-lightning_version": L.__version__}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), **version}, path)
    return str(path)


def bare(module: HTTModule, images: torch.Tensor, rounds: int) -> float:
    """Measure seconds per image of the network alone."""
    begin = time.perf_counter()
    with torch.inference_mode():
        for _ in range(rounds):
            outputs = module.net(images)
        float(outputs["depth"].logits.flatten()[0])  # waits for the device
    return (time.perf_counter() - begin) / (rounds * len(images))


def predict(module: HTTModule, photos: Path, checkpoint: str, batch: int, out: Path, device: str) -> float:
    """Measure seconds per image of the command, from the first file to the last."""
    writer = PredictionWriter(str(out), overwrite=True)
    trainer = L.Trainer(accelerator=device, devices=1, default_root_dir=out, callbacks=[writer], **QUIET)
    data = ImageFolder(str(photos), checkpoint, batch_size=batch)
    begin = time.perf_counter()
    trainer.predict(module, data)
    return (time.perf_counter() - begin) / data.count


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(288, 384), metavar=("H", "W"))
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--token_dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longer", type=int, default=8, help="0 leaves out memory")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (options.size[0], options.size[1])
        photos = write_photos(folder / "photos", options.images, size)
        if options.longer:
            report_memory(folder, photos, options)
        module = HTTModule(TASKS, backbone=options.backbone, token_dim=options.token_dim).eval()
        checkpoint = save(module, folder / "last.ckpt")
        images = torch.rand(options.batch, 3, *options.size, device=options.device)
        times: dict[str, list[float]] = {"bare": [], "predict": []}
        for turn in range(options.rounds + 1):
            alone = bare(module.to(options.device), images, max(options.images // options.batch, 1))
            whole = predict(module, photos, checkpoint, options.batch, folder / "maps", options.device)
            if turn:  # the first one warms up
                times["bare"].append(alone)
                times["predict"].append(whole)
        rates = {key: 1 / statistics.median(values) for key, values in times.items()}
        shares = [100 * one / other for one, other in zip(times["bare"], times["predict"], strict=True)]
        print(f"bare network {rates['bare']:.2f} images/s, predict {rates['predict']:.2f} images/s")
        print(f"predict reaches {statistics.median(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})")


def report_memory(folder: Path, photos: Path, options: argparse.Namespace) -> None:
    """Print the peak memory of the process after a folder, and after a longer one."""
    module = HTTModule(TASKS, backbone="test_resnet", token_dim=8).eval()
    checkpoint = save(module, folder / "tiny.ckpt")
    more = write_photos(folder / "more", options.images * options.longer, options.size)
    for place in (photos, photos, more):  # the first time takes what the libraries need
        predict(module, place, checkpoint, options.batch, folder / "tiny", "cpu")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(list(place.iterdir()))} images: peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
