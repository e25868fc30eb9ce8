"""What the synthetic world can show and how it says it: five domains, their attributes, words and colours.

A scene is nine attributes: a moving object (shape, colour, texture, size, motion, speed), a still one (shape,
colour) and a background; 64,800 of them a domain. Knows no pixels: `synthetic` draws, and reads the tables below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

#: The domains of the stream, in their usual order.
DOMAINS = ("studio", "night", "paper", "thermal", "reef")
#: All attributes, random colours and backgrounds, four templates: for the warm start, never for the stream.
GENERIC = "generic"

COLOURS = {
    "red": (0.92, 0.12, 0.12),
    "green": (0.15, 0.80, 0.22),
    "blue": (0.18, 0.30, 0.95),
    "yellow": (0.95, 0.90, 0.12),
    "purple": (0.62, 0.12, 0.75),
    "cyan": (0.15, 0.85, 0.90),
    "orange": (0.98, 0.55, 0.10),
    "white": (0.95, 0.95, 0.95),
}
_SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "bar")
_MOTIONS = ("left", "right", "up", "down", "diagonal", "circling", "growing", "shrinking")
_TEXTURES = ("plain", "striped", "checked")
_SIZES = ("small", "large")
_SPEEDS = ("slowly", "quickly")
_ATTRIBUTES = (
    *("size", "texture", "colour", "shape", "motion", "speed"),
    *("still_colour", "still_shape", "background"),
)
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Backdrop:
    """A pattern between two colours; random colours where none are given."""

    pattern: str
    low: RGB | None = None
    high: RGB | None = None


@dataclass(frozen=True)
class Domain:
    """What one domain shows and how it speaks. `words` replaces attribute values in captions, nowhere else."""

    templates: tuple[str, ...]
    backdrops: Mapping[str, Backdrop]
    words: Mapping[str, str] = field(default_factory=dict)
    shapes: tuple[str, ...] = _SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    motions: tuple[str, ...] = _MOTIONS
    still_shapes: tuple[str, ...] = _SHAPES
    still_colours: tuple[str, ...] = tuple(COLOURS)
    palette: tuple[RGB, RGB, RGB] = _IDENTITY  # shown = palette @ colour + lift
    lift: RGB = (0.0, 0.0, 0.0)
    tint: float = 0.0  # largest share of a random colour mixed into the objects
    noise: float = 0.02

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Every attribute's values, in the order of `Scene`'s fields."""
        return {
            "size": _SIZES,
            "texture": _TEXTURES,
            "colour": self.colours,
            "shape": self.shapes,
            "motion": self.motions,
            "speed": _SPEEDS,
            "still_colour": self.still_colours,
            "still_shape": self.still_shapes,
            "background": tuple(self.backdrops),
            "template": self.templates,
        }


WORLD = {
    "studio": Domain(
        templates=(
            "a {size} {texture} {colour} {shape} moving {motion} {speed}"
            " with a {still_colour} {still_shape} behind on {background} floor",
        ),
        backdrops={
            "brown": Backdrop("flat", (0.36, 0.20, 0.11)),
            "dark": Backdrop("flat", (0.05, 0.02, 0.09)),
            "grey": Backdrop("flat", (0.48, 0.49, 0.52)),
        },
        shapes=("circle", "cross", "triangle", "ring", "square"),
        colours=("red", "green", "blue", "yellow", "purple", "cyan"),
        motions=("left", "right", "up", "down", "circling"),
        still_shapes=("circle", "ring", "triangle"),
        still_colours=("red", "green", "blue", "cyan"),
    ),
    "night": Domain(
        templates=(
            "at night one {colour} {texture} {shape} {size} goes {motion} {speed}"
            " near some {still_colour} {still_shape} under {background} sky",
        ),
        backdrops={
            "starry": Backdrop("specks", (0.01, 0.01, 0.07), (0.72, 0.72, 0.78)),
            "clear": Backdrop("flat", (0.01, 0.01, 0.06)),
            "cloudy": Backdrop("clouds", (0.02, 0.02, 0.08), (0.24, 0.24, 0.30)),
        },
        words={
            "yellow": "golden",
            "red": "crimson",
            "green": "emerald",
            "square": "block",
            "ring": "hoop",
            "small": "tiny",
            "large": "huge",
            "left": "leftward",
            "right": "rightward",
            "up": "rising",
        },
        shapes=("diamond", "square", "star", "circle", "ring"),
        colours=("yellow", "red", "blue", "green", "white", "orange"),
        motions=("left", "right", "up", "growing", "shrinking"),
        still_shapes=("ring", "circle", "square"),
        still_colours=("blue", "yellow", "red", "white"),
        palette=((0.68, 0.0, 0.0), (0.0, 0.66, 0.0), (0.0, 0.0, 0.78)),
        noise=0.025,
    ),
    "paper": Domain(
        templates=(
            "paper drawing : {shape} {colour} {size} {texture} that moves {motion} {speed}"
            " beside {still_shape} {still_colour} on {background} sheet",
        ),
        backdrops={
            "blank": Backdrop("flat", (0.95, 0.88, 0.85)),
            "ruled": Backdrop("lines", (0.96, 0.90, 0.84), (0.60, 0.52, 0.48)),
            "squared": Backdrop("grid", (0.94, 0.95, 0.84), (0.62, 0.62, 0.52)),
        },
        words={
            "cross": "plus",
            "orange": "amber",
            "purple": "violet",
            "red": "scarlet",
            "striped": "lined",
            "slowly": "gently",
            "quickly": "fast",
            "down": "downward",
            "up": "upward",
            "circling": "around",
        },
        shapes=("cross", "circle", "triangle", "square", "bar"),
        colours=("blue", "orange", "green", "red", "purple", "yellow"),
        motions=("diagonal", "down", "up", "circling", "shrinking"),
        still_shapes=("circle", "bar", "triangle"),
        still_colours=("red", "purple", "green", "blue"),
        palette=((0.58, 0.0, 0.0), (0.0, 0.58, 0.0), (0.0, 0.0, 0.58)),
        lift=(0.34, 0.34, 0.34),
        noise=0.015,
    ),
    # The hue turns by a third: what others call blue is green here, on purpose the opposite of what was learned.
    "thermal": Domain(
        templates=(
            "thermal camera sees {motion} {speed} motion of {size} {colour} {texture} {shape}"
            " and static {still_colour} {still_shape} over {background} ground",
        ),
        backdrops={
            "hot": Backdrop("flat", (0.62, 0.20, 0.10)),
            "cold": Backdrop("flat", (0.15, 0.15, 0.42)),
            "mixed": Backdrop("ramp", (0.10, 0.12, 0.55), (0.80, 0.24, 0.06)),
        },
        words={
            "large": "big",
            "small": "little",
            "blue": "navy",
            "checked": "tiled",
            "growing": "swelling",
            "diamond": "rhombus",
            "triangle": "wedge",
            "left": "west",
            "right": "east",
        },
        shapes=("star", "triangle", "square", "diamond", "circle"),
        colours=("yellow", "purple", "blue", "cyan", "green", "white"),
        motions=("growing", "diagonal", "left", "right", "down"),
        still_shapes=("ring", "triangle", "diamond"),
        still_colours=("yellow", "blue", "cyan", "purple"),
        palette=((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
        noise=0.025,
    ),
    "reef": Domain(
        templates=(
            "underwater {background} scene where {still_colour} {still_shape} rests"
            " while {texture} {size} {colour} {shape} swims {motion} {speed}",
        ),
        backdrops={
            "murky": Backdrop("grain", (0.0, 0.24, 0.34), (0.05, 0.42, 0.52)),
            "wavy": Backdrop("waves", (0.0, 0.26, 0.38), (0.18, 0.50, 0.60)),
            "calm": Backdrop("flat", (0.02, 0.36, 0.46)),
        },
        words={
            "plain": "smooth",
            "green": "lime",
            "purple": "plum",
            "orange": "coral",
            "circle": "disc",
            "bar": "stick",
            "ring": "loop",
            "striped": "banded",
            "slowly": "lazily",
            "quickly": "swiftly",
            "shrinking": "fading",
            "up": "surfacing",
        },
        shapes=("star", "circle", "bar", "ring", "cross"),
        colours=("green", "white", "cyan", "purple", "orange", "yellow"),
        motions=("left", "right", "up", "circling", "shrinking"),
        still_shapes=("bar", "star", "circle"),
        still_colours=("green", "white", "purple", "orange"),
        palette=((0.62, 0.0, 0.0), (0.0, 0.80, 0.0), (0.0, 0.0, 0.70)),
        lift=(0.0, 0.10, 0.20),
        noise=0.025,
    ),
    GENERIC: Domain(
        templates=(
            "a {size} {texture} {colour} {shape} moving {motion} {speed}"
            " with a {still_colour} {still_shape} on {background}",
            "one {colour} {shape} {texture} {size} goes {motion} {speed}"
            " near {still_colour} {still_shape} {background} behind",
            "video of {size} {colour} {texture} {shape} that moves {motion} {speed}"
            " beside static {still_colour} {still_shape} over {background}",
            "{background} scene where {still_colour} {still_shape} rests"
            " while {texture} {size} {shape} in {colour} goes {speed} {motion}",
        ),
        backdrops={
            "flat": Backdrop("flat"),
            "wavy": Backdrop("waves"),
            "noisy": Backdrop("grain"),
            "shaded": Backdrop("ramp"),
        },
        tint=0.3,
        noise=0.025,
    ),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a clip shows, in the world's own words; `caption` says it in the domain's."""

    domain: str
    size: str
    texture: str
    colour: str
    shape: str
    motion: str
    speed: str
    still_colour: str
    still_shape: str
    background: str
    template: str

    @property
    def caption(self) -> str:
        """The sentence; two scenes of a domain never share one."""
        domain = WORLD[self.domain]
        return self.template.format_map({a: domain.words.get(v := getattr(self, a), v) for a in _ATTRIBUTES})


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted; about 130."""
    words: set[str] = set()
    for domain in WORLD.values():
        choices = domain.choices()
        words.update(domain.words.get(value, value) for name in _ATTRIBUTES for value in choices[name])
        words.update(word for template in domain.templates for word in template.split() if "{" not in word)
    return tuple(sorted(words))


def sample(domain: str, n: int, rng: np.random.Generator) -> list[Scene]:
    """Draw `n` scenes with distinct captions.

    Raises:
        ValueError: no such domain, or it has fewer scenes than that.
    """
    if domain not in WORLD:
        raise ValueError(f"domain {domain!r}: choose one of {', '.join(WORLD)}")
    choices = tuple(WORLD[domain].choices().values())
    shape = tuple(len(values) for values in choices)
    if n > math.prod(shape):
        raise ValueError(f"{domain} has {math.prod(shape)} captions, fewer than {n}")
    digits = np.unravel_index(rng.choice(math.prod(shape), n, replace=False), shape)
    return [
        Scene(domain, *(values[i] for values, i in zip(choices, row, strict=True))) for row in zip(*digits, strict=True)
    ]
