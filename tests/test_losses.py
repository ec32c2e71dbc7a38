import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.losses import balanced_bce, cross_entropy, feature_mse, l1, labeled_sum, masked_mean, upcast
from tests.run_if import RunIf

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


def means(values, valid):
    """Mean of each image's valid values, one by one."""
    return [v[m].mean() if m.any() else 0.0 for v, m in zip(np.asarray(values), valid.numpy(), strict=True)]


@given(seed=SEEDS)
@few
def test_masked_mean_averages_valid_values(seed):
    logits, _, valid = case(seed)
    values = logits[:, 0]
    np.testing.assert_allclose(masked_mean(values, valid).numpy(), means(values, valid), rtol=1e-12, atol=1e-15)


def test_masked_mean_without_valid_pixels_is_zero():
    values = torch.randn(2, H, W, requires_grad=True)
    valid = torch.zeros(2, H, W, dtype=torch.bool)
    valid[1] = True
    mean = masked_mean(values, valid)
    assert mean[0] == 0
    (gradient,) = torch.autograd.grad(mean.sum(), values)
    assert not gradient[0].any()
    torch.testing.assert_close(gradient[1], torch.full((H, W), 1 / (H * W)))


def test_masked_mean_ignores_nan_of_invalid_pixels():
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
def test_labeled_sum_adds_labeled_images(values):
    loss = torch.tensor([v for v, _ in values], dtype=torch.float64)
    labeled = torch.tensor([m for _, m in values])
    assert labeled_sum(loss, labeled).item() == pytest.approx(sum(v for v, m in values if m))


@pytest.mark.parametrize("poison", [2.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("labeled", [[True, False, True], [False, False, False]])
def test_labeled_sum_ignores_unlabeled_images(poison, labeled):
    loss = torch.tensor([2.0, poison, 3.0], requires_grad=True)
    total = labeled_sum(loss, torch.tensor(labeled))
    total.backward()
    assert total.item() == (5 if any(labeled) else 0)
    assert loss.grad.tolist() == labeled


@given(seed=SEEDS)
@few
def test_cross_entropy_is_minus_log_probability(seed):
    logits, target, valid = case(seed)
    ours = cross_entropy(logits, target.masked_fill(~valid, 255), valid).numpy()
    x = logits.numpy()
    probability = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    expected = -np.log(np.take_along_axis(probability, target.numpy()[:, None], 1)[:, 0])
    np.testing.assert_allclose(ours, np.where(valid, expected, 0), rtol=1e-9, atol=1e-12)


def test_cross_entropy_has_no_gradient_at_invalid_pixels():
    logits, target, valid = case(0)
    logits.requires_grad_()
    for junk in (255, -7, 10**6):
        loss = cross_entropy(logits, target.masked_fill(~valid, junk), valid)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert not loss[~valid].any()
        assert not gradient.movedim(1, -1)[~valid].any()
        assert gradient.movedim(1, -1)[valid].any(-1).all()


@given(seed=SEEDS, weight=st.floats(0.5, 0.99))
@few
def test_balanced_bce_equals_torch_with_pos_weight(seed, weight):
    logits, target, valid = case(seed)
    logits, target = logits[:, 0], target % 2
    odds = torch.tensor(weight / (1 - weight), dtype=torch.float64)
    pixel = (1 - weight) * F.binary_cross_entropy_with_logits(
        logits, target.double(), pos_weight=odds, reduction="none"
    )
    ours = balanced_bce(logits, target.masked_fill(~valid, 255), valid, weight)
    np.testing.assert_allclose(ours.numpy(), means(pixel, valid), rtol=1e-9, atol=1e-15)


def test_balanced_bce_weights_edges_by_95_percent():
    logits = torch.zeros(2, 1, 1, dtype=torch.float64)
    loss = balanced_bce(logits, torch.tensor([1, 0]).view(2, 1, 1), torch.ones(2, 1, 1, dtype=torch.bool))
    assert loss.tolist() == pytest.approx([0.95 * np.log(2), 0.05 * np.log(2)])


def test_balanced_bce_passes_gradcheck():
    logits, target, valid = case(1)
    x = logits[:, 0].requires_grad_()
    y = (target % 2).masked_fill(~valid, 255)
    assert torch.autograd.gradcheck(lambda z: balanced_bce(z, y, valid), (x,))


@given(seed=SEEDS)
@few
def test_l1_sums_channels_and_averages_valid_pixels(seed):
    pred, _, valid = case(seed)
    target = pred.flip(0).flip(1)
    error = (pred - target).abs().sum(1)
    ours = l1(pred, target.masked_fill(~valid[:, None], torch.nan), valid)
    np.testing.assert_allclose(ours.numpy(), means(error, valid), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_l1_has_finite_gradients_that_vanish_if_invalid(junk):
    pred, _, valid = case(2)
    pred.requires_grad_()
    target = torch.zeros_like(pred).masked_fill(~valid[:, None], junk)
    loss = l1(pred, target, valid)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert loss.isfinite().all()
    count = valid.sum((1, 2), keepdim=True)[:, None]
    torch.testing.assert_close(gradient, torch.where(valid[:, None], pred.detach().sign() / count, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_upcast_turns_half_precision_into_float32(dtype):
    x = torch.ones(2, dtype=dtype)
    assert upcast(x) is x if dtype.itemsize > 2 else upcast(x).dtype == torch.float32


@RunIf(min_gpus=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_losses_on_gpu_equal_cpu(dtype):
    logits, target, valid = case(0)
    logits, junk = logits.to(dtype), target.masked_fill(~valid, 255)
    field = logits.float().flip(1).masked_fill(~valid[:, None], torch.nan)

    def losses(device):
        x, y, z, m = (value.to(device) for value in (logits, junk, field, valid))
        x.requires_grad_()
        pixel = masked_mean(cross_entropy(upcast(x), y, m), m)
        both = balanced_bce(upcast(x[:, 0]), y % 2, m), l1(upcast(x), z, m), feature_mse(x, x.detach().flip(1), m)
        total = torch.stack([labeled_sum(loss, m[:, 0, 0]) for loss in (pixel, *both)])
        total.sum().backward()
        return total.detach().cpu(), x.grad.cpu()

    torch.testing.assert_close(losses("cuda"), losses("cpu"), rtol=1e-3, atol=1e-3)
