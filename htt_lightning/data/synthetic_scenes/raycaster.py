"""Vectorized ray caster for exact depth, normals and color of convex solids.

Frames are right-handed with x right, y up and z towards the viewer; lengths are meters. A pinhole camera looks along
its own -z. Its rays have z = -1, so that the ray parameter of a hit is its depth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

Shape = Literal["plane", "box", "ellipsoid", "cylinder", "capsule"]
Pattern = Literal["plain", "checker", "stripes", "noise"]

_CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).astype(float)
_TINY = 1e-9


@dataclass(frozen=True)
class Material:
    """Linear RGB ``color`` and ``accent``, ``3``, mixed by a solid texture.

    The texture has ``wave`` cycles per meter along the axes of the object, ``3``, and an offset of ``phase`` cycles.
    ``glow`` is the fraction of light that the surface emits.
    """

    color: np.ndarray
    accent: np.ndarray = field(default_factory=lambda: np.zeros(3))
    pattern: Pattern = "plain"
    wave: np.ndarray = field(default_factory=lambda: np.ones(3))
    phase: float = 0.0
    glow: float = 0.0

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """Return the reflectance ``3 n`` at object coordinates ``3 n``."""
        if self.pattern == "plain":
            return np.broadcast_to(self.color[:, None], points.shape)
        cycles = points * self.wave[:, None] + self.phase
        if self.pattern == "checker":
            mix = np.floor(cycles).sum(0) % 2
        elif self.pattern == "stripes":
            mix = (cycles.sum(0) % 1 < 0.5).astype(float)
        else:
            warp = np.sin(2 * np.pi * cycles[[1, 2, 0]] + 1.7 * np.sin(5.1 * cycles[[2, 0, 1]]))
            mix = 0.5 + warp.sum(0) / 6
        albedo: np.ndarray = self.color[:, None] + (self.accent - self.color)[:, None] * mix
        return albedo


@dataclass(frozen=True)
class Primitive:
    """A convex solid with its labels and material.

    A plane is infinite and visible from its +y side only. Cylinder and capsule stand along y, with an elliptic
    cross-section. ``half`` has half extents along the axes of the solid, ``3``; ``half[1]`` of a capsule excludes the
    caps. The columns of ``rotation`` are these axes.
    """

    shape: Shape
    center: np.ndarray
    half: np.ndarray
    material: Material
    label: int = 0
    part: int = 0
    instance: int = 0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))

    @property
    def scale(self) -> np.ndarray:
        """Return the scale of the canonical solid of radius 1 in meters, ``3``."""
        if self.shape == "capsule":
            return np.array([self.half[0], (self.half[0] + self.half[2]) / 2, self.half[2]])
        return self.half

    @property
    def half_extent(self) -> np.ndarray:
        """Return half extents of the bounding box along the axes of the solid, ``3``."""
        return self.half + np.array([0, self.scale[1], 0]) if self.shape == "capsule" else self.half

    def transformed(self, rotation: np.ndarray, offset: np.ndarray, instance: int = 0) -> "Primitive":
        """Apply ``p -> rotation @ p + offset``, and add ``instance`` to the id."""
        center, own = rotation @ self.center + offset, rotation @ self.rotation
        # dataclasses.replace takes three times as long, for hundreds of solids per scene
        number = self.instance + instance
        return Primitive(self.shape, center, self.half, self.material, self.label, self.part, number, own)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera, with its axes (right, up, backward) as columns of ``rotation``.

    ``tangent`` is that of half the field of view along the longer side of the image.
    """

    position: np.ndarray
    rotation: np.ndarray
    tangent: float

    def rays(self, size: tuple[int, int]) -> np.ndarray:
        """Return directions of pixel centers with z = -1 in the camera frame, ``3 h w``."""
        height, width = size
        pitch = 2 * self.tangent / max(size)
        x = (np.arange(width) + 0.5 - width / 2) * pitch
        y = (height / 2 - np.arange(height) - 0.5) * pitch
        return np.stack([*np.meshgrid(x, y), np.full(size, -1.0)])


@dataclass(frozen=True)
class Light:
    """A point light; ``color`` is its linear RGB irradiance at 2 m."""

    position: np.ndarray
    color: np.ndarray


class RenderedView(NamedTuple):
    """Depth in meters, unit normals, index of the visible solid, and linear RGB radiance.

    Depth and ``hit`` are ``h w``; ``color`` and the normals, in the frame of the camera, are ``h w 3``.
    """

    depth: np.ndarray
    normals: np.ndarray
    hit: np.ndarray
    color: np.ndarray


def intersect(solid: Primitive, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Return ray parameters ``n`` of the first hits of rays ``3 n`` from one point.

    They are infinite without a hit. Rays that start inside the solid do not hit it.
    """
    to_local = solid.rotation.T / solid.scale[:, None]
    o, d = to_local @ (origin - solid.center)[:, None], to_local @ rays
    if solid.shape == "plane":
        return np.where(d[1] < -_TINY, o[1] / np.maximum(-d[1], _TINY), np.inf)
    if solid.shape == "box":
        near, far = _intersect_slab(o, d)
        near, far = near.max(0), far.min(0)
    elif solid.shape == "ellipsoid":
        near, far = _intersect_ball(o, d)
    elif solid.shape == "cylinder":
        (near, far), (bottom, top) = _intersect_ball(o[::2], d[::2]), _intersect_slab(o[1], d[1])
        near, far = np.maximum(near, bottom), np.minimum(far, top)
    else:
        length = solid.half[1] / solid.scale[1]
        side = _intersect_ball(o[::2], d[::2])
        height = o[1] + side[0] * d[1]
        beyond = np.repeat(o, d.shape[1], 1)
        beyond[1] -= np.copysign(length, height)
        near, far = np.where(np.abs(height) > length, _intersect_ball(beyond, d), side)
    return np.where((near < far) & (near > 0), near, np.inf)


def _intersect_slab(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return entry into and exit from ``[-1, 1]`` along one axis."""
    inverse = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
    return -o * inverse - np.abs(inverse), -o * inverse + np.abs(inverse)


def _intersect_ball(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return entry into and exit from the unit ball, an empty interval if missed."""
    inverse = 1 / np.maximum((d * d).sum(0), _TINY)
    middle = (o * d).sum(0) * -inverse
    root = np.sqrt(np.maximum(middle * middle - ((o * o).sum(0) - 1) * inverse, 0))
    return middle - root, middle + root


def _surface_normals(solid: Primitive, q: np.ndarray) -> np.ndarray:
    """Return outward unit normals ``3 n`` at surface points of the canonical solid."""
    if solid.shape == "plane":
        return np.broadcast_to(solid.rotation[:, 1:2], q.shape)
    if solid.shape == "box":
        local = np.where(np.arange(3)[:, None] == np.abs(q).argmax(0), np.sign(q), 0)
    elif solid.shape == "cylinder":
        cap = np.abs(q[1]) > np.hypot(q[0], q[2])
        local = np.where(cap, q * [[0], [1], [0]], q * [[1], [0], [1]])
    else:
        local = q.copy()
        if solid.shape == "capsule":
            length = solid.half[1] / solid.scale[1]
            local[1] -= np.clip(q[1], -length, length)
    outer: np.ndarray = solid.rotation @ (local / solid.scale[:, None])
    outer /= np.sqrt((outer * outer).sum(0))
    return outer


def cast_rays(
    solids: Sequence[Primitive],
    camera: Camera,
    size: tuple[int, int],
    lights: Sequence[Light] = (),
    ambient: float = 1.0,
) -> RenderedView:
    """Render a closed scene in world coordinates, in which every ray hits a solid."""
    inverse = camera.rotation.T
    local = [solid.transformed(inverse, -inverse @ camera.position) for solid in solids]
    rays = camera.rays(size)
    depth, index = np.full(size, np.inf), np.zeros(size, np.int64)
    for number, (solid, window) in enumerate(zip(local, _image_windows(local, camera.tangent, size), strict=True)):
        patch = rays[(slice(None), *window)]
        hit = intersect(solid, np.zeros(3), patch.reshape(3, -1)).reshape(patch.shape[1:])
        nearer = hit < depth[window]
        depth[window][nearer] = hit[nearer]
        index[window][nearer] = number

    points = (rays * depth).reshape(3, -1)
    normals, albedo, glow = np.empty_like(points), np.empty_like(points), np.empty(points.shape[1])
    order = index.ravel().argsort(kind="stable")
    found, starts = np.unique(index.ravel()[order], return_index=True)
    for number, pixels in zip(found, np.split(order, starts[1:]), strict=True):
        solid = local[number]
        q = solid.rotation.T @ (points[:, pixels] - solid.center[:, None])
        normals[:, pixels] = _surface_normals(solid, q / solid.scale[:, None])
        albedo[:, pixels] = solid.material.albedo(q)
        glow[pixels] = solid.material.glow

    arriving = np.full_like(points, ambient)
    for light in lights:
        position = inverse @ (light.position - camera.position)
        arriving += light.color[:, None] * _light_fraction(local, position, points, normals)
    color = albedo * (glow + (1 - glow) * arriving)
    return RenderedView(depth, normals.T.reshape(*size, 3), index, color.T.reshape(*size, 3))


def _image_windows(solids: Sequence[Primitive], tangent: float, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the image that enclose each solid."""
    centers = np.stack([solid.center for solid in solids])[..., None]
    x, y, z = np.moveaxis(centers + np.stack([solid.rotation * solid.half_extent for solid in solids]) @ _CORNERS, 1, 0)
    scale = max(size) / (2 * tangent * np.minimum(z, -_TINY))
    outline = np.stack([size[0] / 2 + y * scale, size[1] / 2 - x * scale])
    limit = np.array(size)[:, None]
    first = np.clip(outline.min(2) - 1, 0, limit).astype(int)
    last = np.clip(outline.max(2) + 2, 0, limit).astype(int)
    # a box across the plane of the camera has no finite outline
    everywhere = (z.max(1) > -1e-3) | [solid.shape == "plane" for solid in solids]
    first, last = np.where(everywhere, 0, first), np.where(everywhere, limit, last)
    for (top, left), (bottom, right) in zip(first.T, last.T, strict=True):
        yield slice(top, bottom), slice(left, right)


def _light_fraction(
    solids: Sequence[Primitive], light: np.ndarray, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Return the fraction of a light that reaches each point ``3 n``."""
    rays = points - light[:, None]
    square = (rays * rays).sum(0)
    distance = np.sqrt(square)
    slope = np.maximum(-(rays * normals).sum(0), 0) / distance
    lit = np.flatnonzero(slope > 0)
    rays, distance, directions = rays[:, lit], distance[lit], rays[:, lit] / distance[lit]
    seen = np.ones(lit.size, bool)
    for solid in solids:
        if solid.shape == "plane":
            continue  # planes bound the room, and lights are inside
        axis, radius = solid.center - light, float(np.linalg.norm(solid.half_extent))
        away = float(np.linalg.norm(axis))
        cosine = np.sqrt(max(1 - (radius / away) ** 2, 0)) if away > radius else -1.0
        within = np.flatnonzero(seen & (axis @ directions >= cosine * away) & (distance > away - radius))
        seen[within] = intersect(solid, light, rays[:, within]) > 1 - 1e-4  # surfaces must not shade themselves
    share = np.zeros(points.shape[1])
    share[lit] = seen * slope[lit] * 4 / np.maximum(square[lit], 0.25)
    return share
