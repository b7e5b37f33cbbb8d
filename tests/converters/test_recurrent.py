"""Recurrent nets and loops in every engine: as the source in float, int8 where an engine has it, reasons where not."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import recurrent_models as models
import torch
from litert_models import prepared

from converters.backends import Unsupported, get
from converters.backends.litert import program
from converters.backends.openvino import quantizer
from converters.graph import canonical
from converters.graph.importer import load
from converters.recipes.recipes import Tuning, plans
from edgekit import engines, profile
from edgekit.engines.openvino import core
from edgekit.errors import ToolFailedError
from edgekit.manifest import EngineSpec

KINDS = {
    "RNN": lambda: models.net("RNN"),
    "GRU": lambda: models.net("GRU"),
    "GRU of torch, backwards, with its state": lambda: models.net(
        "GRU", direction="reverse", state=True, linear_before_reset=1
    ),
    "GRU both ways, with lengths": lambda: models.net(
        "GRU", direction="bidirectional", lengths=True, linear_before_reset=1
    ),
    "LSTM both ways, with lengths": lambda: models.net("LSTM", direction="bidirectional", lengths=True),
    "LSTM with its state": lambda: models.net("LSTM", state=True),
    "Loop": models.loop,
    "Loop that data ends": lambda: models.loop(20, ends_early=True),
    "Scan": models.scan,
}


def ready(model, folder):
    return prepared(model, folder, models.feeds(model))


def converted(made, folder, recipe, tuning=None):
    (plan,) = plans(profile.load("x86-64-v4-vnni"), [recipe])
    target = folder / f"{recipe.replace('/', '-')}-{tuning.label if tuning else ''}"
    target.mkdir()
    plan = replace(plan, tuning=tuning or Tuning())
    return plan, get(plan.recipe.engine).convert(made, plan, target)


def gap(made, plan, artifact):
    """How far the artifact is from the source, in parts of each output's largest value."""
    source, feeds = made.source, list(made.calibration())
    spec = EngineSpec(plan.recipe.engine, "", artifact.model, options=plan.judged_options | artifact.options)
    bound = artifact.bound(source.inputs), artifact.bound(source.outputs, are_outputs=True)
    model = engines.get(plan.recipe.engine).load(artifact.folder / artifact.model, spec, *bound, None)
    found = canonical.parity(
        [source.reference.run(feed) for feed in feeds], [model.run(feed) for feed in feeds]
    )
    model.close()
    return found


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_in_float_two_engines_give_what_the_source_gives(make, tmp_path):
    made = ready(make(), tmp_path)
    for recipe in ("onnxruntime/fp32", "openvino/f32"):
        assert gap(made, *converted(made, tmp_path, recipe)) < 1e-5


@pytest.mark.proof
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_litert_gives_it_too_in_float_and_near_it_in_int8(make, tmp_path):
    made = ready(make(), tmp_path)
    assert gap(made, *converted(made, tmp_path, "litert/fp32")) < 1e-5
    for recipe in ("litert/static-int8", "litert/dynamic-int8"):
        assert gap(made, *converted(made, tmp_path, recipe)) < 0.1


def test_a_step_of_an_unrolled_layer_holds_only_what_depends_on_its_state(tmp_path):
    """Cuts out of what is made ahead, the cell, and a selection for each state where there are lengths."""

    def operators(kind, steps):
        onnx.save(models.net(kind, lengths=True, steps=steps), tmp_path / "net.onnx")
        arguments = (torch.zeros(steps, 1, models.WIDTH), torch.zeros(1, dtype=torch.int32))
        return len(program.rewritten(load(tmp_path / "net.onnx").eval(), arguments).graph.nodes)

    found = {kind: operators(kind, 3) - operators(kind, 2) for kind in ("GRU", "LSTM")}
    assert found == {"GRU": 17, "LSTM": 20}


def test_what_lies_behind_a_sequences_end_changes_nothing(tmp_path):
    """A shorter sequence ends with the state of its last step, and the rest of the output is zeros."""
    model = models.net("LSTM", direction="bidirectional", lengths=True, hidden=4)
    made = ready(model, tmp_path)
    feed = models.feeds(model, 1)[0]
    other = {**feed, "lengths": np.array([3], np.int32)}
    changed = {**other, "x": np.concatenate([other["x"][:3], 9 * np.ones_like(other["x"][3:])])}
    plan, artifact = converted(made, tmp_path, "openvino/f32")
    source = made.source
    spec = EngineSpec(plan.recipe.engine, "", artifact.model, options=plan.judged_options | artifact.options)
    engine = engines.get("openvino").load(
        artifact.folder / artifact.model, spec, source.inputs, source.outputs, None
    )
    for runs in (source.reference, engine):
        left, right = runs.run(other), runs.run(changed)
        assert all(np.array_equal(left[name], right[name]) for name in left)
        assert not left["whole"][3:].any()


def test_an_lstm_gets_int8_weights_in_onnx_runtime_and_a_gru_says_what_is_lacking(tmp_path):
    (lstm, gru) = (tmp_path / "lstm", tmp_path / "gru")
    lstm.mkdir()
    gru.mkdir()
    made = ready(models.net("LSTM", direction="bidirectional", lengths=True), lstm)
    plan, artifact = converted(made, lstm, "onnxruntime/dynamic-int8")
    kinds = {node.op_type for node in onnx.load(str(artifact.folder / artifact.model)).graph.node}
    assert "DynamicQuantizeLSTM" in kinds
    assert gap(made, plan, artifact) < 0.05
    with pytest.raises(Unsupported, match="no int8 kernel of GRU"):
        converted(ready(models.net("GRU"), gru), gru, "onnxruntime/dynamic-int8")


@pytest.mark.parametrize("kind", ["GRU", pytest.param("LSTM", marks=pytest.mark.proof)])
def test_a_layer_runs_in_int8_in_openvino_and_can_be_told_apart_and_left_in_float(kind, tmp_path):
    """Beside float activations the plugin takes no int8 weights of one: both its analysis and its repair gave none."""
    made = ready(models.net(kind), tmp_path)
    plan, artifact = converted(made, tmp_path, "openvino/static-int8")
    assert any("1 of 1 recurrent layers" in note for note in artifact.notes)
    errors = get("openvino").sensitivity(made, plan, artifact)
    assert len(errors) >= 2
    left = Tuning("mixed", float_layers=tuple(error.name for error in errors))
    plan, mixed = converted(made, tmp_path, "openvino/static-int8", left)
    assert not any("1 of 1 recurrent layers" in note for note in mixed.notes)
    assert gap(made, plan, mixed) < 0.03, "what weights in eight bits cost"


def test_an_lstm_with_lengths_has_int8_weights_in_openvino_and_gives_what_they_mean(tmp_path):
    """Recurrence of one sign gets a zero point where it is quantized before the reader's order of gates: the plugin then
    computes something else.
    """
    held = models.layer_constants("LSTM", 2, 32, models.WIDTH)
    held["r"] = np.random.default_rng(2).uniform(-0.05, 0.4, held["r"].shape).astype(np.float32)
    made = ready(models.net("LSTM", direction="bidirectional", lengths=True, constants=held), tmp_path)
    plan, artifact = converted(made, tmp_path, "openvino/static-int8")
    assert gap(made, plan, artifact) < 0.6, "1.2 where it does; 0.4 is what six samples' ranges clip"
    graph = core().read_model(artifact.folder / artifact.model)
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    large = [node for node in constants if node.get_byte_size() > 3000]
    assert {node.get_element_type().to_string() for node in large} == {"i8"}


def test_what_openvino_breaks_on_stays_in_float_and_is_named(tmp_path, monkeypatch):
    made = ready(models.net("LSTM"), tmp_path)
    tried, named = [], []

    def breaks(model, sample, wanted):
        tried.append(model)
        head = next(node for node in model.get_ops() if node.get_type_name() == "MatMul")
        if head.input_value(1).get_node().get_type_name() != "Constant":
            named.append(head.get_friendly_name().removesuffix("/WithoutBiases"))
            raise RuntimeError("Check failed at [CPU] a node of the plugin")

    monkeypatch.setattr(quantizer, "_check_runs", breaks)
    _, artifact = converted(made, tmp_path, "openvino/static-int8")
    assert len(tried) <= 6
    assert f"left in float, since int8 broke the model: {named[0]} (" in " ".join(artifact.notes)


def test_a_model_that_does_not_give_numbers_where_the_source_does_is_not_kept(tmp_path):
    made = ready(models.net("RNN"), tmp_path)
    sample = next(made.calibration())
    wanted = made.source.reference.run(sample)
    model = core().read_model(made.canonical.path)
    quantizer._check_runs(model, sample, wanted)
    with pytest.raises(ToolFailedError, match="is not finite"):
        quantizer._check_runs(model, {"x": np.full_like(sample["x"], np.nan)}, wanted)


def test_a_loop_has_no_int8_candidate_that_is_none(tmp_path):
    made = ready(models.loop(), tmp_path)
    with pytest.raises(Unsupported, match="not tried: no layer that NNCF makes int8"):
        converted(made, tmp_path, "openvino/static-int8")


def test_litert_unrolls_no_further_than_said(tmp_path):
    made = ready(models.net("GRU", steps=600, hidden=4), tmp_path)
    with pytest.raises(Unsupported, match=r"GRU with 600 steps \(at most \d+ are unrolled\)"):
        converted(made, tmp_path, "litert/fp32")


def test_what_stands_around_a_loop_becomes_int8(tmp_path):
    """No shape is inferred behind a loop; the quantizer's check of the graph wanted one of the output, and cost the recipe."""
    random = np.random.default_rng(0)
    shapes = ((64, models.WIDTH), (models.WIDTH, models.WIDTH), (models.WIDTH, 10))
    weights = [random.uniform(-0.3, 0.3, shape).astype(np.float32) for shape in shapes]
    made = ready(models.looped_between(5, *weights), tmp_path)
    onnx.checker.check_model(str(made.canonical.path))
    plan, artifact = converted(made, tmp_path, "onnxruntime/static-int8")
    kinds = [node.op_type for node in onnx.load(str(artifact.folder / artifact.model)).graph.node]
    assert "DequantizeLinear" in kinds
    assert gap(made, plan, artifact) < 0.05
