"""Labels and predictions have one encoding, from -1 to 1."""

import pytest
import torch

from htt_lightning.tasks import Depth, Edges, Normals
from tests.flow import Height
from tests.tasks.samples import TASKS, is_missing, output_of, random_logits, random_target

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@each_task
def test_encoding_has_channels_in_range(task):
    target = random_target(task)
    label = task.encode_label(target, task.valid_mask(target))
    prediction = task.encode_prediction(output_of(random_logits(task)))
    assert label.shape == prediction.shape == (3, task.num_channels, 6, 7)
    for encoded in (label, prediction):
        assert encoded.dtype == torch.float32
        assert encoded.abs().max() <= 1


@each_task
def test_missing_pixels_are_encoded_as_zeros(task):
    target = random_target(task)
    valid, encoded = task.valid_mask(target), task.encode_label(target, task.valid_mask(target))
    assert (encoded.movedim(1, -1)[is_missing(task, target)] == 0).all()
    full = random_target(task, missing=0.0)
    assert torch.equal(encoded, task.encode_label(full, valid) * valid[:, None])


@pytest.mark.parametrize("task", [x for x in TASKS if x.field_channels is None], ids=lambda task: task.name)
def test_sure_prediction_is_encoded_like_its_label(task):
    target = random_target(task, missing=0.0)
    one_hot = task.encode_label(target, task.valid_mask(target))
    assert torch.equal(one_hot.sum(1), torch.ones(3, 6, 7))
    assert torch.equal(one_hot.argmax(1), target)
    logits = 200 * (one_hot - 0.5) if task.num_tokens > 1 else 200 * (one_hot[:, 1:] - 0.5)
    torch.testing.assert_close(task.encode_prediction(output_of(logits)), one_hot)


def test_probability_of_an_edge_has_two_channels():
    encoded = Edges().encode_prediction(output_of(torch.tensor([[[[0.25]]]]).logit()))
    torch.testing.assert_close(encoded.flatten(), torch.tensor([0.75, 0.25]))


def test_fields_are_scaled_from_their_range():
    depth = torch.tensor([[[[1.0, 3.0, 5.0, 9.0, torch.nan]]]])
    encoded = Depth(min_depth=1.0, max_depth=5.0).encode_label(depth, depth.isfinite()[:, 0])
    assert encoded.flatten().tolist() == [-1, 0, 1, 1, 0]
    normal = torch.tensor([0.6, 0.0, -0.8]).view(1, 3, 1, 1)
    torch.testing.assert_close(Normals().encode_label(normal, torch.tensor([[[True]]])), normal)


@pytest.mark.parametrize("task", [Depth(), Normals()], ids=lambda task: task.name)
def test_decoded_field_is_encoded_like_its_label(task):
    output = output_of(random_logits(task))
    value = task.decode(output, (6, 7))
    torch.testing.assert_close(task.encode_prediction(output), task.encode_label(value, value.isfinite().all(1)))


def test_field_of_unknown_range_has_no_channels():
    assert Height().num_channels is None
