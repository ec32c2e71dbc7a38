"""Run a test only where the machine has what it needs."""

from collections.abc import Callable

import pytest
import torch

Test = Callable[..., None]


def RunIf(*, min_gpus: int) -> Callable[[Test], Test]:
    """Mark a test as one of GPUs, ``@RunIf(min_gpus=1)``, and skip it where the machine has fewer."""
    return lambda test: pytest.mark.gpu(
        pytest.mark.skipif(torch.cuda.device_count() < min_gpus, reason=f"needs {min_gpus} GPU")(test)
    )
