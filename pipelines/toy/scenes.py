"""Draws toy scenes of a few separate objects, each with the same shape or colour as another object."""

import math
from dataclasses import dataclass
from random import Random

SHAPES = ("circle", "square", "triangle", "bars")
"""The shapes of objects. `bars` is one object with two parts. There are few shapes, so that a model learns each word in
minutes on a CPU.
"""
COLOURS = {
    "red": (212, 32, 36),
    "green": (36, 158, 56),
    "blue": (36, 72, 208),
    "yellow": (242, 214, 36),
    "white": (240, 240, 240),
}
"""RGB values, 0 to 255, by name. Any two differ by far more than `COLOUR_JITTER`."""
COLOUR_JITTER = 14
"""Largest random change of a colour's channel."""
DIAMETERS = {"small": (0.135, 0.175), "large": (0.25, 0.31)}
"""Longer side of an object's box as a share of the image's shorter side. No object has a size between the two."""
CROWD_SHARE = 0.05
"""Share of scenes with a crowd of dots, which no sentence names."""

_MARGIN = 0.03  # gap between boxes as a share of the shorter side, so that parts of two objects never touch
_MAX_LARGE = 3  # there is rarely room for more
_TRIES = 60

Polygon = tuple[tuple[float, float], ...]
"""Corners `(x, y)` in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object of a scene.

    Attributes:
        shape: One of `SHAPES`.
        colour: A key of `COLOURS`.
        size: `small` or `large`.
        centre: Centre of the box, `(x, y)` in pixels. Positions in sentences refer to the centre.
        rgb: The painted colour, 0 to 255.
        polygons: One polygon per part, in pixels.
        box_xywh: Box around all parts, in pixels.
    """

    shape: str
    colour: str
    size: str
    centre: tuple[float, float]
    rgb: tuple[int, int, int]
    polygons: tuple[Polygon, ...]
    box_xywh: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The content of one picture.

    Attributes:
        image_size: `(height, width)` in pixels.
        things: Objects in arbitrary order.
        crowd_dots: Centres `(x, y)` of the crowd's dots in whole pixels; empty in most scenes.
    """

    image_size: tuple[int, int]
    things: tuple[Thing, ...]
    crowd_dots: tuple[tuple[int, int], ...]

    def has_twin(self, thing: Thing) -> bool:
        """Return True if another object has the same shape or colour, so that one of these words is ambiguous."""
        return any(thing.shape == t.shape or thing.colour == t.colour for t in self.others(thing))

    def has_double_twin(self, thing: Thing) -> bool:
        """Return True if other objects have the same shape and the same colour, so that both words are ambiguous."""
        others = self.others(thing)
        return any(thing.shape == t.shape for t in others) and any(thing.colour == t.colour for t in others)

    def others(self, thing: Thing) -> tuple[Thing, ...]:
        """Return all objects except this one."""
        return tuple(t for t in self.things if t is not thing)


def draw_scene(rng: Random, image_size: tuple[int, int]) -> Scene:
    """Draw a scene of 3 to 6 objects with 2 or 3 shapes and 2 or 3 colours.

    There are so few shapes and colours that each object has the same shape or colour as another object, and mostly
    both.
    """
    while True:  # repeated if the objects do not find room
        kinds = _draw_kinds(rng)
        with_crowd = rng.random() < CROWD_SHARE
        diameters = [rng.uniform(*DIAMETERS[size]) * min(image_size) for _, _, size in kinds]
        if with_crowd:
            diameters.append(DIAMETERS["large"][0] * min(image_size))
        centres = _place(rng, diameters, image_size)
        if centres is None:
            continue
        things = tuple(
            _make_thing(rng, kind, centre, diameter)
            for kind, centre, diameter in zip(kinds, centres, diameters, strict=False)  # the last centre is the crowd's
        )
        dots = _draw_dots(rng, centres[-1], diameters[-1]) if with_crowd else ()
        return Scene(image_size=image_size, things=things, crowd_dots=dots)


def _draw_kinds(rng: Random) -> list[tuple[str, str, str]]:
    while True:
        shapes = rng.sample(SHAPES, rng.choice((2, 2, 3)))
        colours = rng.sample(sorted(COLOURS), rng.choice((2, 2, 3)))
        count = rng.randint(3, 6)
        large = rng.randint(1, min(_MAX_LARGE, count - 1))
        sizes = ["large"] * large + ["small"] * (count - large)
        kinds = [(rng.choice(shapes), rng.choice(colours), size) for size in sizes]
        others = [[k for j, k in enumerate(kinds) if j != i] for i in range(count)]
        if all(any(k[0] == o[0] or k[1] == o[1] for o in rest) for k, rest in zip(kinds, others, strict=True)):
            return kinds


def _place(rng: Random, diameters: list[float], image_size: tuple[int, int]) -> list[tuple[float, float]] | None:
    height, width = image_size
    margin = _MARGIN * min(image_size)
    centres: list[tuple[float, float]] = []
    for diameter in diameters:
        inset = diameter / 2 + margin / 2
        for _ in range(_TRIES):
            x, y = rng.uniform(inset, width - inset), rng.uniform(inset, height - inset)
            if all(
                max(abs(x - other_x), abs(y - other_y)) >= (diameter + other) / 2 + margin
                for (other_x, other_y), other in zip(centres, diameters, strict=False)
            ):
                centres.append((x, y))
                break
        else:
            return None
    return centres


def _make_thing(rng: Random, kind: tuple[str, str, str], centre: tuple[float, float], diameter: float) -> Thing:
    shape, colour, size = kind
    parts = _outline(rng, shape)
    xs, ys = ([corner[axis] for part in parts for corner in part] for axis in (0, 1))
    left, top, long_side = min(xs), min(ys), max(max(xs) - min(xs), max(ys) - min(ys))
    scale = diameter / long_side
    half_width, half_height = (max(xs) - left) * scale / 2, (max(ys) - top) * scale / 2
    x0, y0 = centre[0] - half_width, centre[1] - half_height
    # COCO's polygons have two decimals; the box is computed from the rounded polygons.
    polygons = tuple(
        tuple((round(x0 + (x - left) * scale, 2), round(y0 + (y - top) * scale, 2)) for x, y in part) for part in parts
    )
    xs, ys = ([corner[axis] for part in polygons for corner in part] for axis in (0, 1))
    box = (min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2))
    red, green, blue = (
        min(255, max(0, channel + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for channel in COLOURS[colour]
    )
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        centre=(box[0] + box[2] / 2, box[1] + box[3] / 2),
        rgb=(red, green, blue),
        polygons=polygons,
        box_xywh=box,
    )


def _outline(rng: Random, shape: str) -> list[list[tuple[float, float]]]:
    """Return the parts of a shape around the origin, slightly rotated. The caller scales them."""
    match shape:
        case "circle":
            parts = [_corners(28)]
        case "square":
            parts = [[(-1, -1), (1, -1), (1, 1), (-1, 1)]]
        case "triangle":
            parts = [_corners(3)]
        case _:
            parts = [[(x - 0.35, -1), (x + 0.35, -1), (x + 0.35, 1), (x - 0.35, 1)] for x in (-0.65, 0.65)]
    turn = math.radians(rng.uniform(-10, 10))
    cos, sin = math.cos(turn), math.sin(turn)
    return [[(x * cos - y * sin, x * sin + y * cos) for x, y in part] for part in parts]


def _corners(count: int) -> list[tuple[float, float]]:
    """Return the corners of a regular polygon. The first corner is at the top."""
    angles = [2 * math.pi * i / count for i in range(count)]
    return [(math.sin(a), -math.cos(a)) for a in angles]


def _draw_dots(rng: Random, centre: tuple[float, float], diameter: float) -> tuple[tuple[int, int], ...]:
    reach = diameter / 2 - 3  # a dot is five pixels wide
    return tuple(
        (round(centre[0] + rng.uniform(-reach, reach)), round(centre[1] + rng.uniform(-reach, reach)))
        for _ in range(rng.randint(8, 14))
    )
