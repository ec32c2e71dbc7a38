import pickle

import numpy as np

from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from tests.data.aligned import TASKS, assert_same, scene, train


def test_photometric_operations_keep_the_maps():
    before = scene()
    after, _ = train(before, AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=1))
    assert not np.array_equal(after.pop("image"), before.pop("image"))
    assert_same(after, before)


def test_draws_depend_on_the_generator_alone():
    transform = TrainTransform(TASKS, AugmentConfig(), (36, 48))
    first, valid = transform(scene(), np.random.default_rng((1, 2, 3)))
    transform(scene(20, 20), np.random.default_rng(5))
    again, valid_again = transform(scene(), np.random.default_rng((1, 2, 3)))
    assert_same(first | {"valid": valid}, again | {"valid": valid_again})
    other, _ = transform(scene(), np.random.default_rng((1, 2, 4)))
    assert not np.array_equal(first["image"], other["image"])


def test_inputs_stay_unchanged():
    before = scene()
    for transform in (
        lambda a: train(a, AugmentConfig(hflip_prob=1, photometric_prob=1)),
        EvalTransform(TASKS, (99, 99)),
    ):
        transform(before)
        assert_same(before, scene())


def test_transforms_can_be_pickled():
    transform = TrainTransform(TASKS, AugmentConfig(), (30, 30))
    copy = pickle.loads(pickle.dumps(transform))
    assert_same(transform(scene(), np.random.default_rng(1))[0], copy(scene(), np.random.default_rng(1))[0])
