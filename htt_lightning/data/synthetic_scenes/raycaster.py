"""A small vectorised ray caster: solids in, exact depth, normals and identities out, and a picture to go with them.

Frames are right-handed with x right, y up and z towards the viewer; lengths are metres. A pinhole camera looks along
its own -z. Its rays have z = -1, so that the parameter of a hit *is* its depth. A point light sees the scene as a
camera does: what it cannot see lies in shadow, so one intersection routine serves both.
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
    """Colours of a surface, mixed by a solid texture in object coordinates.

    Args:
        colour: Linear RGB reflectance, ``3``.
        accent: The second colour of the pattern, ``3``.
        pattern: How the two are mixed.
        wave: Frequency of the pattern along the object's axes in cycles per metre, ``3``.
        phase: Offset of the pattern in cycles.
        glow: Share of light that comes from the surface itself, 0 to 1.
    """

    colour: np.ndarray
    accent: np.ndarray
    pattern: Pattern = "plain"
    wave: np.ndarray = field(default_factory=lambda: np.ones(3))
    phase: float = 0.0
    glow: float = 0.0

    def albedo(self, points: np.ndarray) -> np.ndarray:
        """Reflectance ``3 n`` at object coordinates ``3 n``."""
        if self.pattern == "plain":
            return np.broadcast_to(self.colour[:, None], points.shape)
        cycles = points * self.wave[:, None] + self.phase
        if self.pattern == "checker":
            mix = np.floor(cycles).sum(0) % 2
        elif self.pattern == "stripes":
            mix = (cycles.sum(0) % 1 < 0.5).astype(float)
        else:
            warp = np.sin(2 * np.pi * cycles[[1, 2, 0]] + 1.7 * np.sin(5.1 * cycles[[2, 0, 1]]))
            mix = 0.5 + warp.sum(0) / 6
        albedo: np.ndarray = self.colour[:, None] + (self.accent - self.colour)[:, None] * mix
        return albedo


@dataclass(frozen=True)
class Primitive:
    """A convex solid with what it is and what it is made of.

    A *plane* is infinite and seen from its +y side only: six of them make a room without seams. *Cylinder* and
    *capsule* stand along y; their cross-section may be an ellipse.

    Args:
        shape: Kind of solid.
        centre: Its centre, ``3``.
        half: Half extents along its own axes, ``3``; for a capsule, ``half[1]`` ends where the caps begin.
        material: Its surface.
        label: Semantic class.
        part: Part id within the instance.
        instance: Instance id.
        rotation: Its own axes as columns, ``3 3``.
    """

    shape: Shape
    centre: np.ndarray
    half: np.ndarray
    material: Material
    label: int = 0
    part: int = 0
    instance: int = 0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))

    @property
    def scale(self) -> np.ndarray:
        """Metres per unit of the canonical solid of this shape, ``3``: cube, ball or tube of radius 1."""
        if self.shape == "capsule":
            return np.array([self.half[0], (self.half[0] + self.half[2]) / 2, self.half[2]])
        return self.half

    @property
    def reach(self) -> np.ndarray:
        """Half extents of the enclosing box along the solid's own axes, ``3``."""
        return self.half + np.array([0, self.scale[1], 0]) if self.shape == "capsule" else self.half

    def moved(self, rotation: np.ndarray, offset: np.ndarray, instance: int = 0) -> "Primitive":
        """The same solid after ``p -> rotation @ p + offset``, its instance id raised by ``instance``."""
        centre, own = rotation @ self.centre + offset, rotation @ self.rotation
        # Spelled out because dataclasses.replace takes three times as long, and a scene moves hundreds of solids.
        number = self.instance + instance
        return Primitive(self.shape, centre, self.half, self.material, self.label, self.part, number, own)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        position: Its centre, ``3``.
        rotation: Its axes (right, up, backwards) as columns, ``3 3``.
        tangent: Tangent of half the field of view along the longer side of the image.
    """

    position: np.ndarray
    rotation: np.ndarray
    tangent: float

    def rays(self, size: tuple[int, int]) -> np.ndarray:
        """Directions through the pixel centres in the camera's frame, ``3 h w`` with z = -1."""
        height, width = size
        pitch = 2 * self.tangent / max(size)
        x = (np.arange(width) + 0.5 - width / 2) * pitch
        y = (height / 2 - np.arange(height) - 0.5) * pitch
        return np.stack([*np.meshgrid(x, y), np.full(size, -1.0)])


@dataclass(frozen=True)
class Light:
    """A point light.

    Args:
        position: Its place, ``3``.
        colour: Linear RGB irradiance at 2 m, ``3``.
    """

    position: np.ndarray
    colour: np.ndarray


class ImageView(NamedTuple):
    """What a camera sees.

    Attributes:
        depth: Distance along the optical axis in metres, ``h w``.
        normals: Unit normals in the camera's frame, ``h w 3``.
        hit: Position of the primitive that is hit, ``h w``.
        colour: Linear RGB radiance, ``h w 3``.
    """

    depth: np.ndarray
    normals: np.ndarray
    hit: np.ndarray
    colour: np.ndarray


def intersect(solid: Primitive, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Where rays from one point first enter a solid.

    Args:
        solid: The solid; rays that start inside it pass.
        origin: Start of all rays, ``3``.
        rays: Directions, ``3 n``.

    Returns:
        Ray parameters ``n``, in lengths of the direction; infinite without a hit.
    """
    to_local = solid.rotation.T / solid.scale[:, None]
    o, d = to_local @ (origin - solid.centre)[:, None], to_local @ rays
    if solid.shape == "plane":
        return np.where(d[1] < -_TINY, o[1] / np.maximum(-d[1], _TINY), np.inf)
    if solid.shape == "box":
        near, far = _slab(o, d)
        near, far = near.max(0), far.min(0)
    elif solid.shape == "ellipsoid":
        near, far = _ball(o, d)
    elif solid.shape == "cylinder":
        (near, far), (bottom, top) = _ball(o[::2], d[::2]), _slab(o[1], d[1])
        near, far = np.maximum(near, bottom), np.minimum(far, top)
    else:
        length = solid.half[1] / solid.scale[1]
        near, far = _ball(o[::2], d[::2])
        height = o[1] + near * d[1]
        beyond = np.repeat(o, d.shape[1], 1)
        beyond[1] -= np.copysign(length, height)
        cap = _ball(beyond, d)
        capped = np.abs(height) > length
        near, far = np.where(capped, cap[0], near), np.where(capped, cap[1], far)
    return np.where((near < far) & (near > 0), near, np.inf)


def _slab(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry into and exit from ``[-1, 1]`` along one axis."""
    inverse = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
    middle, half = -o * inverse, np.abs(inverse)
    return middle - half, middle + half


def _ball(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry into and exit from the unit ball, or circle, ``k n``; an empty interval where it is missed."""
    inverse = 1 / np.maximum((d * d).sum(0), _TINY)
    middle = (o * d).sum(0) * -inverse
    # A root of zero is a miss or a graze: an interval without length, which the caller refuses.
    root = np.sqrt(np.maximum(middle * middle - ((o * o).sum(0) - 1) * inverse, 0))
    return middle - root, middle + root


def _normal(solid: Primitive, q: np.ndarray) -> np.ndarray:
    """Outward unit normals ``3 n`` at surface points of the canonical solid."""
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


def cast(
    solids: Sequence[Primitive],
    camera: Camera,
    size: tuple[int, int],
    lights: Sequence[Light] = (),
    ambient: float = 1.0,
) -> ImageView:
    """See a closed scene.

    Args:
        solids: The scene in world coordinates; every ray must hit something.
        camera: Where from.
        size: Height and width of the image.
        lights: Point lights in world coordinates.
        ambient: Light that comes from everywhere.

    Returns:
        Geometry and radiance.
    """
    inverse = camera.rotation.T
    local = [solid.moved(inverse, -inverse @ camera.position) for solid in solids]
    rays = camera.rays(size)
    depth, index = np.full(size, np.inf), np.zeros(size, np.int64)
    for number, (solid, window) in enumerate(zip(local, _windows(local, camera.tangent, size), strict=True)):
        patch = rays[(slice(None), *window)]
        if not patch.size:
            continue
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
        q = solid.rotation.T @ (points[:, pixels] - solid.centre[:, None])
        normals[:, pixels] = _normal(solid, q / solid.scale[:, None])
        albedo[:, pixels] = solid.material.albedo(q)
        glow[pixels] = solid.material.glow

    arriving = np.full_like(points, ambient)
    for light in lights:
        position = inverse @ (light.position - camera.position)
        arriving += light.colour[:, None] * _reaching(local, position, points, normals)
    colour = albedo * (glow + (1 - glow) * arriving)
    return ImageView(depth, normals.T.reshape(*size, 3), index, colour.T.reshape(*size, 3))


def _windows(solids: Sequence[Primitive], tangent: float, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the image outside which each solid in the camera's frame cannot be seen."""
    bin_centers = np.stack([solid.centre for solid in solids])[..., None]
    x, y, z = np.moveaxis(bin_centers + np.stack([solid.rotation * solid.reach for solid in solids]) @ _CORNERS, 1, 0)
    scale = max(size) / (2 * tangent * np.minimum(z, -_TINY))
    outline = np.stack([size[0] / 2 + y * scale, size[1] / 2 - x * scale])
    limit = np.array(size)[:, None]
    first = np.clip(outline.min(2) - 1, 0, limit).astype(int)
    last = np.clip(outline.max(2) + 2, 0, limit).astype(int)
    # A box across the camera's own plane has no finite outline, and one behind it is rare.
    everywhere = (z.max(1) > -1e-3) | [solid.shape == "plane" for solid in solids]
    first, last = np.where(everywhere, 0, first), np.where(everywhere, limit, last)
    for (top, left), (bottom, right) in zip(first.T, last.T, strict=True):
        yield slice(top, bottom), slice(left, right)


def _reaching(solids: Sequence[Primitive], light: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Share of a light's power that reaches each point ``3 n``: slope, distance and shadows."""
    rays = points - light[:, None]
    square = (rays * rays).sum(0)
    distance = np.sqrt(square)
    slope = np.maximum(-(rays * normals).sum(0), 0) / distance
    lit = np.flatnonzero(slope > 0)
    rays, distance, directions = rays[:, lit], distance[lit], rays[:, lit] / distance[lit]
    seen = np.ones(lit.size, bool)
    for solid in solids:
        if solid.shape == "plane":
            continue  # planes bound the room, and its lights are inside
        axis, radius = solid.centre - light, float(np.linalg.norm(solid.reach))
        away = float(np.linalg.norm(axis))
        cosine = np.sqrt(max(1 - (radius / away) ** 2, 0)) if away > radius else -1.0
        within = np.flatnonzero(seen & (axis @ directions >= cosine * away) & (distance > away - radius))
        if within.size:
            # A surface must not shade itself by rounding.
            seen[within] = intersect(solid, light, rays[:, within]) > 1 - 1e-4
    share = np.zeros(points.shape[1])
    share[lit] = seen * slope[lit] * 4 / np.maximum(square[lit], 0.25)
    return share
