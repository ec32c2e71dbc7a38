from dataclasses import replace

import numpy as np
import pytest

from htt_lightning.data.synthetic_scenes.furniture import axis_rotation, rotation_from_up
from htt_lightning.data.synthetic_scenes.raycaster import Camera, Light, Material, Primitive, cast_rays, intersect

GRAY = Material(np.full(3, 0.5), np.full(3, 0.5))
SIZE = (33, 47)
AHEAD = Camera(np.zeros(3), np.eye(3), 0.7)


def plane(center, up) -> Primitive:
    return Primitive("plane", np.array(center, float), np.ones(3), GRAY, rotation=rotation_from_up(np.array(up, float)))


BACKDROP = plane((0, 0, -8), (0, 0, 1))


def points(camera: Camera, depth: np.ndarray) -> np.ndarray:
    return np.moveaxis(camera.rays(depth.shape) * depth, 0, -1)


@pytest.mark.parametrize("rotation", [np.eye(3), axis_rotation(0.4, 1) @ axis_rotation(-0.2, 0)])
def test_depth_is_the_distance_along_the_optical_axis(rotation):
    camera = Camera(np.array([1.0, 2, 3]), rotation, 0.7)
    wall = plane(camera.position - 5 * rotation[:, 2], rotation[:, 2])
    view = cast_rays([wall], camera, SIZE)
    np.testing.assert_allclose(view.depth, 5)
    np.testing.assert_allclose(view.normals, np.broadcast_to([0, 0, 1.0], (*SIZE, 3)), atol=1e-9)


def test_normals_of_a_room_follow_the_convention():
    normals = np.array([(0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0), (0, 0, 1)])
    view = cast_rays([plane(-normal * (1.5, 1, 40), normal) for normal in normals], AHEAD, SIZE)
    row, column = SIZE[0] // 2, SIZE[1] // 2
    pixels = [-1, 0, row, row, row], [column, column, 0, -1, column]
    np.testing.assert_allclose(view.normals[pixels], normals, atol=1e-12)
    below = -AHEAD.rays(SIZE)[1, -1, column]
    assert view.depth[-1, column] == pytest.approx(1 / below)


def test_depth_and_normals_of_a_ball():
    ball = Primitive("ellipsoid", np.array([0, 0, -4.0]), np.full(3, 0.5), GRAY, label=3, part=2, instance=7)
    view = cast_rays([BACKDROP, ball], AHEAD, SIZE)
    row, column = SIZE[0] // 2, SIZE[1] // 2
    assert view.depth[row, column] == pytest.approx(3.5)
    assert view.hit[row, column] == 1
    np.testing.assert_allclose(view.normals[row, column], [0, 0, 1], atol=1e-9)
    on_ball = view.hit == 1
    offset = points(AHEAD, view.depth)[on_ball] - ball.center
    np.testing.assert_allclose(np.linalg.norm(offset, axis=1), 0.5)
    np.testing.assert_allclose(view.normals[on_ball], offset / 0.5, atol=1e-9)


def solid_at(shape) -> Primitive:
    rotation = axis_rotation(0.6, 1) @ axis_rotation(0.5, 0) @ axis_rotation(-0.3, 2)
    return Primitive(shape, np.array([0.2, -0.1, -3.0]), np.array([0.5, 0.7, 0.4]), GRAY, rotation=rotation)


def inside(solid: Primitive, where: np.ndarray) -> np.ndarray:
    """Return the depth of points ``n 3`` in a solid: above 1 outside, 1 on its surface."""
    q = np.abs((where - solid.center) @ solid.rotation / solid.scale)
    if solid.shape == "box":
        return q.max(1)
    if solid.shape == "cylinder":
        return np.maximum(np.hypot(q[:, 0], q[:, 2]), q[:, 1])
    if solid.shape == "capsule":
        q[:, 1] = np.maximum(q[:, 1] - solid.half[1] / solid.scale[1], 0)
    return np.linalg.norm(q, axis=1)


@pytest.mark.parametrize("shape", ["box", "ellipsoid", "cylinder", "capsule"])
class TestSolid:
    def test_hits_are_the_first_points_on_the_surface(self, shape):
        solid = solid_at(shape)
        view = cast_rays([BACKDROP, solid], AHEAD, SIZE)
        seen = view.hit == 1
        hits = points(AHEAD, view.depth)[seen]
        np.testing.assert_allclose(inside(solid, hits), 1, atol=1e-9)
        assert (inside(solid, hits * 0.999) > 1).all()

    def test_missing_rays_never_enter_the_solid(self, shape):
        solid = solid_at(shape)
        view = cast_rays([BACKDROP, solid], AHEAD, SIZE)
        rays = np.moveaxis(AHEAD.rays(SIZE), 0, -1)[view.hit == 0]
        for depth in np.linspace(1.5, 4.5, 61):
            assert (inside(solid, rays * depth) >= 1).all()

    def test_normals_agree_with_neighboring_points(self, shape):
        view = cast_rays([BACKDROP, solid_at(shape)], AHEAD, (240, 320))
        where = points(AHEAD, view.depth)
        seen = view.hit == 1
        np.testing.assert_allclose(np.linalg.norm(view.normals, axis=-1), 1)
        towards = -where / np.linalg.norm(where, axis=-1, keepdims=True)
        assert ((view.normals * towards).sum(-1)[seen] > 0).all()
        across, down = where[1:-1, 2:] - where[1:-1, :-2], where[2:, 1:-1] - where[:-2, 1:-1]
        outward = np.cross(down, across)
        outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
        whole = seen[1:-1, 2:] & seen[1:-1, :-2] & seen[2:, 1:-1] & seen[:-2, 1:-1]
        agreement = (outward * view.normals[1:-1, 1:-1]).sum(-1)[whole]
        assert np.quantile(agreement, 0.1) > 0.99

    def test_image_windows_contain_the_solid(self, shape):
        solid = solid_at(shape)
        hit = intersect(solid, np.zeros(3), AHEAD.rays(SIZE).reshape(3, -1)).reshape(SIZE)
        assert ((cast_rays([BACKDROP, solid], AHEAD, SIZE).hit == 1) == np.isfinite(hit)).all()

    def test_rays_from_inside_and_away_miss(self, shape):
        solid = solid_at(shape)
        rays = AHEAD.rays(SIZE).reshape(3, -1)
        assert np.isinf(intersect(solid, solid.center, rays)).all()
        assert np.isinf(intersect(solid, np.zeros(3), -rays)).all()


def test_a_solid_across_the_camera_plane_is_visible():
    beam = Primitive("box", np.array([0, -1, 0.0]), np.array([0.2, 0.2, 6]), GRAY)
    view = cast_rays([BACKDROP, beam], AHEAD, SIZE)
    assert view.hit[-1, SIZE[1] // 2] == 1


def test_a_ball_casts_a_shadow_of_its_projected_size():
    ball = Primitive("ellipsoid", np.array([3.0, 0, -6]), np.full(3, 0.3), GRAY)
    light = Light(np.array([3.0, 0, -4]), np.ones(3))
    for position in ([3.0, 0, -2], [0.0, 0, 0]):
        eye = Camera(np.array(position), np.eye(3), 0.9)
        view = cast_rays([BACKDROP, ball], eye, (65, 65), [light], ambient=0.25)
        where = points(eye, view.depth) + eye.position
        wall = view.hit == 0
        radius = np.hypot(where[..., 0] - 3, where[..., 1])
        # The tangent cone of a ball of radius 0.3 at distance 2, at distance 4.
        cone = 4 * 0.3 / np.sqrt(4 - 0.09)
        dark = view.color[..., 0] <= 0.125 + 1e-9
        assert (dark == (radius < cone))[wall].all()


def test_surfaces_do_not_shade_themselves():
    solids = [BACKDROP, *(Primitive("box", np.array([x, 0, -4.0]), np.full(3, 0.4), GRAY) for x in (-1, 1))]
    view = cast_rays(solids, AHEAD, SIZE, [Light(np.array([0.0, 0, -1]), np.ones(3))], ambient=0)
    facing = (view.hit > 0) & (view.normals[..., 2] > 0.9)
    assert (view.color[facing] > 0).all()


@pytest.mark.parametrize("pattern", ["plain", "checker", "stripes", "noise"])
def test_textures_stay_between_their_two_colors(pattern):
    first, second = np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.6, 0.4])
    material = Material(first, second, pattern, np.array([2.0, 3, 5]))
    albedo = material.albedo(np.random.default_rng(0).uniform(-1, 1, (3, 500)))
    assert albedo.shape == (3, 500)
    assert (albedo >= first[:, None] - 1e-9).all()
    assert (albedo <= second[:, None] + 1e-9).all()
    assert (albedo.std(1) > 0.01).all() == (pattern != "plain")


def test_glowing_surfaces_need_no_light():
    lit = Material(np.full(3, 0.5), np.full(3, 0.5), glow=1)
    view = cast_rays([replace(BACKDROP, material=lit)], AHEAD, SIZE, ambient=0)
    np.testing.assert_allclose(view.color, 0.5)
