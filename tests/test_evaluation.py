"""Logged metrics of validation and testing."""

import numpy as np
import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from htt_lightning.tasks import Depth
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def test_metrics_and_losses_are_logged_by_their_keys(tmp_path):
    data = tiny_data()
    single = {task.name: 10.0 for task in data.tasks}
    trainer = tiny_trainer(tmp_path)
    trainer.fit(tiny_module(data, single_task_baselines=single), data)
    logged = trainer.callback_metrics
    headlines = ["semseg/miou", "human_parts/miou", "saliency/max_f", "normals/mean", "edges/ods_f", "depth/abs_err"]
    for key in headlines:
        assert f"val/{key}" in logged
    gains = [t.relative_gain(float(logged[f"val/{key}"]), 10.0) for key, t in zip(headlines, data.tasks, strict=True)]
    assert float(logged["val/delta_m"]) == pytest.approx(np.mean(gains), rel=1e-5)
    assert {f"train/{task.name}/loss" for task in data.tasks} | {"train/loss"} <= set(logged)
    further = ["semseg/pixel_acc", "saliency/max_f_double_sigmoid", "edges/ois_f"]
    further += [f"depth/{name}" for name in ("abs_rel", "rmse", "rmse_log", "delta1", "delta2", "delta3")]
    further += [f"normals/{name}" for name in ("median", "rmse", "within_11.25", "within_22.5", "within_30")]
    assert {f"val/{key}" for key in further} <= set(logged)
    tested = tiny_trainer(tmp_path).test(tiny_module(data), data, verbose=False)[0]
    assert {f"test/{key}" for key in headlines + further} <= set(tested)


def test_task_may_return_a_metric_collection(tmp_path):
    class Collected(Depth):
        def metrics(self):
            return MetricCollection({"abs_err": MeanAbsoluteError(), "mse": MeanSquaredError()})

    data = tiny_data(tasks="depth", labels="full")
    module = tiny_module(data)
    own = tiny_trainer(tmp_path).test(module, data, verbose=False)[0]
    module.test_metrics = torch.nn.ModuleDict({"depth": Collected().test_metrics()})
    for _ in range(2):  # nothing is left over from the first
        collected = tiny_trainer(tmp_path).test(module, data, verbose=False)[0]
        assert set(collected) == {"test/depth/abs_err", "test/depth/mse"}
        assert collected["test/depth/abs_err"] == pytest.approx(own["test/depth/abs_err"], rel=1e-5)
        assert collected["test/depth/mse"] ** 0.5 == pytest.approx(own["test/depth/rmse"], rel=1e-5)


def test_metrics_are_independent_of_batch_size_and_history(tmp_path):
    torch.manual_seed(0)
    module = tiny_module(tiny_data(val_images=5))
    results = []
    for batch_size in (1, 2, 4):  # 4 leaves a last batch of one image
        data = tiny_data(val_images=5, batch_size=batch_size)
        results += [tiny_trainer(tmp_path).validate(module, data, verbose=False)[0] for _ in range(2)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)
