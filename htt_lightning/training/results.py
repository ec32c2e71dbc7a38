"""What a run has left in its folder, read back: how its network was trained, and what it has reached."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from htt_lightning.data.datamodule import LABEL_MASK
from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.run_directory import CONFIG, RESULTS, TRAIN_CONFIG
from htt_lightning.tasks.metric_spec import MetricSpec

Split = Literal["val", "test"]
"""Whose figures: those of the last validation of ``fit``, or of ``test``."""
ASIDE = (
    *("seed_everything", "data.seed", "ckpt_path", "verbose", "weights_only", "trainer.logger"),
    *("trainer.default_root_dir", "trainer.enable_", "trainer.log_every_n_steps", "trainer.profiler"),
    *("checkpoint.", "panel.", "discovery_panel.", "results.", "model.single_task_baselines"),
    *("data.root", "data.cache", "data.num_workers", "data.tasks", "data.class_path"),
)
"""Options, by how they begin, in which runs of the same settings may differ (seeds, places, what is shown), or which
are put in other words."""
SCORED = ("data", "tasks.", "trainer.limit_test_batches", "trainer.precision")
"""Settings of a test that its figures may depend on, by how they begin."""
TAUGHT = ("data.labels", "data.batch_size", "data.augment", "data.pseudo_labels", "data.train_images")
"""Those among them that matter in training alone."""
STEPS = "steps"
"""How long the network of a test was trained."""
ALONE = "each alone"
"""The tasks of a network that was trained on a single one."""


class Value(NamedTuple):
    """One figure of a run.

    Attributes:
        value: NaN where it does not exist.
        kind: Its unit and direction.
        primary_metric: Whether it is its task's headline.
    """

    value: float
    kind: MetricSpec
    primary_metric: bool


@dataclass(frozen=True)
class Run:
    """The figures of one run, and what tells it from others.

    Attributes:
        path: The file of the figures.
        split: On what they were measured.
        settings: Everything that may change a figure, except seeds, as text by option.
        seed: Of the run.
        values: The figures by ``<task>/<figure>``, as they are in the file.
    """

    path: Path
    split: Split
    settings: Mapping[str, str]
    seed: str
    values: Mapping[str, Value]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tasks_of(self.values)


def training_info(path: str | Path) -> dict[str, Any]:
    """How the network of a checkpoint was trained, in plain values.

    Args:
        path: The checkpoint.

    Returns:
        ``checkpoint``, ``steps``, ``labels`` (how they were drawn), and ``config``; None for what nobody has noted.

    Raises:
        HTTError: The file is missing, damaged, or no checkpoint of this library.
    """
    checkpoint, folder = read_checkpoint(path, "--ckpt_path"), Path(path).parent.parent
    config, labels = (checkpoint.get("training", {}).get(key) for key in ("config", "labels"))
    if config is None and (beside := folder / CONFIG).is_file():  # weights alone, or of an earlier version
        config, labels = beside.read_text(encoding="utf-8"), read_mask_provenance(folder)
    known = {STEPS: checkpoint["global_step"], "labels": labels, "config": config and yaml.safe_load(config)}
    return {"checkpoint": str(path), **known}


def read_run(path: Path, split: Split) -> Run:
    """The run that has left a file of figures.

    Args:
        path: The file.
        split: Which of ``RESULTS`` it is.

    Raises:
        HTTError: It is damaged, or what tells the run from others is missing; the message names the file.
    """
    values, options = read_metrics(path), flat(read_yaml(path.with_name(CONFIG), path))
    names, drawn, further = tasks_of(values), read_mask_provenance(path.parent), dict[str, str]()
    if split == "test":
        scored = comparable_settings(options, names)
        training = read_yaml(beside, path) if (beside := path.with_name(TRAIN_CONFIG)).is_file() else {}
        options = flat(training.get("config") or {"checkpoint": options.get("ckpt_path")})
        drawn = training.get("labels")
        trained = comparable_settings(options, names)
        further = {
            f"test.{key}": value
            for key, value in scored.items()
            if key.startswith(SCORED) and not key.startswith(TAUGHT) and trained.get(key) != value
        }
        further |= {STEPS: str(training[STEPS])} if STEPS in training else {}
    seeds = [str(seed) for key in ("seed_everything", "data.seed") if (seed := options.get(key)) is not None]
    return Run(path, split, comparable_settings(options, names, drawn) | further, "/".join(seeds), values)


def comparable_settings(
    options: Mapping[str, Any], tasks: Sequence[str], drawn: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """What may change a figure of a run, except seeds, as text.

    Args:
        options: Of the run.
        tasks: Their names.
        drawn: Protocol, seed and origin of the label mask, if known.
    """
    settings: dict[str, Any] = {"data": str(options.get("data.class_path") or "").rpartition(".")[2] or None}
    settings |= {key: value for key, value in options.items() if not key.startswith(ASIDE)}
    if "data.labels" in settings:
        seed = options.get("data.seed")
        seed = options.get("seed_everything") if seed is None else seed
        settings["data.labels"] = labels_name(str(settings["data.labels"]), drawn, seed)
    if (teacher := settings.get("discovery.teacher")) is not None:
        given = teacher if isinstance(teacher, list) else [teacher]
        settings["discovery.teacher"] = ", ".join(teacher_name(str(one)) for one in given)
    settings["data.tasks"] = ALONE if len(tasks) == 1 else ", ".join(tasks)
    listed = options.get("data.tasks")
    for task in listed if isinstance(listed, list) else ():
        if isinstance(task, Mapping):
            kind = str(task.get("class_path")).rpartition(".")[2]
            settings |= {f"tasks.{kind}.{key}": value for key, value in flat(task).items() if key != "class_path"}
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
        if value is not None
    }


def read_metrics(path: Path) -> dict[str, Value]:
    """The figures in a file that ``fit`` or ``test`` has written, by ``<task>/<figure>``.

    Raises:
        HTTError: It is damaged, or was written by an earlier version.
    """
    rows, values = read_json(path), dict[str, Value]()
    try:
        for key, row in rows.items():
            value, kind = row["value"], MetricSpec(str(row["unit"]), bool(row["higher_is_better"]))
            number = math.nan if value is None else float(value)
            values[key.partition("/")[2]] = Value(number, kind, bool(row["primary"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HTTError(
            f"{path} holds no figures as this version writes them ({error!r}); score the network again with htt test."
        ) from error
    return values


def read_mask_provenance(folder: Path) -> dict[str, Any] | None:
    """How the label mask of a run was drawn: protocol, seed and origin; None if it has left none."""
    mask = read_json(folder / LABEL_MASK) if (folder / LABEL_MASK).is_file() else None
    return mask and {key: mask.get(key) for key in ("protocol", "seed", "origin")}


def read_json(path: Path) -> Any:
    """What a JSON file holds; an ``HTTError`` names one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HTTError(f"{path} is truncated or no JSON ({error}); delete it, or run its command again.") from error


def read_yaml(path: Path, results: Path) -> dict[str, Any]:
    """What a config holds that lies beside figures; an ``HTTError`` names one that is missing or damaged."""
    if not path.is_file():
        raise HTTError(
            f"{results} has no {path.name} beside it, which says what was run; copy it there from the run's folder."
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no options")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HTTError(f"{path} is truncated or no config ({' '.join(str(error).split())}).") from error
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The options of a config by their dotted names, as on the command line; lists are values."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            options |= flat(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            options[prefix + key] = value
    return options


def labels_name(given: str, drawn: Mapping[str, Any] | None, seed: Any) -> str:
    """What to call label masks, so that runs on one protocol have one name, also where a file repeats a mask.

    Args:
        given: ``data.labels``.
        drawn: Protocol, seed and origin of the mask, if known.
        seed: Of the run.
    """
    if drawn is None or drawn.get("protocol") in (None, given):
        return given
    if drawn["origin"]:
        return f"{drawn['protocol']} ({drawn['origin']})"
    if drawn["seed"] is None:
        return Path(given).name
    return str(drawn["protocol"]) if drawn["seed"] == seed else f"{drawn['protocol']} of seed {drawn['seed']}"


def teacher_name(given: str) -> str:
    """What to call a teacher, so that those of other seeds have one name: its file, and a digest of its settings."""
    if not Path(given).is_file():
        return given
    settings = comparable_settings(flat(training_info(given)["config"] or {"checkpoint": given}), ())
    digest = hashlib.sha256(json.dumps(sorted(settings.items())).encode()).hexdigest()
    return f"{Path(given).name} #{digest[:6]}"


def tasks_of(values: Mapping[str, Value]) -> tuple[str, ...]:
    """Names of the tasks that figures are of."""
    return tuple(dict.fromkeys(key.partition("/")[0] for key in values if "/" in key))


def find_results(folder: Path) -> Iterator[tuple[Path, Split]]:
    """Files of figures in a folder and below it.

    Raises:
        HTTError: There is no such folder.
    """
    if not folder.is_dir():
        raise HTTError(f"There is no folder {folder}; name runs, or a folder that holds runs.")
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        yield from ((path, split) for path in sorted(folder.rglob(RESULTS[split])))
