"""Jointed people for synthetic rooms."""

import colorsys
from enum import IntEnum

import numpy as np

from htt_lightning.data.synthetic_scenes.furniture import (
    Piece,
    Thing,
    Triple,
    bounds,
    chair,
    material,
    placed,
    turn,
    upright,
)
from htt_lightning.data.synthetic_scenes.raycaster import Material, Primitive, Shape

_DOWN = np.array([0.0, -1.0, 0.0])


class Part(IntEnum):
    """The parts of a person; hands and feet belong to the limb they end."""

    NONE, HEAD, TORSO, UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG = range(7)


def person(rng: np.random.Generator, seated: bool) -> Piece:
    """Someone standing, or sitting on a chair, in a pose and clothes of their own.

    Args:
        rng: Where the draws come from.
        seated: Whether to sit; the chair then is instance 1.

    Returns:
        Head first, torso second; looks towards +z.
    """
    tall = rng.uniform(1.35, 1.9)
    shirt, trousers, shoes, hair = (material(rng) for _ in range(4))
    skin = complexion(rng)
    sleeve, leg = (shirt if rng.random() < 0.35 else skin), (trousers if rng.random() < 0.7 else skin)
    spine = turn(rng.uniform(0, 0.2) if seated else rng.uniform(-0.08, 0.2), 0)
    stout = rng.uniform(0.85, 1.25)

    def trunk(shape: Shape, centre: Triple, half: Triple, cloth: Material, part: Part) -> Primitive:
        place, valid_extent = spine @ (np.array(centre) * tall), np.array(half) * tall
        return Primitive(shape, place, valid_extent, cloth, Thing.OBJECTS, part, 0, spine)

    body = [
        trunk("ellipsoid", (0, 0.41, 0.01), (0.05, 0.068, 0.058), skin, Part.HEAD),
        trunk("capsule", (0, 0.14, 0), (0.095 * stout, 0.095, 0.06 * stout), shirt, Part.TORSO),
        trunk("ellipsoid", (0, 0.27, 0), (0.115, 0.045, 0.055), shirt, Part.TORSO),
        trunk("capsule", (0, 0.335, 0), (0.028, 0.02, 0.028), skin, Part.HEAD),
        trunk("ellipsoid", (0, 0.43, -0.008), (0.055, 0.06, 0.058), hair, Part.HEAD),
    ]
    for side in (-1, 1):
        swing, spread = rng.uniform(-0.6, 0.9), side * rng.uniform(0.05, 0.5)
        if rng.random() < 0.2:
            swing, spread = rng.uniform(1.2, 2.8), side * rng.uniform(0, 0.7)
        shoulder = spine @ np.array([side * 0.115, 0.275, 0]) * tall
        elbow = shoulder + _swung(swing, spread) * 0.16 * tall
        hand = elbow + _swung(swing + rng.uniform(0, 1.7), spread * rng.uniform(-1, 1)) * 0.16 * tall
        body += [
            _limb(shoulder, elbow, 0.034 * tall, shirt, Part.UPPER_ARM),
            _limb(elbow, hand, 0.025 * tall, sleeve, Part.LOWER_ARM),
            _limb(hand, hand + (hand - elbow) * 0.2, 0.03 * tall, skin, Part.LOWER_ARM),
        ]
        spread = side * rng.uniform(0, 0.2)
        thigh, shin = (rng.uniform(1.3, 1.6), rng.uniform(-0.4, 0.3)) if seated else rng.uniform(-0.3, 0.3, 2)
        hip = np.array([side * 0.055, 0, 0]) * tall
        knee = hip + _swung(thigh, spread) * 0.245 * tall
        # A knee bends one way only.
        ankle = knee + _swung(min(shin, thigh), spread / 2) * 0.22 * tall
        body += [
            _limb(hip, knee, 0.052 * tall, trousers, Part.UPPER_LEG),
            _limb(knee, ankle, 0.037 * tall, leg, Part.LOWER_LEG),
            _limb(ankle, ankle + np.array([0, -0.02, 0.07]) * tall, 0.028 * tall, shoes, Part.LOWER_LEG),
        ]
    body = placed(body, (0, -bounds(body)[0][1], 0))
    if not seated:
        return body
    seat = body[1].centre[1] - (0.14 + 0.06) * tall
    return body + placed(chair(rng, seat), (0, 0, 0.05), instance=1)


def complexion(rng: np.random.Generator) -> Material:
    """A skin tone from dark brown to pale; wood and cloth of the common palette are often as warm."""
    tone = np.array(colorsys.hsv_to_rgb(rng.uniform(0.03, 0.09), rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.95))) ** 2
    return Material(tone, tone)


def _swung(forward: float, sideways: float) -> np.ndarray:
    """Downwards, swung forwards and then to the side by angles in radians; a unit vector ``3``."""
    direction: np.ndarray = turn(sideways, 2) @ turn(-forward, 0) @ _DOWN
    return direction


def _limb(start: np.ndarray, end: np.ndarray, radius: float, surface: Material, part: Part) -> Primitive:
    """A capsule between two joints."""
    length = float(np.linalg.norm(end - start))
    half = np.array([radius, length / 2, radius])
    rotation = upright((end - start) / length)
    return Primitive("capsule", (start + end) / 2, half, surface, Thing.OBJECTS, part, 0, rotation)
