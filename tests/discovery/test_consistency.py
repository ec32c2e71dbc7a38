"""Laws that hold for every consistency loss, in the module and in whole runs."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from htt_lightning import HTTModule, HTTPredictor, LabelDiscovery
from htt_lightning.callbacks.nonfinite_guard import describe_nonfinite
from htt_lightning.commands.export import export
from htt_lightning.discovery.registry import CONSISTENCY_LOSSES
from htt_lightning.errors import CheckpointError
from htt_lightning.losses import LossKind
from htt_lightning.training.loading import load_teacher
from tests.callbacks.test_label_discovery import few, fitted, stored
from tests.test_module import assert_same, silent
from tests.tiny import tiny_data, tiny_module, tiny_trainer

each_name = pytest.mark.parametrize("name", CONSISTENCY_LOSSES)


@pytest.fixture(scope="module")
def data():
    data = tiny_data(labels="random-label")
    data.setup("fit")
    return data


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def module_with(data, name, **changes):
    torch.manual_seed(0)
    return silent(tiny_module(data, dropout=0.0, consistency=name, **changes))


def step(module, batch):
    """Return loss and gradients of a training step."""
    torch.manual_seed(0)
    module.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def term_of(module):
    (term,) = (term for term in module.last_loss_terms if term.kind == LossKind.CONSISTENCY)
    return term


def test_module_without_consistency_has_no_trace_of_it(data, batch):
    module = module_with(data, None)
    assert module.consistency is None
    assert not [key for key in (*module.state_dict(), *module.loss_metrics) if "consistency" in key]
    step(module, batch)
    assert {term.kind for term in module.last_loss_terms} == {LossKind.SUPERVISED}


@each_name
def test_network_starts_from_the_same_weights(name, data):
    module = module_with(data, name)
    assert_same(module_with(data, None).net.state_dict(), module.net.state_dict())
    assert {key.partition(".")[0] for key in module.state_dict()} <= {"net", "consistency"}


@each_name
def test_loss_adds_to_the_supervised_one(name, data, batch):
    alone, module = module_with(data, None), module_with(data, name, consistency_options={"weight": 0.5})
    supervised, total = step(alone, batch)[0], step(module, batch)[0]
    term = term_of(module)
    assert term.loss.shape == (4,)
    assert not term.loss.requires_grad
    assert (term.loss > 0).any()
    torch.testing.assert_close(total, supervised + len(data.tasks) * term.loss.mean())
    step(whole := module_with(data, name), batch)
    torch.testing.assert_close(term_of(whole).loss, 2 * term.loss)
    assert_same(dict(alone.named_buffers()), dict(module.named_buffers()))  # running statistics of BatchNorm


@each_name
def test_gradient_reaches_network_and_loss(name, data, batch):
    module = module_with(data, name, loss_weights={task.name: 0.0 for task in data.tasks if name != "fixmatch"})
    gradients = step(module, batch)[1]
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    learned = {key for key, gradient in gradients.items() if gradient.any()}
    ends = ("net.backbone.model.conv1.0.weight", *(f"net.heads.{task.name}.classify.weight" for task in data.tasks))
    assert learned >= {key for key in gradients if key.startswith("consistency") or key in ends}


@each_name
def test_hidden_labels_change_nothing_bitwise(name, data, batch):
    module = module_with(data, name)
    loss, gradients = step(module, batch)
    for task in data.tasks:
        hidden = ~batch["labeled"][task.name]
        batch[task.name][hidden] = 0 if task.field_channels is None else 0.5
    other, others = step(module_with(data, name), batch)
    assert loss == other
    assert_same(gradients, others)


@each_name
def test_given_labels_change_the_loss(name, data, batch):
    step(module := module_with(data, name), batch)
    loss = term_of(module).loss
    for task in data.tasks:
        batch[task.name] = batch[task.name].flip(-1)
    step(other := module_with(data, name), batch)
    assert torch.equal(loss, term_of(other).loss) == (name == "fixmatch")


@each_name
def test_loss_of_an_image_is_independent_of_others(name, data, batch):
    """With running statistics, as BatchNorm makes images depend on each other."""
    module = module_with(data, name).double()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    batch["image"] = batch["image"].double()
    step(module, batch)
    together = term_of(module).loss
    for k in range(4):
        single = {
            key: {task: x[k : k + 1] for task, x in value.items()} if isinstance(value, dict) else value[k : k + 1]
            for key, value in batch.items()
        }
        step(module, single)
        torch.testing.assert_close(term_of(module).loss, together[k : k + 1])


@each_name
def test_batch_without_labels_keeps_parameters_in_the_graph(name, data, batch):
    for labeled in batch["labeled"].values():
        labeled[:] = False
    gradients = step(module_with(data, name), batch)[1]  # every parameter has one
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@each_name
def test_deep_copy_trains_like_the_module(name, data, batch):
    module = module_with(data, name)
    copied = silent(copy.deepcopy(module))
    (loss, gradients), (other, others) = step(copied, batch), step(module, batch)
    assert loss == other
    assert_same(gradients, others)


@each_name
def test_mixed_precision_has_finite_gradients(name, data, batch):
    with torch.autocast("cpu", torch.bfloat16):
        gradients = step(module := module_with(data, name), batch)[1]
    assert term_of(module).loss.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@each_name
def test_guard_names_loss_and_image(name, data, batch):
    step(module := module_with(data, name), batch)
    term = term_of(module)
    term.loss[2] = torch.nan
    assert describe_nonfinite([term], batch) == [f"  {name}, consistency: image '{batch['id'][2]}'"]


@pytest.mark.parametrize("name", ["cross_task", "joint_task"])
def test_reset_parameters_depends_on_the_seed_alone(name, data):
    one, other = module_with(data, name), tiny_module(data, consistency=name)
    before = {key: value.clone() for key, value in one.state_dict().items()}
    one.reset_parameters(5), other.reset_parameters(5)
    assert_same(one.state_dict(), other.state_dict())
    drawn = [key for key in before if key.startswith("consistency") and key.endswith("weight") and before[key].ndim > 2]
    assert not any(torch.equal(before[key], one.state_dict()[key]) for key in drawn)
    assert not any(one.state_dict()[key].any() for key in before if "film" in key)
    one.reset_parameters(6)
    assert not any(torch.equal(other.state_dict()[key], one.state_dict()[key]) for key in drawn)


class Starts(Callback):
    """Record the state of the consistency loss at the end and the start of epochs."""

    def __init__(self):
        self.ended, self.started = [], []

    @staticmethod
    def state(module):
        return {key: value.clone() for key, value in module.consistency.state_dict().items()}

    def on_train_epoch_start(self, trainer, pl_module):
        self.started.append(self.state(pl_module))

    def on_train_epoch_end(self, trainer, pl_module):
        self.ended.append(self.state(pl_module))


def run(folder, name, seed=0, ckpt_path=None, **discovery):
    """Train two stages of one epoch."""
    torch.manual_seed(seed)
    data, starts = few(), Starts()
    module = tiny_module(data, consistency=name)
    fitted(folder, LabelDiscovery(**discovery), seed, data, ckpt_path, module, callbacks=[starts], max_epochs=1)
    return module, starts


@pytest.fixture(scope="module", params=CONSISTENCY_LOSSES)
def staged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *run(folder, request.param)


def test_resumed_run_equals_an_uninterrupted_one(staged, tmp_path):
    name, folder, module, _ = staged
    assert module.trainer.callback_metrics["train/consistency_loss"] > 0
    resumed, _ = run(tmp_path, name, seed=9, ckpt_path=folder / "kept" / "epoch=0.ckpt")
    assert_same(module.state_dict(), resumed.state_dict())


def test_new_student_gets_a_new_loss(staged):
    _, _, _, starts = staged
    for key in starts.ended[0]:
        if key.endswith("weight") and starts.ended[0][key].ndim > 2:
            assert not torch.equal(starts.ended[0][key], starts.started[1][key])
            assert not torch.equal(starts.started[0][key], starts.started[1][key])


def test_student_of_its_teacher_keeps_the_loss(tmp_path):
    _, starts = run(tmp_path, "joint_task", student_init="teacher")
    assert_same(starts.ended[0], starts.started[1])


def test_teacher_has_no_part_of_the_loss(staged):
    _, folder, module, _ = staged
    teacher = stored(folder, 1)["callbacks"]["LabelDiscovery"]["teachers"][0]["state_dict"]
    assert teacher.keys() == module.net.state_dict().keys()
    student = tiny_module(few())
    assert load_teacher(str(folder / "kept" / "epoch=0.ckpt"), student).net.state_dict().keys() == teacher.keys()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_predictions_come_from_the_network_alone(staged, tmp_path):
    name, folder, module, _ = staged
    path = folder / "kept" / "epoch=1.ckpt"
    plain = tiny_module(few())
    plain.net.load_state_dict(module.net.state_dict())
    image = torch.rand(3, 32, 48)
    ours = HTTPredictor.from_checkpoint(path)(image)
    maps = plain.eval().decode(image[None])
    for task, values in ours.items():
        torch.testing.assert_close(values, maps[task][0])
    export(str(path), "safetensors", str(tmp_path / "net.safetensors"))
    plain.net.save_pretrained(tmp_path / "plain")
    module.net.save_pretrained(tmp_path / "trained")
    files = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("plain", "trained")]
    assert files[0] == files[1]
    metrics = tiny_trainer(tmp_path).validate(module, few(), ckpt_path=path, verbose=False)
    assert metrics == tiny_trainer(tmp_path).validate(plain, few(), verbose=False), name


def test_checkpoint_of_another_loss_is_refused(staged, tmp_path):
    name, folder, _, _ = staged
    path = folder / "kept" / "epoch=0.ckpt"
    other = next(key for key in CONSISTENCY_LOSSES if key != name)
    for given in (None, other):
        message = rf"model\.consistency must be {name}, as in the checkpoint, got {given}"
        with pytest.raises(CheckpointError, match=message):
            run(tmp_path, given, ckpt_path=path)
    module = HTTModule.load_from_checkpoint(path, consistency_options={"weight": 2.0})
    with pytest.raises(CheckpointError, match=r"model\.consistency_options must be None, .*got \{'weight': 2\.0\}"):
        fitted(tmp_path, module=module, ckpt_path=path)
