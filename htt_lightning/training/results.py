"""Read the metrics and settings that a run left in its directory."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from htt_lightning.data.datamodule import LABEL_MASK
from htt_lightning.errors import DataError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.run_directory import CONFIG, TRAIN_CONFIG
from htt_lightning.tasks.metric_spec import MetricSpec

Split = Literal["val", "test"]
"""Last validation of ``fit``, or the command ``test``."""
IGNORED_OPTIONS = (
    *("seed_everything", "data.seed", "ckpt_path", "verbose", "weights_only", "trainer.logger"),
    *("trainer.default_root_dir", "trainer.enable_", "trainer.log_every_n_steps", "trainer.profiler"),
    *("checkpoint.", "panel.", "discovery_panel.", "results.", "model.single_task_baselines"),
    *("data.root", "data.cache", "data.num_workers", "data.tasks", "data.class_path"),
)
"""Prefixes of options that do not distinguish runs: seeds, paths, displays. Some get a setting of their own."""
TEST_OPTIONS = ("data", "tasks.", "trainer.limit_test_batches", "trainer.precision")
"""Prefixes of options that can change the metrics of ``test``."""
TRAIN_OPTIONS = ("data.labels", "data.batch_size", "data.augment", "data.pseudo_labels", "data.train_images")
"""Prefixes of ``TEST_OPTIONS`` that matter in training only."""
STEPS, ALONE = "steps", "each alone"
"""Setting with the training steps of a tested network, and value of ``data.tasks`` for networks of a single task."""


class MetricValue(NamedTuple):
    """A metric: its value, NaN if undefined, and the epoch of the network, None if unknown."""

    value: float
    spec: MetricSpec
    primary: bool
    epoch: int | None


@dataclass(frozen=True)
class Run:
    """A metric file, with every option that can change a metric as text, seeds apart."""

    path: Path
    split: Split
    settings: Mapping[str, str]
    seed: str
    metrics: Mapping[str, MetricValue]
    """Metrics by ``<task>/<metric>``."""
    trained: bool = True
    """False if ``test`` scored random weights."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return task_names(self.metrics)


def training_info(path: str | Path) -> dict[str, Any]:
    """Read ``steps``, ``labels`` (provenance of the mask) and ``config`` of the training, None if unknown."""
    checkpoint, folder = read_checkpoint(path, "--ckpt_path"), Path(path).parent.parent
    config, labels = (checkpoint.get("training", {}).get(key) for key in ("config", "labels"))
    if config is None and (folder / CONFIG).is_file():  # saved without the callback, such as by trainer.save_checkpoint
        config, labels = (folder / CONFIG).read_text(encoding="utf-8"), read_mask_provenance(folder)
    steps = checkpoint["global_step"]
    return {"checkpoint": str(path), STEPS: steps, "labels": labels, "config": config and yaml.safe_load(config)}


def read_run(path: Path, split: Split) -> Run:
    """Read the run that wrote a metric file; raise ``DataError`` if it is corrupt."""
    metrics, options = read_metrics(path), flatten(load_mapping(path.with_name(CONFIG)))
    tasks, labels, tested = task_names(metrics), read_mask_provenance(path.parent), dict[str, str]()
    if split == "test":
        trained_by = path.with_name(TRAIN_CONFIG)
        info = load_mapping(trained_by) if trained_by.is_file() else {}
        config, labels = info.get("config"), info.get("labels")
        train_options = flatten(config if isinstance(config, dict) else {"checkpoint": options.get("ckpt_path")})
        train_settings = comparable_settings(train_options, tasks)
        for key, value in comparable_settings(options, tasks).items():
            can_matter = key.startswith(TEST_OPTIONS) and not key.startswith(TRAIN_OPTIONS)
            tested |= {f"test.{key}": value} if can_matter and train_settings.get(key) != value else {}
        tested |= {STEPS: str(info[STEPS])} if STEPS in info else {}
        options = train_options
    seeds = [str(seed) for key in ("seed_everything", "data.seed") if (seed := options.get(key)) is not None]
    settings, trained = comparable_settings(options, tasks, labels) | tested, scored_trained_network(path)
    return Run(path, split, settings, "/".join(seeds), metrics, trained)


def comparable_settings(
    options: Mapping[str, Any], tasks: Sequence[str], labels: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Select the options that can change metrics, as text; ``labels`` is the provenance of the mask."""
    settings: dict[str, Any] = {"data": str(options.get("data.class_path") or "").rpartition(".")[2] or None}
    settings |= {key: value for key, value in options.items() if not key.startswith(IGNORED_OPTIONS)}
    if "data.labels" in settings:
        seed = options.get("seed_everything") if options.get("data.seed") is None else options["data.seed"]
        settings["data.labels"] = labels_name(str(settings["data.labels"]), labels, seed)
    if (teacher := settings.get("discovery.teacher")) is not None:
        teachers = teacher if isinstance(teacher, list) else [teacher]
        settings["discovery.teacher"] = ", ".join(teacher_name(str(one)) for one in teachers)
    settings["data.tasks"] = ALONE if len(tasks) == 1 else ", ".join(tasks)
    listed = options.get("data.tasks")
    for task in listed if isinstance(listed, list) else ():
        if isinstance(task, Mapping):
            name = str(task.get("class_path")).rpartition(".")[2]
            settings |= {f"tasks.{name}.{key}": value for key, value in flatten(task).items() if key != "class_path"}
    known = {key: value for key, value in settings.items() if value is not None}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}


def read_metrics(path: Path) -> dict[str, MetricValue]:
    """Read a metric file by ``<task>/<metric>``; raise ``DataError`` if corrupt."""
    metrics = dict[str, MetricValue]()
    try:
        for key, row in load_mapping(path).items():
            value = math.nan if row["value"] is None else float(row["value"])
            spec = MetricSpec(str(row["unit"]), bool(row["higher_is_better"]))
            metrics[key.partition("/")[2]] = MetricValue(value, spec, bool(row["primary"]), row["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} must hold metrics of fit or test, got {error!r}. Run htt test again.") from error
    return metrics


def scored_trained_network(path: Path) -> bool:
    """Return False if a metric file belongs to random weights; raise ``DataError`` if it is corrupt."""
    checkpoint_known = path.with_name(TRAIN_CONFIG).is_file()  # early files do not say it
    return all(
        row.get("trained", row.get("epoch") is not None or checkpoint_known) for row in load_mapping(path).values()
    )


def read_mask_provenance(folder: Path) -> dict[str, Any] | None:
    """Read protocol, seed and origin of a run's label mask, or None if it has none."""
    path = folder / LABEL_MASK
    mask = load_mapping(path) if path.is_file() else None
    return mask and {key: mask.get(key) for key in ("protocol", "seed", "origin")}


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML mapping; raise ``DataError`` if missing or corrupt."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        step = "Delete it, or run its command again." if path.exists() else "Copy it there from the run's folder."
        raise DataError(f"{path} must be a readable mapping, got: {' '.join(str(error).split())}. {step}") from error
    return content


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config to options by dotted name; lists stay values."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            options |= flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            options[prefix + key] = value
    return options


def labels_name(option: str, labels: Mapping[str, Any] | None, seed: Any) -> str:
    """Name the mask of ``data.labels`` by its protocol, also if it is a file."""
    if labels is None or labels.get("protocol") in (None, option):
        return option
    protocol = str(labels["protocol"])
    if labels["origin"]:
        return f"{protocol} ({labels['origin']})"
    if labels["seed"] is None:
        return Path(option).name
    return protocol if labels["seed"] == seed else f"{protocol} of seed {labels['seed']}"


def teacher_name(teacher: str) -> str:
    """Name a teacher by its file and a hash of its settings without seeds."""
    if not Path(teacher).is_file():
        return teacher
    settings = comparable_settings(flatten(training_info(teacher)["config"] or {"checkpoint": teacher}), ())
    digest = hashlib.sha256(json.dumps(sorted(settings.items())).encode()).hexdigest()
    return f"{Path(teacher).name} #{digest[:6]}"


def task_names(metrics: Mapping[str, MetricValue]) -> tuple[str, ...]:
    """List the tasks of metrics by ``<task>/<metric>``."""
    return tuple(dict.fromkeys(key.partition("/")[0] for key in metrics if "/" in key))
