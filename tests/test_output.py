import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.errors import HTTError
from htt_lightning.output import TaskOutput, upsample_to_image
from tests.tasks.samples import enlarge

few = settings(max_examples=40)
STRIDES = pytest.mark.parametrize("stride", [4, 16])


def cells(height, width, stride, channels=2, b=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (b, channels, math.ceil(height / stride), math.ceil(width / stride))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_an_output_is_a_plain_tuple_of_logits_feature_and_confidence():
    assert TaskOutput._fields == ("logits", "feature", "confidence")
    assert isinstance(TaskOutput(torch.zeros(1), torch.zeros(1), torch.zeros(1)), tuple)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), stride=st.sampled_from([1, 2, 4, 8, 16]))
@few
def test_whole_multiples_of_the_stride_are_resized_as_by_plain_interpolation(rows, columns, stride):
    size = (rows * stride, columns * stride)
    values = cells(*size, stride)
    assert torch.equal(
        upsample_to_image(values, size), F.interpolate(values, size, mode="bilinear", align_corners=False)
    )


@given(height=st.integers(1, 20), width=st.integers(1, 20))
@few
def test_a_map_that_has_the_size_already_is_returned_as_it_is(height, width):
    values = cells(height, width, 1)
    assert torch.equal(upsample_to_image(values, (height, width)), values)


@STRIDES
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@few
def test_odd_sizes_are_cut_and_not_squeezed(stride, height, width):
    values = cells(height, width, stride)
    whole = F.interpolate(values, scale_factor=stride, mode="bilinear", align_corners=False)
    ours = upsample_to_image(values, (height, width))
    assert ours.shape[-2:] == (height, width)
    torch.testing.assert_close(ours, whole[..., :height, :width], rtol=0, atol=1e-12)


@STRIDES
@pytest.mark.parametrize(("height", "width"), [(37, 51), (33, 64), (5, 70), (16, 17), (3, 2)])
def test_pixels_agree_with_a_plain_bilinear_resize(stride, height, width):
    values = cells(height, width, stride, b=1)
    theirs = enlarge(values[0].numpy(), stride, height, width)
    np.testing.assert_allclose(upsample_to_image(values, (height, width))[0].numpy(), theirs, rtol=0, atol=1e-12)


@STRIDES
@given(height=st.integers(33, 70), width=st.integers(33, 70))
@few
def test_every_pixel_keeps_its_place_in_the_image(stride, height, width):
    rows, columns = (torch.arange(math.ceil(n / stride), dtype=torch.float64) for n in (height, width))
    bin_centers = torch.stack(torch.meshgrid((rows + 0.5) * stride, (columns + 0.5) * stride, indexing="ij"))[None]
    y, x = upsample_to_image(bin_centers, (height, width))[0]
    inside = slice(stride // 2, (height // stride) * stride - stride // 2)
    torch.testing.assert_close(y[inside, 0], torch.arange(height, dtype=torch.float64)[inside] + 0.5)
    inside = slice(stride // 2, (width // stride) * stride - stride // 2)
    torch.testing.assert_close(x[0, inside], torch.arange(width, dtype=torch.float64)[inside] + 0.5)


@STRIDES
@given(height=st.integers(17, 70), width=st.integers(17, 70), constant=st.floats(-5, 5))
@few
def test_a_constant_map_stays_constant(stride, height, width, constant):
    values = torch.full_like(cells(height, width, stride), constant)
    resized = upsample_to_image(values, (height, width))
    torch.testing.assert_close(resized, torch.full_like(resized, constant))


def test_gradients_reach_every_cell_of_which_a_pixel_is_kept():
    values = cells(37, 51, 4).requires_grad_()
    upsample_to_image(values, (37, 51)).sum().backward()
    assert values.grad is not None
    assert (values.grad > 0).all()
    assert values.grad[0, 0].sum() == pytest.approx(37 * 51)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_is_kept(dtype):
    assert upsample_to_image(cells(9, 9, 4).to(dtype), (9, 9)).dtype == dtype


@pytest.mark.parametrize(("cells", "size"), [((16, 16), (224, 224)), ((7, 12), (30, 48)), ((8, 13), (32, 48))])
def test_a_map_that_no_power_of_two_lays_over_the_image_is_refused(cells, size):
    """Such as of a network of stride 14, or one that rounds down."""
    with pytest.raises(HTTError, match=f"{cells[0]}x{cells[1]} cells .* {size[0]}x{size[1]} pixels"):
        upsample_to_image(torch.zeros(1, 2, *cells), size)
