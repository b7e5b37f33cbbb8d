"""What a device says of drift, window by window: unknown first, low where nothing moved, high in time where something did."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits

from converters.bundle.reference import histogram
from device_agent import drift
from device_agent.drift import LEAST_BLOCKS, MOST_BLOCKS, Block, Span, Tracks
from device_agent.serve.counters import Counters
from edgekit.manifest import EngineSpec, Histogram, Manifest, Reference, SelfTest, TensorSpec
from edgekit.wire.messages import DeploymentWindow

DIGEST, OTHER = "a" * 64, "b" * 64
EDGES = [float(edge) for edge in range(11)]
KNOWN = Histogram(EDGES, [1000] * 10)
REFERENCE = Reference(inputs={"x": KNOWN}, outputs={"y": KNOWN})
SAME, MOVED = [0.1] * 10, [0.05] * 5 + [0.15] * 5


class Device:
    def __init__(self, seed=1, length_s=60.0):
        self.length_s = length_s
        self.rng = np.random.default_rng(seed)
        self.tracks = Tracks()

    def window(self, shares=SAME, *, of=60, digest=DIGEST, references=None, **more):
        counts = self.rng.multinomial(of, shares).tolist()
        made = DeploymentWindow("d", digest, requests=of, inputs={"x": Histogram(EDGES, counts)}, **more)
        references = {DIGEST: REFERENCE} if references is None else references
        (judged,) = self.tracks.judged([made], references, self.length_s)
        return judged

    def windows(self, count, shares=SAME, **more):
        return [self.window(shares, **more) for _ in range(count)]


def index(window):
    found = window.metrics.get("drift_psi")
    return None if found is None else found.mean


def test_it_is_unknown_at_first_then_low_and_high_in_time_after_a_shift():
    device = Device()
    before = device.windows(LEAST_BLOCKS - 1)
    assert not any(one.drift for one in before)
    after = device.windows(2 * LEAST_BLOCKS)
    assert after[-1].drift["inputs/x"] < 0.05
    moved = device.windows(MOST_BLOCKS, MOVED)
    assert moved[-1].drift["inputs/x"] == pytest.approx(0.27, abs=0.08), "now"


def delay(begins, seed=1):
    """In how many windows a shift that begins after so many is seen."""
    device = Device(seed)
    device.windows(begins)
    return next(n for n in range(1, 400) if device.window(MOVED).drift.get("inputs/x", 0.0) > 0.15)


def test_a_shift_is_seen_as_soon_whenever_it_begins():
    assert max(delay(begins, begins) for begins in (40, 45, 61, 77, 150, 333)) <= MOST_BLOCKS + 3


def test_were_whole_spans_judged_it_would_be_seen_late(monkeypatch):
    """What judges is itself judged: spans that begin where the last one ended, as they once did."""
    looked = drift._looked

    def whole(before, reference, span, level):
        return looked(before, reference, span, level) if (span.seen >> level) % MOST_BLOCKS == 0 else before

    monkeypatch.setattr(drift, "_looked", whole)
    assert max(delay(begins, begins) for begins in (40, 45, 77)) > MOST_BLOCKS + 10


def scenes(device, windows):
    """A camera that looks at one scene for ten windows on average: nearly all of a window's values are in two bins."""
    for _ in range(windows):
        if not hasattr(device, "scene") or device.rng.random() < 0.1:
            device.scene = device.rng.integers(0, 9)
        shares = np.full(10, 0.02)
        shares[[device.scene, device.scene + 1]] += 0.4
        yield device.window(shares.tolist(), of=600).drift.get("inputs/x", 0.0)


@pytest.mark.parametrize(("damage", "is_red"), [(None, False), ("usual", True)])
def test_one_scene_for_a_while_is_not_taken_for_many_windows_however_often_is_looked(
    monkeypatch, damage, is_red
):
    if damage:
        monkeypatch.setattr(drift, "USUAL", 0)
        monkeypatch.setattr(drift, "_looked", without_the_usual)
    alarms = [np.mean([index > 0.2 for index in scenes(Device(seed), 500)]) for seed in range(3)]
    assert bool(np.mean(alarms) > 0.04) is is_red


def without_the_usual(before, reference, span, level):
    found = drift.newest(reference, span.blocks(level), ())
    return drift._Look(span.seen >> level, drift._known(found))


def test_nothing_is_said_over_the_day_before_there_was_one_however_far_it_is():
    device = Device(length_s=300.0)
    first = device.windows(287, MOVED)
    assert first[-1].drift["inputs/x"] > 0.2
    assert not any(one.metrics for one in first), "it may be a morning"
    assert device.windows(16, MOVED)[-1].metrics["drift_psi"].mean > 0.2


@pytest.mark.parametrize(("damage", "is_red"), [(None, False), ("day", True)])
def test_sunrise_is_not_drift_on_the_first_morning(monkeypatch, damage, is_red):
    if damage:
        monkeypatch.setattr(drift, "DAY_S", 3600.0)
    assert any((index(one) or 0.0) > 0.2 for one in day(6)) is is_red


def day(hours):
    """Of a device whose mornings and evenings differ, and whose days are as the reference; at a window in five minutes."""
    device = Device(length_s=300.0)
    for hour in range(hours):
        swing = 0.09 * math.sin(2 * math.pi * hour / 24)
        yield from device.windows(12, [0.1 - swing] * 5 + [0.1 + swing] * 5, of=300)


def test_what_passes_within_a_day_moves_what_is_now_and_not_what_lasts():
    windows = list(day(30))
    assert max(one.drift.get("inputs/x", 0.0) for one in windows) > 0.5
    assert index(windows[-1]) < 0.1, "and it is known"


def test_if_what_comes_every_day_were_noise_nothing_would_be_known(monkeypatch):
    measured = drift.drift.measured

    def plain(reference, blocks, order="serial", usual=()):
        return measured(reference, blocks, "none" if order == "day" else order, usual)

    monkeypatch.setattr(drift.drift, "measured", plain)
    assert index(list(day(30))[-1]) is None


def test_what_lasts_for_a_day_is_drift():
    device = Device(length_s=300.0)
    device.windows(60)
    found = [index(window) for window in device.windows(440, MOVED)]
    assert found[-1] == pytest.approx(0.27, abs=0.05)


def test_idle_windows_say_nothing_and_traffic_that_is_too_thin_is_not_repeated_for_ever():
    device = Device()
    device.windows(LEAST_BLOCKS)
    idle = device.window(of=0)
    assert (idle.drift, idle.metrics) == ({}, {})
    assert device.window().drift
    # One value a window: it takes hundreds of them to say anything anew.
    thin = device.windows(5 * LEAST_BLOCKS, of=1)
    assert thin[0].drift
    assert not thin[-1].drift


def test_another_bundle_begins_anew_and_one_that_is_not_loaded_says_nothing():
    device = Device()
    assert device.windows(LEAST_BLOCKS)[-1].drift
    assert not device.window(digest=OTHER, references={OTHER: REFERENCE}).drift
    assert not device.window().drift, "and the first one again"
    assert not device.window(references={}).drift


def test_bins_of_another_number_are_left_out():
    device = Device()
    short = Reference(inputs={"x": Histogram([0.0, 1.0, 2.0], [5, 5])})
    assert not device.windows(2 * LEAST_BLOCKS, references={DIGEST: short})[-1].drift


def test_a_span_loses_no_window_until_it_is_full_and_stays_bounded():
    span, levels = Span(), 4
    for number in range(1, 600):
        span = span.grown(Block(float(number), (1, 0)), levels)
        assert sum(map(len, span.levels)) <= 2 * MOST_BLOCKS + levels * (MOST_BLOCKS // 2 + 1)
        assert sum(block.counts[0] for level in span.levels for block in level) == span.windows
        if number <= MOST_BLOCKS << (levels - 1):
            assert span.windows == number
    assert span.windows >= (MOST_BLOCKS - 1) << (levels - 1)


def test_blocks_of_each_length_end_with_the_newest_whole_one_and_are_never_too_few():
    span = Span()
    for number in range(1, 700):
        span = span.grown(Block(float(number), (number,)), 5)
        for level in range(5):
            blocks = span.blocks(level)
            last = number >> level << level
            assert len(blocks) == min(MOST_BLOCKS, number >> level)
            ends = [block.began_s + (1 << level) for block in blocks]
            assert ends == [last + 1 - (at << level) for at in reversed(range(len(blocks)))]
            assert all(
                sum(block.counts) == (2 * int(block.began_s) + (1 << level) - 1) * (1 << level) // 2
                for block in blocks
            )


@pytest.mark.parametrize("length_s", [0.01, 1.0, 2.0, 60.0, 300.0, 2700.0, 86_400.0])
def test_a_day_is_remembered_however_short_windows_are_down_to_two_seconds(length_s):
    levels = drift.levels_of(length_s)
    assert levels <= 12
    assert length_s < 2 or MOST_BLOCKS * length_s * 2 ** (levels - 1) >= drift.DAY_S


def test_prometheus_gets_what_is_known_only():
    device = Device()
    device.windows(LEAST_BLOCKS - 1)
    assert "edgekit_drift_psi{" not in drift.prometheus(device.tracks.levels)
    device.window()
    assert 'edgekit_drift_psi{deployment="d",of="inputs/x"} ' in drift.prometheus(device.tracks.levels)
    odd = {"d": {'in"puts\\x\n': drift.Level(now=0.5)}}
    assert 'of="in\\"puts\\\\x\\n"} 0.5' in drift.prometheus(odd)


@pytest.mark.parametrize(("damage", "is_red"), [(None, False), ("day", True)])
def test_without_the_day_a_morning_would_be_drift(monkeypatch, damage, is_red):
    if damage:
        monkeypatch.setattr(drift.Level, "lasting", property(lambda self: self.now))
    found = [index(one) or 0.0 for one in day(36)]
    assert (max(found[24 * 12 :]) > 0.2) is is_red


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

    def windows(images, count=2 * LEAST_BLOCKS, requests=20):
        for _ in range(count):
            for index in rng.integers(0, len(images), requests):
                counters.accepted()
                counters.answered(1.0, {"x": images[index]}, {})
            (judged,) = tracks.judged([counters.snapshot()], {DIGEST: known}, 60.0)
        return judged

    well = windows(digits[256:])
    assert well.drift["inputs/x"] < 0.05
    assert windows(1 - digits[256:]).drift["inputs/x"] > 0.2
