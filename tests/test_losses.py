import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.losses import balanced_bce, cross_entropy, l1, labeled_sum, masked_mean, upcast

few = settings(max_examples=40)
SEEDS = st.integers(0, 2**31)
B, K, H, W = 3, 4, 5, 6


def case(seed, share=0.6):
    """Logits ``b k h w``, classes and a valid mask, both ``b h w``; the last image has no valid pixel."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(B, K, H, W, generator=generator, dtype=torch.float64)
    target = torch.randint(K, (B, H, W), generator=generator)
    valid = torch.rand(B, H, W, generator=generator) < share
    valid[-1] = False
    return logits, target, valid


@given(seed=SEEDS)
@few
def test_the_masked_mean_is_the_mean_of_the_valid_values_of_each_image(seed):
    logits, _, valid = case(seed)
    values = logits[:, 0]
    theirs = [v[m].mean() if m.any() else 0.0 for v, m in zip(values.numpy(), valid.numpy(), strict=True)]
    np.testing.assert_allclose(masked_mean(values, valid).numpy(), theirs, rtol=1e-12, atol=1e-15)


def test_the_masked_mean_of_nothing_is_zero_with_zero_gradient():
    values = torch.randn(2, H, W, requires_grad=True)
    valid = torch.zeros(2, H, W, dtype=torch.bool)
    valid[1] = True
    mean = masked_mean(values, valid)
    assert mean[0] == 0
    (gradient,) = torch.autograd.grad(mean.sum(), values)
    assert not gradient[0].any()
    torch.testing.assert_close(gradient[1], torch.full((H, W), 1 / (H * W)))


def test_an_invalid_pixel_may_hold_nan_without_touching_the_masked_mean():
    values = torch.ones(1, H, W)
    values[0, 0, 0] = torch.nan
    values.requires_grad_()
    mean = masked_mean(values, ~values.isnan())
    assert mean.item() == 1
    (gradient,) = torch.autograd.grad(mean.sum(), values)
    assert gradient.isfinite().all()
    assert gradient[0, 0, 0] == 0


@given(values=st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=6))
@few
def test_the_labeled_sum_adds_up_labelled_images_only(values):
    loss = torch.tensor([v for v, _ in values], dtype=torch.float64)
    labeled = torch.tensor([m for _, m in values])
    assert labeled_sum(loss, labeled).item() == pytest.approx(sum(v for v, m in values if m))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_nan_of_an_unlabelled_image_leaks_into_neither_sum_nor_gradient(poison):
    loss = torch.tensor([2.0, poison, 3.0], requires_grad=True)
    total = labeled_sum(loss, torch.tensor([True, False, True]))
    total.backward()
    assert total.item() == 5
    assert loss.grad.tolist() == [1, 0, 1]


def test_a_batch_without_labels_is_zero_but_stays_in_the_graph():
    loss = torch.tensor([2.0, 3.0], requires_grad=True)
    total = labeled_sum(loss, torch.tensor([False, False]))
    total.backward()
    assert total.item() == 0
    assert loss.grad.tolist() == [0, 0]


@given(seed=SEEDS)
@few
def test_cross_entropy_is_minus_the_log_probability_of_the_class(seed):
    logits, target, valid = case(seed)
    ours = cross_entropy(logits, target.masked_fill(~valid, 255), valid).numpy()
    x = logits.numpy()
    probability = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    select = np.take_along_axis(probability, target.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(ours, np.where(valid, -np.log(select), 0), rtol=1e-9, atol=1e-12)


def test_cross_entropy_has_no_gradient_at_invalid_pixels_whatever_their_target():
    logits, target, valid = case(0)
    logits.requires_grad_()
    for junk in (255, -7, 10**6):
        loss = cross_entropy(logits, target.masked_fill(~valid, junk), valid)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert not loss[~valid].any()
        assert not gradient.movedim(1, -1)[~valid].any()
        assert gradient.movedim(1, -1)[valid].any(-1).all()


@given(seed=SEEDS, positive=st.floats(0.5, 0.99))
@few
def test_balanced_bce_is_binary_cross_entropy_with_a_weight_scaled_back(seed, positive):
    logits, target, valid = case(seed)
    logits, target = logits[:, 0], target % 2
    odds = torch.tensor(positive / (1 - positive), dtype=torch.float64)
    pixel = F.binary_cross_entropy_with_logits(logits, target.double(), pos_weight=odds, reduction="none")
    theirs = [p[m].mean() * (1 - positive) if m.any() else 0.0 for p, m in zip(pixel, valid, strict=True)]
    ours = balanced_bce(logits, target.masked_fill(~valid, 255), valid, positive)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-15)


def test_balanced_bce_gives_edges_95_percent_unless_told_otherwise():
    logits = torch.zeros(2, 1, 1, dtype=torch.float64)
    loss = balanced_bce(logits, torch.tensor([1, 0]).view(2, 1, 1), torch.ones(2, 1, 1, dtype=torch.bool))
    assert loss.tolist() == pytest.approx([0.95 * np.log(2), 0.05 * np.log(2)])


def test_balanced_bce_is_differentiable_with_the_right_gradient():
    logits, target, valid = case(1)
    x = logits[:, 0].requires_grad_()
    y = (target % 2).masked_fill(~valid, 255)
    assert torch.autograd.gradcheck(lambda z: balanced_bce(z, y, valid), (x,))


@given(seed=SEEDS)
@few
def test_l1_sums_channels_and_averages_valid_pixels(seed):
    pred, _, valid = case(seed)
    target = pred.flip(0).flip(1)
    target = target.masked_fill(~valid[:, None], torch.nan)
    error = np.abs(pred.numpy() - target.numpy()).sum(1)
    theirs = [e[m].mean() if m.any() else 0.0 for e, m in zip(error, valid.numpy(), strict=True)]
    np.testing.assert_allclose(l1(pred, target, valid).numpy(), theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_l1_has_finite_gradients_that_vanish_where_the_target_is_missing(junk):
    pred, _, valid = case(2)
    pred.requires_grad_()
    target = torch.zeros_like(pred).masked_fill(~valid[:, None], junk)
    loss = l1(pred, target, valid)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert not gradient.movedim(1, -1)[~valid].any()
    count = valid.sum((1, 2), keepdim=True)[:, None]
    expected = torch.where(valid[:, None], pred.detach().sign() / count, 0)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single_precision(dtype):
    assert upcast(torch.ones(2, dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_types_stay_as_they_are(dtype):
    x = torch.ones(2, dtype=dtype)
    assert upcast(x) is x
