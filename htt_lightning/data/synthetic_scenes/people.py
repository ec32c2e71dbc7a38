"""People of synthetic rooms, with jointed limbs."""

import colorsys
from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from htt_lightning.data.synthetic_scenes import furniture
from htt_lightning.data.synthetic_scenes.furniture import Piece, SceneClass, axis_rotation, place, rotation_from_up
from htt_lightning.data.synthetic_scenes.raycaster import Material, Primitive, Shape


class Part(IntEnum):
    """Parts of a person. Hands belong to the lower arm, feet to the lower leg."""

    NONE, HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(7)


def person(rng: np.random.Generator, seated: bool) -> Piece:
    """Build a person in random clothes and pose, facing +z: head, torso, other parts.

    A seated person sits on a chair, which is instance 1.
    """
    height = rng.uniform(1.35, 1.9)
    shirt, trousers, shoes, hair = (furniture.sample_material(rng) for _ in range(4))
    tone = colorsys.hsv_to_rgb(rng.uniform(0.03, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.95))
    skin = Material(np.array(tone) ** 2)
    sleeve, leg = (shirt if rng.random() < 0.35 else skin), (trousers if rng.random() < 0.7 else skin)
    spine = axis_rotation(rng.uniform(0, 0.2) if seated else rng.uniform(-0.08, 0.2), 0)
    girth = rng.uniform(0.85, 1.25)
    parts: list[tuple[Shape, tuple[float, ...], tuple[float, ...], Material, Part]] = [
        ("ellipsoid", (0, 0.41, 0.01), (0.05, 0.068, 0.058), skin, Part.HEAD),
        ("capsule", (0, 0.14, 0), (0.095 * girth, 0.095, 0.06 * girth), shirt, Part.TORSO),
        ("ellipsoid", (0, 0.27, 0), (0.115, 0.045, 0.055), shirt, Part.TORSO),
        ("capsule", (0, 0.335, 0), (0.028, 0.02, 0.028), skin, Part.HEAD),
        ("ellipsoid", (0, 0.43, -0.008), (0.055, 0.06, 0.058), hair, Part.HEAD),
    ]
    body = []
    for shape, center, half, surface, part in parts:
        position, extent = spine @ (np.array(center) * height), np.array(half) * height
        body.append(Primitive(shape, position, extent, surface, SceneClass.OBJECTS, part, 0, spine))
    for side in (-1, 1):
        body += _arm(rng, side, height, spine, (shirt, sleeve, skin))
        body += _leg(rng, side, height, seated, (trousers, leg, shoes))
    body = place(body, (0, -furniture.bounds(body)[0][1], 0))
    if not seated:
        return body
    seat = body[1].center[1] - (0.14 + 0.06) * height
    return body + place(furniture.chair(rng, seat), (0, 0, 0.05), instance=1)


def _arm(rng: np.random.Generator, side: int, height: float, spine: np.ndarray, surfaces: Sequence[Material]) -> Piece:
    """Build an arm from upper arm, lower arm and hand; ``side`` is -1 or 1."""
    swing, spread = rng.uniform(-0.6, 0.9), side * rng.uniform(0.05, 0.5)
    if rng.random() < 0.2:
        swing, spread = rng.uniform(1.2, 2.8), side * rng.uniform(0, 0.7)
    shoulder = spine @ np.array([side * 0.115, 0.275, 0]) * height
    elbow = shoulder + _swing_down(swing, spread) * 0.16 * height
    hand = elbow + _swing_down(swing + rng.uniform(0, 1.7), spread * rng.uniform(-1, 1)) * 0.16 * height
    return [
        _limb(shoulder, elbow, 0.034 * height, surfaces[0], Part.UPPER_ARM),
        _limb(elbow, hand, 0.025 * height, surfaces[1], Part.LOWER_ARM),
        _limb(hand, hand + (hand - elbow) * 0.2, 0.03 * height, surfaces[2], Part.LOWER_ARM),
    ]


def _leg(rng: np.random.Generator, side: int, height: float, seated: bool, surfaces: Sequence[Material]) -> Piece:
    """Build a leg from thigh, shin and foot; ``side`` is -1 or 1."""
    spread = side * rng.uniform(0, 0.2)
    thigh, shin = (rng.uniform(1.3, 1.6), rng.uniform(-0.4, 0.3)) if seated else rng.uniform(-0.3, 0.3, 2)
    hip = np.array([side * 0.055, 0, 0]) * height
    knee = hip + _swing_down(thigh, spread) * 0.245 * height
    ankle = knee + _swing_down(min(shin, thigh), spread / 2) * 0.22 * height  # a knee bends one way only
    return [
        _limb(hip, knee, 0.052 * height, surfaces[0], Part.UPPER_LEG),
        _limb(knee, ankle, 0.037 * height, surfaces[1], Part.LOWER_LEG),
        _limb(ankle, ankle + np.array([0, -0.02, 0.07]) * height, 0.028 * height, surfaces[2], Part.LOWER_LEG),
    ]


def _swing_down(forward: float, sideways: float) -> np.ndarray:
    """Rotate the downward direction forward, then sideways, in radians, ``3``."""
    direction: np.ndarray = axis_rotation(sideways, 2) @ axis_rotation(-forward, 0) @ [0.0, -1.0, 0.0]
    return direction


def _limb(start: np.ndarray, end: np.ndarray, radius: float, surface: Material, part: Part) -> Primitive:
    """Build a capsule between two joints."""
    length = float(np.linalg.norm(end - start))
    half = np.array([radius, length / 2, radius])
    rotation = rotation_from_up((end - start) / length)
    return Primitive("capsule", (start + end) / 2, half, surface, SceneClass.OBJECTS, part, 0, rotation)
