"""What the probe shows and asks: 100 general prompts and 64 pictures drawn by formula, the same for ever.

Everyday things, scenes, materials and actions; gradients, gratings, tiles, noise, clouds, hills, still lives
and pebbles. Refuses logos and letters: what is trained for must not be what forgetting is measured on. Change
a word or a formula, and VERSION goes up: drifts of two versions can't be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION: Final = 1
SIDE_PX: Final = 256
"""Pictures are drawn at this side and brought to a model's by Pillow, whose integers are alike everywhere."""
EACH: Final = 8
"""Pictures of each kind."""
Floats = NDArray[np.float64]

PROMPTS: Final[tuple[str, ...]] = (
    # things
    "a photo of a dog",
    "a photo of a cat sleeping on a sofa",
    "a horse in a field",
    "a flock of birds in the sky",
    "a fish in clear water",
    "a butterfly on a flower",
    "an elephant by a river",
    "a cow behind a fence",
    "a wooden chair",
    "a table with four chairs",
    "a bicycle leaning against a wall",
    "a red car parked on a street",
    "a yellow bus",
    "a train at a station",
    "a sailing boat on the sea",
    "an airplane above the clouds",
    "a cup of coffee",
    "a glass of water",
    "a bowl of fruit",
    "a slice of bread with butter",
    "a plate of pasta",
    "a birthday cake with candles",
    "an apple cut in half",
    "a bunch of bananas",
    "a pile of oranges",
    "a book lying open",
    "a pair of scissors",
    "a clock on the wall",
    "a lamp on a desk",
    "an old telephone",
    "a laptop computer",
    "a pair of shoes",
    "a blue shirt on a hanger",
    "an umbrella in the rain",
    "a vase of flowers",
    "a violin",
    "a hammer and nails",
    "a key on a ring",
    # scenes
    "a beach at noon",
    "a sunset over the sea",
    "mountains covered with snow",
    "a forest in autumn",
    "a path through a wood",
    "a desert with sand dunes",
    "a waterfall",
    "a river between green hills",
    "a lake in the morning mist",
    "a field of wheat",
    "a garden in spring",
    "a city street at night",
    "a skyline of tall buildings",
    "a small village in the mountains",
    "a stone bridge over a river",
    "a kitchen with white cupboards",
    "a bedroom with a large window",
    "an empty corridor",
    "a library full of books",
    "a market with fruit and vegetables",
    "a football field seen from above",
    "a playground with a slide",
    "a snowy road",
    "a harbour with fishing boats",
    "a cloudy sky",
    "a clear blue sky",
    "a night sky full of stars",
    "a thunderstorm with lightning",
    "the inside of a church",
    "a railway track to the horizon",
    # materials, patterns and light
    "a brick wall",
    "a wooden surface",
    "a piece of woven cloth",
    "polished metal",
    "cracked dry earth",
    "green grass seen from above",
    "pebbles on a beach",
    "white sand",
    "ripples on water",
    "a marble floor",
    "black and white stripes",
    "a checkered pattern",
    "a smooth gradient of colour",
    "random noise on a screen",
    "a shadow on a wall",
    "three coloured balls on a table",
    # people and what they do
    "a child playing with a ball",
    "a man reading a newspaper",
    "a woman riding a bicycle",
    "two people shaking hands",
    "a crowd of people",
    "a person cooking in a kitchen",
    "a runner on a road",
    "a swimmer in a pool",
    "a musician playing the guitar",
    "a dancer on a stage",
    "a farmer on a tractor",
    "a doctor with a patient",
    "a teacher in front of a class",
    "a climber on a rock",
    "people waiting for a bus",
    "a family having dinner",
)


@functools.lru_cache(maxsize=4)
def draw_pictures(side_px: int) -> NDArray[np.uint8]:
    """The pictures at one side, (64, 3, side_px, side_px) levels; not to be written to."""
    drawn = [_levels(draw, kind, number) for kind, draw in enumerate(_KINDS) for number in range(EACH)]
    sized = [
        Image.fromarray(picture).resize((side_px, side_px), Image.Resampling.BICUBIC) for picture in drawn
    ]
    pictures = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in sized])
    pictures.setflags(write=False)
    return pictures


def _levels(draw: Callable[[Random], Floats], kind: int, number: int) -> NDArray[np.uint8]:
    picture = np.clip(draw(np.random.default_rng([VERSION, kind, number])), 0, 1)
    return np.asarray(np.floor(picture * 255 + 0.5), np.uint8)


Random = np.random.Generator
# x to the right and y downwards, both in [0, 1]
_Y, _X = (axis / SIDE_PX for axis in np.mgrid[0.5:SIDE_PX, 0.5:SIDE_PX])


def _mix(below: Floats, above: Floats, share: Floats) -> Floats:
    """Colours (3,) or (H, W, 3), by `share` (H, W) in [0, 1] of the second."""
    return below + (above - below) * share[..., None]


def _edge(distance: Floats, width: float = 1 / SIDE_PX) -> Floats:
    """1 inside (distance < 0), 0 outside, a soft pixel in between."""
    return np.asarray(np.clip(0.5 - distance / width, 0, 1))


def _along(random: Random) -> Floats:
    """Place along an axis of drawn direction, about -0.7 to 0.7."""
    angle = random.uniform(0, 2 * np.pi)
    return np.asarray(np.cos(angle) * (_X - 0.5) + np.sin(angle) * (_Y - 0.5))


def _colours(random: Random, count: int) -> Floats:
    return random.uniform(0.05, 0.95, (count, 3))


def _spectrum(random: Random, slope: float) -> Floats:
    """Noise (H, W) of deviation 1 whose amplitude falls as frequency to the power -slope (nature's is 1)."""
    white = np.fft.rfft2(random.uniform(-1, 1, (SIDE_PX, SIDE_PX)))
    down, right = np.fft.fftfreq(SIDE_PX)[:, None], np.fft.rfftfreq(SIDE_PX)[None, :]
    frequency = np.hypot(down, right)
    frequency[0, 0] = np.inf  # no mean
    noise = np.fft.irfft2(white / frequency**slope, (SIDE_PX, SIDE_PX))
    return np.asarray(noise / noise.std())


def _gradient(random: Random) -> Floats:
    first, second, third = _colours(random, 3)
    return (_mix(first, second, _along(random) + 0.5) + _mix(first, third, _along(random) + 0.5)) / 2


def _grating(random: Random) -> Floats:
    waves = np.sin(2 * np.pi * random.uniform(2, 24) * _along(random))
    sharpness = random.uniform(0.6, 8)
    dark, bright = _colours(random, 2)
    return _mix(dark, bright, np.clip(0.5 + sharpness * waves / 2, 0, 1))


def _tiles(random: Random) -> Floats:
    rows, shift = int(random.integers(3, 14)), random.uniform(0, 0.5)
    columns = rows * random.choice([0.5, 1.0])
    down = _Y * rows
    right = _X * columns + shift * (np.floor(down) % 2)
    own = random.uniform(0.75, 1.1, (64, 64))[np.floor(down).astype(int), np.floor(right).astype(int)]
    stone, joint = _colours(random, 2)
    inside = _edge(np.maximum(abs(down % 1 - 0.5), abs(right % 1 - 0.5)) - 0.46, rows / SIDE_PX)
    return _mix(joint, stone * own[..., None], inside)


def _noise(random: Random) -> Floats:
    slope, contrast = random.uniform(0.4, 1.8), random.uniform(0.08, 0.22)
    shared, tint = _spectrum(random, slope), random.uniform(0, 1)
    own = np.stack([_spectrum(random, slope) for _ in range(3)], axis=2)
    return np.asarray(_colours(random, 1) + contrast * (tint * own + (1 - tint) * shared[..., None]))


def _sky(random: Random) -> Floats:
    zenith = np.array([0.15, 0.35, 0.75]) + random.uniform(-0.1, 0.1, 3)
    horizon = np.array([0.85, 0.85, 0.9]) + random.uniform(-0.15, 0.1, 3) * np.array([0.2, 1, 2])
    return _mix(zenith, horizon, _Y ** random.uniform(0.6, 1.5))


def _clouds(random: Random) -> Floats:
    thick = np.clip(0.5 + 0.6 * (_spectrum(random, 1.7) - random.uniform(-0.6, 0.8)), 0, 1)
    return _mix(_sky(random), np.full(3, 0.95) - 0.3 * thick[..., None] * random.uniform(0, 1), thick)


def _hills(random: Random) -> Floats:
    picture = _sky(random)
    across, down, radius = random.uniform(0.1, 0.9), random.uniform(0.1, 0.4), random.uniform(0.03, 0.08)
    sun = np.array([1.0, random.uniform(0.7, 1.0), 0.6])
    picture = _mix(picture, sun, _edge(np.hypot(_X - across, _Y - down) - radius))
    ground = random.uniform(0.1, 0.6, 3) * np.array([0.8, 1.0, 0.6])
    for layer in range(4):
        waves = np.arange(1, 7)
        heights = random.uniform(-1, 1, 6) / waves ** random.uniform(0.8, 1.6)
        phases = random.uniform(0, 2 * np.pi, 6)
        ridge = 0.4 + 0.14 * layer + 0.09 * np.sin(2 * np.pi * waves * _X[..., None] + phases) @ heights
        haze = np.array([0.7, 0.75, 0.85])
        near = ground * (1 + 0.15 * _spectrum(random, 1.0)[..., None])
        picture = _mix(picture, haze + (near - haze) * (0.4 + 0.2 * layer), _edge(ridge - _Y))
    return picture


def _still_life(random: Random) -> Floats:
    wall, table = _colours(random, 2)
    picture = _mix(wall * (0.7 + 0.3 * _X[..., None]), table, _edge(random.uniform(0.45, 0.6) - _Y))
    light = np.array([random.uniform(-0.7, 0.7), -0.6, 0.6])
    light /= np.sqrt((light**2).sum())
    for place in range(3):
        radius = random.uniform(0.08, 0.16)
        across, down = 0.2 + 0.3 * place + random.uniform(-0.05, 0.05), random.uniform(0.6, 0.8)
        right, below = (_X - across) / radius, (_Y - down) / radius
        shadow = np.hypot((right + light[0]) / 1.3, (below - 0.95) / 0.3) - 1
        picture = picture * (1 - 0.5 * _edge(shadow, 0.4))[..., None]
        towards = np.sqrt(np.clip(1 - right**2 - below**2, 0, 1))
        lit = np.clip(right * light[0] + below * light[1] + towards * light[2], 0, 1)
        ball = _colours(random, 1) * (0.25 + 0.75 * lit[..., None]) + 0.5 * lit[..., None] ** 24
        picture = _mix(picture, ball, _edge(np.hypot(right, below) - 1, 1 / SIDE_PX / radius))
    return picture


def _pebbles(random: Random) -> Floats:
    """Dead leaves: discs that hide one another, radii by a power law, as edges in nature are spread.

    Source: Lee, Mumford and Huang 2001, IJCV 41 (occlusion models for natural images), section 4.
    """
    base, spread = _colours(random, 1)[0], random.uniform(0.1, 0.35)
    picture = np.tile(base, (SIDE_PX, SIDE_PX, 1))
    for _ in range(220):
        radius = 0.025 / np.sqrt(random.uniform(0.02, 1))
        centre = random.uniform(0, 1, 2)
        first, last = (np.clip((centre + way * (radius + 0.01)) * SIDE_PX, 0, SIDE_PX) for way in (-1, 1))
        box = tuple(slice(int(low), int(high) + 1) for low, high in zip(first, last, strict=True))
        distance = np.hypot(_Y[box] - centre[0], _X[box] - centre[1]) / radius
        stone = base + random.uniform(-spread, spread, 3) + random.uniform(-spread, spread)
        shaded = stone * (1.1 - 0.4 * np.clip(distance, 0, 1) ** 3)[..., None]
        picture[box] = _mix(picture[box], shaded, _edge(distance - 1, 1 / SIDE_PX / radius))
    return picture


_KINDS: Final = (_gradient, _grating, _tiles, _noise, _clouds, _hills, _still_life, _pebbles)
