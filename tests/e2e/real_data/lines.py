"""Rendered lines of text for a recogniser, labelled with what was written: plain ones and badly worn ones.

Letters, sizes, places, colours, rotation, blur and noise come from a seed. Made by a generator, and any figure says so.
Labels are classes of PP-OCR's alphabet (ended by -1), read from the file `alphabet.txt` that `write_alphabet` makes of the
model's own metadata.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH = 48, 320
LONGEST = 24
ALPHABET = Path(__file__).with_name("alphabet.txt")
FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSans-Bold.ttf")
WORDS = [
    "Invoice", "delivery", "warehouse", "Berlin", "fragile", "copper", "lantern", "Total", "gateway", "EUR", "station",
    "quarter", "Nuremberg", "harvest", "bracket", "walnut", "Exit", "platform", "saturday", "pressure", "kilogram",
    "valve", "replace", "Lot", "batch", "Voltage", "ceiling", "jigsaw", "Quebec", "zipper", "oxygen", "Munich",
]  # fmt: skip

Sample = tuple[dict[str, np.ndarray], np.ndarray]


def write_alphabet(model: Path, target: Path) -> None:
    """The classes of a PP-OCR recogniser, a line each: the blank, the file's characters, a space."""
    import onnx

    found = {
        entry.key: entry.value for entry in onnx.load(str(model), load_external_data=False).metadata_props
    }
    target.write_text("\n".join(["", *found["character"].split("\n"), " "]) + "\n", encoding="utf-8")


@cache
def classes() -> dict[str, int]:
    lines = ALPHABET.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {character: index for index, character in enumerate(lines) if index}


def phrase(random: np.random.Generator) -> str:
    parts = [
        str(random.choice(WORDS))
        if random.random() < 0.65
        else f"{random.integers(0, 10**4)}{random.choice(['', '.50', '%', '-A', ':30', '/7'])}"
        for _ in range(int(random.integers(1, 4)))
    ]
    return " ".join(parts)[:LONGEST].strip()


def font(random: np.random.Generator, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.truetype(str(random.choice(FONTS)), size)
    except OSError:
        # Debian's DejaVu fonts are not installed: Pillow's own.
        return ImageFont.load_default(size=size)


def line(text: str, random: np.random.Generator, *, worn: bool) -> np.ndarray:
    """One line, (48, 320, 3) uint8; a worn one is fainter, rotated further, blurred and noisy."""
    paper, ink = int(random.integers(190, 256)), int(random.integers(0, 80))
    if worn:
        paper, ink = int(random.integers(140, 210)), int(random.integers(50, 110))
    image = Image.new("RGB", (WIDTH, HEIGHT), (paper, paper, max(paper - int(random.integers(0, 25)), 0)))
    size = int(random.integers(24, 36))
    chosen = font(random, size)
    while chosen.getlength(text) > WIDTH - 12:
        size -= 2
        chosen = font(random, size)
    place = (int(random.integers(2, 10)), (HEIGHT - size) // 2 - int(random.integers(0, 6)))
    ImageDraw.Draw(image).text(place, text, fill=(ink, ink, ink), font=chosen)
    image = image.rotate(float(random.normal(0, 2.0 if worn else 1.2)), fillcolor=(paper, paper, paper))
    blur, noise = (
        (random.uniform(0.8, 1.9), random.uniform(8, 30))
        if worn
        else (random.uniform(0, 1.2), random.uniform(0, 18))
    )
    image = image.filter(ImageFilter.GaussianBlur(float(blur)))
    pixels = np.asarray(image, np.float32) + random.normal(0, noise, (HEIGHT, WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def lines(count: int, seed: int, *, share_worn: float = 0.15) -> Iterator[Sample]:
    """Lines, of which about that share is worn."""
    random = np.random.default_rng(seed)
    known = classes()
    for _ in range(count):
        text = phrase(random)
        is_worn = bool(random.random() < share_worn)
        label = np.full(LONGEST, -1, np.int64)
        label[: len(text)] = [known[character] for character in text]
        yield {"x": line(text, random, worn=is_worn)}, label


def calibration() -> Iterator[Sample]:
    return lines(96, seed=1)


def evaluation() -> Iterator[Sample]:
    return lines(300, seed=2)


def worn() -> Iterator[Sample]:
    return lines(300, seed=3, share_worn=1)
