"""Apply the damages of readers, and report the outcomes."""

import hashlib
import io
import os
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from htt_lightning.errors import HTTError
from tools.damage_campaign.commands import Ended
from tools.damage_campaign.damage import MARKER, VALID, Damage
from tools.damage_campaign.reader import Reader, Target

LIMIT = 30
"""Limit of a case in seconds."""

SAME, REFUSED, UNSEEN, FAULT = "as if intact", "rejected by name", "other content", "faults"
"""Outcomes of a case. Other content is a change that the format cannot detect."""


KINDS = (SAME, REFUSED, UNSEEN, FAULT)

ABSENT = ("missing", "a folder")
"""Damages that leave no file."""


class TimeIsUp(BaseException):
    """Raised when a case takes too long; no ``Exception``, so that readers do not catch it."""


class Outcome(NamedTuple):
    """Outcome of a case.

    Attributes:
        reader: The reader's name.
        case: The file and the damage.
        kind: One of ``KINDS``.
        said: The error message, or the description of a fault.
    """

    reader: str
    case: str
    kind: str
    said: str = ""


def digest(values: Any) -> str:
    """Return a fingerprint of nested values."""
    if isinstance(values, Tensor):
        values = values.detach().contiguous().numpy()
    if isinstance(values, np.ndarray):
        head = f"{values.dtype} {values.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()
    if hasattr(values, "items"):
        return repr(sorted((str(key), digest(value)) for key, value in values.items()))
    return hashlib.sha256(values if isinstance(values, bytes) else repr(values).encode()).hexdigest()


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise ``TimeIsUp`` when the block takes too long."""

    def ring(*_: Any) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def cases(reader: Reader, share: float, seed: int, drawn_only: bool = False) -> list[tuple[Target, Damage]]:
    """Draw a share of the damages of a reader."""
    every = [(target, damage) for target in reader.targets for damage in target.damages]
    rng = np.random.default_rng([seed, crc32(reader.name.encode())])
    chosen = rng.random(len(every)) < share
    return [case for case, take in zip(every, chosen, strict=True) if take and (case[1].drawn or not drawn_only)]


def run(reader: Reader, chosen: Sequence[tuple[Target, Damage]], seed: int = 0) -> list[Outcome]:
    """Damage, read and restore the files of a reader, case by case."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="campaign") as name:
        folder = Path(name)
        whole, root = folder / "whole", folder / "root"
        whole.mkdir()
        reader.make(whole)
        try:
            os.chdir(folder)
            shutil.copytree(whole, root)
            with redirect_stdout(io.StringIO()):
                expected = digest(reader.read(root))
            found = []
            for number, (target, damage) in enumerate(chosen):
                shutil.rmtree(root)
                shutil.rmtree(folder / "outside", ignore_errors=True)
                shutil.copytree(whole, root)
                damage.change(root / target.path, np.random.default_rng([seed, number]))
                kind, said = attempt(reader, target, damage, root, expected)
                if (folder / MARKER).exists():
                    kind, said = FAULT, "EXECUTED what the file says"
                    (folder / MARKER).unlink()
                found.append(Outcome(reader.name, f"{target.path}: {damage.name}", kind, said))
        finally:
            os.chdir(home)
    return found


def attempt(reader: Reader, target: Target, damage: Damage, root: Path, expected: str) -> tuple[str, str]:
    """Read damaged files; return the kind of outcome and its message."""
    try:
        with limited(LIMIT), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            read = digest(reader.read(root))
    except (HTTError, Ended) as error:
        said, keys = str(error), damage.name.rpartition(":")[0].split(".")
        names = (Path(target.path).name, *reader.speaks, *filter(str.isidentifier, keys))
        return (REFUSED, said) if any(name in said for name in names) else (FAULT, f"NAMES NOTHING: {said[:300]}")
    except TimeIsUp:
        return FAULT, f"HANGS: not done after {LIMIT} seconds"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        return FAULT, f"BARE {type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    if read == expected:
        return SAME, ""
    if damage.what == VALID or (damage.what in ("cut", "flipped") and damage.what not in target.notices):
        return UNSEEN, ""
    if target.optional and damage.name in ABSENT:
        return UNSEEN, ""
    return FAULT, "SILENTLY read as something else"


def table(outcomes: Sequence[Outcome]) -> Table:
    """Count the outcomes by reader."""
    counts = Counter((outcome.reader, outcome.kind) for outcome in outcomes)
    grid = Table(title="Damaged input")
    for column in ("reader", "cases", *KINDS):
        grid.add_column(column, justify="left" if column == "reader" else "right")
    readers = list(dict.fromkeys(outcome.reader for outcome in outcomes))
    for names, title in [*(([name], name) for name in readers), (readers, "all")]:
        row = [sum(counts[name, kind] for name in names) for kind in KINDS]
        grid.add_row(title, str(sum(row)), *map(str, row))
    return grid


def report(outcomes: Sequence[Outcome]) -> None:
    """Print the table and the faults."""
    console = Console()
    console.print(table(outcomes))
    for outcome in outcomes:
        if outcome.kind == FAULT:
            console.out(f"{outcome.reader}: {outcome.case}: {outcome.said}", highlight=False)
