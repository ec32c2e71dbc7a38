"""Measure time and memory of the network by part.

    python benchmarks/profile_parts.py                   # NYUD-v2, 288x384, batch 4, two threads, ResNet-18

Time and multiplications are of a forward pass in evaluation, memory is what a training pass keeps for the backward one.
The achieved share is that of this machine's own matrix products. Multiplications that only see padding are counted, but
not done everywhere: dilated convolutions may exceed 100 %.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from speed import TASKS, make_batch, throughput
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import HTTModule


def parts_of(net: Any) -> dict[str, list[nn.Module]]:
    """Group modules by part; a head's remaining work is its logits."""
    heads = list(net.heads.values())
    return {
        "backbone": [net.backbone],
        "global tokens: gates, mixing, 3x3": list(net.global_tokens.scales),
        "fusion and ASPP": [head.aspp for head in heads],
        "3x3 after ASPP": [head.conv for head in heads],
        "token attention": [head.attention for head in heads],
        "fine-grained tokens": [head.fine_tokens for head in heads],
        "all of the heads": heads,
    }


class Meter:
    """Sums the change of a gauge over each part.

    Args:
        parts: Modules by part.
        gauge: Anything that grows.
    """

    def __init__(self, parts: dict[str, list[nn.Module]], gauge: Callable[[], float]) -> None:
        self.gauge, self.sums = gauge, defaultdict[str, float](float)
        self.handles = []
        for name, modules in parts.items():
            for module in modules:
                begun: list[float] = []
                self.handles.append(module.register_forward_pre_hook(lambda *_, b=begun: b.append(gauge())))
                self.handles.append(module.register_forward_hook(lambda *_, b=begun, n=name: self.add(n, b.pop())))

    def add(self, name: str, begun: float) -> None:
        """Record the end of a part."""
        self.sums[name] += self.gauge() - begun

    def close(self, run: Callable[[], object]) -> dict[str, float]:
        """Return the sums of a run by part, of the whole and of the rest."""
        begun = self.gauge()
        run()
        whole = self.gauge() - begun
        for handle in self.handles:
            handle.remove()
        heads = self.sums.pop("all of the heads")
        inside = ("fusion and ASPP", "3x3 after ASPP", "token attention", "fine-grained tokens")
        self.sums["scores, logits, confidence"] = heads - sum(self.sums[name] for name in inside)
        self.sums["all else: normalising, decoding"] = whole - sum(self.sums.values())
        return {**self.sums, "whole": whole}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[288, 384])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = make_batch((given.size[0], given.size[1]), given.batch)["image"]
    module = HTTModule(TASKS, backbone=given.backbone, tokens="released")
    parts = parts_of(module.net)

    def infer() -> None:
        module.eval()
        with torch.inference_mode():
            module.decode(images)

    infer()
    rounds = [Meter(parts, time.perf_counter).close(infer) for _ in range(given.rounds)]
    seconds = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}

    module.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        meter = Meter(parts, lambda: counter.get_total_flops() / 1e9)
        products = meter.close(lambda: module.eval().decode(images))
    module.requires_grad_(True)

    kept: dict[int, int] = {}
    parameters = {value.untyped_storage().data_ptr() for value in module.parameters()}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        memory = Meter(parts, lambda: sum(kept.values()) / 2**20).close(lambda: module.train()(images))

    peak = throughput()
    print(f"{given.size[0]}x{given.size[1]}, batch {given.batch}; matrix products run at {peak:.0f} GFLOP/s\n")
    print("| part | s | share | GFLOP | of the products' speed | MiB kept | share |")
    print("|---|---|---|---|---|---|---|")
    for name, spent in seconds.items():
        cells = [name, f"{spent:.3f}", f"{100 * spent / seconds['whole']:.0f} %", f"{products[name]:.1f}"]
        cells += [f"{100 * products[name] / spent / peak:.0f} %" if spent > 0 else ""]
        cells += [f"{memory[name]:.0f}", f"{100 * memory[name] / memory['whole']:.0f} %"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
