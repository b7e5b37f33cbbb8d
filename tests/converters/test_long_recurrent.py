"""LSTMs of more steps than are unrolled: LiteRT's own operator where it computes the same, a reason where it does not."""

import statistics
import time
from collections import Counter

import numpy as np
import pytest
import recurrent_models as models
import torch
from litert_models import converted, operators, outputs, prepared

from converters.backends import Unsupported, get
from converters.backends.artifact import Artifact
from converters.backends.buckets import gathered
from converters.backends.litert import lstm, program, running
from converters.graph.canonical import parity
from converters.graph.importer import UnsupportedOperatorsError
from converters.recipes.recipes import plans
from converters.source import tflite
from edgekit import detect, engines, profile
from edgekit.manifest import EngineSpec
from edgekit.quiet import quietly

STEPS = 300
FUSED = "UNIDIRECTIONAL_SEQUENCE_LSTM"
BEYOND = {
    "a state that goes on": ({"state": True}, "its last cell state is read"),
    "a clip": ({"clip": 3.0}, "LSTM with 5 steps"),
    "other activations": ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "LSTM with 5 steps"),
}


def ready(model, folder, steps=STEPS):
    return prepared(model, folder, models.feeds(model, steps=steps))


def gap(made, artifact):
    """How far the artifact is from the source, each sample given twice."""
    source, feeds = made.source, [feed for feed in made.calibration() for _ in range(2)]
    found = [outputs(artifact, made, feed) for feed in feeds]
    return parity([source.reference.run(feed) for feed in feeds], found)


@pytest.fixture
def few(monkeypatch):
    """Four steps are too many."""
    monkeypatch.setattr(lstm, "MAX_STEPS", 4)
    monkeypatch.setattr("converters.graph.importer.recurrent.MAX_STEPS", 4)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    model = models.net("LSTM", steps=STEPS, direction="bidirectional", lengths=True)
    return ready(model, tmp_path_factory.mktemp("both"))


def test_a_long_lstm_is_litert_s_own_operator_and_every_call_starts_from_zeros(both_ways, tmp_path):
    artifact = converted(both_ways, tmp_path)
    assert operators(artifact)[FUSED] == 2
    assert artifact.options == {"variables": "reset"}
    assert any("set to zero before each" in note for note in artifact.notes)
    assert gap(both_ways, artifact) < 1e-5


def test_its_matrices_are_int8_with_ranges_at_run_time(both_ways, tmp_path):
    plain, small = converted(both_ways, tmp_path), converted(both_ways, tmp_path, "litert/dynamic-int8")
    assert small.size_bytes < 0.6 * plain.size_bytes
    assert small.options == {"variables": "reset"}
    held = tflite.read(small.folder / small.model)
    # Eight of each layer, and the head's.
    assert sum(tensor.kind == "INT8" and tensor.is_constant for tensor in held.tensors) == 17
    assert 0 < gap(both_ways, small) < 0.05


def test_static_int8_of_what_stands_around_has_them_too_and_says_how(both_ways, tmp_path):
    plain, small = converted(both_ways, tmp_path), converted(both_ways, tmp_path, "litert/static-int8")
    assert small.size_bytes < 0.7 * plain.size_bytes
    assert f"int8 weights, with ranges taken at run time: {FUSED} (2)" in small.notes
    assert 0 < gap(both_ways, small) < 0.05
    (plan,) = plans(profile.load("x86-64-v4-vnni"), ["litert/static-int8"])
    errors = {error.op_type for error in get("litert").sensitivity(both_ways, plan, small)}
    assert {FUSED, "FULLY_CONNECTED"} <= errors


def test_sequences_of_every_length_end_where_they_end(few, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "BATCH", 3)
    model = models.net("LSTM", direction="bidirectional", lengths=True, hidden=4)
    feeds = models.feeds(model, 7)
    for length, feed in enumerate(feeds):
        feed["lengths"] = ((length + np.arange(3)) % 7).astype(np.int32)
    made = prepared(model, tmp_path, feeds)
    artifact = converted(made, tmp_path)
    assert operators(artifact)[FUSED] == 2
    assert gap(made, artifact) < 1e-5


class Net(torch.nn.Module):
    def __init__(self, layer, given):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.given = layer, given

    def forward(self, x):
        every, states = self.layer(x)
        return every, states[self.given]


@pytest.mark.parametrize(
    ("settings", "given", "count"),
    [
        ({"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}, 0, 4),
        # Its last cell state is an output.
        ({"batch_first": True}, 1, 0),
    ],
    ids=["fused", "unrolled"],
)
def test_torch_s_own_lstm_goes_the_same_way(settings, given, count, monkeypatch, tmp_path):
    monkeypatch.setattr(lstm, "MAX_STEPS", 4 if count else 6)
    net, x = Net(torch.nn.LSTM(8, 4, **settings), given).eval(), torch.randn(2, 6, 8)
    target = tmp_path / "net.tflite"
    fused = quietly(lambda: program.written(net, (x,), target, may_fuse=True))
    assert fused == Counter(step.name for step in tflite.read(target).steps)[FUSED] == count
    interpreter = quietly(lambda: running.preserving(target))
    with torch.no_grad():
        wanted = net(x)
    for _ in range(2):
        running.run_once(interpreter, {"args_0": x.numpy()})
        found = {
            entry["name"]: interpreter.get_tensor(entry["index"])
            for entry in interpreter.get_output_details()
        }
        for place, tensor in enumerate(wanted):
            np.testing.assert_allclose(
                found[f"serving_default_output_{place}_output"], tensor.numpy(), atol=1e-6
            )


@pytest.mark.parametrize(("settings", "why"), BEYOND.values(), ids=BEYOND)
def test_what_is_no_such_layer_is_not_taken_for_one(settings, why, few, tmp_path):
    made = ready(models.net("LSTM", hidden=4, steps=5, **settings), tmp_path, 5)
    with pytest.raises(Unsupported, match=why):
        converted(made, tmp_path)


def test_an_lstm_that_begins_from_a_state_is_not_taken_for_one(few, tmp_path):
    model = models.net("LSTM", hidden=4, state=True)
    kept = [entry for entry in model.graph.output if entry.name != "cN"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    with pytest.raises(Unsupported, match="it begins from a state that is given"):
        converted(prepared(model, tmp_path, models.feeds(model)), tmp_path)


def test_an_accelerator_gets_none(few, tmp_path):
    made = prepared(models.net("LSTM", hidden=4), tmp_path, models.feeds(models.net("LSTM", hidden=4)))
    with pytest.raises(Unsupported, match="an accelerator has none"):
        converted(made, tmp_path, "litert/static-int8", target="arm-ethos-u55-128")


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.RNN])
def test_torch_s_other_layers_are_unrolled_no_further_than_said(kind, monkeypatch):
    monkeypatch.setattr(lstm, "MAX_STEPS", 4)
    with pytest.raises(UnsupportedOperatorsError, match=r"with 6 steps \(at most 4 are unrolled\)"):
        quietly(
            lambda: program.rewritten(Net(kind(8, 4, batch_first=True), 0).eval(), (torch.zeros(1, 6, 8),))
        )


def test_buckets_of_which_one_needs_it_are_all_loaded_so(tmp_path):
    def make(index, folder):
        (folder / "model.tflite").write_bytes(bytes([index]))
        options = {"variables": "reset"} if index == 0 else {}
        return Artifact(folder, "model.tflite", {"x": "x"}, options=options)

    made = gathered((8, 16), make, tmp_path, lambda *_: None)
    assert made.models == ("model-8.tflite", "model-16.tflite")
    assert made.options == {"variables": "reset"}


@pytest.mark.proof
@pytest.mark.skipif(
    "avx512_vnni" not in detect.isa(), reason="XNNPACK has these kernels for AVX-512 VNNI alone"
)
def test_an_int8_head_does_not_slow_the_layer_in_the_next_call(tmp_path):
    """XNNPACK's int8 kernels leave vector registers as LiteRT's recurrent kernels do not like them: 3 times the time."""
    made = ready(models.net("LSTM", steps=STEPS, hidden=128), tmp_path)
    artifact = converted(made, tmp_path, "litert/dynamic-int8")
    bare = quietly(lambda: running.preserving(artifact.folder / artifact.model))
    (feed, *_) = made.calibration()
    spec = EngineSpec("litert", "", artifact.model, threads=1, options=artifact.options)
    bound = artifact.bound(made.source.inputs), artifact.bound(made.source.outputs, are_outputs=True)
    path = artifact.folder / artifact.model
    model = quietly(lambda: engines.get("litert").load(path, spec, *bound, None))

    def median_s(run):
        times = []
        for _ in range(40):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    ours = median_s(lambda: model.run(feed))
    assert ours < 0.7 * median_s(lambda: running.run_once(bare, {"args_0": feed["x"]}))
