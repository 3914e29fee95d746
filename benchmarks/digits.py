"""Digits in clutter: labelled images in which something small decides, made from MNIST's ``mnist.npz``.

    python benchmarks/digits.py MNIST.npz OUT

An image of 128 px has three light discs anywhere on grey, uneven ground: one carries a digit of 14 px, two carry a few
random strokes. LR of 32 px shows where discs are, hardly what is on them. Writes ``OUT/{train,test}/<digit>/<n>.png``,
5,000 and 1,000 images, from MNIST's own training and test digits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE, DIGIT, RADIUS = 128, 14, 11
NOISE = 16
"""Standard deviation of each pixel's grey level."""
COUNTS = {"train": 5000, "test": 1000}
Grey = NDArray[np.float64]


def ground(rng: np.random.Generator) -> Grey:
    """Grey levels that change slowly, with noise on them: ``(SIZE, SIZE)``, about 20 to 190."""
    coarse = Image.fromarray(rng.uniform(70, 140, (8, 8)).astype(np.float32))
    smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
    return smooth + rng.normal(0, NOISE, smooth.shape)


def places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Centres ``(y, x)`` of discs that lie within the image and do not touch."""
    found: list[tuple[int, int]] = []
    while len(found) < count:
        y, x = rng.integers(RADIUS + 1, SIZE - RADIUS - 1, 2)
        if all(np.hypot(y - b, x - a) > 2 * RADIUS + 2 for b, a in found):
            found.append((int(y), int(x)))
    return found


def ink_of(digit: NDArray[np.uint8]) -> Grey:
    """An MNIST digit shrunk to ``DIGIT`` px: ink of 0 to 1."""
    small = Image.fromarray(digit[4:24, 4:24]).resize((DIGIT, DIGIT), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64) / 255


def strokes(rng: np.random.Generator) -> Grey:
    """Two or three curves with the size and the ink of a digit: ``(DIGIT, DIGIT)``, 0 to 1."""
    scale = 4
    canvas = Image.new("L", (DIGIT * scale, DIGIT * scale))
    pen = ImageDraw.Draw(canvas)
    along = np.linspace(0, 1, 12)[:, None]
    for _ in range(int(rng.integers(2, 4))):
        start, bend, end = rng.uniform(scale, (DIGIT - 1) * scale, (3, 2))
        curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * bend + along**2 * end
        pen.line([(float(x), float(y)) for x, y in curve], fill=255, width=int(1.4 * scale), joint="curve")
    return np.asarray(canvas.resize((DIGIT, DIGIT), Image.Resampling.BOX), dtype=np.float64) / 255


def image(digit: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One image ``(SIZE, SIZE, 3)`` with a digit and two discs of strokes."""
    canvas = ground(rng)
    ys, xs = np.mgrid[:SIZE, :SIZE]
    for number, (y, x) in enumerate(places(rng, 3)):
        inside = np.clip(RADIUS + 0.5 - np.hypot(ys - y, xs - x), 0, 1)
        canvas = canvas * (1 - inside) + (rng.uniform(200, 235) + rng.normal(0, NOISE, canvas.shape)) * inside
        ink = ink_of(digit) if number == 0 else strokes(rng)
        top, left = y - DIGIT // 2, x - DIGIT // 2
        window = canvas[top : top + DIGIT, left : left + DIGIT]
        window *= 1 - rng.uniform(0.4, 0.9) * ink
    grey = canvas.round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def main(source: Path, out: Path) -> None:
    """Write both splits."""
    with np.load(source) as mnist:
        for split, count in COUNTS.items():
            rng = np.random.default_rng(["train", "test"].index(split))
            digits, labels = mnist[f"{split}_images"], mnist[f"{split}_labels"]
            for number, index in enumerate(rng.permutation(len(digits))[:count]):
                folder = out / split / str(labels[index])
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image(digits[index], rng)).save(folder / f"{number:05d}.png")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python benchmarks/digits.py MNIST.npz OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
