"""Windows of log mel energies of synthetic speech in noise, for a speaker embedding.

No label that a person gave: what is measured is how far an embedding turns away from that of the file as it came.
"""

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

RATE, FRAME, HOP, FFT, MELS, STEPS = 16000, 400, 160, 512, 40, 80
CALIBRATION, EVALUATION = 96, 240


def calibration() -> Iterator[dict[str, np.ndarray]]:
    return map(window, range(10_000, 10_000 + CALIBRATION))


def evaluation() -> Iterator[dict[str, np.ndarray]]:
    return map(window, range(EVALUATION))


def window(number: int) -> dict[str, np.ndarray]:
    """(1, STEPS, MELS), of a voice whose pitch and words the number chooses."""
    random = np.random.default_rng(number)
    pitch_hz = 90 + 10 * int(random.integers(0, 18))
    voice = speech().say(int(random.integers(0, len(speech().SENTENCES))), pitch_hz)
    need = HOP * (STEPS - 1) + FRAME
    voice = np.tile(voice, -(-need // len(voice)) + 1)
    start = int(random.integers(0, len(voice) - need))
    audio = voice[start : start + need] / np.abs(voice).max()
    audio = audio + random.standard_normal(need) * float(random.uniform(0.001, 0.05))
    return {"mel_window": log_mels(audio)[None]}


def log_mels(audio: np.ndarray) -> np.ndarray:
    """(STEPS, MELS) float32."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::HOP][:STEPS]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), FFT)) ** 2
    return np.log(power @ _filters() + 1e-6).astype(np.float32)


@cache
def _filters() -> np.ndarray:
    """Triangles evenly spaced over mel, (FFT / 2 + 1, MELS)."""
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), MELS + 2)
    corners = 700 * (10 ** (mels / 2595) - 1) / (RATE / 2) * (FFT // 2)
    places = np.arange(FFT // 2 + 1)[:, None]
    rising = (places - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - places) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


@cache
def speech() -> ModuleType:
    """The synthetic speech of the tests."""
    path = Path(__file__).parents[3] / "tests/e2e/real_data/speech.py"
    spec = importlib.util.spec_from_file_location("speech_of_the_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
