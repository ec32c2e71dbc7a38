"""Compare a step of several processes with one of a single process, at equal threads and global batch.

    python benchmarks/processes.py       # two processes of one thread against one of two, some 5 minutes

The processes talk through gloo on this machine, each with its share of the images; a step is that of ``speed.py``. Both
ways take turns, round by round, in processes that stay alive.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from speed import Fast, make_batch, ratio
from torch import Tensor, nn


class Training(nn.Module):
    """Module whose forward pass is the loss of a batch, because DDP hooks into forward."""

    def __init__(self, work: Fast) -> None:
        super().__init__()
        self.module = work.module
        self.batch = work.batch

    def forward(self) -> Tensor:
        """Compute the loss of a training step."""
        return self.module.training_step(self.batch, 0)


def work(rank: int, processes: int, meeting: str, given: argparse.Namespace, turns: Any, answers: Any) -> None:
    """Make steps on request, and report their time."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads // processes)
    own = Fast(make_batch((given.size[0], given.size[1]), given.batch // processes), given.backbone)
    training: nn.Module = Training(own)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
        training = nn.parallel.DistributedDataParallel(training)
    optimizer = torch.optim.Adam(training.parameters(), lr=2e-5)
    while turns.get():
        begun = time.perf_counter()
        optimizer.zero_grad()
        training().backward()
        optimizer.step()
        answers.put(time.perf_counter() - begun)
    if processes > 1:
        dist.destroy_process_group()


class Crew:
    """Processes that make steps together.

    Args:
        processes: How many.
        meeting: A file that is not there, through which they find each other.
        given: Size, batch, backbone and threads of all together.
    """

    def __init__(self, processes: int, meeting: Path, given: argparse.Namespace) -> None:
        context = mp.get_context("spawn")
        self.turns = [context.Queue() for _ in range(processes)]
        self.answers = context.Queue()
        self.members = [
            context.Process(target=work, args=(rank, processes, str(meeting), given, turns, self.answers))
            for rank, turns in enumerate(self.turns)
        ]
        for member in self.members:
            member.start()

    def step(self) -> float:
        """Return seconds until the last process has made its step."""
        for turns in self.turns:
            turns.put(True)
        return max(self.answers.get(timeout=600) for _ in self.members)

    def end(self) -> None:
        """End the processes."""
        for turns in self.turns:
            turns.put(False)
        for member in self.members:
            member.join()


def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[288, 384])
    parser.add_argument("--batch", type=int, default=4, help="Images of a step, of all processes together.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--threads", type=int, default=2, help="Of all processes together.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.batch % given.processes or given.threads % given.processes:
        parser.error("--batch and --threads must be multiples of --processes.")
    with tempfile.TemporaryDirectory() as folder:
        crews = [Crew(count, Path(folder) / f"of_{count}", given) for count in (1, given.processes)]
        seconds: list[list[float]] = [[], []]
        for turn in range(given.rounds + 1):
            for taken, crew in zip(seconds, crews, strict=True):
                step = crew.step()
                if turn:  # the first one warms up
                    taken.append(step)
        for crew in crews:
            crew.end()
    one, several = seconds
    print(
        f"A step of {given.batch} images of {given.size[0]}x{given.size[1]}: one process {statistics.median(one):.2f} "
        f"s, {given.processes} processes {statistics.median(several):.2f} s, {ratio(several, one)} of the time."
    )


if __name__ == "__main__":
    main()
