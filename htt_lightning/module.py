"""The LightningModule for training, evaluation and prediction."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from htt_lightning.data.batch import Batch, label_weights, labeled_indices
from htt_lightning.discovery.registry import ConsistencyName, build_consistency_loss
from htt_lightning.discovery.teacher import TeacherEnsemble, make_mean_metric
from htt_lightning.errors import CheckpointError, ConfigError, did_you_mean
from htt_lightning.io.checkpoints import last_epoch
from htt_lightning.losses import ImageWeighting, LossKind, LossTerm, weights_of_images
from htt_lightning.metrics import SegmentationScores
from htt_lightning.models import DensePredictionNetwork, HTTNet, MultiTaskNet
from htt_lightning.models.backbone import Backbone
from htt_lightning.models.heads import TokenForm
from htt_lightning.models.layers import sample_weights
from htt_lightning.models.sliding_window import predict_at_original_size
from htt_lightning.optimization.mixin import OptimizationMixin
from htt_lightning.optimization.optimizers import LRInterval, WeightDecayOn, split_lr
from htt_lightning.optimization.uncertainty import TaskWeighting, UncertaintyWeights
from htt_lightning.output import TaskOutput
from htt_lightning.seeding import derived_seed, run_seed
from htt_lightning.tasks import Task
from htt_lightning.tasks.metric_spec import delta_m
from htt_lightning.tasks.serialization import check_same_tasks

ABLATIONS = ("use_global_tokens", "use_token_attention", "use_fine_tokens")
NETWORKS: dict[str, type[HTTNet | MultiTaskNet]] = {"htt": HTTNet, "multitask": MultiTaskNet}


class HTTModule(OptimizationMixin):
    """LightningModule for multi-task dense prediction with partial labels ([HiTTs](https://arxiv.org/abs/2411.18823)).

    The loss is the mean over images of the weighted sum of the losses of their labeled tasks. Distributed training
    equals training in one process with the same global batch.

    Args:
        tasks: Tasks, or the dicts that a checkpoint stores. The command line takes them from the data.
        network: ``htt``, or ``multitask`` for the baseline without tokens.
        backbone: Name of a timm model that supports ``features_only``.
        pretrained: Weights of the backbone when training starts: true for those of an installed package (extra
            ``pretrained``), or else of timm's hub; false for random ones; or a file.
        mean: Mean of the channels R, G, B in [0, 1]; None takes that of the weights, ImageNet's for random ones.
        std: Standard deviation of the channels R, G, B, above 0; None takes that of the weights.
        token_dim: Token width D.
        dropout: Dropout rate in ASPP, in [0, 1).
        dilations: Dilations in ASPP, in pixels of the finest feature map.
        token_stride: Kernel and stride of the depthwise convolutions before gates and token scores of ``htt``.
        tokens: Form of the tokens of ``htt``: ``exchange``, or ``released`` to reproduce the paper.
        use_global_tokens: False removes the global tokens of ``htt``, for ablation.
        use_token_attention: False removes its attention between features and token.
        use_fine_tokens: False removes its fine-grained tokens. Distributed training then needs the strategy
            ``ddp_find_unused_parameters_true``.
        backbone_options: Further arguments of ``timm.create_model``, such as ``{drop_path_rate: 0.15}``.
        gradient_checkpointing: True recomputes the heads in the backward pass, for less memory and longer steps.
        freeze_backbone: True keeps the backbone as it is, a number N the layers up to its N-th feature map; BatchNorm
            keeps their statistics.
        compile: True compiles the network for training, in place; or arguments of ``torch.compile``.
        lr: Learning rate of Adam.
        weight_decay: Weight decay of Adam.
        weight_decay_on: Parameters that decay: ``all``, or ``weights`` without norms, biases and tokens.
        backbone_lr_factor: Learning rate of the backbone relative to the others, above 0.
        poly_power: Exponent of the polynomial decay of the learning rate to zero, over a stage.
        optimizer: Another optimizer, as ``class_path`` and ``init_args``. Its ``lr`` replaces ``lr``.
        lr_scheduler: Another schedule, as ``class_path`` and ``init_args``. It restarts with each stage.
        lr_interval: Unit of the schedule and of ``warmup``: it advances once per ``epoch`` or per ``step``.
        warmup: Number of epochs or steps over which the learning rate rises linearly before the schedule begins.
        loss_weights: Weight lambda of the loss per task. Overrides the dataset's.
        task_weighting: ``fixed`` for these weights alone; ``uncertainty`` multiplies them by learned ones
            ([Kendall et al.](https://arxiv.org/abs/1705.07115)).
        image_weighting: Factor on the loss of an image: ``num_tasks`` for the number of tasks T; ``per_label`` for T
            over the number of its labels, so that images count equally (DiffusionMTL); ``none`` for 1 (MTPSL).
        single_task_baselines: Primary metric of a single-task model per task. Logs ``val/delta_m``.
        consistency: Loss on the unlabeled tasks of an image that needs no teacher: ``cross_task`` (MTPSL),
            ``joint_task`` (JTR) or ``fixmatch``; none by default.
        consistency_options: Options of that loss, such as ``{weight: 0.5}`` (docs/consistency.md).

    Raises:
        ConfigError: An argument is out of its range or names no task.
    """

    def __init__(
        self,
        tasks: Sequence[Task | Mapping[str, Any]],
        network: Literal["htt", "multitask"] = "htt",
        backbone: str = "resnet18",
        pretrained: bool | str = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        token_dim: int = 256,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        tokens: TokenForm = "exchange",
        use_global_tokens: bool = True,
        use_token_attention: bool = True,
        use_fine_tokens: bool = True,
        backbone_options: dict[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        freeze_backbone: bool | int = False,
        compile: bool | dict[str, Any] = False,
        lr: float = 2e-5,
        weight_decay: float = 1e-6,
        weight_decay_on: WeightDecayOn = "all",
        backbone_lr_factor: float = 1.0,
        poly_power: float = 0.9,
        optimizer: dict[str, Any] | None = None,
        lr_scheduler: dict[str, Any] | None = None,
        lr_interval: LRInterval = "epoch",
        warmup: int = 0,
        loss_weights: dict[str, float] | None = None,
        task_weighting: TaskWeighting = "fixed",
        image_weighting: ImageWeighting = "num_tasks",
        single_task_baselines: dict[str, float] | None = None,
        consistency: ConsistencyName | None = None,
        consistency_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = [task if isinstance(task, Task) else Task.from_config(task) for task in tasks]
        # Plain values only: a checkpoint loads without trusting pickled classes, in any process.
        self.save_hyperparameters(ignore=["tasks", "_instantiator"])
        optimizer, lr = split_lr(optimizer, lr)
        plain = {"tasks": [task.to_config() for task in self.tasks], "optimizer": optimizer, "lr": lr}
        self.save_hyperparameters(plain | {"lr_scheduler": lr_scheduler})  # linked options, too
        self._check_arguments()
        self.net = self.build_network()
        self.loss_weights = {task.name: task.loss_weight for task in self.tasks} | (loss_weights or {})
        self._init_state()

    def _init_state(self) -> None:
        weighting, name = self.hparams["task_weighting"], self.hparams["consistency"]
        self.uncertainty = UncertaintyWeights(self.tasks) if weighting == "uncertainty" else None
        self.consistency = build_consistency_loss(
            name, self.hparams["consistency_options"], self.tasks, self.loss_weights, self.net
        )
        self.single_task_baselines = self.hparams["single_task_baselines"] or {}
        self._pretrained_loaded = self.hparams["pretrained"] is False
        logged = [*(f"{task.name}/loss" for task in self.tasks), "pseudo_label_loss", "loss"]
        logged += ["consistency_loss"] if self.consistency else []
        self.loss_metrics: Any = nn.ModuleDict({f"train/{name}": make_mean_metric() for name in logged})
        self.val_metrics: Any = nn.ModuleDict({task.name: task.metrics() for task in self.tasks})
        self.test_metrics: Any = nn.ModuleDict({task.name: task.test_metrics() for task in self.tasks})
        self.input_size: dict[str, Any] = {}
        self.discovery: TeacherEnsemble | None = None
        self.epochs_per_stage: int | None = None
        self.last_epoch: int | None = None  # that the weights were trained in; None if unknown
        self.last_loss_terms: list[LossTerm] = []  # of the last training batch
        self.test_confusion: dict[str, Tensor] = {}  # of the last test, by task
        self._random_weights = sample_weights(self.net)

    def _check_arguments(self) -> None:
        for option, choices in {"network": (*NETWORKS,), "image_weighting": get_args(ImageWeighting)}.items():
            if (value := self.hparams[option]) not in choices:
                raise ConfigError(f"model.{option} must be one of {', '.join(choices)}, got {value!r}.")
        for option in ABLATIONS if self.hparams["network"] == "multitask" else ():
            if not self.hparams[option]:
                raise ConfigError(f"model.{option} must be true for model.network multitask, which has no tokens.")
        names = [task.name for task in self.tasks]
        for name in set(self.hparams["loss_weights"] or ()).difference(names):
            raise ConfigError(f"model.loss_weights must name tasks, got {name!r}.{did_you_mean(name, names)}")
        baselines = self.hparams["single_task_baselines"]
        for name in names if baselines else ():
            if not (value := baselines.get(name)) or not math.isfinite(value):
                raise ConfigError(f"model.single_task_baselines.{name} must be finite and not zero, got {value}.")
        self.check_optimization_arguments()

    def build_network(self) -> nn.Module:
        """Build the network of the hyperparameters, with random weights.

        A subclass may return any module that maps images to a ``TaskOutput`` per task.
        """
        keys = ["backbone", "backbone_options", "mean", "std"]
        keys += ["token_dim", "dropout", "dilations", "gradient_checkpointing"]
        keys += ["token_stride", "tokens", *ABLATIONS] if self.hparams["network"] == "htt" else []
        num_tokens = {task.name: task.num_tokens for task in self.tasks}
        net = NETWORKS[self.hparams["network"]](num_tokens, **{key: self.hparams[key] for key in keys})
        return net.to(memory_format=torch.channels_last)  # the fastest layout for convolutions

    def reset_parameters(self, seed: int) -> None:
        """Reset the network in place to random weights of a seed, or to pretrained ones; reset its consistency loss."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net.load_state_dict(self.build_network().state_dict())
            if self.consistency is not None:
                self.consistency.reset_parameters()
        self._pretrained_loaded = self.hparams["pretrained"] is False
        self._load_pretrained_backbone()
        if self.uncertainty is not None:
            self.uncertainty.reset()

    def _load_pretrained_backbone(self) -> None:
        if not self._pretrained_loaded:
            source = Backbone(*(self.hparams[key] for key in ("backbone", "pretrained", "backbone_options")))
            net = cast(DensePredictionNetwork, self.net)
            net.backbone.load_state_dict(source.state_dict())
            net.set_normalization(self.hparams["mean"] or source.mean, self.hparams["std"] or source.std)
        self._pretrained_loaded = True

    @property
    def has_random_weights(self) -> bool:
        """True until the weights behind the backbone change, in whatever way: training or loading."""
        if self.last_epoch is not None:
            return False
        sample = sample_weights(self.net)
        return torch.equal(sample, self._random_weights.to(sample.dtype))

    def forward(self, image: Tensor) -> dict[str, TaskOutput]:
        """Map RGB images in [0, 1], ``b 3 h w``, to one output per task."""
        return cast(dict[str, TaskOutput], self.net(image))

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, by default Adam and a polynomial decay to zero once per epoch."""
        self._load_pretrained_backbone()  # before callbacks that search for a learning rate begin
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Load the backbone's pretrained weights, unless a checkpoint has restored weights."""
        self._load_pretrained_backbone()
        super().on_fit_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seed and the input size in evaluation, so that prediction needs no dataset."""
        checkpoint["seed"] = run_seed()
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["input_size"] = getattr(data, "input_size", self.input_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint has the same tasks, and can be resumed if it is."""
        super().on_load_checkpoint(checkpoint)
        self._pretrained_loaded, self.input_size = True, checkpoint.get("input_size", {})
        self.last_epoch = last_epoch(checkpoint)
        if self._trainer and self.trainer.state.fn == "fit" and "optimizer_states" not in checkpoint:
            advice = "Resume from last.ckpt, or set discovery.teacher to this one."
            raise CheckpointError(f"--ckpt_path must be a training checkpoint, got one without optimizer. {advice}")
        check_same_tasks(self.tasks, checkpoint["hyper_parameters"]["tasks"], "The checkpoint")
        for option in ("tokens", "consistency", "consistency_options"):
            stored, given = checkpoint["hyper_parameters"].get(option), self.hparams[option]
            if (stored or None) != (given or None):
                raise CheckpointError(f"model.{option} must be {stored}, as in the checkpoint, got {given}.")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as PyTorch does, but raise a ``CheckpointError`` if they do not fit."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise CheckpointError(f"The weights of the checkpoint do not fit its hyperparameters: {error}") from error

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Note the epoch, and reseed dropout at its start, so that it depends on seed and epoch alone."""
        # Not in `on_train_epoch_start`, which Lightning skips in the first epoch of a resumed run.
        if batch_idx == 0:
            torch.manual_seed(derived_seed(self.current_epoch))
        self.last_epoch = self.current_epoch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch, and log its terms as means over the epoch."""
        (total, pseudo_label_loss), batch_size = self.loss(batch), len(batch["image"])
        logged = {f"train/{x.task}/loss": x.loss for x in self.last_loss_terms if x.kind == LossKind.SUPERVISED}
        if pseudo_label_loss is not None:
            logged["train/pseudo_label_loss"] = pseudo_label_loss
        logged |= {f"train/{x.kind}_loss": x.loss for x in self.last_loss_terms if x.kind == LossKind.CONSISTENCY}
        for key, values in (logged | {"train/loss": total.detach()}).items():
            metric = self.loss_metrics[key]
            metric.update(values)
            self.log(key, metric, on_step=False, on_epoch=True, batch_size=batch_size, prog_bar=key == "train/loss")
        return total

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Compute the loss, a scalar, and its part from label discovery per image, ``b`` (None without a teacher)."""
        outputs, indices = self(batch["image"]), labeled_indices(batch)
        labeled = [batch["labeled"][task.name] for task in self.tasks]
        image_weights = weights_of_images(labeled, self.hparams["image_weighting"])
        total, pseudo_label_loss, self.last_loss_terms = torch.zeros((), device=self.device), None, []
        for task in self.tasks:
            name, selected = task.name, indices[task.name]
            output = TaskOutput(*(x[selected] for x in outputs[name]))  # unlabeled images are not resized to pixels
            # Without labeled images, the head stays in the graph with zero gradient: distributed training waits for it.
            losses = task.loss(output, batch[name][selected]) if len(selected) else output.logits.flatten(1).sum(1)
            self.last_loss_terms.append(LossTerm(name, LossKind.SUPERVISED, losses.detach(), selected))
            losses = losses if self.uncertainty is None else self.uncertainty(name, losses)
            weights = (image_weights * label_weights(batch, name))[selected]
            total = total + self.loss_weights[name] * (losses * weights).sum()
        if self.discovery is not None:
            if self.uncertainty is not None:
                self.discovery.task_weights = self.task_weights()
            pseudo_label_loss = self.discovery.loss(batch, outputs)
            self.last_loss_terms += self.discovery.last_loss_terms
            total = total + (pseudo_label_loss * image_weights).sum()
        if self.consistency is not None:
            losses = self.consistency(batch, outputs, self.net, self.current_epoch)
            self.last_loss_terms.append(LossTerm(self.consistency.name, LossKind.CONSISTENCY, losses.detach()))
            total = total + (losses * image_weights).sum()
        return total / len(image_weights), None if pseudo_label_loss is None else pseudo_label_loss.detach()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the metrics, and return the decoded maps for callbacks."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Update the test metrics, and return the decoded maps."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return ``id`` and the decoded maps, at the original size of images that have a ``view``."""
        if "view" not in batch:
            return {"id": batch["id"], **self.decode(batch["image"])}
        parts = (batch[key] for key in ("image", "view", "tile_size"))
        return {"id": batch["id"], **predict_at_original_size(self, self.tasks, *parts)}

    def decode(self, image: Tensor) -> dict[str, Tensor]:
        """Predict the map of every task at the size of RGB images in [0, 1], ``b 3 h w``."""
        outputs, size = self(image), (image.shape[-2], image.shape[-1])
        return {task.name: task.decode(outputs[task.name], size) for task in self.tasks}

    def _evaluate(self, batch: Batch, metrics: Mapping[str, Metric | MetricCollection]) -> dict[str, Tensor]:
        maps = self.decode(batch["image"])
        for task, metric in metrics.items():
            labeled = batch["labeled"][task]
            metric.update(maps[task][labeled], batch[task][labeled])
        return maps

    def on_validation_epoch_end(self) -> None:
        """Log all metrics, and Delta_m if there are single-task baselines."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log all test metrics, and keep the confusion matrices, for figures per class."""
        self.test_confusion = {
            task: metric.synced_confusion()
            for task, metric in self.test_metrics.items()
            if isinstance(metric, SegmentationScores)
        }
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, split: str, metrics: Mapping[str, Metric | MetricCollection]) -> None:
        values: dict[str, float] = {}
        for task, metric in metrics.items():
            values |= {f"{task}/{name}": float(value) for name, value in metric.compute().items()}
            metric.reset()
        if self.single_task_baselines:
            primary = {task.name: values[f"{task.name}/{task.primary_metric}"] for task in self.tasks}
            specs = {task.name: task.metric_spec(task.primary_metric) for task in self.tasks}
            values["delta_m"] = delta_m(specs, primary, self.single_task_baselines)
        # Metrics have synchronized themselves, so all ranks hold the same values.
        self.log_dict({f"{split}/{name}": value for name, value in values.items()})
