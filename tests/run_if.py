"""Run a test only where the machine has what it needs."""

import pytest
import torch


def RunIf(*, min_gpus: int) -> pytest.MarkDecorator:
    """Mark a test as one of GPUs, ``@RunIf(min_gpus=1)``, and skip it where the machine has fewer."""
    return lambda test: pytest.mark.gpu(
        pytest.mark.skipif(torch.cuda.device_count() < min_gpus, reason=f"needs {min_gpus} GPU")(test)
    )
