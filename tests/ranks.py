"""Run a test's module on the processes of distributed training."""

import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.rank_zero import rank_zero_only

from tools.kill_runs import Programs


class Ended(NamedTuple):
    """Exit statuses, by rank, and what all ranks have printed."""

    statuses: list[int | None]
    printed: str


def run_ranks(name: str, *args: object, output: Path, ranks: int = 2) -> Ended:
    """Run a module on ranks that are forked after the imports, which would take most of its time.

    Lightning starts no processes where the variables of a rank are set.
    """
    context = Programs().context
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "PL_GLOBAL_SEED": "0"}
    words = [name, *map(str, args)]
    processes = []
    for rank in range(ranks):
        own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
        processes.append(context.Process(target=run_rank, args=(words, rank, shared | own, str(output))))
        processes[-1].start()
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
    return Ended([process.exitcode for process in processes], output.read_text())


def run_rank(words: list[str], rank: int, environment: dict[str, str], output: str) -> None:
    """Run a module in this process, as ``python -m`` does."""
    os.environ.update(environment)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    rank_zero_only.rank = rank  # Lightning reads it from the environment when it is imported
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
