"""Furnished rooms with people in them, drawn at random with exact labels for six tasks.

Shape and context tell what a thing is; its colour does not: walls, furniture, clothes and skin share one palette. A
scene is a function of its key alone, so that it is the same at every image size.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from htt_lightning.data.synthetic_scenes import furniture as made
from htt_lightning.data.synthetic_scenes.furniture import Builder, Piece, Thing
from htt_lightning.data.synthetic_scenes.people import person
from htt_lightning.data.synthetic_scenes.raycaster import Camera, ImageView, Light, Material, Primitive, cast, intersect
from htt_lightning.tasks.base import IGNORE_INDEX

TASKS = ("semseg", "human_parts", "saliency", "normals", "depth", "edges")
"""Labels of every scene."""

DEPTH_RANGE = (0.67, 10.0)
"""Metres within which everything in view lies."""

_CLEARANCE = 1.1
"""Metres that everything keeps from the camera: 0.7 m of depth in the corner of the widest square view."""

_TANGENT = 0.7
"""Tangent of half the field of view along the longer side."""

_TINY = 1e-9

_AT_WALLS: tuple[tuple[Builder, float], ...] = (
    (made.bed, 0.75),
    (made.sofa, 0.75),
    (made.sideboard, 0.4),
    (made.cabinet, 0.5),
    (made.bookcase, 0.6),
    (made.table, 0.4),
)
_LOOSE: tuple[tuple[Builder, float], ...] = (
    (made.table, 0.9),
    (made.chair, 0.6),
    (made.chair, 0.4),
    (made.lamp, 0.3),
    (made.clutter, 0.35),
    (made.books, 0.3),
)
_HANGING: tuple[tuple[Builder, float], ...] = (
    (made.window, 0.7),
    (made.window, 0.3),
    (made.picture, 0.7),
    (made.picture, 0.6),
    (made.picture, 0.3),
    (made.television, 0.35),
)


@dataclass(frozen=True)
class Scene:
    """A room as seen by one camera.

    Args:
        solids: Everything in it, in world coordinates.
        camera: The camera.
        lights: The point lights.
        ambient: Light from everywhere.
        salient: Instance ids of what catches the eye.
    """

    solids: Sequence[Primitive]
    camera: Camera
    lights: Sequence[Light]
    ambient: float
    salient: Sequence[int]


def render(seed: int, index: int, size: tuple[int, int], stream: int = 0) -> dict[str, np.ndarray]:
    """Draw a scene: uint8 RGB ``image`` and the maps of ``TASKS`` in their numpy conventions.

    Args:
        seed: Non-negative seed of the collection.
        index: Number of the scene in its stream.
        size: Height and width.
        stream: Number of a disjoint sequence of scenes, such as a split.
    """
    scene = compose(seed, index, stream)
    view = cast(scene.solids, scene.camera, size, scene.lights, scene.ambient)
    label, part, instance = (
        np.array([getattr(solid, name) for solid in scene.solids], np.int64)[view.hit]
        for name in ("label", "part", "instance")
    )
    return {
        "image": _develop(view, np.random.default_rng([seed, stream, index, 1])),
        "semseg": label.astype(np.uint8),
        "human_parts": (part if part.any() else np.full(size, IGNORE_INDEX)).astype(np.uint8),
        "saliency": np.isin(instance, scene.salient).astype(np.uint8),
        "normals": view.normals.astype(np.float32),
        "depth": view.depth.astype(np.float32),
        "edges": _borders(instance).astype(np.uint8),
    }


def _borders(instance: np.ndarray) -> np.ndarray:
    """True where the right or the lower neighbour belongs to another instance, ``h w``."""
    edge = np.zeros(instance.shape, bool)
    edge[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    edge[:-1] |= instance[:-1] != instance[1:]
    return edge


def _develop(view: ImageView, rng: np.random.Generator) -> np.ndarray:
    """Radiance to a photograph, uint8 ``h w 3``: exposure, white balance, film curve, vignette and sensor noise."""
    height, width = view.depth.shape
    gain = rng.uniform(0.15, 0.55) / np.median(view.colour) * rng.uniform(0.85, 1.15, 3)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    photo = (1 - np.exp(-gain * view.colour)) ** (1 / 2.2) * (1 - rng.uniform(0, 0.15) * (x**2 + y**2))[..., None]
    photo += rng.uniform(0.003, 0.03) * rng.standard_normal(photo.shape)
    pixels: np.ndarray = np.clip(photo * 255, 0, 255).round().astype(np.uint8)
    return pixels


def compose(seed: int, index: int, stream: int = 0) -> Scene:
    """Furnish one room; arguments as for ``render``."""
    rng, room, salient = _open(seed, index, stream)
    for build in _drawn(rng, _AT_WALLS):
        room.against_wall(build)
    for build in _drawn(rng, _LOOSE):
        room.in_view(build)
    for build in _drawn(rng, _HANGING):
        room.against_wall(build, rng.uniform(0.8, 1.4))
    lights = [
        Light(rng.uniform([-0.4, 0.45, -0.8], [0.4, 0.95, -0.05]) * room.size, power * rng.uniform(0.7, 1.3, 3))
        for power in rng.uniform(0.6, 2, 1 + (rng.random() < 0.35))
    ]
    return Scene(room.solids, room.camera, lights, rng.uniform(0.25, 0.6), salient)


@cache
def has_people(seed: int, index: int, stream: int = 0) -> bool:
    """Whether somebody is in a scene, without rendering it.

    Args:
        seed: As for ``render``.
        index: Likewise.
        stream: Likewise.
    """
    _, room, _ = _open(seed, index, stream)
    return any(solid.part for solid in room.solids)


def _open(seed: int, index: int, stream: int) -> tuple[np.random.Generator, "_Room", list[int]]:
    """A room with all that is salient in it, and the numbers of that; nothing that comes later will hide it."""
    rng = np.random.default_rng([seed, stream, index, 0])
    room = _Room(rng)
    people = rng.choice([0, 1, 2], p=[0.15, 0.5, 0.35])
    # A draw may come too close to the camera; most do not.
    while (first := room.eyecatcher()) is None:
        pass
    return rng, room, [first, *(number for _ in range(people) if (number := room.guest()) is not None)]


def _drawn(rng: np.random.Generator, chances: Sequence[tuple[Builder, float]]) -> list[Builder]:
    """Some of the builders, each with its own chance, in random order."""
    chosen = [build for build, chance in chances if rng.random() < chance]
    return [chosen[number] for number in rng.permutation(len(chosen))]


def _obstructs(solid: Primitive, eye: np.ndarray, sight: np.ndarray) -> bool:
    """Whether a solid comes too close to the camera or between it and the ends of the rays ``3 n``."""
    outside = np.maximum(np.abs(solid.rotation.T @ (eye - solid.centre)) - solid.reach, 0)
    return bool(outside @ outside < _CLEARANCE**2 or (intersect(solid, eye, sight) < 1).any())


class _Room:
    """A room being furnished: places pieces where they fit and where they hide nobody.

    The floor is y = 0, the far wall z = -depth; the camera stands near z = 0.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        # The longest diagonal is 9.7 m: nothing in view is further than that.
        self.size = rng.uniform([4, 2.4, 3.8], [6, 2.7, 7])
        self.low, self.high = self.size * [-0.5, 0, -1], self.size * [0.5, 1, 0]
        margin = _CLEARANCE + 0.02
        position = rng.uniform(self.low + margin, [self.high[0] - margin, self.high[1], -margin])
        position[1] = rng.uniform(1.25, 1.6)  # the ceiling is nearer than the clearance, but never looked at head on
        position[2] = max(position[2], -rng.uniform(margin, 1.6))
        aim = np.array([rng.uniform(-0.45, 0.45) * self.size[0], 0, -0.85 * self.size[2]]) - position
        yaw, pitch, roll = np.arctan2(-aim[0], -aim[2]), rng.uniform(-0.35, 0.2), rng.normal(0, 0.04)
        # One lens for all, as in a real dataset: sizes would say nothing about distances otherwise.
        self.camera = Camera(position, made.turn(yaw, 1) @ made.turn(pitch, 0) @ made.turn(roll, 2), _TANGENT)
        self.targets: list[np.ndarray] = []
        self.taken: list[tuple[np.ndarray, np.ndarray]] = []
        self.instances = 0
        self.solids: Piece = self._shell()

    def _shell(self) -> Piece:
        """Floor, ceiling and four walls."""
        wall = made.material(self.rng)
        shell = []
        for axis, side in ((1, -1), (1, 1), (0, -1), (0, 1), (2, -1), (2, 1)):
            thing = Thing.WALL if axis != 1 else Thing.FLOOR if side < 0 else Thing.CEILING
            material = wall if axis != 1 or self.rng.random() < 0.2 else made.material(self.rng)
            centre = (self.low + self.high) / 2
            centre[axis] = (self.low if side < 0 else self.high)[axis]
            up = np.eye(3)[axis] * -side
            shell.append(Primitive("plane", centre, np.ones(3), material, thing, 0, self.instances, made.upright(up)))
            self.instances += 1
        return shell

    def add(self, piece: Piece, position: np.ndarray, yaw: float) -> int | None:
        """Place a piece as near to a position as the walls allow.

        Returns:
            Its first instance id; none where it would stand in something, hide a target or come too close.
        """
        low, high = made.bounds(piece, yaw)
        position = np.clip(position, self.low - low, self.high - high)
        low, high = low + position + 0.01, high + position - 0.01
        if any((low < other[1]).all() and (other[0] < high).all() for other in self.taken):
            return None
        piece = made.placed(piece, position, yaw, self.instances)
        eye = self.camera.position
        sight = np.array(self.targets or [eye]).T - eye[:, None]
        hull = Primitive("box", (low + high) / 2, (high - low) / 2 + 0.02, piece[0].material)
        # Solids are asked one by one only where the box around them all is in the way.
        if _obstructs(hull, eye, sight) and any(_obstructs(body, eye, sight) for body in piece):
            return None
        self.solids += piece
        self.taken.append((low, high))
        number = self.instances
        self.instances = max(solid.instance for solid in piece) + 1
        return number

    def look(self, across: float, up: float | None, share: float, furthest: float = np.inf) -> np.ndarray:
        """A point in view, ``3``: at a share of the way to the wall along a ray, at most ``furthest`` metres away.

        Without ``up``, the ray runs level and the point lies on the floor below it.
        """
        ray = self.camera.rotation @ [across * self.camera.tangent, (up or 0) * self.camera.tangent, -1]
        if up is None:
            ray[1] = 0
        ray /= np.linalg.norm(ray)
        walls = np.where(ray > 0, self.high, self.low)
        way = ((walls - self.camera.position) / np.where(ray == 0, -_TINY, ray)).min()
        point: np.ndarray = self.camera.position + ray * min(share * way, furthest)
        return point if up is not None else point * [1, 0, 1]

    def in_view(self, build: Builder) -> None:
        """Stand a piece on the floor somewhere in view, if it finds a place."""
        piece = build(self.rng)
        for _ in range(8):
            place = self.look(self.rng.uniform(-0.8, 0.8), None, self.rng.uniform(0.3, 1), 4.5)
            if self.add(piece, place, self.rng.uniform(-np.pi, np.pi)) is not None:
                return

    def against_wall(self, build: Builder, height: float = 0.0) -> None:
        """Put a piece with its back to a wall in view, if it finds a place."""
        piece = build(self.rng)
        for _ in range(10):
            spot = self.look(self.rng.uniform(-0.9, 0.9), None, 1)
            wall = int(np.argmin([spot[2] - self.low[2], spot[0] - self.low[0], self.high[0] - spot[0]]))
            # Well beyond the wall and no higher than asked for: ``add`` pushes the back of the piece against it.
            spot += np.array([[0, height, -2], [-2, height, 0], [2, height, 0]])[wall]
            if self.add(piece, spot, (0, np.pi / 2, -np.pi / 2)[wall]) is not None:
                return

    def eyecatcher(self) -> int | None:
        """A vividly coloured thing in the foreground: on the floor, on a pedestal or hanging from the ceiling."""
        rng = self.rng
        point = self.look(rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.3), 0.85, rng.uniform(1.6, 2.6))
        around = np.stack([solid.material.colour for solid in self.solids])
        vivid = [np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.85, 1), rng.uniform(0.6, 1))) for hue in rng.random(3)]
        colour = max(vivid, key=lambda candidate: np.abs(around - candidate).sum(1).min())
        thing, surface = made.ornament(rng, rng.uniform(0.3, 0.45), Material(colour, colour)), made.material(rng)
        low, high = made.bounds(thing)
        base = max(point[1] - high[1] / 2, 0)
        support: Piece = []
        if base > self.size[1] - 1.2:
            cord = (0.02, self.size[1] - base - high[1], 0.02)
            support = [made.solid("cylinder", (0, high[1] - 0.02, 0), cord, surface, Thing.OBJECTS)]
        elif base > 0.2:
            column = np.array([1, 0, 1]) * rng.uniform(0.6, 1.2) * (high[0] - low[0]) + [0, base, 0]
            support = [made.solid(made.upright_solid(rng), (0, -base, 0), column, surface, Thing.FURNITURE)]
        else:
            base = 0.0
        piece = thing + [replace(solid, instance=1) for solid in support]
        number = self.add(piece, point * [1, 0, 1] + [0, base, 0], 0)
        if number is not None:
            centre = next(solid.centre for solid in self.solids if solid.instance == number)
            self.targets += [np.add(centre, (0, dy, 0)) for dy in (-0.08, 0, 0.08)]
        return number

    def guest(self) -> int | None:
        """A person in view, standing or on a chair."""
        for _ in range(8):
            across, seated = self.rng.uniform(-0.75, 0.75), self.rng.random() < 0.35
            piece = person(self.rng, seated)
            head, torso = piece[0].centre, piece[1].centre
            place = self.look(across, None, 0.85, self.rng.uniform(1.4, 2.5))
            slope = self.camera.rotation.T @ (place + (head + torso) / 2 * [0, 1, 0] - self.camera.position)
            # Someone above or below the picture is no guest.
            if np.abs(slope[1] / slope[2]) > 0.5 * self.camera.tangent:
                continue
            toward = np.arctan2(*(self.camera.position - place)[[0, 2]])
            number = self.add(piece, place, toward + self.rng.normal(0, 0.8))
            if number is not None:
                body = [solid for solid in self.solids if solid.instance == number]
                self.targets += [body[0].centre, body[1].centre]
                return number
        return None
