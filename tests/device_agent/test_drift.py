"""What a device says of drift, window by window: unknown first, low where nothing moved, high in time where something did."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from converters.bundle.reference import histogram
from device_agent import drift
from device_agent.drift import LEAST_WINDOWS, LONGEST_BLOCK, MOST_BLOCKS, Span, Tracks
from device_agent.serve.counters import Counters
from edgekit.manifest import EngineSpec, Histogram, Manifest, Reference, SelfTest, TensorSpec
from edgekit.wire.messages import DeploymentWindow

DIGEST, OTHER = "a" * 64, "b" * 64
EDGES = [float(edge) for edge in range(11)]
KNOWN = Histogram(EDGES, [1000] * 10)
REFERENCE = Reference(inputs={"x": KNOWN}, outputs={"y": KNOWN})
SAME, MOVED = [0.1] * 10, [0.05] * 5 + [0.15] * 5


class Device:
    def __init__(self, seed=1):
        self.rng = np.random.default_rng(seed)
        self.tracks = Tracks()

    def window(self, shares=SAME, *, of=60, digest=DIGEST, references=None, **more):
        counts = self.rng.multinomial(of, shares).tolist()
        made = DeploymentWindow("d", digest, requests=of, inputs={"x": Histogram(EDGES, counts)}, **more)
        (judged,) = self.tracks.judged([made], {DIGEST: REFERENCE} if references is None else references)
        return judged

    def windows(self, count, shares=SAME, **more):
        return [self.window(shares, **more) for _ in range(count)]


def index(window):
    found = window.metrics.get("drift_psi")
    return None if found is None else found.mean


def test_it_is_unknown_at_first_then_low_and_high_in_time_after_a_shift():
    device = Device()
    before = device.windows(LEAST_WINDOWS - 1)
    assert all(index(one) is None and not one.drift for one in before)
    after = device.windows(2 * LEAST_WINDOWS)
    assert index(after[-1]) < 0.05
    assert after[-1].drift["inputs/x"] < 0.05
    moved = device.windows(2 * LEAST_WINDOWS, MOVED)
    assert moved[-1].drift["inputs/x"] == pytest.approx(0.27, abs=0.08), "now"


def test_what_passes_within_a_day_moves_what_is_now_and_not_what_lasts():
    """A device whose mornings and evenings differ, and whose days are as the reference."""
    device = Device()
    level = 0.0
    for hour in range(30):
        swing = 0.09 * math.sin(2 * math.pi * hour / 24)
        windows = device.windows(60, [0.1 - swing] * 5 + [0.1 + swing] * 5)
        level = max(level, windows[-1].drift.get("inputs/x", 0.0))
    assert level > 0.5
    assert (index(windows[-1]) or 0.0) < 0.1


def test_what_lasts_for_a_day_is_drift():
    device = Device()
    device.windows(300)
    found = [index(window) for window in device.windows(2200, MOVED)]
    assert found[-1] == pytest.approx(0.27, abs=0.05)


def test_idle_windows_say_nothing_and_traffic_that_is_too_thin_is_not_repeated_for_ever():
    device = Device()
    device.windows(LEAST_WINDOWS)
    idle = device.window(of=0)
    assert (idle.drift, idle.metrics) == ({}, {})
    assert device.window().drift
    # One value a window: it takes hundreds of them to say anything anew.
    thin = device.windows(5 * LEAST_WINDOWS, of=1)
    assert thin[0].drift
    assert not thin[-1].drift


def test_another_bundle_begins_anew_and_one_that_is_not_loaded_says_nothing():
    device = Device()
    assert device.windows(LEAST_WINDOWS)[-1].drift
    assert not device.window(digest=OTHER, references={OTHER: REFERENCE}).drift
    assert not device.window().drift, "and the first one again"
    assert not device.window(references={}).drift


def test_bins_of_another_number_are_left_out():
    device = Device()
    short = Reference(inputs={"x": Histogram([0.0, 1.0, 2.0], [5, 5])})
    assert not device.windows(2 * LEAST_WINDOWS, references={DIGEST: short})[-1].drift


def test_a_span_loses_no_window_until_it_is_full_and_stays_bounded():
    span = Span()
    for number in range(1, 3 * MOST_BLOCKS * LONGEST_BLOCK):
        span = span.grown((1, 0))
        assert len(span.blocks) <= MOST_BLOCKS
        assert sum(block[0] for block in span.blocks) == span.windows
        if number <= MOST_BLOCKS * LONGEST_BLOCK:
            assert span.windows == number
    assert span.windows >= (MOST_BLOCKS - 1) * LONGEST_BLOCK


def test_prometheus_gets_what_is_known_only():
    device = Device()
    device.windows(LEAST_WINDOWS - 1)
    assert "edgekit_drift_psi{" not in drift.prometheus(device.tracks.levels)
    device.window()
    assert 'edgekit_drift_psi{deployment="d",of="inputs/x"} ' in drift.prometheus(device.tracks.levels)
    odd = {"d": {'in"puts\\x\n': drift.Level(now=0.5)}}
    assert 'of="in\\"puts\\\\x\\n"} 0.5' in drift.prometheus(odd)


@pytest.mark.parametrize(("damage", "is_red"), [(None, False), ("day", True)])
def test_without_the_day_a_morning_would_be_drift(monkeypatch, damage, is_red):
    if damage:
        monkeypatch.setattr(drift.Level, "lasting", property(lambda self: self.now))
    device = Device()
    found = []
    for hour in range(36):
        swing = 0.09 * math.sin(2 * math.pi * hour / 24)
        found += [index(one) or 0.0 for one in device.windows(60, [0.1 - swing] * 5 + [0.1 + swing] * 5)]
    assert (max(found[24 * 60 :]) > 0.2) is is_red


@pytest.fixture(scope="module")
def digits():
    return (load_digits().images / 16).astype(np.float32)[:, None, None]


def test_real_digits_are_as_they_were_and_dark_on_light_ones_have_moved(digits):
    """From what a worker counts of real images to what the device says, by a reference as the build makes it."""
    picked = digits[:256]
    known = Reference(inputs={"x": histogram(list(picked), np.arange(len(picked)))})
    spec = EngineSpec("onnxruntime", ">=1", "model/model.onnx")
    test = SelfTest("selftest/a", "selftest/b", "selftest/c", 1, {"y": 1.0}, 1.0)
    counters = Counters("d", DIGEST, Manifest(
        format=1, name="m", version="1", profile="p", engine=spec, inputs=(TensorSpec("x", "float32", (1, 1, 8, 8)),),
        outputs=(), recipe="r", source_sha256="0" * 64, files=(), selftest=test, reference=known,
    ))  # fmt: skip
    rng, tracks = np.random.default_rng(1), Tracks()

    def windows(images, count=2 * LEAST_WINDOWS, requests=20):
        for _ in range(count):
            for index in rng.integers(0, len(images), requests):
                counters.accepted()
                counters.answered(1.0, {"x": images[index]}, {})
            (judged,) = tracks.judged([counters.snapshot()], {DIGEST: known})
        return judged

    well = windows(digits[256:])
    assert well.drift["inputs/x"] < 0.05
    assert index(well) < 0.05
    assert windows(1 - digits[256:]).drift["inputs/x"] > 0.2
