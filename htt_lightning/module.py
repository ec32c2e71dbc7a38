"""Training, evaluation and prediction; the layers are in ``models``, what differs between tasks is in ``tasks``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, MetricCollection

from htt_lightning.data.batch import Batch, labeled_indices
from htt_lightning.discovery.loss import TeacherEnsemble, make_mean_metric
from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.losses import LossKind, LossTerm
from htt_lightning.models import DensePredictionNetwork, HTTNet, MultiTaskNet
from htt_lightning.models.backbone import Backbone
from htt_lightning.models.sliding_window import predict_at_original_size
from htt_lightning.optimizer import adam
from htt_lightning.output import TaskOutput
from htt_lightning.seeding import derived_seed, run_seed
from htt_lightning.tasks import Task
from htt_lightning.tasks.metric_spec import delta_m
from htt_lightning.tasks.serialization import check_same_tasks

M = TypeVar("M", bound=nn.Module)
ImageWeighting = Literal["num_tasks", "per_label", "none"]
"""What the loss of an image is multiplied by; see ``HTTModule``."""
NETWORKS: dict[str, type[HTTNet | MultiTaskNet]] = {"htt": HTTNet, "multitask": MultiTaskNet}


class HTTModule(L.LightningModule):
    """A network trained on the labels there are (method.md 3 and 5).

    The loss is the mean over the images of a batch of the sum over tasks of their labelled terms, weighted by lambda,
    times T (see ``image_weighting``). Several processes agree with one that has the whole batch.

    Args:
        tasks: The tasks, as objects or as the dicts a checkpoint holds; the command line takes them from the data.
        network: ``htt``, or ``multitask`` for the baseline without tokens.
        backbone: A timm model with ``features_only``, see ``Backbone``.
        pretrained: Backbone weights when training begins: true (timm's hub), false (from scratch) or a local file.
        token_dim: Token width D.
        dropout: Rate in ASPP.
        dilations: In ASPP, in pixels of the finest map (a quarter of the image for ResNets).
        token_stride: Kernel and stride r of the depthwise convolutions behind gates and token scores of ``htt``.
        use_global_tokens: Whether ``htt`` has global tokens; false for ablation.
        use_fine_tokens: Whether it has fine-grained tokens; false for ablation (with several processes, strategy
            ``ddp_find_unused_parameters_true``).
        backbone_options: Further arguments of ``timm.create_model``, such as ``{drop_path_rate: 0.15}``.
        gradient_checkpointing: Whether the backward pass recomputes the heads instead of keeping them: less memory,
            longer steps, the same gradients.
        lr: Learning rate of Adam.
        weight_decay: Of all parameters.
        poly_power: Of the polynomial decay to zero, per epoch.
        loss_weights: Loss weights lambda by task that replace the dataset's.
        image_weighting: Factor on the loss of an image: ``num_tasks`` for the number of tasks T; ``per_label`` for T
            over the number of its labels, so that images count equally (DiffusionMTL); ``none`` for 1 (MTPSL).
        single_task_baselines: Headline figures of single-task models by task; with them, ``val/delta_m`` is logged.

    Raises:
        HTTError: An argument is wrong, or (from ``on_fit_start``) pretrained weights cannot be had.
    """

    def __init__(
        self,
        tasks: Sequence[Task | Mapping[str, Any]],
        network: Literal["htt", "multitask"] = "htt",
        backbone: str = "resnet18",
        pretrained: bool | str = False,
        token_dim: int = 256,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        use_global_tokens: bool = True,
        use_fine_tokens: bool = True,
        backbone_options: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        lr: float = 2e-5,
        weight_decay: float = 1e-6,
        poly_power: float = 0.9,
        loss_weights: dict[str, float] | None = None,
        image_weighting: ImageWeighting = "num_tasks",
        single_task_baselines: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = [task if isinstance(task, Task) else Task.from_config(task) for task in tasks]
        # Plain values only: a checkpoint loads without trusting pickled classes, in any process.
        self.save_hyperparameters(ignore=["tasks", "_instantiator"])
        self.save_hyperparameters({"tasks": [task.to_config() for task in self.tasks]})
        if not isinstance(network, str) or network not in NETWORKS:
            hint = did_you_mean(str(network), NETWORKS)
            raise HTTError(f"model.network is {network!r}; it must be one of {', '.join(NETWORKS)}.{hint}")
        if image_weighting not in get_args(ImageWeighting):
            raise HTTError(
                f"model.image_weighting is {image_weighting!r}; it must be one of "
                f"{', '.join(get_args(ImageWeighting))}."
            )
        self.net = self.build_network()
        self.loss_weights = {task.name: task.loss_weight for task in self.tasks} | self._validate_task_keys(
            "loss_weights", loss_weights
        )
        self.single_task_baselines = single_task_baselines or {}
        figures = {
            task.name: self.single_task_baselines.get(task.name) for task in self.tasks if self.single_task_baselines
        }
        lacking = [name for name, figure in figures.items() if not figure or not math.isfinite(figure)]
        if lacking:
            raise HTTError(
                f"model.single_task_baselines needs a finite figure other than zero for {', '.join(lacking)}."
            )
        logged = [*(f"{task.name}/loss" for task in self.tasks), "pseudo_label_loss", "loss"]
        self.loss_metrics = _module_dict({f"train/{name}": make_mean_metric() for name in logged})
        self.val_metrics = _module_dict({task.name: task.metrics() for task in self.tasks})
        self.test_metrics = _module_dict({task.name: task.test_metrics() for task in self.tasks})
        self._pretrained_loaded = pretrained is False
        self.input_size: dict[str, Any] = {}
        self.discovery: TeacherEnsemble | None = None
        self.epochs_per_stage: int | None = None
        self.last_loss_terms: list[LossTerm] = []  # what the loss of the last training batch was made of

    def build_network(self) -> nn.Module:
        """A network as the hyperparameters say, with new random weights that are not pretrained.

        A subclass may return any module that keeps the contract of ``TaskOutput``.
        """
        network = self.hparams["network"]
        keys = ["backbone", "backbone_options", "token_dim", "dropout", "dilations", "gradient_checkpointing"]
        keys += ["token_stride", "use_global_tokens", "use_fine_tokens"] if network == "htt" else []
        counts = {task.name: task.num_tokens for task in self.tasks}
        net = NETWORKS[network](counts, **{key: self.hparams[key] for key in keys})
        return net.to(memory_format=torch.channels_last)  # what convolutions are fastest in

    def reset_parameters(self, seed: int) -> None:
        """Give the network the weights of a new one, pretrained ones included.

        The parameters stay the same objects, which optimisers and distributed training hold on to.

        Args:
            seed: What random weights are drawn from.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net.load_state_dict(self.build_network().state_dict())
        self._load_pretrained_backbone()

    def _validate_task_keys(self, key: str, values: Mapping[str, float] | None) -> dict[str, float]:
        names = [task.name for task in self.tasks]
        for name in values or {}:
            if name not in names:
                hint = did_you_mean(name, names)
                raise HTTError(f"model.{key} names {name!r}, but the tasks are {', '.join(names)}.{hint}")
        return dict(values or {})

    def forward(self, image: Tensor) -> dict[str, TaskOutput]:
        """RGB in [0, 1], ``b 3 h w``, to one output per task."""
        outputs: dict[str, TaskOutput] = self.net(image)
        return outputs

    def on_fit_start(self) -> None:
        """Fetch the backbone's pretrained weights when training begins, unless a checkpoint has brought its own."""
        if not self._pretrained_loaded:
            self._load_pretrained_backbone()

    def _load_pretrained_backbone(self) -> None:
        if self.hparams["pretrained"] is not False:
            source = Backbone(*(self.hparams[key] for key in ("backbone", "pretrained", "backbone_options")))
            cast(DensePredictionNetwork, self.net).backbone.load_state_dict(source.state_dict())
        self._pretrained_loaded = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the seed, and at what size the network sees images in evaluation: for prediction without the dataset."""
        checkpoint["seed"] = run_seed()
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["input_size"] = getattr(data, "input_size", self.input_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other tasks, or of tasks set up otherwise, before its outputs are misread."""
        self._pretrained_loaded, self.input_size = True, checkpoint.get("input_size", {})
        if self._trainer and self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            raise HTTError(
                "The checkpoint holds weights alone, which no run can go on from: give it as discovery.teacher, or "
                "resume with last.ckpt."
            )
        check_same_tasks(self.tasks, checkpoint["hyper_parameters"]["tasks"], "The checkpoint")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As PyTorch's, but weights of another network raise an ``HTTError``."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise HTTError(f"The weights of the checkpoint do not fit the network it describes: {error}") from error

    def on_train_start(self) -> None:
        """Take the learning rate from the schedule: a resumed run may be given more epochs than it was begun with."""
        if isinstance(schedule := self.lr_schedulers(), LambdaLR):
            groups = schedule.optimizer.param_groups
            for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseed dropout as an epoch begins: it depends on (seed, epoch), not on what ran before.

        Here, because Lightning leaves out ``on_train_epoch_start`` in the first epoch of a resumed run.
        """
        if batch_idx == 0:
            torch.manual_seed(derived_seed(self.current_epoch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, and the means over an epoch of what it is made of."""
        (total, discovered), images = self.loss(batch), len(batch["image"])
        for task, kind, losses, _ in self.last_loss_terms:
            if kind == LossKind.SUPERVISED:
                self._log_loss(f"train/{task}/loss", losses, images)
        if discovered is not None:
            self._log_loss("train/pseudo_label_loss", discovered, images)
        self._log_loss("train/loss", total.detach(), images, prog_bar=True)
        return total

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss of the labels there are (method.md 3) and of those that are discovered (4); these also by image.

        Args:
            batch: A training batch.
        """
        outputs, rows = self(batch["image"]), batch.get("labeled_indices") or labeled_indices(batch)
        factor = self._image_weights(batch["labeled"])
        total, discovered, self.last_loss_terms = torch.zeros((), device=self.device), None, []
        for task in self.tasks:
            name = task.name
            losses = self._supervised_losses(task, outputs[name], batch[name], rows[name])
            self.last_loss_terms.append(LossTerm(name, LossKind.SUPERVISED, losses.detach(), rows[name]))
            total = total + self.loss_weights[name] * (losses * factor[rows[name]]).sum()
        if self.discovery is not None:
            discovered = self.discovery.loss(batch, outputs)
            self.last_loss_terms += self.discovery.last_loss_terms
            total = total + (discovered * factor).sum()
        return total / len(factor), None if discovered is None else discovered.detach()

    def _image_weights(self, labeled: Mapping[str, Tensor]) -> Tensor:
        """What the loss of each image is multiplied by, ``b``, from which labels it has."""
        marks, tasks = torch.stack([labeled[task.name] for task in self.tasks]), len(self.tasks)
        if self.hparams["image_weighting"] == "per_label":
            return tasks / marks.sum(0).clamp(min=1)
        return torch.full(
            marks.shape[1:], float(tasks if self.hparams["image_weighting"] == "num_tasks" else 1), device=marks.device
        )

    def _supervised_losses(self, task: Task, output: TaskOutput, target: Tensor, rows: Tensor) -> Tensor:
        """Loss of each labelled image, ``len(rows)``; the others are not even enlarged to pixels.

        Where no image is labelled, the head stays in the graph with zero gradient: distributed training waits for it.
        """
        chosen = TaskOutput(*(x[rows] for x in output))
        return task.loss(chosen, target[rows]) if len(rows) else chosen.logits.flatten(1).sum(1)

    def _log_loss(self, key: str, loss: Tensor, images: int, **options: Any) -> None:
        """Log the mean loss per image over an epoch."""
        self.loss_metrics[key].update(loss)
        self.log(key, self.loss_metrics[key], on_step=False, on_epoch=True, batch_size=images, **options)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics; the decoded maps go to whoever draws them."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """As in validation."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Decoded maps by task at the size of the images, and ``id``; at their own size where they have a ``view``."""
        if "view" in batch:
            return {
                "id": batch["id"],
                **predict_at_original_size(self, self.tasks, batch["image"], batch["view"], batch["tile_size"]),
            }
        return {"id": batch["id"], **self.decode(batch["image"])}

    def decode(self, image: Tensor) -> dict[str, Tensor]:
        """The maps a user wants, by task, at the size of the image.

        Args:
            image: RGB in [0, 1], ``b 3 h w``.
        """
        outputs, size = self(image), (image.shape[-2], image.shape[-1])
        return {task.name: task.decode(outputs[task.name], size) for task in self.tasks}

    def _evaluate(self, batch: Batch, metrics: Mapping[str, Metric | MetricCollection]) -> dict[str, Tensor]:
        maps = self.decode(batch["image"])
        for task, metric in metrics.items():
            seen = batch["labeled"][task]
            metric.update(maps[task][seen], batch[task][seen])
        return maps

    def on_validation_epoch_end(self) -> None:
        """Log every metric, and Delta_m where single-task figures are given."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """As after validation."""
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, split: str, metrics: Mapping[str, Metric | MetricCollection]) -> None:
        values: dict[str, float] = {}
        for task, metric in metrics.items():
            values |= {f"{task}/{figure}": float(value) for figure, value in metric.compute().items()}
            metric.reset()
        if self.single_task_baselines:
            headlines = {task.name: values[f"{task.name}/{task.primary_metric}"] for task in self.tasks}
            kinds = {task.name: task.metric_spec(task.primary_metric) for task in self.tasks}
            values["delta_m"] = delta_m(kinds, headlines, self.single_task_baselines)
        # Every metric has synchronised itself, so all ranks hold the same values.
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam and polynomial decay to zero, stepped per epoch (method.md 5)."""
        epochs = self.epochs_per_stage or self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise HTTError(f"The learning rate decays over trainer.max_epochs; set it to at least 1 (it is {epochs}).")
        rate, decay = self.hparams["lr"], self.hparams["weight_decay"]
        # Many small tensors: one pass over all of them. Lightning cannot clip gradients of mixed precision then.
        fused = self._trainer is None or not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = adam(self.parameters(), rate, decay, fused)
        schedule = LambdaLR(optimizer, lambda epoch: max(1 - epoch / epochs, 0) ** self.hparams["poly_power"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


def _module_dict(metrics: dict[str, M]) -> Mapping[str, M]:
    """Metrics that move with the module."""
    return cast("Mapping[str, M]", nn.ModuleDict(metrics))
