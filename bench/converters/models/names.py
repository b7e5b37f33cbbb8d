"""Arabic names as the transliterator's encoder takes them, with the float model's own states as what is wanted.

The names are those that its package carries. What is measured is how far the states turn away from the float model's.
"""

import importlib.util
import json
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

LENGTH = 24
CALIBRATION, EVALUATION = 96, 240


def calibration() -> Iterator[dict[str, np.ndarray]]:
    return map(encoded, names()[:CALIBRATION])


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    return map(encoded, names()[CALIBRATION:][:EVALUATION])


def names() -> list[str]:
    """In one fixed, mixed order."""
    with sqlite3.connect(f"file:{resources() / 'names.sqlite3'}?mode=ro", uri=True) as store:
        rows = store.execute("SELECT DISTINCT arabic_key FROM full_names ORDER BY arabic_key").fetchall()
    found = [row[0] for row in rows if 4 < len(row[0]) < LENGTH - 4]
    order = np.random.default_rng(0).permutation(len(found))[: CALIBRATION + EVALUATION]
    return [found[index] for index in order]


def encoded(name: str) -> dict[str, np.ndarray]:
    """Numbers of the letters, an end and padding, (1, LENGTH), and where the padding is."""
    numbers = alphabet()
    known = [numbers.get(letter, numbers["<UNK>"]) for letter in name]
    source = np.full((1, LENGTH), numbers["<PAD>"], np.int64)
    source[0, : len(known) + 1] = [*known, numbers["<EOS>"]]
    return {"src": source, "src_mask": source == numbers["<PAD>"]}


@cache
def alphabet() -> dict[str, int]:
    tokens = json.loads((resources() / "vocab.json").read_text())["tokens"]
    return {token: number for number, token in enumerate(tokens)}


def resources() -> Path:
    spec = importlib.util.find_spec("arabic_name_romanizer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "arabic-name-romanizer is not installed; it carries the model and its names"
        )
    return Path(spec.submodule_search_locations[0]) / "resources"
