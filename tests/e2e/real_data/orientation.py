"""Rendered text lines, upright (0) or turned by 180 degrees (1): the label is exact because we did the turning.

Words, sizes, places, colours, blur and noise come from a seed. Made by a generator, and any figure says so.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH = 48, 192
WORDS = [
    "invoice",
    "delivery",
    "2026",
    "warehouse",
    "Berlin",
    "4711",
    "fragile",
    "copper",
    "lantern",
    "Total",
    "gateway",
    "EUR",
    "12.50",
    "station",
    "quarter",
    "Nuremberg",
    "harvest",
    "0815",
    "bracket",
    "walnut",
    "Exit",
    "platform",
    "saturday",
    "pressure",
    "kilogram",
    "valve",
    "replace",
    "98%",
    "Lot",
    "batch",
]


def line(random: np.random.Generator) -> np.ndarray:
    """One line of text, (48, 192, 3) uint8, upright."""
    paper, ink = int(random.integers(170, 256)), int(random.integers(0, 90))
    image = Image.new("RGB", (WIDTH, HEIGHT), (paper, paper, int(random.integers(150, 256))))
    font = ImageFont.load_default(size=int(random.integers(28, 38)))
    text = " ".join(random.choice(WORDS, int(random.integers(1, 3))))
    place = (int(random.integers(2, 14)), int(random.integers(0, 9)))
    ImageDraw.Draw(image).text(place, text, fill=(ink, ink, ink), font=font)
    image = image.rotate(float(random.normal(0, 1.5)), fillcolor=(paper, paper, paper))
    if random.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 1.1))))
    pixels = np.asarray(image, np.float32) + random.normal(0, random.uniform(0, 18), (HEIGHT, WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def lines(count: int, seed: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        image, turned = line(random), int(random.integers(0, 2))
        yield {"x": np.ascontiguousarray(image[::-1, ::-1] if turned else image)}, turned


def calibration() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    return lines(96, seed=1)


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    return lines(2000, seed=2)
