import pickle
import random

import numpy as np
import torch

from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from tests.data.aligned import TASKS, assert_same, scene, train


def test_colours_change_only_the_image():
    before = scene()
    after, _ = train(before, AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=1))
    assert not np.array_equal(after.pop("image"), before.pop("image"))
    assert_same(after, before)


def test_one_state_of_the_generator_gives_one_result_whatever_was_drawn_before():
    transform = TrainTransform(TASKS, AugmentConfig(), (36, 48))
    first, valid = transform(scene(), np.random.default_rng((1, 2, 3)))
    transform(scene(20, 20), np.random.default_rng(5))
    again, valid_again = transform(scene(), np.random.default_rng((1, 2, 3)))
    assert_same(first | {"valid": valid}, again | {"valid": valid_again})
    other, _ = transform(scene(), np.random.default_rng((1, 2, 4)))
    assert not np.array_equal(first["image"], other["image"])


def test_global_random_states_are_neither_read_nor_changed():
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global state is what this test is about
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        results.append(train(scene(), AugmentConfig(), seed=7)[0])
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert before == after
    assert_same(*results)


def test_what_is_passed_in_stays_as_it_was():
    before = scene()
    for transform in (
        lambda a: train(a, AugmentConfig(hflip_prob=1, photometric_prob=1)),
        EvalTransform(TASKS, (99, 99)),
    ):
        transform(before)
        assert_same(before, scene())


def test_transforms_travel_to_other_processes():
    transform = TrainTransform(TASKS, AugmentConfig(), (30, 30))
    copy = pickle.loads(pickle.dumps(transform))
    assert_same(transform(scene(), np.random.default_rng(1))[0], copy(scene(), np.random.default_rng(1))[0])
