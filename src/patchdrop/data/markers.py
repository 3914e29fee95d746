"""Draw the embedded data set: photographs in which a small marker carries a handwritten digit.

The low-resolution view shows where the marker is, only the high-resolution one which digit it carries;
one image in eight carries no marker, so there is nothing to zoom into. Everything is drawn from what
scikit-learn ships (two photographs, 1797 handwritten digits), so no download is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchdrop.errors import UsageError

Split = Literal["train", "test"]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

CLASSES: tuple[str, ...] = (*"0123456789", "none")
NONE = CLASSES.index("none")
NONE_SHARE = 1 / 8
MIN_SIZE = 32

TEST_DIGITS = 0.25
"""Share of each class's digits, those of the highest index (so mostly other writers), kept for test."""

FIELDS_OF_VIEW = (96, 108, 120, 132, 144, 160)
"""Sides of the square crops, in photograph pixels."""
BACKGROUND_LIGHT = (0.6, 1.0)
"""Range of the background's brightness factor; never above 1, so that a marker outshines a pale sky."""

# Lengths are in pixels of a 64 px image and grow in proportion to the image.
DIAMETER = (16.0, 18.0)
RIM_WIDTH = 0.9
DIGIT_HEIGHT = (11.0, 12.5)
MAX_DIGIT_OFFSET = 0.6
"""Largest distance of a digit from the middle of its marker, on each axis."""
MAX_TILT = 0.12
"""Largest rotation of a digit in radians, either way."""
INK_THRESHOLD = (4.0, 5.0)
"""Range of the level, of 16, at which ink begins: low is a thick stroke, high a thin one."""
INK_RAMP = 7.0
"""Number of levels from where ink begins to full ink."""
MAX_SHADE = 0.25
"""Largest share of its brightness that a marker loses from its lit side to its dark side."""
DISC_COLOURS = ((255, 226, 20), (170, 245, 60), (250, 250, 240))
"""Yellow, lime and white (orange would vanish in the flower); drawn independently of the digit."""
COLOUR_JITTER = 12
INK = (20, 16, 40)
RIM = (35, 28, 30)

SUPERSAMPLING = 4
"""Samples per pixel and axis when a marker is drawn."""
GLYPH_SIDE = 64
"""Side in samples that the 8 x 8 digits are smoothly enlarged to."""
CHUNK_SAMPLES = 4_000_000
"""Samples drawn at a time, which bounds memory at large image sizes."""


@dataclass(frozen=True)
class Drawn:
    """Drawn images with the ground truth that a model never sees."""

    images: Bytes
    """Images (n, size, size, 3)."""
    labels: Ints
    """Labels (n,), indices into `CLASSES`."""
    centres: Floats
    """(n, 2), row and column of each marker's centre in pixels from the top left corner; NaN for none."""


@dataclass(frozen=True)
class Markers:
    """The looks and places of m markers."""

    digits: Ints
    """(m,), scikit-learn indices of the digits."""
    centres: Floats
    """(m, 2), row and column in pixels."""
    diameters: Floats
    """Diameters in pixels, (m,)."""
    heights: Floats
    """(m,), heights of the 8 x 8 digits in pixels."""
    offsets: Floats
    """(m, 2), row and column of the digit's middle from the marker's centre in pixels."""
    tilts: Floats
    """Tilts in radians, (m,)."""
    thresholds: Floats
    """Levels (of 16) at which ink begins, (m,)."""
    shades: Floats
    """(m, 2), direction of the light, row and column, as long as the share of brightness lost across."""
    colours: Floats
    """RGB in 0..255, (m, 3)."""


def make_images(split: Split, count: int, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw ``count`` images of ``size`` px; the same arguments give the same bytes.

    Returns:
        Images, uint8 (n, 3, size, size), and labels, int64 (n,), indices into `CLASSES`.

    Raises:
        UsageError: an unknown split, no images asked for, or images smaller than `MIN_SIZE`.
    """
    drawn = draw_images(split, count, size, seed)
    images = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(drawn.labels)


def draw_images(split: Split, count: int, size: int, seed: int) -> Drawn:
    """Draw as `make_images`, and return the markers' positions too."""
    _check(split, count, size)
    rng = np.random.default_rng([seed, int(split == "test")])
    labels = _draw_labels(rng, count)
    images = _draw_backgrounds(rng, count, size)
    marked = np.flatnonzero(labels != NONE)
    markers = _draw_markers(rng, labels[marked], split, size)
    _paint_markers(images, marked, markers)
    centres = np.full((count, 2), np.nan, dtype=np.float32)
    centres[marked] = markers.centres
    return Drawn(images, labels, centres)


def split_digits() -> tuple[Ints, Ints]:
    """Return scikit-learn indices of the train digits and of the test digits, split class by class."""
    _, targets = _load_digits()
    train, test = [], []
    for label in range(NONE):
        indices = np.flatnonzero(targets == label)
        cut = len(indices) - round(TEST_DIGITS * len(indices))
        train.append(indices[:cut])
        test.append(indices[cut:])
    return np.concatenate(train), np.concatenate(test)


def _check(split: str, count: int, size: int) -> None:
    if split not in ("train", "test"):
        raise UsageError(f"markers: split {split!r}: choose train or test")
    if count < 1:
        raise UsageError(f"markers: {count} images, ask for at least one")
    if size < MIN_SIZE:
        raise UsageError(f"markers of {size} px: no digit is legible in so few, use 64 px (at least {MIN_SIZE})")


def _draw_labels(rng: np.random.Generator, count: int) -> Ints:
    """Draw shuffled labels (n,): one in eight is none, the digits are as even as the count allows."""
    none = round(NONE_SHARE * count)
    labels = np.concatenate([np.full(none, NONE), np.arange(count - none) % NONE]).astype(np.int64)
    return rng.permutation(labels)


def _draw_backgrounds(rng: np.random.Generator, count: int, size: int) -> Bytes:
    """Draw crops (n, size, size, 3) of the photographs, some mirrored, some darkened."""
    sources = _background_sources(size)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    picks = rng.integers(len(sources), size=count)
    places = rng.random((count, 2))
    mirrored = rng.random(count) < 0.5
    lights = rng.uniform(*BACKGROUND_LIGHT, size=count)
    for i in range(count):
        source = sources[picks[i]]
        top = int(places[i, 0] * (source.shape[0] - size + 1))
        left = int(places[i, 1] * (source.shape[1] - size + 1))
        crop = source[top : top + size, left : left + size]
        crop = crop[:, ::-1] if mirrored[i] else crop
        images[i] = np.rint(crop * np.float32(lights[i]))
    return images


@lru_cache(maxsize=4)
def _background_sources(size: int) -> tuple[Bytes, ...]:
    """Return each photograph, resized so that each field of view spans ``size`` px."""
    sources = []
    for photograph in _load_photographs():
        for field in FIELDS_OF_VIEW:
            height, width = (max(size, round(length * size / field)) for length in photograph.shape[:2])
            resized = Image.fromarray(photograph).resize((width, height), Image.Resampling.LANCZOS)
            sources.append(np.asarray(resized))
    return tuple(sources)


def _draw_markers(rng: np.random.Generator, labels: Ints, split: Split, size: int) -> Markers:
    """Draw a marker for each digit label (m,), wholly inside the image."""
    count = len(labels)
    unit = size / 64
    diameters = rng.uniform(*DIAMETER, size=count) * unit
    room = size - diameters[:, None]
    centres = diameters[:, None] / 2 + rng.random((count, 2)) * room
    bases = np.array(DISC_COLOURS, dtype=np.float64)[rng.integers(len(DISC_COLOURS), size=count)]
    colours = np.clip(bases + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, size=(count, 3)), 0, 255)
    shares, angles = rng.uniform(0, MAX_SHADE, size=count), rng.uniform(0, 2 * np.pi, size=count)
    return Markers(
        digits=_draw_digits(rng, labels, split),
        centres=centres.astype(np.float32),
        diameters=diameters.astype(np.float32),
        heights=_uniform(rng, DIGIT_HEIGHT, (count,)) * np.float32(unit),
        offsets=_uniform(rng, (-MAX_DIGIT_OFFSET, MAX_DIGIT_OFFSET), (count, 2)) * np.float32(unit),
        tilts=_uniform(rng, (-MAX_TILT, MAX_TILT), (count,)),
        thresholds=_uniform(rng, INK_THRESHOLD, (count,)),
        shades=(shares * np.stack([np.sin(angles), np.cos(angles)])).T.astype(np.float32),
        colours=colours.astype(np.float32),
    )


def _uniform(rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...]) -> Floats:
    return rng.uniform(*bounds, size=shape).astype(np.float32)


def _draw_digits(rng: np.random.Generator, labels: Ints, split: Split) -> Ints:
    """Draw for each label (m,) the index of one of the split's digits of that class."""
    _, targets = _load_digits()
    pool = split_digits()[int(split == "test")]
    digits = np.empty_like(labels)
    for label in range(NONE):
        wanted = labels == label
        digits[wanted] = rng.choice(pool[targets[pool] == label], size=int(wanted.sum()))
    return digits


def _paint_markers(images: Bytes, rows: Ints, markers: Markers) -> None:
    """Paint marker i into ``images[rows[i]]``, in place."""
    size = images.shape[1]
    window = min(size, int(np.ceil(DIAMETER[1] * size / 64)) + 1)
    corners = np.floor(markers.centres - markers.diameters[:, None] / 2).astype(np.int64)
    corners = np.minimum(corners, size - window)
    step = max(1, CHUNK_SAMPLES // (window * SUPERSAMPLING) ** 2)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        colour, cover = _marker_sprites(markers, part, corners[part], window, size)
        across = np.arange(window)
        where = (
            rows[part, None, None],
            (corners[part, :1] + across)[:, :, None],
            (corners[part, 1:] + across)[:, None, :],
        )
        images[where] = np.rint(images[where] * (1 - cover) + colour).astype(np.uint8)


def _marker_sprites(markers: Markers, part: slice, corners: Ints, window: int, size: int) -> tuple[Floats, Floats]:
    """Draw antialiased sprites of the markers in ``part``, in windows with their top left at ``corners``.

    Returns:
        Colour times cover, (m, window, window, 3) in 0..255, and cover, (m, window, window, 1) in 0..1.
    """
    samples: Floats = ((np.arange(window * SUPERSAMPLING) + 0.5) / SUPERSAMPLING).astype(np.float32)
    offsets: Floats = (corners - markers.centres[part]).astype(np.float32)
    down: Floats = (offsets[:, :1] + samples)[:, :, None]
    right: Floats = (offsets[:, 1:] + samples)[:, None, :]
    radii = markers.diameters[part, None, None] / 2
    distance2 = down**2 + right**2
    disc: Floats = (distance2 <= radii**2).astype(np.float32)
    face: Floats = (distance2 <= (radii - RIM_WIDTH * size / 64) ** 2).astype(np.float32)
    ink: Floats = face * _ink(markers, part, down, right)
    lit = _light(markers, part, down, right) * (face - ink)
    disc, face, ink, lit = (_area_average(layer)[..., None] for layer in (disc, face, ink, lit))
    colour = (
        (disc - face) * np.array(RIM, dtype=np.float32)
        + lit * markers.colours[part, None, None]
        + ink * np.array(INK, dtype=np.float32)
    )
    return colour, disc


def _light(markers: Markers, part: slice, down: Floats, right: Floats) -> Floats:
    """Return the brightness (m, h, w) of the markers, 1 at the lit rim, falling evenly towards the far rim."""
    shades = markers.shades[part, :, None, None]
    shares = np.linalg.norm(shades, axis=1)
    radii = markers.diameters[part, None, None] / 2
    light: Floats = 1 - (shares - (shades[:, 0] * down + shades[:, 1] * right) / radii) / 2
    return light


def _ink(markers: Markers, part: slice, down: Floats, right: Floats) -> Floats:
    """Return ink (m, h, w) in 0..1 at the offsets ``down`` (m, h, 1) and ``right`` (m, 1, w) px from the centres."""
    down = down - markers.offsets[part, :1, None]
    right = right - markers.offsets[part, 1:, None]
    scale = GLYPH_SIDE / markers.heights[part, None, None]
    cos = np.cos(markers.tilts[part, None, None]) * scale
    sin = np.sin(markers.tilts[part, None, None]) * scale
    row = np.floor(down * cos - right * sin + GLYPH_SIDE / 2).astype(np.int32)
    column = np.floor(down * sin + right * cos + GLYPH_SIDE / 2).astype(np.int32)
    inside = (row >= 0) & (row < GLYPH_SIDE) & (column >= 0) & (column < GLYPH_SIDE)
    last = GLYPH_SIDE - 1
    levels = _glyphs()[markers.digits[part, None, None], row.clip(0, last), column.clip(0, last)]
    # Contrast is steepened because strokes smeared over 8 x 8 cells look grey and blurred when enlarged.
    ink: Floats = ((levels - markers.thresholds[part, None, None]) / INK_RAMP).clip(0, 1) * inside
    return ink


def _area_average(samples: Floats) -> Floats:
    """Average (m, h * k, w * k) samples to (m, h, w) pixels, k being `SUPERSAMPLING`."""
    count, height, width = samples.shape
    k = SUPERSAMPLING
    blocks = samples.reshape(count, height // k, k, width // k, k)
    pixels: Floats = blocks.mean(axis=(2, 4), dtype=np.float32)
    return pixels


@lru_cache(maxsize=1)
def _glyphs() -> Floats:
    """Return all digits (1797, `GLYPH_SIDE`, `GLYPH_SIDE`) as levels of about 0..16, enlarged smoothly."""
    digits, _ = _load_digits()
    side = (GLYPH_SIDE, GLYPH_SIDE)
    enlarged = [np.asarray(Image.fromarray(digit).resize(side, Image.Resampling.BICUBIC)) for digit in digits]
    return np.stack(enlarged)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[Floats, Ints]:
    """Load digits (1797, 8, 8) with ink in 0..16, and their classes (1797,)."""
    # Imported late because it takes a second that other data sets need not wait.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images.astype(np.float32), bunch.target.astype(np.int64)


@lru_cache(maxsize=1)
def _load_photographs() -> tuple[Bytes, ...]:
    """Load China and flower, each (427, 640, 3)."""
    from sklearn.datasets import load_sample_images  # late, as above

    return tuple(load_sample_images().images)
