"""Random furnished rooms with people, and exact labels for six tasks.

Walls, furniture, clothes and skin share one palette, so that shape and context tell the class, and color does not. A
scene depends on its key only and is the same at every image size.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np

from htt_lightning.data.borders import segment_boundaries
from htt_lightning.data.synthetic_scenes import furniture
from htt_lightning.data.synthetic_scenes.furniture import Builder, Piece, SceneClass, axis_rotation
from htt_lightning.data.synthetic_scenes.people import person
from htt_lightning.data.synthetic_scenes.raycaster import Camera, Light, Material, Primitive, cast_rays, intersect
from htt_lightning.tasks.base import IGNORE_INDEX

TASKS = ("semseg", "human_parts", "saliency", "normals", "depth", "edges")
"""Tasks with labels in every scene."""

DEPTH_RANGE = (0.67, 10.0)
"""Range of depth in meters."""

StyleName = Literal["day", "night"]


class Style(NamedTuple):
    """Look of all scenes of a collection; labels do not depend on it.

    Attributes:
        tint: Factor of linear RGB radiance, ``3``.
        ambient: Factor of the light that reaches shadows.
        grain: Factor of the noise of the camera.
    """

    tint: tuple[float, float, float]
    ambient: float
    grain: float


STYLES: dict[StyleName, Style] = {"day": Style((1, 1, 1), 1, 1), "night": Style((0.45, 0.7, 1.7), 0.15, 3)}

TANGENT = 0.7
"""Tangent of half the field of view: one lens for all scenes, as sizes would not tell distances otherwise."""

_CLEARANCE = 1.1
"""Minimum distance from the camera in meters, a depth of 0.7 m in the corner of a square view."""

_AT_WALLS = (("bed", 0.75), ("sofa", 0.75), ("sideboard", 0.4), ("cabinet", 0.5), ("bookcase", 0.6), ("table", 0.4))
_LOOSE = (("table", 0.9), ("chair", 0.6), ("chair", 0.4), ("lamp", 0.3), ("ornament", 0.35), ("books", 0.3))
_PICTURES = (("picture", 0.7), ("picture", 0.6), ("picture", 0.3))
_HANGING = (("window", 0.7), ("window", 0.3), *_PICTURES, ("television", 0.35))
"""Builders in ``furniture`` with their probabilities."""


@dataclass(frozen=True)
class Scene:
    """A room with camera and lights, in world coordinates."""

    solids: Sequence[Primitive]
    camera: Camera
    lights: Sequence[Light]
    ambient: float
    salient: Sequence[int]
    """Instance ids of salient objects."""


def render(
    seed: int, index: int, size: tuple[int, int], stream: int = 0, style: StyleName = "day"
) -> dict[str, np.ndarray]:
    """Render a scene: uint8 RGB ``image`` and the maps of ``TASKS``.

    Args:
        seed: Non-negative seed of the dataset.
        index: Index of the scene in its stream.
        size: Height and width.
        stream: Index of a disjoint sequence of scenes, such as a split.
        style: Look of the image: ``day``, or ``night`` with blue light, dark shadows and grain.
    """
    scene, look = compose(seed, index, stream), STYLES[style]
    view = cast_rays(scene.solids, scene.camera, size, scene.lights, scene.ambient * look.ambient)
    ids = np.array([(solid.label, solid.part, solid.instance) for solid in scene.solids])
    label, part, instance = np.moveaxis(ids[view.hit], -1, 0)
    return {
        "image": _tone_map(view.color * look.tint, np.random.default_rng([seed, stream, index, 1]), look.grain),
        "semseg": label.astype(np.uint8),
        "human_parts": (part if part.any() else np.full(size, IGNORE_INDEX)).astype(np.uint8),
        "saliency": np.isin(instance, scene.salient).astype(np.uint8),
        "normals": view.normals.astype(np.float32),
        "depth": view.depth.astype(np.float32),
        "edges": segment_boundaries(instance).astype(np.uint8),
    }


def _tone_map(color: np.ndarray, rng: np.random.Generator, grain: float) -> np.ndarray:
    """Convert radiance to uint8 ``h w 3``, with vignette and noise that is multiplied by ``grain``."""
    height, width, _ = color.shape
    gain = rng.uniform(0.15, 0.55) / np.median(color) * rng.uniform(0.85, 1.15, 3)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    photo = (1 - np.exp(-gain * color)) ** (1 / 2.2) * (1 - rng.uniform(0, 0.15) * (x**2 + y**2))[..., None]
    photo += grain * rng.uniform(0.003, 0.03) * rng.standard_normal(photo.shape)
    pixels: np.ndarray = np.clip(photo * 255, 0, 255).round().astype(np.uint8)
    return pixels


def compose(seed: int, index: int, stream: int = 0) -> Scene:
    """Furnish a room, with the arguments of ``render``."""
    rng, room, salient = _start_room(seed, index, stream)
    for build in _sample_builders(rng, _AT_WALLS):
        room.place_at_wall(build)
    for build in _sample_builders(rng, _LOOSE):
        room.place_in_view(build)
    for build in _sample_builders(rng, _HANGING):
        room.place_at_wall(build, rng.uniform(0.8, 1.4))
    lights = [
        Light(rng.uniform([-0.4, 0.45, -0.8], [0.4, 0.95, -0.05]) * room.size, power * rng.uniform(0.7, 1.3, 3))
        for power in rng.uniform(0.6, 2, 1 + (rng.random() < 0.35))
    ]
    return Scene(room.solids, room.camera, lights, rng.uniform(0.25, 0.6), salient)


@cache
def has_people(seed: int, index: int, stream: int = 0) -> bool:
    """Return True if a scene has people, without rendering it.

    Args:
        seed: Non-negative seed of the dataset.
        index: Index of the scene in its stream.
        stream: Index of a disjoint sequence of scenes.
    """
    _, room, _ = _start_room(seed, index, stream)
    return any(solid.part for solid in room.solids)


def _start_room(seed: int, index: int, stream: int) -> tuple[np.random.Generator, "_Room", list[int]]:
    """Create a room with its salient objects, and return their instance ids."""
    rng = np.random.default_rng([seed, stream, index, 0])
    room = _Room(rng)
    people = rng.choice([0, 1, 2], p=[0.15, 0.5, 0.35])
    while (first := room.place_eye_catcher()) is None:
        pass  # too close to the camera
    return rng, room, [first, *(number for _ in range(people) if (number := room.place_person()) is not None)]


def _sample_builders(rng: np.random.Generator, probabilities: Sequence[tuple[str, float]]) -> list[Builder]:
    """Sample builders by their probabilities, in random order."""
    chosen = [name for name, probability in probabilities if rng.random() < probability]
    return [getattr(furniture, chosen[index]) for index in rng.permutation(len(chosen))]


def _blocks_view(solid: Primitive, eye: np.ndarray, sight: np.ndarray) -> bool:
    """Return True if a solid is near the camera or hides ends of rays ``3 n``."""
    outside = np.maximum(np.abs(solid.rotation.T @ (eye - solid.center)) - solid.half_extent, 0)
    return bool(outside @ outside < _CLEARANCE**2 or (intersect(solid, eye, sight) < 1).any())


class _Room:
    """A room that places pieces where they fit and hide no salient object.

    The floor is y = 0, the far wall z = -depth. The camera stands near z = 0.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = rng.uniform([4, 2.4, 3.8], [6, 2.7, 7])  # diagonals of at most 9.7 m, within DEPTH_RANGE
        self.low, self.high = self.size * [-0.5, 0, -1], self.size * [0.5, 1, 0]
        margin = _CLEARANCE + 0.02
        position = rng.uniform(self.low + margin, [self.high[0] - margin, self.high[1], -margin])
        position[1] = rng.uniform(1.25, 1.6)  # nearer to the ceiling than the clearance, but seen at an angle
        position[2] = max(position[2], -rng.uniform(margin, 1.6))
        aim = np.array([rng.uniform(-0.45, 0.45) * self.size[0], 0, -0.85 * self.size[2]]) - position
        yaw, pitch, roll = np.arctan2(-aim[0], -aim[2]), rng.uniform(-0.35, 0.2), rng.normal(0, 0.04)
        rotation = axis_rotation(yaw, 1) @ axis_rotation(pitch, 0) @ axis_rotation(roll, 2)
        self.camera = Camera(position, rotation, TANGENT)
        self.targets: list[np.ndarray] = []
        self.occupied: list[tuple[np.ndarray, np.ndarray]] = []
        self.solids: Piece = self._shell()
        self.instances = len(self.solids)

    def _shell(self) -> Piece:
        """Build floor, ceiling and four walls."""
        wall = furniture.sample_material(self.rng)
        shell = []
        for instance, (axis, side) in enumerate(((1, -1), (1, 1), (0, -1), (0, 1), (2, -1), (2, 1))):
            label = SceneClass.WALL if axis != 1 else SceneClass.FLOOR if side < 0 else SceneClass.CEILING
            material = wall if axis != 1 or self.rng.random() < 0.2 else furniture.sample_material(self.rng)
            center = (self.low + self.high) / 2
            center[axis] = (self.low if side < 0 else self.high)[axis]
            rotation = furniture.rotation_from_up(np.eye(3)[axis] * -side)
            shell.append(Primitive("plane", center, np.ones(3), material, label, 0, instance, rotation))
        return shell

    def try_place(self, piece: Piece, position: np.ndarray, yaw: float) -> int | None:
        """Place a piece as near to a position as the walls allow, and return its first instance id.

        It is not placed, and None returned, if it would overlap, hide a target or come too close to the camera.
        """
        low, high = furniture.bounds(piece, yaw)
        position = np.clip(position, self.low - low, self.high - high)
        low, high = low + position + 0.01, high + position - 0.01
        if any((low < other[1]).all() and (other[0] < high).all() for other in self.occupied):
            return None
        piece = furniture.place(piece, position, yaw, self.instances)
        eye = self.camera.position
        sight = np.array(self.targets or [eye]).T - eye[:, None]
        hull = Primitive("box", (low + high) / 2, (high - low) / 2 + 0.02, piece[0].material)
        if _blocks_view(hull, eye, sight) and any(_blocks_view(body, eye, sight) for body in piece):
            return None
        self.solids += piece
        self.occupied.append((low, high))
        number = self.instances
        self.instances = max(solid.instance for solid in piece) + 1
        return number

    def point_in_view(self, across: float, up: float | None, share: float, furthest: float = np.inf) -> np.ndarray:
        """Return the point at a share of the way to the wall on a camera ray, ``3``.

        ``across`` and ``up`` are positions in the image in [-1, 1]. Without ``up``, the point is on the floor.
        """
        ray = self.camera.rotation @ [across * self.camera.tangent, (up or 0) * self.camera.tangent, -1]
        if up is None:
            ray[1] = 0
        ray /= np.linalg.norm(ray)
        walls = np.where(ray > 0, self.high, self.low)
        way = ((walls - self.camera.position) / np.where(ray == 0, -1e-9, ray)).min()
        point: np.ndarray = self.camera.position + ray * min(share * way, furthest)
        return point if up is not None else point * [1, 0, 1]

    def place_in_view(self, build: Builder) -> None:
        """Place a piece on the floor in view, if it fits."""
        piece, rng = build(self.rng), self.rng
        for _ in range(8):
            place = self.point_in_view(rng.uniform(-0.8, 0.8), None, rng.uniform(0.3, 1), 4.5)
            if self.try_place(piece, place, rng.uniform(-np.pi, np.pi)) is not None:
                return

    def place_at_wall(self, build: Builder, height: float = 0.0) -> None:
        """Place a piece with its back to a wall in view, if it fits."""
        piece = build(self.rng)
        for _ in range(10):
            spot = self.point_in_view(self.rng.uniform(-0.9, 0.9), None, 1)
            wall = int(np.argmin([spot[2] - self.low[2], spot[0] - self.low[0], self.high[0] - spot[0]]))
            # beyond the wall: try_place moves the back of the piece against it
            spot += np.array([[0, height, -2], [-2, height, 0], [2, height, 0]])[wall]
            if self.try_place(piece, spot, (0, np.pi / 2, -np.pi / 2)[wall]) is not None:
                return

    def place_eye_catcher(self) -> int | None:
        """Place a vivid object on the floor, on a pedestal, or below the ceiling."""
        rng = self.rng
        point = self.point_in_view(rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.3), 0.85, rng.uniform(1.6, 2.6))
        around = np.stack([solid.material.color for solid in self.solids])
        vivid = [np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.85, 1), rng.uniform(0.6, 1))) for hue in rng.random(3)]
        color = max(vivid, key=lambda candidate: np.abs(around - candidate).sum(1).min())
        piece = furniture.ornament(rng, rng.uniform(0.3, 0.45), Material(color))
        surface = furniture.sample_material(rng)
        low, high = furniture.bounds(piece)
        base = max(point[1] - high[1] / 2, 0)
        if base > self.size[1] - 1.2:
            cord = (0.02, self.size[1] - base - high[1], 0.02)
            support = furniture.solid("cylinder", (0, high[1] - 0.02, 0), cord, surface, SceneClass.OBJECTS)
            piece.append(replace(support, instance=1))
        elif base > 0.2:
            width = rng.uniform(0.6, 1.2) * (high[0] - low[0])
            shape = furniture.sample_upright_shape(rng)
            support = furniture.solid(shape, (0, -base, 0), (width, base, width), surface, SceneClass.FURNITURE)
            piece.append(replace(support, instance=1))
        else:
            base = 0.0
        number = self.try_place(piece, point * [1, 0, 1] + [0, base, 0], 0)
        if number is not None:
            center = next(solid.center for solid in self.solids if solid.instance == number)
            self.targets += [np.add(center, (0, dy, 0)) for dy in (-0.08, 0, 0.08)]
        return number

    def place_person(self) -> int | None:
        """Place a person in view, standing or on a chair."""
        for _ in range(8):
            across, seated = self.rng.uniform(-0.75, 0.75), self.rng.random() < 0.35
            piece = person(self.rng, seated)
            head, torso = piece[0].center, piece[1].center
            place = self.point_in_view(across, None, 0.85, self.rng.uniform(1.4, 2.5))
            slope = self.camera.rotation.T @ (place + (head + torso) / 2 * [0, 1, 0] - self.camera.position)
            if np.abs(slope[1] / slope[2]) > 0.5 * self.camera.tangent:  # above or below the image
                continue
            toward = np.arctan2(*(self.camera.position - place)[[0, 2]])
            if (number := self.try_place(piece, place, toward + self.rng.normal(0, 0.8))) is not None:
                head, torso, *_ = (solid.center for solid in self.solids if solid.instance == number)
                self.targets += [head, torso]
                return number
        return None
