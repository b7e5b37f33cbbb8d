"""Faces of scikit-image's set (25 x 25, grey) pasted into photographs or not: is one found?"""

import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 128
CALIBRATION, EVALUATION = 96, 320
Sample = tuple[dict[str, np.ndarray], int]


def calibration() -> Iterator[Sample]:
    return map(scene, range(10_000, 10_000 + CALIBRATION))


def evaluation() -> Iterator[Sample]:
    return map(scene, range(EVALUATION))


def scene(number: int) -> Sample:
    """(1, SIDE, SIDE, 3) in -1..1, and whether there is a face in it."""
    random = np.random.default_rng(number)
    photographs, faces = material()
    photograph = photographs[random.integers(len(photographs))]
    top, left = (int(random.integers(0, size - SIDE)) for size in photograph.shape[:2])
    picture = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)
    has_face = bool(random.integers(2))
    if has_face:
        side = int(random.integers(50, 110))
        face = Image.fromarray((faces[random.integers(len(faces))] * 255).astype(np.uint8))
        pasted = np.asarray(face.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        top, left = (int(random.integers(0, SIDE - side)) for _ in range(2))
        picture[top : top + side, left : left + side] = pasted[:, :, None]
    return {"input": (picture / 127.5 - 1)[None].astype(np.float32)}, int(has_face)


@cache
def material() -> tuple[list[np.ndarray], np.ndarray]:
    """Photographs without faces, and faces alone (the first hundred of the set; the rest are none)."""
    # Not at the top: every worker imports this file for its metric, and none of them makes samples.
    from sklearn.datasets import load_sample_images

    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("scikit-image is not installed; it carries the faces")
    faces = np.load(Path(spec.submodule_search_locations[0]) / "data/lfw_subset.npy", allow_pickle=False)
    return list(load_sample_images().images), faces[:100]


def found(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    """Share of pictures in which a face is found just where there is one."""
    best = outputs["classificators"].reshape(len(labels), -1).max(axis=1)
    return float(((best > 0) == (labels > 0)).mean())
