"""Random predictions and targets for every metric, and its values in numpy."""

import numpy as np
import torch

from tests.metrics.test_boundary_matching import largest_matching, pairs_within


def generator(seed):
    return torch.Generator().manual_seed(seed)


def index_maps(seed, classes, b=4, h=5, w=6, missing=0.2):
    g = generator(seed)
    target = torch.randint(classes, (b, h, w), generator=g)
    target[torch.rand(b, h, w, generator=g) < missing] = 255
    return target, g


def class_case(seed):
    target, g = index_maps(seed, 4)
    return torch.randint(5, target.shape, generator=g), target


def probability_case(seed):
    """Every probability is one of the thresholds 0.05, 0.10, ..."""
    target, g = index_maps(seed, 2)
    return torch.randint(21, target.shape, generator=g) / 20, target


def depth_case(seed):
    """Many a prediction lies exactly on a limit; others are negative."""
    g = generator(seed)
    target = torch.rand(4, 1, 5, 6, generator=g) * 10
    pred = torch.randn(target.shape, generator=g) * 5
    near = 2.0 ** torch.randint(-3, 4, (4, 1, 2, 6), generator=g)
    far = near * 1.25 ** torch.randint(4, near.shape, generator=g)  # exact in binary
    above = torch.rand(near.shape, generator=g) < 0.5
    target[:, :, :2], pred[:, :, :2] = near.where(above, far), far.where(above, near)
    marks = torch.tensor([torch.nan, 0, -1, torch.inf])
    spoiled = torch.rand(target.shape, generator=g) < 0.3
    target[spoiled] = marks[torch.randint(4, (int(spoiled.sum()),), generator=g)]
    return pred, target


def normal_case(seed):
    g = generator(seed)
    target = torch.randn(4, 3, 5, 6, generator=g)
    pred = torch.randn(target.shape, generator=g) + target * torch.randint(4, (4, 1, 5, 6), generator=g)
    target[:, 1][torch.rand(4, 5, 6, generator=g) < 0.2] = torch.nan
    target[(torch.rand(4, 1, 5, 6, generator=g) < 0.1).expand(-1, 3, -1, -1)] = 0
    return pred, target


def class_metrics(pred, target, absent):
    pred, target = pred.numpy(), target.numpy()
    ious = []
    for c in range(5):
        p, t = (pred == c) & (target != 255), target == c
        if (p | t).any():
            ious.append(100 * (p & t).sum() / (p | t).sum())
        elif absent == "zero":
            ious.append(0)
    seen = target != 255
    return {"miou": np.mean(ious), "pixel_acc": 100 * np.mean(pred[seen] == target[seen])}


def depth_metrics(pred, target):
    pairs = zip(*(x.double().numpy().ravel() for x in (pred, target)), strict=True)
    p, t = np.array([(max(p, 1e-9), t) for p, t in pairs if 0 < t < np.inf]).T
    shares = [100 * np.mean((p < limit * t) & (t < limit * p)) for limit in (1.25, 1.25**2, 1.25**3)]
    return {
        "abs_err": np.mean(abs(p - t)),
        "abs_rel": np.mean(abs(p - t) / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(np.log(p / t) ** 2)),
        **dict(zip(("delta1", "delta2", "delta3"), shares, strict=True)),
    }


def normal_metrics(pred, target):
    pred, target = (x.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 3) for x in (pred, target))
    angles = []
    for p, t in zip(pred, target, strict=True):
        if np.isfinite(t).all() and t.any():
            cosine = p @ t / np.linalg.norm(p) / np.linalg.norm(t)
            angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    angles = np.array(angles)
    limits = {"within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30}
    return {
        "mean": np.mean(angles),
        "median": np.median(angles),
        "rmse": np.sqrt(np.mean(angles**2)),
        **{name: 100 * np.mean(angles < limit) for name, limit in limits.items()},
    }


def max_f(pred, target):
    scores = []
    for k in range(1, 20):
        binary = pred >= np.float32(k / 20)
        hits = (binary & (target == 1)).sum()
        with np.errstate(invalid="ignore"):
            precision, recall = hits / binary.sum(), hits / (target == 1).sum()
            scores.append(np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall)))
    return 100 * max(scores)


def max_f_metrics(pred, target):
    pred, target = pred.numpy()[target.numpy() != 255], target.numpy()[target.numpy() != 255]
    return {"max_f": max_f(pred, target), "max_f_double_sigmoid": max_f(1 / (1 + np.exp(-pred)), target)}


def boundary_counts(binary, truth, reach):
    """Matched, predicted and true pixels of one image."""
    return np.array([largest_matching(pairs_within(binary, truth, reach)), binary.sum(), truth.sum()])


def boundary_f(counts):
    matched, predicted, true = counts
    return 100 * 2 * matched / (predicted + true) if matched else 0


def boundary_metrics(pred, target, tolerance, thresholds=19, thin=lambda binary: binary):
    images = []
    for p, t in zip(pred.numpy(), target.numpy(), strict=True):
        levels = [(p >= np.float32(k / (thresholds + 1))) & (t != 255) for k in range(1, thresholds + 1)]
        y, x = np.nonzero(t != 255)
        reach = tolerance * np.hypot(np.ptp(y) + 1, np.ptp(x) + 1) if y.size else 0
        images.append([boundary_counts(thin(level), t == 1, reach) for level in levels])
    own = [max(reversed(image), key=boundary_f) for image in images]  # of equals the first, the highest threshold
    return {"ods_f": max(boundary_f(level) for level in np.sum(images, 0)), "ois_f": boundary_f(np.sum(own, 0))}
