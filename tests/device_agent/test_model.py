"""A served model with an engine that does what it is told: time limits, blame, NaN, states, counting."""

import asyncio
import threading
import time

import msgspec
import numpy as np
import pytest

from device_agent.serve.binned import FOLD_AT, SAMPLED
from device_agent.serve.counters import Counters
from device_agent.serve.door import BusyError, Door
from device_agent.serve.judged import Judged
from device_agent.serve.model import EngineHungError, NotFiniteError, ServedModel
from device_agent.serve.sequences import IDLE_S, Sequence, Sequences
from edgekit import confidence
from edgekit.errors import EngineError, InputError
from edgekit.manifest import EngineSpec, Histogram, Manifest, Reference, SelfTest, StatePair, TensorSpec
from edgekit.tensors import check_inputs

ONE = (1, 1)
ALONE = Sequence()


def manifest(*, stateful=False, outputs=(1, 1)):
    states = (StatePair("h", "hN"),) if stateful else ()
    spec = lambda name, shape=ONE: TensorSpec(name, "float32", shape)  # noqa: E731
    return Manifest(
        format=1, name="m", version="1", profile="p", engine=EngineSpec("onnxruntime", ">=1", "model/model.onnx"),
        inputs=(spec("x"), *([spec("h")] if stateful else [])),
        outputs=(spec("y", outputs), *([spec("hN")] if stateful else [])),
        recipe="r", source_sha256="0" * 64, files=(),
        selftest=SelfTest("selftest/a", "selftest/b", "selftest/c", 1, {"y": 1.0}, 1.0), state=states,
        reference=Reference(outputs={"y": Histogram([-10.0, 0.0, 10.0], [1, 1])}),
    )  # fmt: skip


class Engine:
    """Stands where a loaded bundle does; `act` is what a call does."""

    def __init__(self, model, act):
        self.manifest, self.act = model, act

    def checked(self, inputs):
        return check_inputs(self.manifest.admitted, inputs)

    def run(self, inputs):
        return self.act(inputs)


class Served:
    def __init__(self, act, *, stateful=False, judged=None, outputs=ONE):
        described = manifest(stateful=stateful, outputs=outputs)
        self.counters = Counters("d", "0" * 64, described)
        self.model = ServedModel(described, Engine(described, act), self.counters, judged)
        self.door = Door(1 << 20)

    async def ask(self, value=1.0, sequence=ALONE, client="a", read=None, **how):
        ticket = self.door.enter(client, 4, 0.0, lambda _reason: None)
        self.door.arrived(ticket)
        try:
            return await self.model.do(
                ticket,
                read or (lambda: {"x": np.full(ONE, value, np.float32)}),
                lambda inputs: self.model.run(inputs, sequence),
                **how,
            )
        finally:
            self.door.leave(ticket)

    def counts(self):
        window = self.counters.snapshot()
        return window.requests, window.errors, window.rejected_inputs


def same(inputs):
    return {"y": inputs["x"]}


def test_callers_that_wait_longer_than_the_engines_limit_are_served():
    """Sixty-four callers on a slow engine: waiting is no sign of a hang."""

    def slow(inputs):
        time.sleep(0.03)
        return same(inputs)

    async def story():
        served = Served(slow)
        served.model.engine_timeout_s = 0.25
        await asyncio.gather(*(served.ask() for _ in range(32)))
        return served.counts()

    assert asyncio.run(story()) == (32, 0, 0)


def test_an_engine_that_hangs_is_one_error_and_the_others_are_told_to_come_back():
    release = threading.Event()

    def hang(inputs):
        release.wait(10)
        return same(inputs)

    async def story():
        served = Served(hang)
        served.model.engine_timeout_s = 0.1
        results = await asyncio.gather(served.ask(), served.ask(), return_exceptions=True)
        counts = served.counts()
        release.set()
        await asyncio.sleep(0.05)  # what comes too late meets a future that is done
        return results, counts

    results, counts = asyncio.run(story())
    assert [type(result) for result in results] == [EngineHungError, BusyError]
    assert counts == (1, 1, 0)


@pytest.mark.parametrize("is_costly", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("a"), UnicodeDecodeError("utf-8", b"", 0, 1, "b"), MemoryError(), RecursionError(), KeyError(1)]
)  # fmt: skip
def test_whatever_goes_wrong_while_a_request_is_read_is_the_callers_mistake(error, is_costly):
    def fail():
        raise error

    served = Served(same)
    with pytest.raises(InputError):
        asyncio.run(served.ask(read=fail, is_costly=is_costly))
    assert served.counts() == (0, 0, 1)


@pytest.mark.parametrize("error", [ValueError("a"), EngineError("b"), MemoryError()])
def test_whatever_an_engine_raises_is_one_error(error):
    def fail(_inputs):
        raise error

    served = Served(fail)
    with pytest.raises(EngineError):
        asyncio.run(served.ask())
    assert served.counts() == (1, 1, 0)


def test_a_fault_after_the_call_is_an_error_not_the_callers():
    async def story(served):
        ticket = served.door.enter("a", 4, 0.0, lambda _reason: None)
        await served.model.do(ticket, lambda: 1, lambda _value: 1 / 0)

    served = Served(same)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(story(served))
    assert served.counts() == (0, 1, 0)


JUDGED = Judged(frozenset({"y"}), {"x": (-1.0, 2.0)})


def nan(inputs):
    return {"y": np.full(ONE, np.nan, np.float32), **({"hN": inputs["h"] + 1} if "h" in inputs else {})}


def test_an_answer_with_nan_is_an_error_and_leaves_no_state():
    served = Served(nan, stateful=True, judged=JUDGED)
    with pytest.raises(NotFiniteError):
        asyncio.run(served.ask(sequence=Sequence("a", is_start=True)))
    assert served.counts() == (1, 1, 0)
    assert served.model._sequences.held_bytes == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_nan_from_an_input_unlike_all_that_was_judged_condemns_nobody(value):
    served = Served(nan, judged=JUDGED)
    with pytest.raises(InputError, match="far beyond"):
        asyncio.run(served.ask(value))
    assert served.counts()[1:] == (0, 1)


def test_an_engine_that_fails_on_an_input_unlike_all_that_was_judged_condemns_nobody():
    def fail(_inputs):
        raise EngineError("index out of range")

    served = Served(fail, judged=JUDGED)
    with pytest.raises(InputError, match="index out of range"):
        asyncio.run(served.ask(1e9))
    with pytest.raises(EngineError):
        asyncio.run(served.ask(3.0))
    assert served.counts()[1:] == (1, 1)


@pytest.mark.parametrize(("value", "is_unlike"), [(-1, True), (0, False), (99, False), (100, True)])
def test_an_integer_is_unlike_the_golden_ones_outside_their_range(value, is_unlike):
    judged = Judged(ranges={"ids": (0, 99)})
    assert (judged.unlike({"ids": np.array([value])}) is not None) == is_unlike


def test_nan_where_the_golden_outputs_have_it_is_an_answer():
    served = Served(nan, judged=Judged())
    assert np.isnan(asyncio.run(served.ask()).outputs["y"]).all()
    assert served.counts() == (1, 0, 0)


# -- states ----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def sequences(**how):
    clock = Clock()
    return Sequences(manifest(stateful=True), clock=clock, **how), clock


STATE = {"hN": np.full(ONE, 7, np.float32)}


def test_a_sequence_that_was_never_begun_or_is_gone_says_so():
    held, clock = sequences()
    assert held.begin(Sequence())[1] is False
    assert held.begin(Sequence("a", is_start=True))[1] is False
    assert held.begin(Sequence("a"))[1] is True
    held.keep(Sequence("a"), STATE)
    states, was_reset = held.begin(Sequence("a"))
    assert (states["h"].item(), was_reset) == (7, False)
    clock.now += IDLE_S + 1
    assert held.begin(Sequence("a"))[1] is True


def test_the_bytes_of_all_sequences_are_bounded_and_the_longest_idle_goes_first():
    held, _clock = sequences(max_bytes=8)
    for key in "abc":
        held.keep(Sequence(key), STATE)
    assert held.held_bytes == 8
    assert [held.begin(Sequence(key))[1] for key in "abc"] == [True, False, False]


def test_one_sequence_is_kept_however_large_it_is():
    held, _clock = sequences(max_bytes=1)
    held.keep(Sequence("a"), STATE)
    assert held.begin(Sequence("a"))[1] is False


def test_a_reset_is_told_and_counted():
    served = Served(lambda inputs: {"y": inputs["x"], "hN": inputs["h"]}, stateful=True)
    assert asyncio.run(served.ask(sequence=Sequence("a"))).was_reset
    assert served.counters.snapshot().sequence_resets == 1


# -- counting --------------------------------------------------------------------------------------------------------


def test_a_large_map_is_sampled_and_a_small_output_counted_whole():
    counters = Counters("d", "0" * 64, manifest())
    counters.answered(1.0, {}, {"y": np.full((1, 10), 3.0, np.float32)})
    assert counters.snapshot().outputs["y"].counts == [0, 10]
    counters.answered(1.0, {}, {"y": np.full((1, 512, 512, 21), -3.0, np.float32)})
    assert counters.snapshot().outputs["y"].counts == [SAMPLED, 0]


def test_what_is_put_aside_between_two_folds_is_bounded():
    counters = Counters("d", "0" * 64, manifest())
    due = [
        counters.answered(1.0, {}, {"y": np.zeros((1, 4096), np.float32)}) for _ in range(FOLD_AT // SAMPLED)
    ]
    assert due == [False] * (len(due) - 1) + [True]
    counters.fold()
    assert counters._binned._aside_size == 0


def test_a_sample_is_like_the_whole():
    counters = Counters("d", "0" * 64, manifest())
    values = np.where(np.arange(100_000) % 4 == 0, -1.0, 1.0).astype(np.float32)
    for _ in range(200):
        counters.answered(1.0, {}, {"y": values})
    below, above = counters.snapshot().outputs["y"].counts
    assert 0.23 < below / (below + above) < 0.27


def test_not_a_number_is_in_no_bin():
    counters = Counters("d", "0" * 64, manifest())
    counters.answered(1.0, {}, {"y": np.array([np.nan, 1.0, np.inf], np.float32)})
    window = counters.snapshot()
    assert window.outputs["y"].counts == [0, 1]
    assert msgspec.json.encode(window)


# -- what is held against the reference ------------------------------------------------------------------------------


def watched():
    """An input of two channels with bins of their own, an output of classes."""
    two = Histogram([0.0, 1.0, 2.0], [5, 5])
    reference = Reference(
        inputs={"x/0": two, "x/1": Histogram([0.0, 100.0, 200.0], [5, 5])},
        outputs={"y": Histogram([-5.0, 0.0, 5.0], [5, 5])},
        channels={"x": 1},
        confidence={"y": Histogram([0.25, 0.5, 1.0], [5, 5])},
    )
    return Counters("d", "0" * 64, msgspec.structs.replace(manifest(), reference=reference))


def pixels(first, second):
    return {"x": np.stack([np.full((4, 4), first), np.full((4, 4), second)])[None].astype(np.float32)}


def test_channels_are_counted_over_bins_of_their_own():
    counters = watched()
    counters.answered(1.0, pixels(0.5, 150.0), {})
    inputs = counters.snapshot().inputs
    assert inputs["x/0"].counts == [16, 0]
    assert inputs["x/1"].counts == [0, 16]


@pytest.mark.parametrize(
    ("logits", "counts"), [([0.0, 0.0, 0.0, 0.0], [1, 0]), ([9.0, 0.0, 0.0, 0.0], [0, 1]), ([np.nan, 0, 0, 0], [0, 0])]
)  # fmt: skip
def test_confidence_is_the_probability_of_the_likeliest_class(logits, counts):
    counters = watched()
    counters.answered(1.0, {}, {"y": np.array([logits], np.float32)})
    assert counters.snapshot().confidence["y"].counts == counts


def test_probabilities_are_taken_as_they_are():
    assert confidence.top(np.array([0.7, 0.3]), is_probability=True).tolist() == [0.7]
    assert confidence.is_probability(Histogram([0.0, 0.5, 1.0], [1, 1]))
    assert not confidence.is_probability(Histogram([-1.0, 0.5, 1.0], [1, 1]))


def test_a_large_map_of_classes_is_looked_at_in_places():
    found = confidence.top(np.zeros((1, 21, 512, 512), np.float32), is_probability=False)
    assert 64 <= found.size <= 65
    assert found[0] == pytest.approx(1 / 21)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [(0.5, {}), (1.9, {}), (3.9, {}), (40.0, {"out-of-range": 1}), (-40.0, {"out-of-range": 1}),
     (np.nan, {"not-finite": 1}), (np.inf, {"not-finite": 1})],
)  # fmt: skip
def test_answered_inputs_unlike_all_of_the_reference_are_counted(value, kinds):
    counters = watched()
    counters.answered(1.0, pixels(value, 150.0), {})
    assert counters.snapshot().anomalies == kinds
    assert counters.snapshot().anomalies == {}


def test_refused_inputs_are_counted_by_what_was_wrong():
    async def story():
        served = Served(same)
        for given in (
            lambda: {"x": np.zeros((2, 2), np.float32)},
            lambda: {"x": np.zeros(ONE, np.int8)},
            dict,
            lambda: {"x": np.zeros(ONE, np.float32), "z": np.zeros(ONE, np.float32)},
            lambda: msgspec.json.decode(b"{"),
        ):
            with pytest.raises(InputError):
                await served.ask(read=given)
        return served.counters.snapshot()

    window = asyncio.run(story())
    assert window.rejected_inputs == 5
    assert window.anomalies == {
        "wrong-shape": 1, "wrong-dtype": 1, "missing-input": 1, "unknown-input": 1, "undecodable": 1,
    }  # fmt: skip
