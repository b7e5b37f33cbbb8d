"""Speech between pauses, with noise over both: the label of a frame is where speech was placed.

The voice is Debian's espeak-ng where it is installed, otherwise a formant synthesizer below (three resonances over a
pulse train, Klatt's cascade in its simplest form). Frames are what silero-vad takes at 16 kHz: 512 new samples
behind 64 of the frame before.
"""

import io
import shutil
import subprocess
import wave
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

RATE, NEW, CONTEXT = 16000, 512, 64
SENTENCES = (
    "The valve on pump four is leaking.",
    "Please close the door behind you.",
    "Twelve boxes arrived this morning.",
    "Nobody answered the telephone.",
    "Turn left after the old bridge.",
    "It will rain in the afternoon.",
)
# First three formants of a few vowels, Hz (Peterson and Barney, 1952).
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
Item = tuple[dict[str, np.ndarray], int, int]


# A sequence counts as one sample, so a limit of .02 needs hundreds of them; each is short.
EVALUATION = 560


def calibration() -> Iterator[Item]:
    return frames(range(1000, 1020))


def evaluation() -> Iterator[Item]:
    return frames(range(EVALUATION))


def frames(sequences: range) -> Iterator[Item]:
    """Each frame with its label and its sequence's number."""
    for number in sequences:
        audio, spoken = recording(number)
        for start in range(CONTEXT, len(audio) - NEW, NEW):
            middle = spoken[start : start + NEW]
            yield {"input": audio[None, start - CONTEXT : start + NEW]}, int(middle.mean() > 0.5), number


def recording(number: int) -> tuple[np.ndarray, np.ndarray]:
    """About a second, float32 in -1..1, and where speech was placed."""
    random = np.random.default_rng(number)
    sentence = say(number % len(SENTENCES), 120 + 15 * (number % 5))
    length = int(random.uniform(0.4, 0.6) * RATE)
    begin = int(random.integers(0, max(1, len(sentence) - length)))
    voice = sentence[begin : begin + length]
    before, after = (int(random.uniform(0.2, 0.4) * RATE) for _ in range(2))
    audio = np.concatenate([np.zeros(before), voice, np.zeros(after)])
    spoken = np.concatenate([np.zeros(before), np.ones(len(voice)), np.zeros(after)])
    power = float(np.sqrt(np.mean(voice**2)))
    noise = random.standard_normal(len(audio)) * power / 10 ** (random.uniform(3, 12) / 20)
    return (0.5 * (audio + noise) / np.abs(audio).max()).astype(np.float32), spoken


@lru_cache(maxsize=64)
def say(sentence: int, pitch_hz: int) -> np.ndarray:
    """One sentence without leading and trailing silence."""
    spoken = (
        _espeak(SENTENCES[sentence], pitch_hz) if shutil.which("espeak-ng") else _formants(sentence, pitch_hz)
    )
    loud = np.flatnonzero(np.abs(spoken) > 0.02 * np.abs(spoken).max())
    return spoken[loud[0] : loud[-1] + 1]


def _espeak(text: str, pitch_hz: int) -> np.ndarray:
    done = subprocess.run(
        ["espeak-ng", "-v", "en", "-s", "170", "-p", str(pitch_hz // 3), "--stdout", text],
        capture_output=True,
        check=True,
    )
    with wave.open(io.BytesIO(done.stdout)) as reader:
        rate = reader.getframerate()
        # espeak-ng streams, so its header does not know the length.
        samples = np.frombuffer(done.stdout[44:], "<i2").astype(np.float64) / 32768
    places = np.arange(0, len(samples), rate / RATE)
    return np.interp(places, np.arange(len(samples)), samples)


def _formants(sentence: int, pitch_hz: int) -> np.ndarray:
    """Syllables of 180 ms, each one vowel with its rise and fall."""
    random = np.random.default_rng(1000 + sentence)
    length = int(0.18 * RATE)
    parts = []
    for _ in range(8):
        time_s = np.arange(length) / RATE
        phase = np.cumsum(pitch_hz * (1 + 0.08 * np.sin(2 * np.pi * 4 * time_s)) / RATE)
        voiced = np.diff(np.floor(phase), prepend=0.0) + 0.02 * random.standard_normal(length)
        for formant in VOWELS[random.integers(len(VOWELS))]:
            voiced = _resonance(voiced, formant, 60 + formant * 0.04)
        parts.append(voiced / np.abs(voiced).max() * np.hanning(length) ** 0.5)
    return np.concatenate(parts)


def _resonance(signal: np.ndarray, centre_hz: float, width_hz: float) -> np.ndarray:
    radius = np.exp(-np.pi * width_hz / RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * centre_hz / RATE), -(radius**2)
    out = np.zeros(len(signal) + 2)
    for index, value in enumerate(signal):
        out[index + 2] = value + first * out[index + 1] + second * out[index]
    return out[2:]
