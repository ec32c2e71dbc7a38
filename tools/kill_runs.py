"""Kill training and ``discover`` again and again, and compare the results with those of uninterrupted runs.

``python -m tools.kill_runs --kills 20 --seed 0`` prints a line per kill, and exits with 1 if a result differs. A run is
killed at a random moment, or at a random byte of a file that it writes. It then resumes by ``--ckpt_path auto`` and is
killed again, until it ends. Its weights, optimizer, teacher and metrics must equal those of the uninterrupted run, bit
for bit, with loader processes and augmentation.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCENES = ["--data=SyntheticDataModule", "--data.image_size=[32, 48]", "--data.train_images=8", "--data.val_images=2"]
COMMON = [
    *SCENES,
    "--data.cache=../scenes",
    "--data.batch_size=4",
    "--data.num_workers=2",
    "--data.labels=random-label",
    "--data.tasks=semseg,normals,depth",
    "--model.backbone=test_resnet",
    "--model.token_dim=8",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
FIT = [
    "fit",
    *COMMON,
    "--model.lr=1e-3",
    "--discovery.target_type=soft_tta",
    "--discovery_panel.num_train_images=1",
    "--trainer.max_epochs=2",
    "--trainer.num_sanity_val_steps=0",
]
DISCOVER = ["discover", *COMMON, "--out=pseudo"]
AUTO = "--ckpt_path=auto"


@dataclass(frozen=True)
class Write:
    """A moment at which a process kills itself, while it writes a file.

    Attributes:
        number: Number of the write, from 0.
        share: Fraction of the file that is written; with 1, the file is complete and renamed.
        name: Count only files of this name; by default all.
    """

    number: int
    share: float
    name: str = ""


@dataclass
class Attempt:
    """Record of one process.

    Attributes:
        status: Exit status; negative for a signal.
        seconds: Duration of the process.
        notes: Its steps (``epoch 1 step 2``) and files (``write last.ckpt``), in order.
        printed: Output of the process.
    """

    status: int | None
    seconds: float
    notes: list[str]
    printed: str

    @property
    def writes(self) -> list[str]:
        return [note.removeprefix("write ") for note in self.notes if note.startswith("write ")]

    @property
    def first(self) -> str:
        """Return the epoch it began with."""
        return next((note.split(" step")[0] for note in self.notes if note.startswith("epoch ")), "-")


def program(folder: str, words: list[str], death: Write | None, environment: dict[str, str]) -> None:
    """Run a command in a folder in its own process group, record its steps, and kill it at ``death``."""
    import torch

    from htt_lightning.cli import main
    from htt_lightning.module import HTTModule

    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # loaders begin as those of a command
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this was started in the background
    os.chdir(folder)
    os.environ.update(environment)
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    notes = os.open("notes.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    torch.set_num_threads(1)
    me, seen, replace, begin = os.getpid(), [0], Path.replace, HTTModule.on_train_batch_start

    def note(text: str) -> None:
        os.write(notes, f"{text}\n".encode())

    def replacing(self: Path, target: Path) -> Path:
        if os.getpid() != me:  # a loader's process
            return replace(self, target)
        note(f"write {target.name}")
        counts = death is not None and death.name in ("", target.name)
        dies = death is not None and counts and seen[0] == death.number
        seen[0] += counts
        if death and dies and death.share < 1:
            os.truncate(self, int(death.share * self.stat().st_size))
            os.kill(me, signal.SIGKILL)
        replaced = replace(self, target)
        if dies:
            os.kill(me, signal.SIGKILL)
        return replaced

    def beginning(self: HTTModule, batch: Any, batch_idx: int) -> None:
        note(f"epoch {self.current_epoch} step {batch_idx}")
        begin(self, batch, batch_idx)

    Path.replace, HTTModule.on_train_batch_start = replacing, beginning
    sys.argv = ["htt", *words]
    main()


class Programs:
    """Starts commands by forking a process that has imported all modules."""

    def __init__(self) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["htt_lightning.cli", "htt_lightning.commands.export"])

    def run(
        self,
        folder: Path,
        words: list[str],
        death: Write | None = None,
        interrupt: Callable[[BaseProcess], None] | None = None,
        **environment: str,
    ) -> Attempt:
        """Run a command until it ends or is killed.

        Args:
            folder: Working directory.
            words: Arguments of the command line.
            death: Moment at which it kills itself.
            interrupt: Function that gets the running process.
            environment: Environment variables.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("notes.txt", "printed.txt"):
            (folder / name).write_text("")
        begun = time.monotonic()
        process = self.context.Process(target=program, args=(str(folder), words, death, environment))
        process.start()
        if interrupt:
            interrupt(process)
        process.join(600)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        notes = (folder / "notes.txt").read_text().splitlines()
        printed = (folder / "printed.txt").read_text(errors="replace")
        return Attempt(process.exitcode, time.monotonic() - begun, notes, printed)


def kill_after(seconds: float) -> Callable[[BaseProcess], None]:
    """Return a function that sends SIGKILL to a process after some time."""

    def interrupt(process: BaseProcess) -> None:
        process.join(seconds)
        if process.is_alive():
            process.kill()

    return interrupt


def signal_at(folder: Path, note: str, *numbers: int) -> Callable[[BaseProcess], None]:
    """Return a function that signals a process group once it has recorded a note, as a terminal or scheduler does."""

    def interrupt(process: BaseProcess) -> None:
        while process.is_alive() and note not in (folder / "notes.txt").read_text():
            time.sleep(0.01)
        for number in numbers:
            if process.is_alive():
                os.killpg(process.pid, number)
            time.sleep(0.2)

    return interrupt


def outcome(folder: Path) -> dict[str, object]:
    """Return the checkpoint, metrics and label mask of a finished run."""
    import torch

    newest = max(folder.glob("runs/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    stored = torch.load(newest, weights_only=True)
    (results,) = {path.read_text() for path in folder.glob("runs/*/val_metrics.json")}
    (labels,) = {path.read_text() for path in folder.glob("runs/*/label_mask.json")}
    learned = {key: stored[key] for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    discovery = stored["callbacks"]["LabelDiscovery"]
    return {**learned, "discovery": discovery, "results": json.loads(results), "labels": labels}


def discovered(folder: Path) -> dict[str, object]:
    """Return the files of stored pseudo-labels."""
    files = sorted(path for path in (folder / "pseudo").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def differences(one: object, other: object, name: str = "") -> list[str]:
    """Return the paths at which two nested values differ, bit for bit."""
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            place for k, pair in enumerate(zip(one, other, strict=True)) for place in differences(*pair, f"{name}/{k}")
        ]
    return [] if one == other else [name or "all"]


def damaged(folder: Path) -> list[Path]:
    """Return corrupt checkpoints."""
    found = []
    for path in folder.rglob("*.ckpt"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    found.append(path)
        except zipfile.BadZipFile:
            found.append(path)
    return found


@dataclass
class Campaign:
    """Kills one command, in lives that each end with a comparison."""

    programs: Programs
    folder: Path
    rng: random.Random
    words: list[str]
    again: list[str]
    result: Callable[[Path], dict[str, object]]
    kinds: dict[str, int] = field(default_factory=dict)
    lives: int = 0
    faults: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Run the command twice without kills, because rendering makes the first one slow."""
        for name in ("first", "whole"):
            self.whole = self.programs.run(self.folder / name, self.words)
            if self.whole.status != 0:
                raise SystemExit(f"The uninterrupted run failed:\n{self.whole.printed}")
        self.expected = self.result(self.folder / "whole")
        if differ := differences(self.expected, self.result(self.folder / "first")):
            raise SystemExit(f"Two uninterrupted runs differ, first in {differ[0]}.")

    def kill(self, kills: int) -> None:
        """Kill ``kills`` times, over as many lives as it takes, and let the last one end."""
        done = 0
        while done < kills:
            self.lives += 1
            folder, words, ended = self.folder / f"life_{self.lives}", self.words, False
            while not ended:
                death, interrupt, how = None, None, ""
                if done < kills and self.rng.random() < 0.5:
                    death = Write(self.rng.randrange(len(self.whole.writes)), self.rng.choice([self.rng.random(), 1.0]))
                    how = f"in write {death.number + 1}, {death.share:.0%}"
                elif done < kills:
                    seconds = self.rng.uniform(0, self.whole.seconds)
                    interrupt, how = kill_after(seconds), f"after {seconds:.2f} s"
                attempt = self.programs.run(folder, words, death, interrupt)
                words, ended = self.again, attempt.status == 0
                if attempt.status == -signal.SIGKILL:
                    done += 1
                    where = attempt.notes[-1] if attempt.notes else "before the first step"
                    kind = "a write" if death else "a moment"
                    self.kinds[kind] = self.kinds.get(kind, 0) + 1
                    print(f"{done:4}  {self.lives:4}  {how:22} {where:30} {attempt.first:8}", flush=True)
                elif not ended:
                    self.faults.append(f"life {self.lives}: status {attempt.status}\n{attempt.printed}")
                    break
                if broken := damaged(folder):
                    self.faults.append(f"life {self.lives}: damaged {broken}")
            if ended:
                differ = differences(self.expected, self.result(folder))
                self.faults += (
                    [f"life {self.lives}: {len(differ)} differences, the first in {differ[0]}"] if differ else []
                )
                print(f"      life {self.lives} has ended: {'differs' if differ else 'equal'}", flush=True)

    def report(self, what: str) -> str:
        kills = ", ".join(f"{count} in {kind}" for kind, count in sorted(self.kinds.items()))
        return f"{what}: {sum(self.kinds.values())} kills ({kills}), {self.lives} lives, {len(self.faults)} faults"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of training; discovery is killed a quarter as often")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, begun = random.Random(asked.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills") as place:
        folder, programs = Path(place), Programs()
        training = Campaign(programs, folder / "fit", rng, FIT, [*FIT, AUTO], outcome)
        training.begin()
        print(f"uninterrupted: {training.whole.seconds:.1f} s, {len(training.whole.writes)} files written")
        print("kill  life  how                    last noted                     began with")
        training.kill(asked.kills)
        checkpoint = next((folder / "fit" / "whole").glob("runs/*/checkpoints/last.ckpt"))
        words = [*DISCOVER, f"--ckpt_path={checkpoint}"]
        completing = Campaign(programs, folder / "discover", rng, words, words, discovered)
        completing.begin()
        completing.kill(-(-asked.kills // 4))
        faults = training.faults + completing.faults
        print("\n".join([training.report("fit"), completing.report("discover"), *faults]))
        print(f"{time.monotonic() - begun:.0f} s, seed {asked.seed}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
