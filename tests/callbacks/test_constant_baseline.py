"""The best constant prediction of every task and its scores."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from htt_lightning.callbacks.constant_baseline import best_constant, constant_baseline_scores
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.tasks import Depth, Normals, PixelClassification
from tests.tasks.samples import TASKS, lose, random_target
from tests.tiny import tiny_data

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)


def set_up(**settings):
    data = tiny_data(**settings)
    data.setup("fit")
    return data


def maps(source, task, ids):
    return [source.label(source.ids.index(name), task) for name in ids]


def score(task, value, target):
    """Primary metric of one value everywhere."""
    metric = task.metrics()
    metric.update((value.view(1, -1, 1, 1) if task.field_channels else value).expand_as(target), target)
    return metric.compute()[task.primary_metric].item()


def other_constants(task):
    if isinstance(task, PixelClassification):
        return torch.arange(task.num_tokens)
    if isinstance(task, Depth):
        return torch.linspace(task.min_depth, task.max_depth, 50)[:, None]
    return task.bin_centers(torch.zeros(())) if isinstance(task, Normals) else torch.linspace(0, 1, 21)


@EVERY_TASK
@pytest.mark.parametrize("seed", range(3))
def test_best_constant_beats_other_constants(task, seed):
    targets = random_target(task, b=4, h=12, w=12, seed=seed)
    if isinstance(task, Normals):  # around one direction: where there is none, no constant is better than others
        lean = task.bin_centers(torch.zeros(()))[5 * seed].view(1, 3, 1, 1)
        targets = F.normalize(targets + 2 * lean, dim=1)
    constant = best_constant(task, iter(targets))
    assert constant.shape == (() if task.field_channels is None else (task.field_channels,))
    own = score(task, constant, targets)
    slack = 0.02 if isinstance(task, Normals) else 1e-5  # it knows vectors to 1/32 only
    for other in other_constants(task):
        figure = score(task, other, targets)
        assert own >= figure - slack if task.higher_is_better else own <= figure + slack


@EVERY_TASK
def test_best_constant_ignores_missing_pixels(task):
    targets = random_target(task, missing=0)
    gone = torch.zeros(3, 6, 7, dtype=torch.bool)
    gone[:, 3:] = True
    torch.testing.assert_close(best_constant(task, lose(task, targets, gone)), best_constant(task, targets[..., :3, :]))


def test_best_constant_of_normals_is_their_median():
    up, left = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])
    target = torch.where(torch.arange(100) < 60, up[:, None], left[:, None]).view(3, 10, 10)
    torch.testing.assert_close(best_constant(Normals(), [target]), up, atol=1e-2, rtol=0)


def test_baseline_scores_agree_with_numpy():
    data = set_up()
    scores = constant_baseline_scores(data, data.tasks)
    train, val = data.train.dataset, data.val.dataset
    keep = data.labels_per_image("train", train)

    def fitted(task):
        return np.stack(maps(train, task, [name for name in train.ids if task in keep[name]]))

    def scored(task):
        return np.stack(maps(val, task, val.ids))

    median = np.median(fitted("depth"))
    assert scores["depth"] == pytest.approx(np.abs(scored("depth") - median).mean(), rel=1e-3)

    def angle(normals, direction):
        return np.degrees(np.arccos((normals.astype(float) @ direction).clip(-1, 1))).mean()

    (normals,) = (task for task in data.tasks if task.name == "normals")
    direction = best_constant(normals, torch.from_numpy(np.moveaxis(fitted("normals"), -1, 1))).numpy()
    mean = fitted("normals").astype(float).reshape(-1, 3).sum(0)
    assert angle(fitted("normals"), direction) <= angle(fitted("normals"), mean / np.linalg.norm(mean))
    assert scores["normals"] == pytest.approx(angle(scored("normals"), direction), rel=1e-3)

    for task in ("semseg", "human_parts"):
        label = fitted(task)
        most = np.bincount(label[label != 255]).argmax()
        truth = scored(task)[scored(task) != 255]
        present = set(np.unique(truth)) | {most}  # the other classes have no intersection
        assert scores[task] == pytest.approx(100 * (truth == most).mean() / len(present), rel=1e-4)

    truth = scored("saliency")
    precision = (truth == 1).sum() / (truth != 255).sum()
    assert scores["saliency"] == pytest.approx(100 * 1.3 * precision / (0.3 * precision + 1), rel=1e-3)
    assert 0 < scores["edges"] < 100


def test_baseline_never_reads_a_hidden_label(monkeypatch):
    def guarded(self, index, task):
        stream = self._key[1]
        assert stream == 1 or task in keep[self.ids[index]], f"hidden label {task} of image {index}"
        read.add((stream, task))
        return label(self, index, task)

    data, read = set_up(), set()
    keep, label = data.labels_per_image("train", data.train.dataset), SyntheticScenes.label
    monkeypatch.setattr(SyntheticScenes, "label", guarded)
    constant_baseline_scores(data, data.tasks)
    assert {(0, "depth"), (1, "depth"), (0, "semseg"), (1, "semseg")} <= read


def test_baseline_skips_tasks_without_labels():
    data = set_up(train_images=4)  # fewer images than tasks
    kept = {name for names in data.labels_per_image("train", data.train.dataset).values() for name in names}
    assert len(kept) == 4
    scores = constant_baseline_scores(data, data.tasks)
    assert set(scores) == kept
    assert all(math.isfinite(score) for score in scores.values())
