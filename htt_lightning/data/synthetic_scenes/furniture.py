"""Furniture and objects of synthetic rooms, built from solids.

Every builder samples sizes and materials, and returns a piece in its own frame: base at y = 0, front towards +z,
lengths in meters, main instance 0. All classes share one palette, so that color does not tell the class.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import partial

import numpy as np

from htt_lightning.data.synthetic_scenes.raycaster import Material, Pattern, Primitive, Shape

Piece = list[Primitive]
Builder = Callable[[np.random.Generator], Piece]
_PATTERN_CHOICES: tuple[Pattern, ...] = ("plain", "plain", "plain", "noise", "noise", "stripes", "checker")
_TONES = (((0.01, 0.1, 0.25), (0.12, 0.55, 0.7)), ((0, 0, 0.1), (1, 0.12, 0.9)), ((0, 0.15, 0.2), (1, 0.6, 0.7)))
"""Lowest hue, saturation and value, and their ranges."""
Vector3 = Sequence[float] | np.ndarray


class SceneClass(IntEnum):
    """The 13 classes of NYUD. People are ``OBJECTS``."""

    BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(13)


def axis_rotation(angle: float, axis: int) -> np.ndarray:
    """Return the rotation by an angle in radians about a coordinate axis, ``3 3``."""
    rotation, i, j = np.eye(3), (axis + 1) % 3, (axis + 2) % 3
    rotation[[i, j], [i, j]] = np.cos(angle)
    rotation[[j, i], [i, j]] = np.sin(angle), -np.sin(angle)
    return rotation


def rotation_from_up(up: np.ndarray) -> np.ndarray:
    """Return a rotation that maps the y axis to the unit vector ``up``, ``3 3``."""
    x, y, z = up
    # Branchless basis of Duff et al. (2017), https://jcgt.org/published/0006/01/01
    sign = np.copysign(1.0, z)
    a = -1 / (sign + z)
    return np.array([[x * y * a, x, 1 + sign * x * x * a], [sign + y * y * a, y, sign * x * y * a], [-y, z, -sign * x]])


def place(piece: Piece, position: Vector3, yaw: float = 0.0, instance: int = 0) -> Piece:
    """Rotate a piece about y, translate it, and renumber its instances."""
    rotation, offset = axis_rotation(yaw, 1), np.asarray(position, float)
    return [solid.transformed(rotation, offset, instance) for solid in piece]


def bounds(piece: Piece, yaw: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return lowest and highest coordinates of a piece rotated about y, ``3``."""
    rotation = axis_rotation(yaw, 1)
    center = np.array([solid.center for solid in piece]) @ rotation.T
    extent = np.abs(rotation @ np.array([solid.rotation * solid.half_extent for solid in piece])).sum(2)
    return (center - extent).min(0), (center + extent).max(0)


def solid(shape: Shape, base: Vector3, size: Vector3, material: Material, label: SceneClass) -> Primitive:
    """Build a solid of a full size whose base is centered at ``base``."""
    half = np.asarray(size, float) / 2
    return Primitive(shape, np.add(base, (0, half[1], 0)), half, material, label)


_box = partial(solid, "box")
_cylinder = partial(solid, "cylinder")
_ellipsoid = partial(solid, "ellipsoid")


def sample_color(rng: np.random.Generator) -> np.ndarray:
    """Sample linear RGB, ``3``: warm tones, grays, and any other hue."""
    low, span = _TONES[np.searchsorted((0.5, 0.7), rng.random(), "right")]
    return np.array(colorsys.hsv_to_rgb(*(np.array(low) + np.array(span) * rng.random(3)))) ** 2


def sample_material(rng: np.random.Generator, glow: float = 0.0) -> Material:
    """Sample a surface from the common palette."""
    pattern = _PATTERN_CHOICES[rng.integers(len(_PATTERN_CHOICES))]
    wave = 2 ** rng.uniform(0, 2.6) * rng.uniform(0.6, 1.4, 3)
    if pattern == "stripes":
        wave *= np.roll([1, 0.5 * rng.integers(2), 0], rng.integers(3))
    first, second = sample_color(rng), sample_color(rng)
    return Material(first, first + rng.uniform(0.3, 1) * (second - first), pattern, wave, rng.random(), glow)


def sample_upright_shape(rng: np.random.Generator) -> Shape:
    """Sample a box or a cylinder."""
    return "box" if rng.random() < 0.5 else "cylinder"


def _legs(rng: np.random.Generator, size: Vector3, label: SceneClass, surface: Material) -> Piece:
    """Build four legs at the corners of ``size`` (width, height, depth)."""
    thick, shape = rng.uniform(0.035, 0.08), sample_upright_shape(rng)
    x, z = (size[0] - thick) / 2, (size[2] - thick) / 2
    bases = ((-x, 0, -z), (-x, 0, z), (x, 0, -z), (x, 0, z))
    return [solid(shape, base, (thick, size[1], thick), surface, label) for base in bases]


def _with_things_on_top(rng: np.random.Generator, piece: Piece) -> Piece:
    """Add up to three books and ornaments side by side on top of a piece."""
    low, high = bounds(piece)
    slots = min(3, int((high[0] - low[0]) / 0.42))
    for slot in range(slots):
        if rng.random() < 0.7:
            x = low[0] + (slot + 0.5) * (high[0] - low[0]) / slots
            z = (low[2] + high[2]) / 2 + rng.uniform(-0.25, 0.25) * max(high[2] - low[2] - 0.4, 0)
            item = books(rng) if rng.random() < 0.5 else ornament(rng, rng.uniform(0.18, 0.38))
            piece = piece + place(item, (x, high[1], z), rng.uniform(-0.5, 0.5), piece[-1].instance + 1)
    return piece


def books(rng: np.random.Generator) -> Piece:
    """Build a pile or a short row of books."""
    if rng.random() < 0.4:
        return _book_row(rng, rng.uniform(0.2, 0.36), rng.uniform(0.22, 0.32), rng.uniform(0.16, 0.22))
    pile, height = [], 0.0
    for _ in range(rng.integers(2, 6)):
        size = rng.uniform([0.2, 0.03, 0.15], [0.34, 0.075, 0.24])
        book = _box((0, 0, 0), size, Material(sample_color(rng)), SceneClass.BOOKS)
        pile += place([book], (0, height, 0), rng.normal(0, 0.2))
        height += size[1]
    return pile


def _book_row(rng: np.random.Generator, width: float, height: float, depth: float) -> Piece:
    """Build a row of upright books from ``-width / 2``, of at most ``height``."""
    row, x = [], -width / 2
    while width / 2 - x > 0.03:
        thick = min(rng.uniform(0.05, 0.15), width / 2 - x)
        size = (thick, height * rng.uniform(0.72, 1), depth * rng.uniform(0.8, 1))
        row.append(_box((x + thick / 2, 0, 0), size, Material(sample_color(rng)), SceneClass.BOOKS))
        x += thick
    return row


def ornament(rng: np.random.Generator, size: float | None = None, surface: Material | None = None) -> Piece:
    """Build a ball, box, vase, plant or can of about the given height."""
    size = size or rng.uniform(0.3, 0.6)
    first, second = surface or sample_material(rng), surface or sample_material(rng)
    label, kind, width = SceneClass.OBJECTS, rng.integers(5), size * rng.uniform(0.7, 1)
    if kind == 0:
        return [_ellipsoid((0, 0, 0), (width,) * 3, first, label)]
    if kind == 1:
        return place([_box((0, 0, 0), (width, size * rng.uniform(0.5, 1), width * 0.8), first, label)], (0, 0, 0), 0.4)
    if kind == 2:
        neck = _cylinder((0, size * 0.5, 0), (width * 0.3, size * 0.5, width * 0.3), first, label)
        return [_ellipsoid((0, 0, 0), (width * 0.8, size * 0.75, width * 0.8), first, label), neck]
    if kind == 3:
        pot = _cylinder((0, 0, 0), (width * 0.5, size * 0.4, width * 0.5), first, label)
        places = rng.uniform(-0.15, 0.15, (3, 2)) * width
        return [*(_ellipsoid((x, size * 0.35, z), (width * 0.6,) * 3, second, label) for x, z in places), pot]
    return [_cylinder((0, 0, 0), (width * 0.6, size, width * 0.6), first, label)]


def bed(rng: np.random.Generator) -> Piece:
    """Build a bed with mattress, blanket and pillows, its headboard at the wall."""
    width, height, length = rng.uniform([0.95, 0.35, 1.85], [1.8, 0.6, 2.1])
    frame, sheet, cover, label = sample_material(rng), sample_material(rng), sample_material(rng), SceneClass.BED
    piece = [
        _box((0, 0, 0), (width, height * 0.55, length), frame, label),
        _box((0, height * 0.55, 0), (width - 0.04, height * 0.45, length - 0.04), sheet, label),
        _box((0, 0, -length / 2 - 0.03), (width, height + rng.uniform(0.2, 0.6), 0.06), frame, label),
        _box((0, height * 0.6, length * 0.15), (width + 0.02, height * 0.4 + 0.04, length * 0.7), cover, label),
    ]
    pillow, places = sample_material(rng), (-0.25, 0.25) if width > 1.3 else (0,)
    size = (0.85 * width / len(places), 0.2, 0.4)
    return piece + [_ellipsoid((x * width, height - 0.03, -length * 0.38), size, pillow, label) for x in places]


def sofa(rng: np.random.Generator) -> Piece:
    """Build a sofa with two arms and cushions."""
    width, seat, depth, back = rng.uniform([1.3, 0.38, 0.75, 0.3], [2.2, 0.48, 0.95, 0.5])
    cover, arm, label = sample_material(rng), rng.uniform(0.12, 0.24), SceneClass.SOFA
    piece = [
        _box((0, 0.05, 0), (width, seat - 0.05, depth), cover, label),
        _box((0, 0.05, -depth / 2 + 0.11), (width, seat + back, 0.22), cover, label),
    ]
    for side in (-1, 1):
        x = side * (width - arm) / 2
        piece.append(_box((x, 0, 0.01), (arm + 0.01, seat + 0.18, depth), cover, label))
        if rng.random() < 0.5:
            base = (side * (width / 2 - arm - 0.24), seat - 0.03, -depth / 2 + 0.3)
            piece.append(_ellipsoid(base, (0.42, 0.4, 0.18), sample_material(rng), label))
    return piece


def chair(rng: np.random.Generator, seat: float | None = None) -> Piece:
    """Build a chair with a seat of given or random height."""
    height = seat or rng.uniform(0.42, 0.5)
    width, depth, back = rng.uniform([0.4, 0.4, 0.35], [0.55, 0.52, 0.6])
    wood, cloth, label = sample_material(rng), sample_material(rng), SceneClass.CHAIR
    piece = [
        _box((0, height - 0.06, 0), (width, 0.06, depth), cloth, label),
        _box((0, height - 0.06, -depth / 2 + 0.02), (width, back + 0.06, 0.04), cloth, label),
        *_legs(rng, (width, height - 0.06, depth), label, wood),
    ]
    if seat is None and rng.random() < 0.3:
        piece += [_box((side * width / 2, height - 0.06, 0), (0.05, 0.26, depth), wood, label) for side in (-1, 1)]
    return piece


def table(rng: np.random.Generator) -> Piece:
    """Build a table on four legs or a column, with objects on top."""
    width, height, depth = rng.uniform([0.9, 0.42, 0.65], [1.8, 0.78, 1.0])
    top, leg, label = sample_material(rng), sample_material(rng), SceneClass.TABLE
    if rng.random() < 0.7:
        apron = rng.uniform(0.02, 0.25)
        piece = _legs(rng, (width * 0.96, height - 0.05, depth * 0.96), label, leg)
        piece.append(_box((0, height - 0.05 - apron, 0), (width * 0.9, apron, depth * 0.9), leg, label))
        piece.append(_box((0, height - 0.05, 0), (width, 0.05, depth), top, label))
    else:
        piece = [
            _cylinder((0, 0, 0), (depth * 0.6, 0.04, depth * 0.6), leg, label),
            _cylinder((0, 0.04, 0), (0.1, height - 0.09, 0.1), leg, label),
            _cylinder((0, height - 0.05, 0), (width * 0.8, 0.05, depth), top, label),
        ]
    return _with_things_on_top(rng, piece)


def cabinet(rng: np.random.Generator) -> Piece:
    """Build a chest of drawers with objects on top, or a wardrobe."""
    width, height, depth = rng.uniform([0.6, 0.6, 0.38], [1.5, 2.0, 0.6])
    body, front, label = sample_material(rng), sample_material(rng), SceneClass.FURNITURE
    piece = [_box((0, 0, 0), (width, height, depth), body, label)]
    across, rows = (2, 1) if height > 1.2 else (1, rng.integers(2, 5))
    for column, row in np.ndindex(across, int(rows)):
        x, y = ((column + 0.5) / across - 0.5) * width, (row + 0.04) / rows * height
        piece.append(_box((x, y, depth / 2), (width / across * 0.94, height / rows * 0.9, 0.03), front, label))
        piece.append(_ellipsoid((x, y + height / rows * 0.4, depth / 2 + 0.03), (0.05,) * 3, body, label))
    return _with_things_on_top(rng, piece) if height < 1.2 else piece


def bookcase(rng: np.random.Generator) -> Piece:
    """Build shelves between two sides, filled with books."""
    width, depth, step = rng.uniform([0.6, 0.26, 0.3], [1.2, 0.36, 0.4])
    levels, body, label = int(rng.integers(2, 6)), sample_material(rng), SceneClass.FURNITURE
    height = levels * step
    piece = [_box((0, 0, -depth / 2 + 0.01), (width, height, 0.02), sample_material(rng), label)]
    piece += [_box((side * (width / 2 - 0.02), 0, 0), (0.04, height, depth), body, label) for side in (-1, 1)]
    shelves = [min(level * step, height - 0.03) for level in range(levels + 1)]
    piece += [_box((0, shelf, 0), (width, 0.03, depth), body, label) for shelf in shelves]
    for level in range(levels):
        if rng.random() < 0.85:
            row_width = (width - 0.08) * rng.uniform(0.5, 1)
            x = (width - 0.08 - row_width) / 2 * rng.uniform(-1, 1)
            row = _book_row(rng, row_width, step * 0.88, depth * 0.8)
            piece += place(row, (x, level * step + 0.03, 0), instance=piece[-1].instance + 1)
    return piece


def _framed(rng: np.random.Generator, size: Vector3, border: float, surface: Material, label: SceneClass) -> Piece:
    """Build a flat object in a frame of ``size`` (width, height, depth)."""
    width, height, depth = size
    inner = _box((0, border, depth * 0.6), (width - 2 * border, height - 2 * border, depth), surface, label)
    return [_box((0, 0, 0), size, sample_material(rng), label), inner]


def picture(rng: np.random.Generator) -> Piece:
    """Build a framed picture."""
    size = (*rng.uniform(0.4, 1.0, 2), 0.03)
    surface = sample_material(rng)
    surface = replace(surface, wave=surface.wave * 2)
    return _framed(rng, size, rng.uniform(0.03, 0.08), surface, SceneClass.PICTURE)


def window(rng: np.random.Generator) -> Piece:
    """Build a window with bars and a sill, bright or dark."""
    width, height = rng.uniform([0.8, 0.8], [1.9, 1.4])
    pane = sample_material(rng, rng.choice([0.0, 0.6, 1.0]))
    pane = replace(pane, pattern="noise", wave=pane.wave * 0.3)
    piece = _framed(rng, (width, height, 0.06), 0.06, pane, SceneClass.WINDOW)
    bars, columns = piece[0].material, rng.integers(2, 4)
    middles = [(column / columns - 0.5) * width for column in range(1, columns)]
    piece += [_box((x, 0, 0.04), (0.06, height, 0.08), bars, SceneClass.WINDOW) for x in middles]
    if rng.random() < 0.6:
        piece.append(_box((0, height * rng.uniform(0.4, 0.65), 0.04), (width, 0.06, 0.08), bars, SceneClass.WINDOW))
    return [*piece, _box((0, -0.04, 0.08), (width + 0.1, 0.05, 0.2), bars, SceneClass.WINDOW)]


def television(rng: np.random.Generator) -> Piece:
    """Build a television that hangs on a wall."""
    width = rng.uniform(0.9, 1.5)
    return _framed(rng, (width, width * 0.58, 0.07), 0.025, sample_material(rng, rng.choice([0.0, 0.7])), SceneClass.TV)


def sideboard(rng: np.random.Generator) -> Piece:
    """Build a low cabinet with a television."""
    screen = television(rng)
    width = bounds(screen)[1][0] * 2 + rng.uniform(0, 0.5)
    height, depth = rng.uniform(0.35, 0.65), rng.uniform(0.38, 0.5)
    body = _box((0, 0, 0), (width, height, depth), sample_material(rng), SceneClass.FURNITURE)
    foot = _box((0, 0, 0), (width * 0.4, 0.08, 0.2), screen[0].material, SceneClass.TV)
    return [body, *place([foot, *place(screen, (0, 0.08, 0))], (0, height, 0), instance=1)]


def lamp(rng: np.random.Generator) -> Piece:
    """Build a floor lamp."""
    height, width = rng.uniform(1.2, 1.7), rng.uniform(0.28, 0.45)
    metal, shade, label = sample_material(rng), sample_material(rng, rng.choice([0.0, 0.7])), SceneClass.OBJECTS
    return [
        _cylinder((0, 0, 0), (0.3, 0.03, 0.3), metal, label),
        _cylinder((0, 0, 0), (0.04, height, 0.04), metal, label),
        solid(sample_upright_shape(rng), (0, height - 0.05, 0), (width, 0.3, width), shade, label),
    ]
