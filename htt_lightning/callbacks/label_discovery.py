"""When labels are discovered: the stages of a run and the teacher of each."""

import math
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import MeanMetric

from htt_lightning.data.batch import Batch
from htt_lightning.discovery.ema import sync_buffers, update_ema
from htt_lightning.discovery.loss import DiscoveryLossWeights, TargetType, TeacherEnsemble
from htt_lightning.errors import HTTError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.module import HTTModule
from htt_lightning.seeding import derived_seed
from htt_lightning.tasks import Task
from htt_lightning.training.loading import clone_module, load_teacher, module_from_state

EMA, PREVIOUS = "ema", "previous"


class LabelDiscovery(Callback):
    """Train in stages, each with the network of the previous stage as teacher.

    Implements label discovery ([HiTTs](https://arxiv.org/abs/2411.18823), Sec. 3.3). ``trainer.max_epochs`` is the
    length of one stage. When a stage ends, its student is frozen and becomes the teacher, and the next student starts
    with a fresh optimizer and schedule. Teachers are stored in this callback's state, never in the module's weights, so
    every checkpoint loads as the student. The network of a finished stage is saved as ``checkpoints/stage_N.ckpt``.

    Args:
        stages: Number of stages; 1 is supervised training alone.
        teacher: ``previous`` for the student of the previous stage. A checkpoint or a list of checkpoints replaces the
            first stage. ``ema`` for the moving average of the student itself, in a single stage
            ([Mean Teacher](https://arxiv.org/abs/1703.01780)).
        num_teachers: Number of networks that are trained on the given labels, one stage each, and teach the next
            student together. More than 1 needs feature weights of 0 in ``loss_weights``.
        student_init: Weights of a new student: ``random``, or those of its ``teacher``.
        ema_decay: Decay of the moving average per step, in [0, 1). It is smaller in the first steps.
        rampup_epochs: Number of epochs at the start of a stage over which the weight of the discovery loss rises as
            ``exp(-5 (1 - t) ** 2)`` (Mean Teacher). 0 for the full weight at once.
        target_type: Target where a label is missing: ``hard`` pseudo-labels where the teacher's confidence exceeds the
            threshold; ``soft`` for the teacher's probabilities, depths and normals everywhere
            ([distillation](https://arxiv.org/abs/1503.02531)); ``soft_tta`` for their mean over the image and a
            randomly shifted mirror image, which costs a second forward pass of the teacher.
        teacher_precision: ``bf16-mixed`` to run the teacher in bfloat16, by default the precision of the run.
        loss_weights: Weights of the three discovery losses.
        confidence_thresholds: Per-task confidence in [0, 1] above which a pseudo-label counts. Overrides the task's.
        pseudo_label_weights: Per-task weight beta of the loss on pseudo-labels. Overrides the task's.
        class_balance_powers: Per-task exponent that rebalances soft targets: each class probability is divided by
            ``(share of the class in the image) ** power``. 0 disables it, and is the default for an EMA teacher, which
            would otherwise rebalance its own output. Overrides the task's.

    Raises:
        ConfigError: An argument is out of its range, or two arguments contradict each other.
        CheckpointError: From ``on_fit_start``: a teacher does not fit the student.
    """

    def __init__(
        self,
        stages: int = 2,
        teacher: str | list[str] = PREVIOUS,
        num_teachers: int = 1,
        student_init: Literal["random", "teacher"] = "random",
        ema_decay: float = 0.999,
        rampup_epochs: int = 0,
        target_type: TargetType = "hard",
        teacher_precision: Literal["bf16-mixed"] | None = None,
        loss_weights: DiscoveryLossWeights = DiscoveryLossWeights(),  # noqa: B008  # frozen
        confidence_thresholds: dict[str, float] | None = None,
        pseudo_label_weights: dict[str, float] | None = None,
        class_balance_powers: dict[str, float] | None = None,
    ) -> None:
        if not stages or stages < 1:  # null passes the parser
            raise HTTError(f"discovery.stages must be at least 1, not {stages}.")
        given = [] if teacher in (EMA, PREVIOUS) else [teacher] if isinstance(teacher, str) else teacher
        if given and stages < 2:
            raise HTTError(f"discovery.teacher {given[0]} is the first stage: set discovery.stages to at least 2.")
        if isinstance(teacher, list) and not teacher:
            raise HTTError("discovery.teacher names no checkpoint; use previous, ema or at least one file.")
        if num_teachers < 1 or (num_teachers > 1 and (teacher != PREVIOUS or stages <= num_teachers)):
            raise HTTError(
                f"discovery.num_teachers is {num_teachers}; it must be at least 1, and more only with "
                f"discovery.teacher previous and a stage each before that of the student: discovery.stages is {stages}."
            )
        if max(num_teachers, len(given)) > 1 and (loss_weights.feature_labeled or loss_weights.feature_unlabeled):
            raise HTTError(
                "Features of several teachers cannot be learned: set the feature weights of discovery.loss_weights to "
                "0."
            )
        if not 0 <= ema_decay < 1:
            raise HTTError(f"discovery.ema_decay must be in [0, 1), not {ema_decay}.")
        if rampup_epochs < 0:
            raise HTTError(f"discovery.rampup_epochs must be a number of epochs, 0 or more, not {rampup_epochs}.")
        if target_type not in get_args(TargetType):
            raise HTTError(
                f"discovery.target_type is {target_type!r}; it must be one of {', '.join(get_args(TargetType))}."
            )
        if teacher_precision not in (None, "bf16-mixed"):
            raise HTTError(f"discovery.teacher_precision is {teacher_precision!r}; it must be null or bf16-mixed.")
        for task, threshold in (confidence_thresholds or {}).items():
            if not 0 <= threshold <= 1:
                raise HTTError(f"discovery.confidence_thresholds of {task} must be in [0, 1], not {threshold}.")
        self.stages, self.teacher, self.student_init = (1 if teacher == EMA else stages), teacher, student_init
        self.num_teachers, self._teacher_paths, self.rampup_epochs = num_teachers, given, rampup_epochs
        self.ema_decay, self.loss_weights, self.target_type = ema_decay, loss_weights, target_type
        self.teacher_precision = teacher_precision
        self.replaced = {
            "confidence_threshold": confidence_thresholds or {},
            "pseudo_label_weight": pseudo_label_weights or {},
            "class_balance_power": class_balance_powers or {},
        }
        self.stage = self.stage_start_epoch = 0
        self._epochs: int | None = None
        self._teachers: list[HTTModule] = []
        self._hit_metrics: dict[str, MeanMetric] = {}
        self._hits_logged = False
        self._last_step = 0

    @property
    def _teacher_kind(self) -> str:
        return "a checkpoint" if self._teacher_paths else str(self.teacher)

    @property
    def state_key(self) -> str:
        """There is one per run, whatever its arguments."""
        return "LabelDiscovery"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Extend the loop to all stages."""
        if stage != "fit" or not isinstance(pl_module, HTTModule):
            return
        self._folder = run_directory(trainer)
        if trainer.current_epoch == 0:  # nothing is left of a run before
            self.stage, self.stage_start_epoch, self._teachers = (1 if self._teacher_paths else 0), 0, []
            self._hit_metrics, self._hits_logged, pl_module.discovery = {}, False, None
        self.tasks_with_overrides(pl_module)
        epochs = trainer.max_epochs
        if epochs is not None and epochs > 0:  # otherwise configure_optimizers complains
            self._epochs = pl_module.epochs_per_stage = epochs
            self._extend_max_epochs(trainer, epochs)
            if cast(Any, trainer).fast_dev_run:
                trainer.fit_loop.epoch_loop.max_steps *= self.stages - self.stage

    def _extend_max_epochs(self, trainer: L.Trainer, end: int) -> None:
        """Let the loop run on behind the end of this stage to that of the last one."""
        if self._epochs:
            trainer.fit_loop.max_epochs = end + self._epochs * max(self.stages - self.stage - 1, 0)

    def tasks_with_overrides(self, module: HTTModule) -> list[Task]:
        """The tasks with this run's thresholds, betas and balances.

        Args:
            module: The student, whose tasks they are.
        """
        known = {task.name: task for task in module.tasks}
        if self.teacher == EMA:
            even: dict[str, Any] = {"class_balance_power": 0.0}
            known |= {
                name: replace(task, **even) for name, task in known.items() if hasattr(task, "class_balance_power")
            }
        for key, values in self.replaced.items():
            for name, value in values.items():
                if name not in known:
                    raise HTTError(f"discovery.{key}s names {name}, but the tasks are {', '.join(known)}.")
                if not hasattr(known[name], key):
                    raise HTTError(f"discovery.{key}s names {name}, which has no {key}.")
                changed: dict[str, Any] = {key: value}
                known[name] = replace(known[name], **changed)
        return list(known.values())

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on in the stage, and with the teacher, of the checkpoint."""
        stored = checkpoint.get("callbacks", {}).get(self.state_key)
        if stored is None or trainer.state.fn != "fit" or not isinstance(pl_module, HTTModule):
            return
        if stored["teacher_kind"] != self._teacher_kind:
            raise HTTError(f"The checkpoint's discovery.teacher is {stored['teacher_kind']}, not {self._teacher_kind}.")
        self.stage, self.stage_start_epoch = stored["stage"], stored["stage_start_epoch"]
        for teacher in stored["teachers"]:
            self._teachers.append(
                module_from_state(teacher["hyper_parameters"], teacher["state_dict"], type(pl_module))
            )
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self._extend_max_epochs(trainer, max(self.stage_start_epoch + (self._epochs or 0), done))

    def state_dict(self) -> dict[str, Any]:
        """Stage, its first epoch, and the teachers: plain values and tensors."""
        teachers = [{"hyper_parameters": dict(x.hparams), "state_dict": x.net.state_dict()} for x in self._teachers]
        return {
            "teacher_kind": self._teacher_kind,
            "stage": self.stage,
            "stage_start_epoch": self.stage_start_epoch,
            "teachers": teachers,
        }

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read teachers that are given, unless a resumed run has brought them along."""
        if isinstance(pl_module, HTTModule) and self._teacher_paths and not self._teachers:
            self._teachers = [load_teacher(path, pl_module) for path in self._teacher_paths]
            if self.student_init == "teacher":
                self._copy_teacher_weights(pl_module, self._teachers[0])

    def _copy_teacher_weights(self, student: HTTModule, teacher: HTTModule) -> None:
        try:
            student.net.load_state_dict(teacher.net.state_dict())
        except RuntimeError as error:
            raise HTTError(
                f"The network of teacher {self._teacher_paths[0]} is another, so no student can inherit its weights; "
                "give model its settings, or set discovery.student_init to random."
            ) from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with a teacher, or in the middle of a run: everything is restored by now."""
        if isinstance(pl_module, HTTModule):
            if self.teacher == EMA and not self._teachers:
                self._teachers = [clone_module(pl_module)]
            self._last_step = trainer.global_step
            self._set_teacher(trainer, pl_module)
            self._start_next_stage(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cross the border to the next stage where the last one has ended."""
        if isinstance(pl_module, HTTModule):
            self._start_next_stage(trainer, pl_module)
            if self.rampup_epochs and pl_module.discovery is not None:
                done = min((trainer.current_epoch - self.stage_start_epoch) / self.rampup_epochs, 1)
                pl_module.discovery.scale = math.exp(-5 * (1 - done) ** 2)

    def _start_next_stage(self, trainer: L.Trainer, module: HTTModule) -> None:
        over = self._epochs is not None and trainer.current_epoch - self.stage_start_epoch >= self._epochs
        if not over or self.stage + 1 >= self.stages:
            return
        self._save_stage_checkpoint(trainer)
        learned = clone_module(module)
        sync_buffers(trainer, learned.net)
        self._teachers = [*self._teachers, learned] if self.stage < self.num_teachers else [learned]
        self.stage, self.stage_start_epoch = self.stage + 1, trainer.current_epoch
        if self.student_init == "random" or self.stage < self.num_teachers:
            module.reset_parameters(derived_seed(self.stage, 1))
        trainer.strategy.setup_optimizers(trainer)
        self._extend_max_epochs(trainer, self.stage_start_epoch + (self._epochs or 0))
        self._set_teacher(trainer, module)

    def _save_stage_checkpoint(self, trainer: L.Trainer) -> None:
        """Keep the finished stage's network; all processes take part, one writes."""
        if self._folder is not None:
            trainer.save_checkpoint(self._folder / "checkpoints" / f"stage_{self.stage + 1}.ckpt", weights_only=True)

    def _set_teacher(self, trainer: L.Trainer, module: HTTModule) -> None:
        stored = getattr(getattr(trainer, "datamodule", None), "pseudo_labels", None)
        pool = self._teachers if self.teacher == EMA or self.stage >= self.num_teachers else []
        if pool or stored is not None:
            dtype, device = next(module.net.parameters()).dtype, module.device
            nets, weights = [teacher.net.to(device, dtype) for teacher in pool], module.loss_weights
            module.discovery = TeacherEnsemble(
                nets,
                self.tasks_with_overrides(module),
                weights,
                self.loss_weights,
                device,
                self.target_type,
                self.teacher_precision,
            )
            self._hits_logged = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the average after every step."""
        step, moved = trainer.global_step, trainer.global_step > self._last_step
        if self.teacher == EMA and moved and self._teachers and isinstance(pl_module, HTTModule):
            update_ema(self._teachers[0].net, pl_module.net, min(self.ema_decay, (1 + step) / (10 + step)))
        self._last_step = step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log coverage and mean confidence of what has been discovered."""
        if isinstance(pl_module, HTTModule) and pl_module.discovery is not None:
            for name, value in pl_module.discovery.compute_and_reset().items():
                pl_module.log(f"train/{name}", value)
            if self.teacher == EMA and self._teachers:
                sync_buffers(trainer, self._teachers[0].net)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count how much of what the teacher would keep is right: once per teacher, as it is frozen."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and isinstance(pl_module, HTTModule) and pl_module.discovery is not None and not self._hits_logged:
            for name, (right, kept) in pl_module.discovery.pseudo_label_hits(batch).items():
                metric = self._hit_metrics.setdefault(name, MeanMetric("ignore").to(pl_module.device))
                metric.set_dtype(torch.float64)
                metric.update(right / kept, kept)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log that precision."""
        for name, account in self._hit_metrics.items():
            pl_module.log(f"val/{name}/pseudo_label_accuracy", 100 * account.compute())
            self._hits_logged = self.teacher != EMA
        self._hit_metrics = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where a limit has left out a stage."""
        if self._epochs and self.stage + 1 < self.stages and not trainer.interrupted:
            rank_zero_warn(
                f"Training ended in stage {self.stage + 1} of {self.stages}; is trainer.max_steps too small?"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave trainer and module as they were."""
        if stage == "fit" and isinstance(pl_module, HTTModule):
            pl_module.discovery = pl_module.epochs_per_stage = None
            trainer.fit_loop.max_epochs = self._epochs or trainer.fit_loop.max_epochs
