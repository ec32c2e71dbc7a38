"""FixMatch: geometry, colors, confident pixels, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from htt_lightning.discovery.fixmatch import FixMatch, StrongViews, change_colors, move_pseudo_label
from htt_lightning.tasks import Depth, Edges, Normals, SemSeg
from tests.discovery.test_teacher import StridedNet
from tests.tasks.samples import output_of, random_logits

TASKS = [replace(task, confidence_threshold=0.0) for task in (SemSeg(classes=("a", "b", "c")), Depth(), Edges())]
GEOMETRY = {"color": 0.0, "cutout": 0.0, "mirror": 0.5, "shift": 0.3}
NOTHING = {"color": 0.0, "cutout": 0.0, "mirror": 0.0, "shift": 0.0}
SIZE = (12, 10)
IDS = [str(k) for k in range(8)]


def fixmatch(tasks=TASKS, **options):
    return FixMatch(tasks, {task.name: 2.0 for task in tasks}, None, **options)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    batch = {"image": torch.rand(8, 3, *SIZE), "valid": torch.ones(8, *SIZE, dtype=torch.bool), "id": IDS}
    batch["labeled"] = {task.name: torch.arange(8) % 3 == k for k, task in enumerate(TASKS)}
    return batch


@pytest.fixture
def net():
    """An equivariant network: each pixel on its own."""
    torch.manual_seed(0)
    return StridedNet(TASKS, stride=1)


def test_equivariant_network_agrees_with_itself(net, batch):
    """Its loss on the strong view is that on the same pixels of the weak one."""
    loss = fixmatch(**GEOMETRY)
    views = loss.draw(IDS, 3, SIZE, "cpu")
    assert 0 < views.mirrored.sum() < 8
    assert (~views.inside()).any()
    outputs = net(batch["image"])
    found = loss(batch, outputs, net, 3)
    shown = torch.zeros(8, *SIZE, dtype=torch.bool)
    for image in range(8):
        rows, columns = views.rows[image], views.columns[image]
        rows, columns = rows[(rows >= 0) & (rows < SIZE[0])], columns[(columns >= 0) & (columns < SIZE[1])]
        shown[image, rows[:, None], columns] = True
    expected = torch.zeros(8)
    for task in TASKS:
        losses = task.pseudo_label_loss(outputs[task.name], task.pseudo_label(outputs[task.name], SIZE), shown)
        expected += torch.where(batch["labeled"][task.name], 0, 2 * task.pseudo_label_weight * losses)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()


def test_depth_of_an_equivariant_network_has_zero_loss(net, batch):
    depth = [TASKS[1], replace(TASKS[1], name="distance")]
    net.logits["distance"] = net.logits["depth"]
    batch["labeled"]["distance"] = torch.zeros(8, dtype=torch.bool)
    loss = fixmatch(depth, **GEOMETRY)(batch, net(batch["image"]), net, 0)
    torch.testing.assert_close(loss, torch.zeros(8), atol=1e-5, rtol=0)


def test_mirrored_normals_change_the_sign_of_x():
    task, views = Normals(), fixmatch(mirror=1.0, shift=0.0, cutout=0.0).draw(IDS[:3], 0, SIZE, "cpu")
    output = output_of(random_logits(task, 3, *SIZE))
    label = task.decode(output, SIZE)
    moved = move_pseudo_label(task, output, views, SIZE)
    assert torch.equal(moved.label[:, 0], -label[:, 0].flip(-1))
    assert torch.equal(moved.label[:, 1:], label[:, 1:].flip(-1))
    assert torch.equal(moved.confidence, task.pseudo_label(output, SIZE).confidence.flip(-1))


def test_mirrored_labels_swap_classes_with_a_side():
    task = SemSeg(classes=("left arm", "right arm", "head"), flip_pairs=(("left arm", "right arm"),))
    views = fixmatch(mirror=1.0, shift=0.0, cutout=0.0).draw(IDS[:3], 0, SIZE, "cpu")
    output = output_of(random_logits(task, 3, *SIZE))
    label = task.pseudo_label(output, SIZE).label
    moved = move_pseudo_label(task, output, views, SIZE).label
    assert torch.equal(moved, torch.tensor([1, 0, 2])[label].flip(-1))
    assert set(label.unique().tolist()) == {0, 1, 2}


def test_move_shifts_images_and_finds_the_outside():
    rows, columns = torch.tensor([[-1, 0, 1]]), torch.tensor([[1, 2, 3]])
    views = StrongViews(rows, columns, torch.tensor([False]), torch.ones(1, 3), torch.zeros(1, 3, 3, dtype=torch.bool))
    image = torch.arange(9.0).view(1, 3, 3)
    assert views.move(image).tolist() == [[[1, 2, 2], [1, 2, 2], [4, 5, 5]]]
    assert torch.equal(views.move(image[:, None])[:, 0], views.move(image))
    assert views.inside().tolist() == [[[False] * 3, [True, True, False], [True, True, False]]]


@pytest.mark.parametrize("threshold", [0.0, 0.42, 1.0])
def test_confident_pixels_alone_count(threshold, net, batch):
    tasks = [replace(TASKS[0], confidence_threshold=threshold), replace(TASKS[1], confidence_threshold=1.0)]
    outputs = net(batch["image"])
    probability = outputs["semseg"].logits.softmax(1).amax(1)
    entropy = torch.where(probability > threshold, -probability.log(), 0).mean((1, 2))
    expected = torch.where(batch["labeled"]["semseg"], 0, 2 * entropy)
    torch.testing.assert_close(fixmatch(tasks, **NOTHING)(batch, outputs, net, 0), expected)
    assert (threshold == 1) == (expected == 0).all()


def test_weak_view_gets_no_gradient(net, batch):
    with torch.no_grad():
        outputs = net(batch["image"])
    for output in outputs.values():
        output.logits.requires_grad_()
    fixmatch(TASKS)(batch, outputs, net, 0).sum().backward()
    assert all(output.logits.grad is None for output in outputs.values())
    assert all((parameter.grad != 0).any() for parameter in net.parameters())


def test_running_statistics_stay_those_of_the_images(net, batch):
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.net = nn.BatchNorm2d(3), net

        def forward(self, image):
            return self.net(self.norm(image))

    whole = Normalized()
    outputs = whole(batch["image"])
    before = {key: value.clone() for key, value in whole.named_buffers()}
    fixmatch()(batch, outputs, whole, 0)
    assert all(torch.equal(value, before[key]) for key, value in whole.named_buffers())
    assert whole.norm.momentum == 0.1


def test_views_depend_on_epoch_and_image_alone():
    loss = fixmatch()
    views = loss.draw(IDS, 1, SIZE, "cpu")
    again = loss.draw(IDS[::-1], 1, SIZE, "cpu")
    assert all(torch.equal(x, y.flip(0)) for x, y in zip(views, again, strict=True))
    other = loss.draw(IDS, 2, SIZE, "cpu")
    assert not any(torch.equal(x, y) for x, y in zip(views, other, strict=True))


def test_views_stay_within_their_options():
    size = (60, 100)
    views = fixmatch(mirror=0.0, shift=0.2, color=0.3, cutout=0.25).draw(list(map(str, range(200))), 0, size, "cpu")
    assert not views.mirrored.any()
    assert 11 <= views.rows[:, 0].abs().max() <= 12
    assert 18 <= views.columns[:, 0].abs().max() <= 20
    assert 0.7 <= views.colors.min() < 0.72
    assert 1.28 < views.colors.max() <= 1.3
    cut = views.cut.sum((1, 2)) / 6000
    assert 0.04 < cut.max() <= 0.0625
    assert views.cut.any(0).any(0)[5:-5].all()  # anywhere, if seldom at the border


def test_no_change_leaves_images_as_they_are(batch):
    views = fixmatch(**NOTHING).draw(IDS, 0, SIZE, "cpu")
    torch.testing.assert_close(change_colors(views, batch["image"]), batch["image"])


def test_cut_pixels_have_the_mean_color_and_no_loss(net, batch):
    loss = fixmatch(**NOTHING | {"cutout": 1.0})
    views = loss.draw(IDS, 0, SIZE, "cpu")
    view = change_colors(views, batch["image"])
    for image in range(8):
        cut = view[image, :, views.cut[image]]
        torch.testing.assert_close(cut, batch["image"][image].mean((1, 2))[:, None].expand_as(cut))
    assert torch.equal(learned_pixels(loss, batch, net), ~views.cut & ~batch["labeled"]["semseg"][:, None, None])


def learned_pixels(loss, batch, net):
    """Return the pixels of the strong view whose classes get a gradient, ``b h w``."""
    with torch.no_grad():
        outputs = net(batch["image"])
    seen = []

    def strong(image):
        seen.append(net(image))
        seen[0]["semseg"].logits.retain_grad()
        return seen[0]

    loss(batch, outputs, strong, 0).sum().backward()
    return (seen[0]["semseg"].logits.grad != 0).any(1)


def test_padding_moves_with_the_image(net, batch):
    batch["valid"][:, :, 6:] = False
    expected = batch["valid"].flip(-1) & ~batch["labeled"]["semseg"][:, None, None]
    assert torch.equal(learned_pixels(fixmatch(**NOTHING | {"mirror": 1.0}), batch, net), expected)


def test_colors_scale_brightness_contrast_and_saturation():
    image = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    image[..., 1] *= 0.5
    views = fixmatch(**NOTHING).draw(["0"], 0, (1, 2), "cpu")
    bright, contrast, gray = (
        change_colors(views._replace(colors=torch.tensor([factors])), image)
        for factors in ([1.5, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0])
    )
    torch.testing.assert_close(bright, 1.5 * image)
    torch.testing.assert_close(contrast, torch.full_like(image, 0.3))
    luma = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    torch.testing.assert_close(gray, torch.tensor([luma, luma / 2]).expand_as(image))


@pytest.mark.parametrize(("mirror", "pairs", "count"), [(0.5, (), 1), (0.0, (), 0), (0.5, (("left", "right"),), 0)])
def test_unpaired_sides_are_warned_of_once(net, batch, recwarn, mirror, pairs, count):
    sided = SemSeg(classes=("left", "right", "c"), flip_pairs=pairs, confidence_threshold=0.0)
    loss = fixmatch([sided, *TASKS[1:]], mirror=mirror)
    for epoch in range(2):
        loss(batch, net(batch["image"]), net, epoch)
    assert len([warning for warning in recwarn if "semseg.flip_pairs" in str(warning.message)]) == count
