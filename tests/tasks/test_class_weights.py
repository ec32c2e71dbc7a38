import pytest
import torch
import torch.nn.functional as F

from htt_lightning import HTTModule
from htt_lightning.errors import ConfigError
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import Depth, HumanParts, SemSeg
from htt_lightning.tasks.pseudo_label import PseudoLabel
from htt_lightning.tasks.semseg import median_frequency
from tests.callbacks.test_label_discovery import few, fitted, stored
from tests.tiny import tiny_data, tiny_module

CLASSES = ("wall", "floor", "chair")


def output():
    torch.manual_seed(0)
    return TaskOutput(torch.randn(2, 3, 4, 4), torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))


def target():
    torch.manual_seed(1)
    target = torch.randint(0, 3, (2, 4, 4))
    target[0, 0] = 255
    return target


def test_loss_is_the_weighted_cross_entropy_of_torch():
    task = SemSeg(classes=CLASSES, class_weights=(0.5, 2.0, 3.0))
    x, y = output(), target()
    weight = torch.tensor([0.5, 2.0, 3.0])
    expected = [F.cross_entropy(x.logits[i : i + 1], y[i : i + 1], weight, ignore_index=255) for i in range(2)]
    torch.testing.assert_close(task.loss(x, y), torch.stack(expected))


def test_image_of_classes_without_weight_has_no_loss():
    x, y = output(), torch.zeros(2, 4, 4, dtype=torch.long)
    x.logits.requires_grad_()
    loss = SemSeg(classes=CLASSES, class_weights=(0.0, 1.0, 1.0)).loss(x, y)
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert (x.logits.grad == 0).all()


def test_pseudo_labels_are_weighted():
    task, x = SemSeg(classes=CLASSES, class_weights=(0.5, 2.0, 3.0), confidence_threshold=0.5), output()
    label, confidence = target().masked_fill(target() == 255, 0), torch.rand(2, 4, 4)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    weight = torch.tensor([0.5, 2.0, 3.0])[label]
    losses = weight * F.cross_entropy(x.logits, label, reduction="none") * (confidence > 0.5)
    expected = losses.sum((1, 2)) / weight.sum((1, 2))
    torch.testing.assert_close(task.pseudo_label_loss(x, PseudoLabel(label, confidence), valid), expected)


def test_mapping_names_classes_and_others_weigh_one():
    task = SemSeg(classes=CLASSES, class_weights={"floor": 3})
    assert task.class_weights == (1.0, 3, 1.0)
    assert SemSeg.from_config(task.to_config()) == task
    (task,) = tiny_data(task_overrides={"semseg": {"class_weights": {"wall": 2}}}, tasks="semseg").tasks
    assert sum(task.class_weights) == len(task.classes) + 1


@pytest.mark.parametrize(
    "weights", [(1.0, 2.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, float("nan")), {"chiar": 2.0}, "frequency"]
)
def test_wrong_class_weights_are_named(weights):
    with pytest.raises(ConfigError, match=r"class_weights of semseg must .*got"):
        SemSeg(classes=CLASSES, class_weights=weights)


def test_median_frequency_is_that_of_eigen_and_fergus():
    targets = [torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 255, 2]])]
    # Shares of the images that have the class: 5/7, 1/4, 1/3. The median is 1/3.
    assert median_frequency(targets, 4) == pytest.approx((7 / 15, 4 / 3, 1.0, 1.0))


def test_frequencies_are_counted_in_labels_that_are_kept(tmp_path):
    data = few(task_overrides={"semseg": {"class_weights": "median_frequency"}})
    module, _ = fitted(tmp_path, data=data, limit_train_batches=1, limit_val_batches=0)
    names, task = (
        [name for name, given in data.labels_per_image("train", data.train.dataset).items() if "semseg" in given],
        module.tasks[0],
    )
    assert 0 < len(names) < 12
    dataset = data.train_images_for_eval(names)
    expected = median_frequency([dataset[index]["semseg"] for index in range(len(names))], task.num_tokens)
    assert task.class_weights == pytest.approx(expected)
    assert len(set(expected)) > 2
    assert stored(tmp_path, 0)["hyper_parameters"]["tasks"][0]["init_args"]["class_weights"] == "median_frequency"
    assert isinstance(HTTModule.load_from_checkpoint(tmp_path / "kept" / "epoch=0.ckpt").tasks[0], SemSeg)


def test_consistency_loss_has_the_counted_weights(tmp_path):
    data = few(task_overrides={"semseg": {"class_weights": "median_frequency"}})
    module, _ = fitted(
        tmp_path,
        data=data,
        module=tiny_module(data, consistency="fixmatch"),
        limit_train_batches=1,
        limit_val_batches=0,
    )
    assert module.consistency.tasks == module.tasks


def test_counted_weights_need_a_datamodule():
    module = tiny_module(few(task_overrides={"semseg": {"class_weights": "median_frequency"}}))
    shape = (1, module.tasks[0].num_tokens, 2, 2)
    maps = TaskOutput(torch.zeros(shape), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    with pytest.raises(ConfigError, match="class_weights of semseg must be numbers outside of fit"):
        module.tasks[0].loss(maps, torch.zeros(1, 2, 2, dtype=torch.long))


def test_human_parts_have_class_weights_and_depth_has_none():
    assert HumanParts(class_weights=(1.0,) * 6 + (2.0,)).class_weights[-1] == 2
    assert not hasattr(Depth(), "class_weights")
