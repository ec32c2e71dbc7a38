"""When labels are discovered: the stages of a run and the teacher of each."""

import math
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from htt_lightning.data.batch import Batch
from htt_lightning.discovery.ema import agree, update_ema
from htt_lightning.discovery.loss import DiscoveryLossWeights, Precision, TargetType, TeacherEnsemble
from htt_lightning.errors import HTTError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.metrics import MeanLoss
from htt_lightning.module import HTTModule
from htt_lightning.seeding import derived_seed
from htt_lightning.tasks import Task
from htt_lightning.training.loading import clone_module, load_teacher, module_from_state

EMA, PREVIOUS = "ema", "previous"


class LabelDiscovery(Callback):
    """Trains in stages, each taught by the network of the stage before (method.md 4).

    ``trainer.max_epochs`` is the length of one stage. At the border the student becomes the frozen teacher, a new
    student starts, and optimiser and schedule begin again. Teachers live in the state of this callback; every
    checkpoint loads as the student. What a finished stage has learned is kept as ``checkpoints/stage_N.ckpt``.

    Args:
        stages: Number of stages; 1 discovers nothing.
        teacher: ``previous``: the student of the stage before. A checkpoint, or a list of them: they have been the
            first stage, which is left out. ``ema``: a moving average of the student itself, in a single stage.
        teachers: How many networks are trained on the given labels alone, from other weights and a stage each, to teach
            the first student together; feature terms, which compare with one network, have to be off. 1 as published.
        student: ``fresh`` weights at the beginning of a stage, or ``inherited`` ones from the stage before.
        ema_decay: Of the moving average, per step; it follows faster at first.
        ramp: Number of epochs over which the weight of what is discovered rises from nearly nothing at the beginning of
            a stage, as exp(-5 (1 - t)^2): a moving average knows nothing yet (Tarvainen & Valpola 2017). 0 for none.
        targets: What is learned of a missing label: ``hard`` labels where the teacher's confidence exceeds the
            threshold, as published; ``soft`` ones everywhere: its probabilities, or its depths and normals;
            ``averaged``: soft ones, averaged over an image and its mirror image shifted at random, for a second pass
            of the teacher.
        teacher_precision: ``run``: that of the run. ``bf16``: the teacher computes in bfloat16 whatever the run does,
            which takes half the time where the device has instructions for it and rounds to two or three digits.
        terms: Weights of the terms of label discovery.
        thresholds: Confidences tau in [0, 1] by task that replace the dataset's.
        betas: Weights beta of discovered labels by task that replace the dataset's.
        balances: By which power of their share soft labels of rare classes are raised, by task of classes; 0 not at
            all, which is what a moving average begins with: it would raise what it has raised before. They replace
            the dataset's.

    Raises:
        HTTError: An argument is wrong, or (from ``on_fit_start``) the teacher does not fit.
    """

    def __init__(
        self,
        stages: int = 2,
        teacher: str | list[str] = PREVIOUS,
        teachers: int = 1,
        student: Literal["fresh", "inherited"] = "fresh",
        ema_decay: float = 0.999,
        ramp: int = 0,
        targets: TargetType = "hard",
        teacher_precision: Precision = "run",
        terms: DiscoveryLossWeights = DiscoveryLossWeights(),  # noqa: B008  # frozen
        thresholds: dict[str, float] | None = None,
        betas: dict[str, float] | None = None,
        balances: dict[str, float] | None = None,
    ) -> None:
        if not stages or stages < 1:  # null passes the parser
            raise HTTError(f"discovery.stages must be at least 1, not {stages}.")
        given = [] if teacher in (EMA, PREVIOUS) else [teacher] if isinstance(teacher, str) else teacher
        if given and stages < 2:
            raise HTTError(f"discovery.teacher {given[0]} is the first stage: set discovery.stages to at least 2.")
        if isinstance(teacher, list) and not teacher:
            raise HTTError("discovery.teacher names no checkpoint; use previous, ema or at least one file.")
        if teachers < 1 or (teachers > 1 and (teacher != PREVIOUS or stages <= teachers)):
            raise HTTError(
                f"discovery.teachers is {teachers}; it must be at least 1, and more only with discovery.teacher "
                f"previous and a stage each before that of the student: discovery.stages is {stages}."
            )
        if max(teachers, len(given)) > 1 and (terms.feature_labeled or terms.feature_unlabeled):
            raise HTTError("Features of several teachers cannot be learned: set the feature terms to 0.")
        if not 0 <= ema_decay < 1:
            raise HTTError(f"discovery.ema_decay must be in [0, 1), not {ema_decay}.")
        if ramp < 0:
            raise HTTError(f"discovery.ramp must be a number of epochs, 0 or more, not {ramp}.")
        if targets not in get_args(TargetType):
            raise HTTError(f"discovery.targets is {targets!r}; it must be one of {', '.join(get_args(TargetType))}.")
        if teacher_precision not in get_args(Precision):
            raise HTTError(f"discovery.teacher_precision is {teacher_precision!r}; it must be run or bf16.")
        for task, threshold in (thresholds or {}).items():
            if not 0 <= threshold <= 1:
                raise HTTError(f"discovery.thresholds of {task} must be in [0, 1], not {threshold}.")
        self.stages, self.teacher, self.student = (1 if teacher == EMA else stages), teacher, student
        self.teachers, self._given, self.ramp = teachers, given, ramp
        self.ema_decay, self.terms, self.targets, self.precision = ema_decay, terms, targets, teacher_precision
        self.replaced = {
            "confidence_threshold": thresholds or {},
            "pseudo_label_weight": betas or {},
            "class_balance_power": balances or {},
        }
        self.stage = self.begun = 0
        self._epochs: int | None = None
        self._pool: list[HTTModule] = []
        self._account: dict[str, MeanLoss] = {}
        self._measured = False
        self._moved = 0

    @property
    def _kind(self) -> str:
        return "a checkpoint" if self._given else str(self.teacher)

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
            self.stage, self.begun, self._pool = (1 if self._given else 0), 0, []
            self._account, self._measured, pl_module.discovery = {}, False, None
        self.rules(pl_module)
        epochs = trainer.max_epochs
        if epochs is not None and epochs > 0:  # otherwise configure_optimizers complains
            self._epochs = pl_module.epochs_per_stage = epochs
            self._extend(trainer, epochs)
            if cast(Any, trainer).fast_dev_run:
                trainer.fit_loop.epoch_loop.max_steps *= self.stages - self.stage

    def _extend(self, trainer: L.Trainer, end: int) -> None:
        """Let the loop run on behind the end of this stage to that of the last one."""
        if self._epochs:
            trainer.fit_loop.max_epochs = end + self._epochs * max(self.stages - self.stage - 1, 0)

    def rules(self, module: HTTModule) -> list[Task]:
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
        if stored["kind"] != self._kind:
            raise HTTError(f"The checkpoint's discovery.teacher is {stored['kind']}, not {self._kind}.")
        self.stage, self.begun = stored["stage"], stored["begun"]
        for teacher in stored["teachers"]:
            self._pool.append(module_from_state(teacher["hyper_parameters"], teacher["state_dict"], type(pl_module)))
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self._extend(trainer, max(self.begun + (self._epochs or 0), done))

    def state_dict(self) -> dict[str, Any]:
        """Stage, its first epoch, and the teachers: plain values and tensors."""
        teachers = [{"hyper_parameters": dict(x.hparams), "state_dict": x.net.state_dict()} for x in self._pool]
        return {"kind": self._kind, "stage": self.stage, "begun": self.begun, "teachers": teachers}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read teachers that are given, unless a resumed run has brought them along."""
        if isinstance(pl_module, HTTModule) and self._given and not self._pool:
            self._pool = [load_teacher(path, pl_module) for path in self._given]
            if self.student == "inherited":
                self._inherit(pl_module, self._pool[0])

    def _inherit(self, student: HTTModule, teacher: HTTModule) -> None:
        try:
            student.net.load_state_dict(teacher.net.state_dict())
        except RuntimeError as error:
            raise HTTError(
                f"The network of teacher {self._given[0]} is another, so no student can inherit its weights; give "
                "model its settings, or set discovery.student to fresh."
            ) from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with a teacher, or in the middle of a run: everything is restored by now."""
        if isinstance(pl_module, HTTModule):
            if self.teacher == EMA and not self._pool:
                self._pool = [clone_module(pl_module)]
            self._moved = trainer.global_step
            self._teach(trainer, pl_module)
            self._cross(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Cross the border to the next stage where the last one has ended."""
        if isinstance(pl_module, HTTModule):
            self._cross(trainer, pl_module)
            if self.ramp and pl_module.discovery is not None:
                done = min((trainer.current_epoch - self.begun) / self.ramp, 1)
                pl_module.discovery.scale = math.exp(-5 * (1 - done) ** 2)

    def _cross(self, trainer: L.Trainer, module: HTTModule) -> None:
        over = self._epochs is not None and trainer.current_epoch - self.begun >= self._epochs
        if not over or self.stage + 1 >= self.stages:
            return
        self._keep(trainer)
        learned = clone_module(module)
        agree(trainer, learned.net)
        self._pool = [*self._pool, learned] if self.stage < self.teachers else [learned]
        self.stage, self.begun = self.stage + 1, trainer.current_epoch
        if self.student == "fresh" or self.stage < self.teachers:
            module.reset_parameters(derived_seed(self.stage, 1))
        trainer.strategy.setup_optimizers(trainer)
        self._extend(trainer, self.begun + (self._epochs or 0))
        self._teach(trainer, module)

    def _keep(self, trainer: L.Trainer) -> None:
        """Keep the finished stage's network; all processes take part, one writes."""
        if self._folder is not None:
            trainer.save_checkpoint(self._folder / "checkpoints" / f"stage_{self.stage + 1}.ckpt", weights_only=True)

    def _teach(self, trainer: L.Trainer, module: HTTModule) -> None:
        stored = getattr(getattr(trainer, "datamodule", None), "completed", None)
        pool = self._pool if self.teacher == EMA or self.stage >= self.teachers else []
        if pool or stored is not None:
            dtype, device = next(module.net.parameters()).dtype, module.device
            nets, weights = [teacher.net.to(device, dtype) for teacher in pool], module.loss_weights
            module.discovery = TeacherEnsemble(
                nets, self.rules(module), weights, self.terms, device, self.targets, self.precision
            )
            self._measured = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the average after every step."""
        step, moved = trainer.global_step, trainer.global_step > self._moved
        if self.teacher == EMA and moved and self._pool and isinstance(pl_module, HTTModule):
            update_ema(self._pool[0].net, pl_module.net, min(self.ema_decay, (1 + step) / (10 + step)))
        self._moved = step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log coverage and mean confidence of what has been discovered."""
        if isinstance(pl_module, HTTModule) and pl_module.discovery is not None:
            for name, value in pl_module.discovery.collect().items():
                pl_module.log(f"train/{name}", value)
            if self.teacher == EMA and self._pool:
                agree(trainer, self._pool[0].net)

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
        if fitting and isinstance(pl_module, HTTModule) and pl_module.discovery is not None and not self._measured:
            for name, (right, kept) in pl_module.discovery.precision(batch).items():
                account = self._account.setdefault(name, MeanLoss().to(pl_module.device))
                account.update(right, kept)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log that precision."""
        for name, account in self._account.items():
            pl_module.log(f"val/{name}/kept_precision", 100 * account.compute())
            self._measured = self.teacher != EMA
        self._account = {}

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
