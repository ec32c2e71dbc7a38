"""Every image and label that a run would read, read once: what the dataset holds, and all that is broken in it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch.utils.data import DataLoader

from htt_lightning.commands.check.mask_figures import mask_doubts, mask_figures
from htt_lightning.commands.check.readings import Fault, Inspection, Readings, attempt
from htt_lightning.data.datamodule import PartialLabelDataModule, Split, worker_init
from htt_lightning.data.dataset import overlap
from htt_lightning.data.masks.label_mask import unable_message
from htt_lightning.errors import HTTError, collected, several, tolerated
from htt_lightning.io.progress import track
from htt_lightning.tasks import Task
from htt_lightning.tasks.label_statistics import LabelStatistics


class Opened(NamedTuple):
    """What of a dataset can be read.

    Attributes:
        splits: By name; one that is not there cannot be read at all.
        faults: Whatever a run would not have begun with.
        trees: The expected folders and files of datasets of which some are missing.
    """

    splits: dict[Split, Readings]
    faults: list[Fault]
    trees: dict[str, None]


def open_splits(data: PartialLabelDataModule) -> Opened:
    """The splits of a dataset without what is at fault with them as a whole.

    Raises:
        HTTError: None can be opened.
    """
    opened = Opened({}, [], {})
    every: list[HTTError] = []
    for name in get_args(Split):
        with collected() as errors, tolerated():
            opened.splits[name] = Readings(name, data.dataset(name))
        every += errors
        place = Fault(name, None, "split", "")
        opened.faults.extend(dict.fromkeys(place.of(fault) for error in errors for fault in error.faults))
        opened.trees.update(dict.fromkeys(tree for error in errors for tree in error.trees))
    if not opened.splits:
        raise several(every, shown=None)
    return opened


def inspect_split(data: PartialLabelDataModule, readings: Readings) -> Inspection:
    """Read a split, as many images at a time as ``data.num_workers`` says, and show progress."""
    found = Inspection(tallies={task.name: LabelStatistics() for task in data.tasks})
    loader = DataLoader(
        readings, batch_size=8, num_workers=data.num_workers, collate_fn=list, worker_init_fn=worker_init
    )
    for batch in track(loader, f"Reading {len(readings)} {readings.name} images"):
        for one in batch:
            found.add(one)
    source, whole = readings.split.source, Fault(readings.name, None, "split", "")
    if not found.faults:  # images that are sound one by one need not be so together
        try:
            source.check(readings.labels)
        except Exception as error:
            each = error.faults if isinstance(error, HTTError) else ()
            few = 2 * len(each) < len(readings)  # where most images differ, the config is at fault
            found.faults += [whole.of(fault) for fault in (each if each and few else [error])]
    if completed := readings.split.completed:
        attempt(lambda: completed.check(readings.labels, data.tasks, data.identity()), found.faults, whole)
    unread = {fault.id for fault in found.faults if fault.what == "image"}
    harm = source.damaged([name for name in readings.split.ids if name not in unread])
    found.faults += [Fault(readings.name, name, "image", "").of(error) for name, error in harm.items()]
    return found


def gathered(faults: Sequence[Fault], wanted: Mapping[tuple[str, str], int]) -> list[Fault]:
    """Faults with one instead of many where all files that a split would read from a folder are missing.

    Args:
        faults: As they were found.
        wanted: How many files the splits would read, by name of the split and ``Fault.what``.
    """
    groups: dict[tuple[str, str, Path], list[Fault]] = {}
    for fault in faults:
        if fault.missing:
            groups.setdefault((fault.split, fault.what, Path(fault.missing).parent), []).append(fault)
    instead: dict[Fault, Fault] = {}
    for (split, what, folder), group in groups.items():
        nothing = not folder.is_dir() or not any(folder.iterdir())
        if len(group) > 1 and (nothing or len(group) == wanted[split, what]):
            text = f"{folder}/: all {len(group)} files are missing; copy or unpack the folder again"
            instead |= dict.fromkeys(group, Fault(split, None, what, text, str(folder)))
    return list(dict.fromkeys(instead.get(fault, fault) for fault in faults))


def remarks(readings: Readings, found: Inspection, tasks: Sequence[Task]) -> tuple[list[str], list[str]]:
    """Warnings of what may not be meant, and notes of what is as it should be but worth knowing."""
    source, name = readings.split.source, readings.name
    warnings, notes = [f"{name}: {doubt}" for doubt in source.doubts()], []
    for task in tasks:
        tally, place = found.tallies[task.name], f"{name} {task.name}:"
        doubts = task.doubts(tally.without(source.usual))
        warnings += [f"{place} {doubt}" for doubt in doubts]
        notes += [f"{place} {doubt}" for doubt in task.doubts(tally) if doubt not in doubts]
        if names := found.odd.get((task.name, "stretched")):
            text = "labels have another shape than their images and are stretched to it"
            warnings.append(f"{place} {tally.stretched} of {tally.maps} {text}, such as {', '.join(names)}.")
        if names := found.odd.get((task.name, "empty")):
            text = "labels are missing in every pixel, such as"
            notes.append(f"{place} {tally.empty} of {tally.maps} {text} {', '.join(names)}.")
    return warnings, notes


def inspect(data: PartialLabelDataModule, opened: Opened | None = None) -> dict[str, Any]:
    """Read everything that training and evaluation would read.

    Args:
        data: The dataset, as a config describes it.
        opened: What ``open_splits`` returns, where that is at hand.

    Returns:
        Plain values: figures per split and of the label mask, ``faults`` that training would stumble over, ``trees`` of
        datasets of which files are missing, ``warnings`` of what may not be meant, and ``notes``.

    Raises:
        HTTError: The dataset cannot be opened at all.
    """
    splits, faults, trees = opened or open_splits(data)
    found = {name: inspect_split(data, readings) for name, readings in splits.items()}
    report: dict[str, Any] = {"format": 1, "dataset": type(data).__name__, "labels": data.labels, "mask": None}
    whole = set(splits) - {fault.split for fault in faults}
    report["splits"] = {name: one.figures() for name, one in found.items()}
    warnings: list[str] = []
    notes: list[str] = []
    wanted: dict[tuple[str, str], int] = {}
    for name, one in found.items():
        faults, trees = [*faults, *one.faults], trees | one.trees
        further, more = remarks(splits[name], one, data.tasks)
        warnings, notes = warnings + further, notes + more
        kept = Counter(task for tasks in splits[name].labels.values() for task in tasks)
        wanted |= {(name, what): count for what, count in [("split", one.images), ("image", one.images), *kept.items()]}
    if "train" in whole:
        source = splits["train"].split.source
        mask = data.label_mask(source)
        unable = data.unable(mask, source)
        report["mask"] = {"summary": data.label_summary, **mask_figures(mask, source), "unable": unable}
        warnings += [f"train: {doubt}" for doubt in mask_doubts(report["mask"])]
        warnings += [f"train: {unable_message(data.labels, task, names)}" for task, names in unable.items()]
    if len(splits) > 1 and (shared := overlap(*(splits[name].split.source for name in get_args(Split)))):
        warnings.append(shared)
    listed = [fault._asdict() for fault in gathered(faults, wanted)]
    return report | {"faults": listed, "trees": list(trees), "warnings": warnings, "notes": notes}
