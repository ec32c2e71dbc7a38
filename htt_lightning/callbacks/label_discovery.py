"""A callback that trains in stages, each with the network of the previous stage as teacher."""

import math
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from htt_lightning.callbacks.stage_callbacks import StageCallbacks
from htt_lightning.data.batch import Batch
from htt_lightning.discovery.ema import sync_buffers, update_ema
from htt_lightning.discovery.loss import DiscoveryLossWeights
from htt_lightning.discovery.teacher import TargetType, TeacherEnsemble, TeacherPrecision
from htt_lightning.errors import CheckpointError, ConfigError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.module import HTTModule
from htt_lightning.seeding import derived_seed
from htt_lightning.tasks import Task
from htt_lightning.tasks.semseg import unpaired_sides
from htt_lightning.training.loading import clone_module, load_teacher, module_from_state

EMA, PREVIOUS = "ema", "previous"


class LabelDiscovery(Callback):
    """Train in stages, each with the network of the previous stage as teacher.

    Implements label discovery ([HiTTs](https://arxiv.org/abs/2411.18823), Sec. 3.3). ``trainer.max_epochs`` is the
    length of one stage. When a stage ends, its student is frozen and becomes the teacher, and the next student starts
    with a fresh optimizer and schedule. Teachers are stored in this callback's state, never in the module's weights, so
    every checkpoint loads as the student. The network of a finished stage is saved as ``checkpoints/stage_N.ckpt``.
    Callbacks such as ``EarlyStopping`` and ``WeightAveraging`` restart with each stage.

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
        target_type: Target of a missing label: ``hard`` pseudo-labels above the confidence threshold; ``soft`` for the
            teacher's probabilities, depths and normals everywhere ([distillation](https://arxiv.org/abs/1503.02531));
            ``soft_tta`` for their mean over the image and a shifted mirror image, at twice the cost of the teacher.
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
        teacher_precision: TeacherPrecision = None,
        loss_weights: DiscoveryLossWeights = DiscoveryLossWeights(),  # noqa: B008  # frozen
        confidence_thresholds: dict[str, float] | None = None,
        pseudo_label_weights: dict[str, float] | None = None,
        class_balance_powers: dict[str, float] | None = None,
    ) -> None:
        self.stages, self.teacher, self.num_teachers = stages, teacher, num_teachers
        self.student_init, self.ema_decay, self.rampup_epochs = student_init, ema_decay, rampup_epochs
        self.target_type, self.teacher_precision, self.loss_weights = target_type, teacher_precision, loss_weights
        self.task_overrides: dict[str, dict[str, Any]] = {
            "confidence_threshold": confidence_thresholds or {},
            "pseudo_label_weight": pseudo_label_weights or {},
            "class_balance_power": class_balance_powers or {},
        }
        self._teacher_paths = [] if teacher in (EMA, PREVIOUS) else [teacher] if isinstance(teacher, str) else teacher
        self._teacher_kind = "a checkpoint" if self._teacher_paths else teacher
        self._check_arguments()
        if teacher == EMA:
            self.stages = 1
        self._epochs = 0
        self._reset()

    def _check_arguments(self) -> None:
        stages, given, count = self.stages or 0, len(self._teacher_paths), self.num_teachers  # null passes the parser
        features = self.loss_weights.feature_labeled or self.loss_weights.feature_unlabeled
        several = 1 < count < stages and self.teacher == PREVIOUS
        rules = {
            "stages": (stages >= (2 if given else 1), "at least 1, or 2 if discovery.teacher is a checkpoint"),
            "teacher": (bool(self.teacher), "previous, ema or at least one checkpoint"),
            "num_teachers": (count == 1 or several, "1, or less than stages with teacher previous"),
            "loss_weights": (max(count, given) < 2 or not features, "without feature losses for several teachers"),
            "ema_decay": (0 <= self.ema_decay < 1, "in [0, 1)"),
            "rampup_epochs": (self.rampup_epochs >= 0, "at least 0"),
            "target_type": (self.target_type in get_args(TargetType), f"one of {', '.join(get_args(TargetType))}"),
            "teacher_precision": (self.teacher_precision in (None, "bf16-mixed"), "null or bf16-mixed"),
        }
        for option, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"discovery.{option} must be {rule}, got {getattr(self, option)!r}.")
        for task, threshold in self.task_overrides["confidence_threshold"].items():
            if not 0 <= threshold <= 1:
                raise ConfigError(f"discovery.confidence_thresholds.{task} must be in [0, 1], got {threshold}.")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Extend the training loop to all stages, and let other callbacks follow this one, which begins a stage."""
        if stage != "fit" or not isinstance(pl_module, HTTModule):
            return
        if self.teacher == EMA and trainer.precision in ("bf16-true", "16-true"):
            rule = "be 32-true, 64-true or mixed with discovery.teacher ema, as an average of 16 bits hardly moves"
            raise ConfigError(f"trainer.precision must {rule}, got {trainer.precision}. Set bf16-mixed.")
        loops: Any = trainer
        loops.callbacks = [self, *(callback for callback in loops.callbacks if callback is not self)]
        self._stage_callbacks = StageCallbacks(trainer)
        self._folder = run_directory(trainer)
        if trainer.current_epoch == 0:
            self._reset()
        self.tasks_with_overrides(pl_module)
        for warning in unpaired_sides(pl_module.tasks) if self.target_type == "soft_tta" else ():
            rank_zero_warn(warning)
        self._loop_limits = trainer.max_epochs, trainer.max_steps, trainer.min_epochs
        # 0 without a limit, for which configure_optimizers raises.
        self._epochs = pl_module.epochs_per_stage = max(trainer.max_epochs or 0, 0)
        self._extend_max_epochs(trainer, self._epochs)
        if cast(Any, trainer).fast_dev_run:
            trainer.fit_loop.epoch_loop.max_steps *= self.stages - self.stage

    def _reset(self) -> None:
        """Forget a previous run."""
        self.stage, self.stage_start_epoch = 1 if self._teacher_paths else 0, 0
        self._teachers: list[HTTModule] = []
        self._hits: dict[str, Tensor] = {}
        self._hits_logged = False

    def _extend_max_epochs(self, trainer: L.Trainer, stage_end: int) -> None:
        """Let the training loop run from the end of this stage to that of the last one."""
        if self._epochs:
            trainer.fit_loop.max_epochs = stage_end + self._epochs * max(self.stages - self.stage - 1, 0)

    def tasks_with_overrides(self, module: HTTModule) -> list[Task]:
        """Return the tasks of a student with the thresholds, weights and exponents of this run."""
        tasks, overrides = {task.name: task for task in module.tasks}, self.task_overrides
        if self.teacher == EMA:
            unbalanced = {name: 0.0 for name, task in tasks.items() if hasattr(task, "class_balance_power")}
            overrides = overrides | {"class_balance_power": unbalanced | overrides["class_balance_power"]}
        for key, values in overrides.items():
            known = [name for name, task in tasks.items() if hasattr(task, key)]
            for name, value in values.items():
                if name not in known:
                    raise ConfigError(f"discovery.{key}s must name tasks of {', '.join(known)}, got {name}.")
                tasks[name] = replace(tasks[name], **{key: value})
        return list(tasks.values())

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume in the stage, and with the teachers, of the checkpoint."""
        if trainer.state.fn != "fit" or not isinstance(pl_module, HTTModule):
            return
        self._reset()
        if (stored := checkpoint["callbacks"].get(self.state_key)) is not None:
            kind = stored["teacher_kind"]
            if kind != self._teacher_kind:
                raise ConfigError(f"discovery.teacher must be {kind} as in --ckpt_path, got {self._teacher_kind}.")
            self.stage, self.stage_start_epoch = stored["stage"], stored["stage_start_epoch"]
            self._teachers = [
                module_from_state(teacher["hyper_parameters"], teacher["state_dict"], type(pl_module))
                for teacher in stored["teachers"]
            ]
        epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self._extend_max_epochs(trainer, max(self.stage_start_epoch + self._epochs, epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the stage, its first epoch and the teachers as plain values and tensors."""
        teachers = [{"hyper_parameters": dict(x.hparams), "state_dict": x.net.state_dict()} for x in self._teachers]
        state = {"stage": self.stage, "stage_start_epoch": self.stage_start_epoch, "teacher_kind": self._teacher_kind}
        return state | {"teachers": teachers}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the teachers from their checkpoints, unless a resumed run has restored them."""
        if not isinstance(pl_module, HTTModule) or not self._teacher_paths or self._teachers:
            return
        self._teachers = [load_teacher(path, pl_module) for path in self._teacher_paths]
        if self.student_init == "teacher":
            try:
                pl_module.net.load_state_dict(self._teachers[0].net.state_dict())
            except RuntimeError as error:
                rule = "have the student's network, or discovery.student_init must be random"
                raise CheckpointError(f"discovery.teacher must {rule}, got {self._teacher_paths[0]}.") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set up the teacher; a checkpoint's state is restored by now."""
        if isinstance(pl_module, HTTModule):
            if self.teacher == EMA and not self._teachers:
                self._teachers = [clone_module(pl_module)]
            self._last_step = trainer.global_step
            self._set_teacher(trainer, pl_module)
            self._stage_callbacks.count_from(self.stage_start_epoch)
            if trainer.global_step == 0:  # pretrained weights are loaded by now
                self._stage_callbacks.begin_stage(trainer, pl_module)
            self._start_next_stage(trainer, pl_module)
            self._ramp_up(trainer, pl_module)  # no epoch starts where a run resumes inside one

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the next stage when the last one has ended, and ramp up the loss."""
        if isinstance(pl_module, HTTModule):
            self._start_next_stage(trainer, pl_module)
            if trainer.should_stop and self._stage_callbacks.can_stop and not self._stage_callbacks.stopped:
                raise StopIteration  # ends the run, which another callback stopped as the last epoch ended
            self._ramp_up(trainer, pl_module)

    def _ramp_up(self, trainer: L.Trainer, module: HTTModule) -> None:
        if self.rampup_epochs and module.discovery is not None:
            progress = min((trainer.current_epoch - self.stage_start_epoch) / self.rampup_epochs, 1)
            module.discovery.scale = math.exp(-5 * (1 - progress) ** 2)

    def _start_next_stage(self, trainer: L.Trainer, module: HTTModule) -> None:
        loop, minimum = trainer.fit_loop, self._loop_limits[2] or 0
        loop.min_epochs = self.stage_start_epoch + minimum
        epochs = trainer.current_epoch - self.stage_start_epoch
        stopped = self._stage_callbacks.stopped and epochs >= minimum
        if self.stage + 1 >= self.stages:
            trainer.should_stop = trainer.should_stop or stopped  # a resumed run that had ended
            return
        if not stopped and not 0 < self._epochs <= epochs:
            return
        trainer.should_stop = False
        self._stage_callbacks.end_stage(trainer, module)
        if self._folder is not None:  # all ranks take part, one writes
            trainer.save_checkpoint(self._folder / "checkpoints" / f"stage_{self.stage + 1}.ckpt", weights_only=True)
        student = clone_module(module)
        sync_buffers(trainer, student.net)
        self._teachers = [*self._teachers, student] if self.stage < self.num_teachers else [student]
        self.stage, self.stage_start_epoch = self.stage + 1, trainer.current_epoch
        if self.student_init == "random" or self.stage < self.num_teachers:
            module.reset_parameters(derived_seed(self.stage, 1))
        module.discovery = None  # not a part of averaged networks
        self._stage_callbacks.begin_stage(trainer, module)
        self._stage_callbacks.count_from(self.stage_start_epoch)
        trainer.strategy.setup_optimizers(trainer)
        loop.min_epochs = self.stage_start_epoch + minimum
        self._extend_max_epochs(trainer, self.stage_start_epoch + self._epochs)
        self._set_teacher(trainer, module)

    def _set_teacher(self, trainer: L.Trainer, module: HTTModule) -> None:
        stored = getattr(getattr(trainer, "datamodule", None), "pseudo_labels", None)
        teachers = self._teachers if self.teacher == EMA or self.stage >= self.num_teachers else []
        if teachers or stored is not None:
            device, dtype = module.device, next(module.net.parameters()).dtype
            nets, tasks = [teacher.net.to(device, dtype) for teacher in teachers], self.tasks_with_overrides(module)
            options = self.target_type, self.teacher_precision, module.net if self.teacher == EMA else None
            module.discovery = TeacherEnsemble(nets, tasks, module.loss_weights, self.loss_weights, device, *options)
            self._hits_logged = False

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update an EMA teacher after every optimizer step."""
        step, stepped = trainer.global_step, trainer.global_step > self._last_step
        if self.teacher == EMA and stepped and isinstance(pl_module, HTTModule):
            update_ema(self._teachers[0].net, pl_module.net, min(self.ema_decay, (1 + step) / (10 + step)))
        self._last_step = step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log coverage and mean confidence of the pseudo-labels, and keep the run from ending with its stage."""
        if not isinstance(pl_module, HTTModule):
            return
        may_stop = self._stage_callbacks.can_stop and (self._stage_callbacks.stopped or not trainer.should_stop)
        if may_stop and self.stage + 1 < self.stages:
            trainer.fit_loop.min_epochs = trainer.max_epochs  # `EarlyStopping` decides after this hook
        if pl_module.discovery is not None:
            for name, value in pl_module.discovery.compute_and_reset().items():
                pl_module.log(f"train/{name}", value)
            if self.teacher == EMA:
                sync_buffers(trainer, self._teachers[0].net)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count correct pseudo-labels; once per frozen teacher, as the result does not change."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and isinstance(pl_module, HTTModule) and pl_module.discovery is not None and not self._hits_logged:
            for name, hits in pl_module.discovery.pseudo_label_hits(batch).items():
                self._hits[name] = torch.stack(hits) + self._hits.get(name, 0)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the accuracy of the pseudo-labels in percent, over all ranks."""
        for name, hits in self._hits.items():
            correct, counted = cast(Tensor, trainer.strategy.reduce(hits, reduce_op="sum")).double()
            pl_module.log(f"val/{name}/pseudo_label_accuracy", 100 * correct / counted)
            self._hits_logged = self.teacher != EMA
        self._hits = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn if a limit has ended training before the last stage."""
        if self._epochs and self.stage + 1 < self.stages and not trainer.interrupted:
            stage = f"stage {self.stage + 1} of {self.stages}"
            rank_zero_warn(f"Training ended in {stage}. Increase trainer.max_steps, or what else ended it.")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the limits of the trainer, and remove the teacher from the module."""
        if stage == "fit" and isinstance(pl_module, HTTModule):
            pl_module.discovery = pl_module.epochs_per_stage = None
            loop = trainer.fit_loop
            loop.max_epochs, loop.epoch_loop.max_steps, loop.min_epochs = self._loop_limits
            self._stage_callbacks.count_from(0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the limits of the trainer, as Lightning calls no ``teardown`` after an exception."""
        if trainer.state.fn == "fit" and hasattr(self, "_loop_limits"):
            self.teardown(trainer, pl_module, "fit")
