import numpy as np
import pytest

from htt_lightning.data.synthetic_scenes import furniture
from htt_lightning.data.synthetic_scenes.furniture import SceneClass, bounds
from htt_lightning.data.synthetic_scenes.people import Part, person
from htt_lightning.data.synthetic_scenes.rooms import DEPTH_RANGE, TASKS, compose, has_people, render

SIZE = (64, 96)
COUNT = 50


@pytest.fixture(scope="module")
def scenes():
    return [render(3, index, SIZE) for index in range(COUNT)]


def test_maps_have_the_dtypes_and_shapes_of_their_tasks(scenes):
    for scene in scenes:
        assert set(scene) == {"image", *TASKS}
        for name, values in scene.items():
            assert values.dtype == (np.float32 if name in ("normals", "depth") else np.uint8)
            assert values.shape == ((*SIZE, 3) if name in ("image", "normals") else SIZE)
        assert scene["semseg"].max() < 13
        assert set(np.unique(scene["saliency"])) | set(np.unique(scene["edges"])) <= {0, 1}


def test_depth_stays_in_range_at_any_aspect_ratio(scenes):
    others = [render(6, index, size) for index in range(10) for size in ((48, 48), (72, 48))]
    for scene in [*scenes, *others]:
        assert DEPTH_RANGE[0] <= scene["depth"].min() <= scene["depth"].max() <= DEPTH_RANGE[1]


def test_normals_are_unit_and_face_the_camera(scenes):
    for index, scene in enumerate(scenes):
        np.testing.assert_allclose(np.linalg.norm(scene["normals"], axis=-1), 1, atol=1e-5)
        rays = np.moveaxis(compose(3, index).camera.rays(SIZE), 0, -1)
        assert (-(scene["normals"] * rays).sum(-1) > 0).all()


def test_back_projected_neighbors_lie_in_the_plane_of_normals(scenes):
    checked = 0
    for index, scene in enumerate(scenes[:10]):
        points = np.moveaxis(compose(3, index).camera.rays(SIZE) * scene["depth"], 0, -1)
        flat = np.isin(scene["semseg"], (SceneClass.WALL, SceneClass.FLOOR, SceneClass.CEILING)) & (scene["edges"] == 0)
        for pair in (np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]):
            both = flat[pair[0]] & flat[pair[1]]
            step = points[pair[1]] - points[pair[0]]
            step /= np.linalg.norm(step, axis=-1, keepdims=True)
            slope = (step * scene["normals"][pair[0]]).sum(-1)[both]
            assert np.abs(slope).max() < 1e-3
            checked += both.sum()
    assert checked > 10_000


def test_floor_normals_point_up_and_ceiling_normals_down(scenes):
    for scene in scenes:
        assert (scene["normals"][scene["semseg"] == SceneClass.FLOOR][:, 1] > 0.8).all()
        assert (scene["normals"][scene["semseg"] == SceneClass.CEILING][:, 1] < -0.8).all()


def test_every_class_is_common(scenes):
    images = np.array([[(scene["semseg"] == thing).any() for thing in SceneClass] for scene in scenes]).mean(0)
    pixels = np.bincount(np.concatenate([scene["semseg"].ravel() for scene in scenes]), minlength=13) / COUNT
    assert (images > 0.2).all()
    assert (pixels / np.prod(SIZE) > 0.005).all()


def test_three_in_four_images_have_visible_people(scenes):
    held = [scene for scene in scenes if (scene["human_parts"] != 255).any()]
    assert 0.6 < len(held) / COUNT < 0.9
    assert np.median([(scene["human_parts"] > 0).mean() for scene in held]) > 0.04
    parts = np.bincount(np.concatenate([scene["human_parts"].ravel() for scene in held]))
    assert len(parts) == 7
    assert (parts / parts.sum() > 0.003).all()


def test_people_are_salient_objects_or_unlabeled(scenes):
    for scene in scenes:
        parts = scene["human_parts"]
        people = (parts > 0) & (parts != 255)
        assert (parts == 255).all() or (parts.max() < 7 and people.any())
        assert (scene["saliency"][people] == 1).all()
        assert (scene["semseg"][people] == SceneClass.OBJECTS).all()
        assert 0.002 < scene["saliency"].mean() < 0.6


def test_edges_separate_instances(scenes):
    for scene in scenes:
        edge, label = scene["edges"] == 1, scene["semseg"]
        assert edge[:, :-1][label[:, :-1] != label[:, 1:]].all()
        assert edge[:-1][label[:-1] != label[1:]].all()
        assert 0.02 < edge.mean() < 0.3


def test_a_scene_depends_on_its_key_only():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = render(1, 2, (24, 32)), render(1, 2, (24, 32))
    assert all((first[name] == again[name]).all() for name in first)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    for other in (render(2, 2, (24, 32)), render(1, 3, (24, 32)), render(1, 2, (24, 32), stream=1)):
        assert (first["depth"] != other["depth"]).any()


def test_geometry_does_not_depend_on_the_size():
    # A size three times as large has every third pixel's center where the small image has its own.
    small, large = render(1, 4, (20, 30)), render(1, 4, (60, 90))
    for name in ("semseg", "depth", "normals", "saliency", "human_parts"):
        np.testing.assert_array_equal(small[name], large[name][1::3, 1::3])


def test_furniture_stays_in_the_room():
    for index in range(10):
        solids = compose(2, index).solids
        centers = np.array([solid.center for solid in solids if solid.shape == "plane"])
        low, high = bounds([solid for solid in solids if solid.shape != "plane"])
        assert (low >= centers.min(0) - 1e-6).all()
        assert (high <= centers.max(0) + 1e-6).all()


@pytest.mark.parametrize("name", ["bed", "sofa", "chair", "table", "cabinet", "bookcase", "sideboard", "lamp", "books"])
def test_furniture_stands_on_the_floor(name):
    for seed in range(10):
        piece = getattr(furniture, name)(np.random.default_rng(seed))
        assert bounds(piece)[0][1] == pytest.approx(0, abs=1e-9)
        assert piece[0].instance == 0


@pytest.mark.parametrize("seated", [False, True])
def test_people_have_all_parts_and_stand_on_the_floor(seated):
    for seed in range(10):
        piece = person(np.random.default_rng(seed), seated)
        body = [solid for solid in piece if solid.instance == 0]
        assert {solid.part for solid in body} == set(Part) - {Part.NONE}
        low, high = bounds(body)
        assert low[1] == pytest.approx(0)
        assert 0.9 < high[1] < 2.5
        assert body[0].part == Part.HEAD
        assert {solid.label for solid in piece if solid.instance == 1} == ({SceneClass.CHAIR} if seated else set())


def test_color_does_not_tell_the_class(scenes):
    """Mean colors of two classes differ by less than the colors within either of them."""
    colors = {
        thing: np.array([s["image"][s["semseg"] == thing].mean(0) for s in scenes if (s["semseg"] == thing).sum() > 20])
        for thing in map(SceneClass.__getitem__, ("WALL", "FLOOR", "OBJECTS", "BED", "SOFA", "FURNITURE"))
    }
    means = np.array([values.mean(0) for values in colors.values()])
    spread = min(values.std(0).mean() for values in colors.values())
    assert (means.max(0) - means.min(0) < 2 * spread).all()


def test_has_people_agrees_with_rendering(scenes):
    seen = [bool(np.isin(scene["human_parts"], range(1, 7)).any()) for scene in scenes]
    assert [has_people(3, index) for index in range(COUNT)] == seen
    assert 0.7 < np.mean(seen) < 0.97
