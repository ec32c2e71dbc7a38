import torch

from htt_lightning.discovery.ema import update_ema
from htt_lightning.training.loading import clone_module
from tests.tiny import tiny_data, tiny_module


def test_update_ema_averages_floats_and_copies_counters():
    data = tiny_data()
    first, second = tiny_module(data), tiny_module(data)
    average = clone_module(first).net
    for value in second.net.state_dict().values():
        if not value.is_floating_point():
            value.fill_(7)
    update_ema(average, second.net, 0.75)
    old, new = first.net.state_dict(), second.net.state_dict()
    for key, value in average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * old[key] + 0.25 * new[key])
        else:
            assert value == 7
