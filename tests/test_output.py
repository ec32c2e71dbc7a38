import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.errors import ConfigError
from htt_lightning.output import upsample_to_image
from tests.tasks.samples import enlarge

few = settings(max_examples=40)
STRIDES = pytest.mark.parametrize("stride", [4, 16])


def cells(height, width, stride, channels=2, b=2):
    generator = torch.Generator().manual_seed(0)
    shape = (b, channels, math.ceil(height / stride), math.ceil(width / stride))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@STRIDES
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@few
def test_upsample_crops_odd_sizes(stride, height, width):
    values = cells(height, width, stride)
    whole = F.interpolate(values, scale_factor=stride, mode="bilinear", align_corners=False)
    ours = upsample_to_image(values, (height, width))
    assert ours.shape[-2:] == (height, width)
    torch.testing.assert_close(ours, whole[..., :height, :width], rtol=0, atol=1e-12)


@STRIDES
@pytest.mark.parametrize(("height", "width"), [(37, 51), (33, 64), (5, 70), (16, 17), (3, 2)])
def test_upsample_equals_plain_bilinear_resize(stride, height, width):
    values = cells(height, width, stride, b=1)
    theirs = enlarge(values[0].numpy(), stride, height, width)
    np.testing.assert_allclose(upsample_to_image(values, (height, width))[0].numpy(), theirs, rtol=0, atol=1e-12)


@STRIDES
@given(height=st.integers(33, 70), width=st.integers(33, 70))
@few
def test_upsample_keeps_pixels_in_place(stride, height, width):
    rows, columns = (torch.arange(math.ceil(n / stride), dtype=torch.float64) for n in (height, width))
    centers = torch.stack(torch.meshgrid((rows + 0.5) * stride, (columns + 0.5) * stride, indexing="ij"))[None]
    y, x = upsample_to_image(centers, (height, width))[0]
    for line, length in ((y[:, 0], height), (x[0], width)):
        inside = slice(stride // 2, (length // stride) * stride - stride // 2)
        torch.testing.assert_close(line[inside], torch.arange(length, dtype=torch.float64)[inside] + 0.5)


def test_upsample_passes_gradients_to_every_kept_cell():
    values = cells(37, 51, 4).requires_grad_()
    upsample_to_image(values, (37, 51)).sum().backward()
    assert (values.grad > 0).all()
    assert values.grad[0, 0].sum() == pytest.approx(37 * 51)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_upsample_keeps_the_dtype(dtype):
    assert upsample_to_image(cells(9, 9, 4).to(dtype), (9, 9)).dtype == dtype


@pytest.mark.parametrize(("cells", "size"), [((16, 16), (224, 224)), ((7, 12), (30, 48)), ((8, 13), (32, 48))])
def test_upsample_refuses_strides_that_are_no_power_of_two(cells, size):
    with pytest.raises(ConfigError, match=f"{cells[0]}x{cells[1]} cells .* {size[0]}x{size[1]} pixels"):
        upsample_to_image(torch.zeros(1, 2, *cells), size)
