import numpy as np
import pytest
import torch

from htt_lightning.callbacks.panel import GAP, WIDTH, PanelEntry, draw_panel, task_legend, to_uint8
from htt_lightning.tasks import Depth, HumanParts, Normals, Saliency, SemSeg
from tests.flow import Height


def plain(color, size=(40, 60)):
    return np.broadcast_to(np.array(color, np.uint8), (*size, 3))


def entry(rows=3, columns=6, size=(40, 60)):
    maps = {f"task {k}": plain((0, 40 * k, 255), size) for k in range(columns)}
    return PanelEntry("image 7", plain((255, 0, 0), size), [(f"row {k}", maps) for k in range(rows)])


def area(picture, color):
    """Height and width of the box around a color."""
    rows, columns = np.nonzero((picture == np.array(color)).all(-1))
    return np.ptp(rows) + 1, np.ptp(columns) + 1


@pytest.mark.parametrize("columns", [1, 3, 6])
def test_panel_is_as_wide_as_readable_and_maps_fill_it(columns):
    picture = draw_panel([entry(columns=columns)])
    assert WIDTH <= picture.shape[1] <= WIDTH + 60
    used = (picture < 255).any(-1)
    assert used.any(0).mean() > 0.85
    assert used.any(1).mean() > 0.85


def test_image_is_as_high_as_the_grid_of_its_maps():
    picture = draw_panel([entry()])
    image, maps = area(picture, (255, 0, 0)), area(picture, (0, 0, 255))
    assert abs(image[0] - maps[0]) <= 2 * GAP
    assert image[1] / image[0] == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("size", [(600, 900), (900, 600), (20, 200)])
def test_maps_keep_the_aspect_of_images_of_any_size(size):
    height, width = area(draw_panel([entry(1, 1, size)]), (0, 0, 255))
    assert width / height == pytest.approx(size[1] / size[0], rel=0.1)


def test_missing_maps_are_hatched_with_their_text():
    rows = [("label", {"depth": "no label", "semseg": plain((0, 0, 255))})]
    blank = [("label", {"depth": plain((255, 255, 255)), "semseg": plain((0, 0, 255))})]
    hatched, white = (draw_panel([PanelEntry("", plain((255, 0, 0)), given)]) for given in (rows, blank))
    levels = np.unique(hatched[(hatched != white).any(-1)])
    assert len(levels) > 2


def test_headers_are_drawn_where_they_differ_from_the_row_above():
    def draw(below):
        rows = [("", {"depth": plain((0, 0, 255))}), ("", {below: plain((0, 0, 255))})]
        return draw_panel([PanelEntry("", plain((255, 0, 0)), rows)])

    assert draw("normals").shape[0] > draw("depth").shape[0]


def test_legend_names_classes_that_occur_and_ranges_with_units():
    tasks = [
        SemSeg(classes=("wall", "bed", "lamp")),
        HumanParts(),
        Saliency(),
        Depth(max_depth=12),
        Normals(),
        Height(),
    ]
    cells = {"semseg": to_uint8(tasks[0].colorize(torch.tensor([[[1, 1]]]))[0]), "human_parts": "no label"}
    given = PanelEntry("", plain((9, 9, 9)), [("label", cells)])
    texts = [[item for item in line if isinstance(item, str)] for line in task_legend(tasks, [given])]
    assert texts == [
        ["semseg:", "bed"],
        ["human_parts:"],
        ["saliency:", "0 to 1 probability"],
        ["depth:", "0.67 to 12 m"],
        ["normals:", "right", "left", "up", "to the camera"],
        ["height:"],
    ]
    errors = [line[-1] for line in task_legend(tasks, [given], errors=True)]
    assert errors[0] == "error: wrong class"
    assert errors[3] == "error: 25 % and more"


def test_long_legends_wrap_within_the_panel():
    task = SemSeg(classes=tuple(f"a class with a long name {k}" for k in range(40)))
    cells = {"semseg": to_uint8(task.colorize(torch.arange(40).view(1, 5, 8))[0])}
    given = PanelEntry("", plain((9, 9, 9), (5, 8)), [("label", cells)])
    picture = draw_panel([given], task_legend([task], [given]))
    assert (picture[:, -2:] == 255).all()
    assert picture.shape[0] > draw_panel([given]).shape[0] + 5 * 12
