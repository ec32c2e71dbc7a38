"""What synthetic rooms hold: furniture, things to put on it and pictures, built from solids.

Every builder draws sizes and materials from a generator and returns a piece in a frame of its own: base at y = 0, front
towards +z, lengths in metres, the main instance numbered 0. All share one palette, so that no colour names a class.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum

import numpy as np

from htt_lightning.data.synthetic_scenes.raycaster import Material, Pattern, Primitive, Shape

Piece = list[Primitive]
"""Solids in a frame of their own: base at y = 0, front towards +z, instances numbered from 0."""
Builder = Callable[[np.random.Generator], Piece]
"""Draws a piece."""
_PATTERNS: tuple[Pattern, ...] = ("plain", "plain", "plain", "noise", "noise", "stripes", "checker")
Triple = Sequence[float] | np.ndarray


class Thing(IntEnum):
    """The 13 classes of NYUD; a person is one of the ``OBJECTS``."""

    BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(13)


def turn(angle: float, axis: int) -> np.ndarray:
    """Rotation about a coordinate axis, ``3 3``; radians, counter-clockwise."""
    rotation, i, j = np.eye(3), (axis + 1) % 3, (axis + 2) % 3
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    rotation[j, i] = np.sin(angle)
    rotation[i, j] = -rotation[j, i]
    return rotation


def upright(up: np.ndarray) -> np.ndarray:
    """A rotation that takes the y axis to the unit vector ``up``, ``3 3``."""
    x, y, z = up
    # The smooth basis of Duff et al. (2017), safe at every direction.
    sign = np.copysign(1.0, z)
    a = -1 / (sign + z)
    return np.array([[x * y * a, x, 1 + sign * x * x * a], [sign + y * y * a, y, sign * x * y * a], [-y, z, -sign * x]])


def placed(piece: Piece, position: Triple, yaw: float = 0.0, instance: int = 0) -> Piece:
    """A piece turned about y, shifted, and renumbered from ``instance``."""
    rotation, offset = turn(yaw, 1), np.asarray(position, float)
    return [solid.moved(rotation, offset, instance) for solid in piece]


def bounds(piece: Piece, yaw: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of a piece turned about y, ``3`` each."""
    rotation = turn(yaw, 1)
    centre = np.array([solid.centre for solid in piece]) @ rotation.T
    valid_extent = np.abs(rotation @ np.array([solid.rotation * solid.reach for solid in piece])).sum(2)
    return (centre - valid_extent).min(0), (centre + valid_extent).max(0)


def solid(shape: Shape, base: Triple, size: Triple, material: Material, thing: Thing, instance: int = 0) -> Primitive:
    """A solid of the given full size standing on the middle of its base."""
    half = np.asarray(size, float) / 2
    return Primitive(shape, np.add(base, (0, half[1], 0)), half, material, thing, instance=instance)


def colour(rng: np.random.Generator) -> np.ndarray:
    """Linear RGB from the common palette, ``3``: warm tones of wood, cloth and skin, greys, and any other hue."""
    kind = rng.random()
    hue, saturation, value = rng.random(3)
    if kind < 0.5:
        hsv = 0.01 + 0.12 * hue, 0.1 + 0.55 * saturation, 0.25 + 0.7 * value
    elif kind < 0.7:
        hsv = hue, 0.12 * saturation, 0.1 + 0.9 * value
    else:
        hsv = hue, 0.15 + 0.6 * saturation, 0.2 + 0.7 * value
    return np.array(colorsys.hsv_to_rgb(*hsv)) ** 2


def material(rng: np.random.Generator, glow: float = 0.0) -> Material:
    """A random surface from the common palette."""
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    wave = 2 ** rng.uniform(0, 2.6) * rng.uniform(0.6, 1.4, 3)
    if pattern == "stripes":
        wave *= np.roll([1, 0.5 * rng.integers(2), 0], rng.integers(3))
    first, second = colour(rng), colour(rng)
    return Material(first, first + rng.uniform(0.3, 1) * (second - first), pattern, wave, rng.random(), glow)


def plain(rng: np.random.Generator) -> Material:
    """A surface of one colour from the common palette."""
    only = colour(rng)
    return Material(only, only)


def upright_solid(rng: np.random.Generator) -> Shape:
    """A square or a round section."""
    return "box" if rng.random() < 0.5 else "cylinder"


def _block(base: Triple, size: Triple, surface: Material, thing: Thing, instance: int = 0) -> Primitive:
    return solid("box", base, size, surface, thing, instance)


def _legs(rng: np.random.Generator, size: Triple, thing: Thing, surface: Material) -> Piece:
    """Four legs at the corners of ``size`` (width, height, depth)."""
    thick, shape = rng.uniform(0.035, 0.08), upright_solid(rng)
    x, z = (size[0] - thick) / 2, (size[2] - thick) / 2
    return [
        solid(shape, (sx * x, 0, sz * z), (thick, size[1], thick), surface, thing) for sx in (-1, 1) for sz in (-1, 1)
    ]


def _topped(rng: np.random.Generator, piece: Piece, most: int, likely: float = 0.7) -> Piece:
    """A piece with things standing side by side on its top."""
    low, high = bounds(piece)
    slots = min(most, int((high[0] - low[0]) / 0.42))
    for slot in range(slots):
        if rng.random() < likely:
            x = low[0] + (slot + 0.5) * (high[0] - low[0]) / slots
            z = (low[2] + high[2]) / 2 + rng.uniform(-0.25, 0.25) * max(high[2] - low[2] - 0.4, 0)
            thing = books(rng) if rng.random() < 0.5 else ornament(rng, rng.uniform(0.18, 0.38))
            piece = piece + placed(thing, (x, high[1], z), rng.uniform(-0.5, 0.5), piece[-1].instance + 1)
    return piece


def books(rng: np.random.Generator) -> Piece:
    """A pile of books or a short row of them."""
    if rng.random() < 0.4:
        return _row(rng, rng.uniform(0.2, 0.36), rng.uniform(0.22, 0.32), rng.uniform(0.16, 0.22))
    pile, height = [], 0.0
    for _ in range(rng.integers(2, 6)):
        size = rng.uniform([0.2, 0.03, 0.15], [0.34, 0.075, 0.24])
        pile += placed([_block((0, 0, 0), size, plain(rng), Thing.BOOKS)], (0, height, 0), rng.normal(0, 0.2))
        height += size[1]
    return pile


def _row(rng: np.random.Generator, width: float, height: float, depth: float) -> Piece:
    """Upright books, side by side from ``-width / 2``, none higher than ``height``."""
    row, x = [], -width / 2
    while width / 2 - x > 0.03:
        thick = min(rng.uniform(0.05, 0.15), width / 2 - x)
        size = (thick, height * rng.uniform(0.72, 1), depth * rng.uniform(0.8, 1))
        row.append(_block((x + thick / 2, 0, 0), size, plain(rng), Thing.BOOKS))
        x += thick
    return row


def ornament(rng: np.random.Generator, size: float, surface: Material | None = None) -> Piece:
    """Something to put on a floor or a top: ball, box, vase, bottle, plant or bowl of about the given height."""
    first, second = surface or material(rng), surface or material(rng)
    thing, kind, wide = Thing.OBJECTS, rng.integers(5), size * rng.uniform(0.7, 1)
    if kind == 0:
        return [solid("ellipsoid", (0, 0, 0), (wide, wide, wide), first, thing)]
    if kind == 1:
        return placed([_block((0, 0, 0), (wide, size * rng.uniform(0.5, 1), wide * 0.8), first, thing)], (0, 0, 0), 0.4)
    if kind == 2:
        neck = solid("cylinder", (0, size * 0.5, 0), (wide * 0.3, size * 0.5, wide * 0.3), first, thing)
        return [solid("ellipsoid", (0, 0, 0), (wide * 0.8, size * 0.75, wide * 0.8), first, thing), neck]
    if kind == 3:
        pot = solid("cylinder", (0, 0, 0), (wide * 0.5, size * 0.4, wide * 0.5), first, thing)
        leaves = [
            solid("ellipsoid", (x, size * 0.35, z), (wide * 0.6,) * 3, second, thing)
            for x, z in rng.uniform(-0.15, 0.15, (3, 2)) * wide
        ]
        return [*leaves, pot]
    return [solid("cylinder", (0, 0, 0), (wide * 0.6, size, wide * 0.6), first, thing)]


def bed(rng: np.random.Generator) -> Piece:
    """Frame, mattress, headboard, blanket and pillows; its head at the wall."""
    wide, high, long = rng.uniform([0.95, 0.35, 1.85], [1.8, 0.6, 2.1])
    frame, sheet, cover, thing = material(rng), material(rng), material(rng), Thing.BED
    piece = [
        _block((0, 0, 0), (wide, high * 0.55, long), frame, thing),
        _block((0, high * 0.55, 0), (wide - 0.04, high * 0.45, long - 0.04), sheet, thing),
        _block((0, 0, -long / 2 - 0.03), (wide, high + rng.uniform(0.2, 0.6), 0.06), frame, thing),
        _block((0, high * 0.6, long * 0.15), (wide + 0.02, high * 0.4 + 0.04, long * 0.7), cover, thing),
    ]
    pillow, count = material(rng), 1 + (wide > 1.3)
    for number in range(count):
        x, size = ((number + 0.5) / count - 0.5) * wide, (0.85 * wide / count, 0.2, 0.4)
        piece.append(solid("ellipsoid", (x, high - 0.03, -long * 0.38), size, pillow, thing))
    return piece


def sofa(rng: np.random.Generator) -> Piece:
    """Seat, back, two arms and cushions, in one cover."""
    wide, seat, deep, back = rng.uniform([1.3, 0.38, 0.75, 0.3], [2.2, 0.48, 0.95, 0.5])
    cover, arm, thing = material(rng), rng.uniform(0.12, 0.24), Thing.SOFA
    piece = [
        _block((0, 0.05, 0), (wide, seat - 0.05, deep), cover, thing),
        _block((0, 0.05, -deep / 2 + 0.11), (wide, seat + back, 0.22), cover, thing),
    ]
    for side in (-1, 1):
        x = side * (wide - arm) / 2
        piece.append(_block((x, 0, 0.01), (arm + 0.01, seat + 0.18, deep), cover, thing))
        if rng.random() < 0.5:
            cushion = solid("ellipsoid", (0, 0, 0), (0.42, 0.4, 0.18), material(rng), thing)
            piece += placed([cushion], (side * (wide / 2 - arm - 0.24), seat - 0.03, -deep / 2 + 0.3))
    return piece


def chair(rng: np.random.Generator, seat: float | None = None) -> Piece:
    """Seat, back and four legs, some with arms."""
    high = seat or rng.uniform(0.42, 0.5)
    wide, deep, back = rng.uniform([0.4, 0.4, 0.35], [0.55, 0.52, 0.6])
    wood, cloth, thing = material(rng), material(rng), Thing.CHAIR
    piece = [
        _block((0, high - 0.06, 0), (wide, 0.06, deep), cloth, thing),
        _block((0, high - 0.06, -deep / 2 + 0.02), (wide, back + 0.06, 0.04), cloth, thing),
        *_legs(rng, (wide, high - 0.06, deep), thing, wood),
    ]
    if seat is None and rng.random() < 0.3:
        piece += [_block((side * wide / 2, high - 0.06, 0), (0.05, 0.26, deep), wood, thing) for side in (-1, 1)]
    return piece


def table(rng: np.random.Generator) -> Piece:
    """A top on four legs or on a column, laid with things."""
    wide, high, deep = rng.uniform([0.9, 0.42, 0.65], [1.8, 0.78, 1.0])
    top, leg, thing = material(rng), material(rng), Thing.TABLE
    if rng.random() < 0.7:
        apron = rng.uniform(0.02, 0.25)
        piece = [
            *_legs(rng, (wide * 0.96, high - 0.05, deep * 0.96), thing, leg),
            _block((0, high - 0.05 - apron, 0), (wide * 0.9, apron, deep * 0.9), leg, thing),
            _block((0, high - 0.05, 0), (wide, 0.05, deep), top, thing),
        ]
    else:
        piece = [
            solid("cylinder", (0, 0, 0), (deep * 0.6, 0.04, deep * 0.6), leg, thing),
            solid("cylinder", (0, 0.04, 0), (0.1, high - 0.09, 0.1), leg, thing),
            solid("cylinder", (0, high - 0.05, 0), (wide * 0.8, 0.05, deep), top, thing),
        ]
    return _topped(rng, piece, 3)


def cabinet(rng: np.random.Generator) -> Piece:
    """A chest of drawers or a wardrobe with knobs on its fronts; things stand on low ones."""
    wide, high, deep = rng.uniform([0.6, 0.6, 0.38], [1.5, 2.0, 0.6])
    body, front, thing = material(rng), material(rng), Thing.FURNITURE
    piece = [_block((0, 0, 0), (wide, high, deep), body, thing)]
    across, rows = (2, 1) if high > 1.2 else (1, rng.integers(2, 5))
    for column in range(across):
        for row in range(rows):
            x, y = ((column + 0.5) / across - 0.5) * wide, (row + 0.04) / rows * high
            piece.append(_block((x, y, deep / 2), (wide / across * 0.94, high / rows * 0.9, 0.03), front, thing))
            piece.append(solid("ellipsoid", (x, y + high / rows * 0.4, deep / 2 + 0.03), (0.05,) * 3, body, thing))
    return _topped(rng, piece, 3) if high < 1.2 else piece


def bookcase(rng: np.random.Generator) -> Piece:
    """Shelves between two sides, filled with books."""
    wide, deep, step = rng.uniform([0.6, 0.26, 0.3], [1.2, 0.36, 0.4])
    levels, body, thing = int(rng.integers(2, 6)), material(rng), Thing.FURNITURE
    high = levels * step
    piece = [
        _block((0, 0, -deep / 2 + 0.01), (wide, high, 0.02), material(rng), thing),
        *(_block((side * (wide / 2 - 0.02), 0, 0), (0.04, high, deep), body, thing) for side in (-1, 1)),
        *(
            _block((0, min(level * step, high - 0.03), 0), (wide, 0.03, deep), body, thing)
            for level in range(levels + 1)
        ),
    ]
    for level in range(levels):
        if rng.random() < 0.85:
            width = (wide - 0.08) * rng.uniform(0.5, 1)
            x = (wide - 0.08 - width) / 2 * rng.uniform(-1, 1)
            row = _row(rng, width, step * 0.88, deep * 0.8)
            piece += placed(row, (x, level * step + 0.03, 0), instance=piece[-1].instance + 1)
    return piece


def _framed(rng: np.random.Generator, size: Triple, border: float, surface: Material, thing: Thing) -> Piece:
    """A flat thing in a frame: ``size`` is (width, height, depth)."""
    wide, high, deep = size
    inner = _block((0, border, deep * 0.6), (wide - 2 * border, high - 2 * border, deep), surface, thing)
    return [_block((0, 0, 0), size, material(rng), thing), inner]


def picture(rng: np.random.Generator) -> Piece:
    """A framed picture, upright or wide."""
    wide, high = rng.uniform(0.4, 1.0, 2)
    surface = material(rng)
    return _framed(
        rng, (wide, high, 0.03), rng.uniform(0.03, 0.08), replace(surface, wave=surface.wave * 2), Thing.PICTURE
    )


def window(rng: np.random.Generator) -> Piece:
    """Panes between bars above a sill; what lies behind may be bright or dark."""
    wide, high = rng.uniform([0.8, 0.8], [1.9, 1.4])
    pane = material(rng, rng.choice([0.0, 0.6, 1.0]))
    piece = _framed(rng, (wide, high, 0.06), 0.06, replace(pane, pattern="noise", wave=pane.wave * 0.3), Thing.WINDOW)
    bars, columns = piece[0].material, rng.integers(2, 4)
    for column in range(1, columns):
        x = (column / columns - 0.5) * wide
        piece.append(_block((x, 0, 0.04), (0.06, high, 0.08), bars, Thing.WINDOW))
    if rng.random() < 0.6:
        piece.append(_block((0, high * rng.uniform(0.4, 0.65), 0.04), (wide, 0.06, 0.08), bars, Thing.WINDOW))
    return [*piece, _block((0, -0.04, 0.08), (wide + 0.1, 0.05, 0.2), bars, Thing.WINDOW)]


def television(rng: np.random.Generator) -> Piece:
    """A wide screen with a thin rim, to hang on a wall."""
    wide = rng.uniform(0.9, 1.5)
    return _framed(rng, (wide, wide * 0.58, 0.07), 0.025, material(rng, rng.choice([0.0, 0.7])), Thing.TV)


def sideboard(rng: np.random.Generator) -> Piece:
    """A low cabinet with a television on a foot."""
    screen = television(rng)
    wide, high, deep = (bounds(screen)[1][0] * 2 + rng.uniform(0, 0.5), rng.uniform(0.35, 0.65), rng.uniform(0.38, 0.5))
    body = _block((0, 0, 0), (wide, high, deep), material(rng), Thing.FURNITURE)
    foot = _block((0, 0, 0), (wide * 0.4, 0.08, 0.2), screen[0].material, Thing.TV)
    return [body, *placed([foot, *placed(screen, (0, 0.08, 0))], (0, high, 0), instance=1)]


def lamp(rng: np.random.Generator) -> Piece:
    """A floor lamp: foot, pole and shade."""
    high, wide = rng.uniform(1.2, 1.7), rng.uniform(0.28, 0.45)
    metal, shade, thing = material(rng), material(rng, rng.choice([0.0, 0.7])), Thing.OBJECTS
    return [
        solid("cylinder", (0, 0, 0), (0.3, 0.03, 0.3), metal, thing),
        solid("cylinder", (0, 0, 0), (0.04, high, 0.04), metal, thing),
        solid(upright_solid(rng), (0, high - 0.05, 0), (wide, 0.3, wide), shade, thing),
    ]


def clutter(rng: np.random.Generator) -> Piece:
    """Something that stands on the floor."""
    return ornament(rng, rng.uniform(0.3, 0.6))
