"""OpenVINO's layers by name: told by the analysis, kept in float on request, and never misspelt in silence."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from converters.backends.openvino.backend import BACKEND
from converters.recipes.recipes import Tuning, plans
from converters.source import onnx_source
from edgekit import profile
from edgekit.engines.openvino import core
from edgekit.errors import ToolFailedError
from edgekit.manifest import TensorSpec


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """The plain int8 artifact, and a function that makes a tuned one."""
    images = np.load(digits.folder / "calib.npz")["x"]
    path = digits.folder / "model.onnx"
    spec = TensorSpec("x", "float32", (1, 1, 8, 8))
    reference = onnx_source.load_reference(path, (spec,), ("logits",))
    prepared = SimpleNamespace(
        canonical=SimpleNamespace(path=path),
        calibration=lambda: ({"x": image.reshape(1, 1, 8, 8)} for image in images[:32]),
        source=SimpleNamespace(native=None, quantized=None, reference=reference),
        shifted=None,
        tell=lambda _: None,
    )
    (plan,) = plans(profile.load("x86-64-v3"), ["openvino/static-int8"])

    def convert(tuning: Tuning):
        folder = tmp_path_factory.mktemp("openvino")
        tuned = replace(plan, tuning=tuning)
        return tuned, BACKEND.convert(prepared, tuned, folder)

    return SimpleNamespace(prepared=prepared, convert=convert, plain=convert(Tuning()))


def layers(made):
    plan, artifact = made.plain
    return BACKEND.sensitivity(made.prepared, plan, artifact)


def test_each_activation_quantizer_is_told_with_what_it_costs_the_worst_first(made):
    found = layers(made)
    assert len(found) >= 2
    assert [item.harm for item in found] == sorted((item.harm for item in found), reverse=True)
    assert all(item.name.startswith("act:") and np.isfinite(item.snr_db) for item in found)


def test_a_bypassed_quantizer_is_gone_and_the_others_stay(made):
    found = layers(made)
    plan, artifact = made.convert(Tuning("mixed", float_layers=(found[0].name,)))
    left = {item.name for item in BACKEND.sensitivity(made.prepared, plan, artifact)}
    assert left == {item.name for item in found[1:]}


def test_an_operator_kept_float_has_no_quantizer(made):
    name = layers(made)[0].name.removeprefix("act:")
    plan, artifact = made.convert(Tuning("mixed", float_layers=(name,)))
    assert f"act:{name}" not in {item.name for item in BACKEND.sensitivity(made.prepared, plan, artifact)}


def test_misspelt_layers_and_settings_are_refused_with_close_ones(made):
    name = layers(made)[0].name
    with pytest.raises(ToolFailedError, match="close to it: act:"):
        made.convert(Tuning("mixed", float_layers=(name + "x",)))
    with pytest.raises(ToolFailedError, match="no such layer"):
        made.convert(Tuning("mixed", float_layers=("nowhere",)))
    with pytest.raises(ToolFailedError, match="close to it: preset"):
        made.convert(Tuning("tuned", settings={"presett": "mixed"}))


def test_the_notes_say_what_runs_in_int8(made):
    assert any(note.startswith("in int8: ") for note in made.plain[1].notes)


def test_weights_in_eight_bits_compute_what_float_ones_do_in_a_third_of_the_space(made, tmp_path):
    found = {}
    for name in ("f32", "weights-int8"):
        (plan,) = plans(profile.load("x86-64-v4-vnni"), [f"openvino/{name}"])
        folder = tmp_path / name
        folder.mkdir()
        artifact = BACKEND.convert(made.prepared, plan, folder)
        model = core().compile_model(folder / artifact.model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        images = [feed["x"] for feed in made.prepared.calibration()]
        weights = (folder / artifact.model).with_suffix(".bin").stat().st_size
        found[name] = weights, np.stack([model(image)[0] for image in images])
    (whole, wanted), (small, have) = found.values()
    assert small < whole / 3
    assert 0 < np.abs(have - wanted).max() < 0.1 * np.abs(wanted).max()


def test_bf16_is_asked_for_only_where_the_target_has_it(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        'name = "mine"\nextends = "x86-64-v4-vnni"\nisa = ["avx2", "avx512", "avx512_vnni", "avx512_bf16"]\n'
        'precisions = ["fp32", "bf16", "int8"]\n'
    )
    hints = {
        plan.name: plan.options["INFERENCE_PRECISION_HINT"]
        for plan in plans(profile.load(own), ["openvino/*"])
    }
    assert hints == {
        "openvino/f32": "f32",
        "openvino/bf16": "bf16",
        "openvino/static-int8": "f32",
        "openvino/weights-int8": "f32",
        "openvino/weights-int8-bf16": "bf16",
    }
    assert not [plan for plan in plans(profile.load("x86-64-v4-vnni")) if "bf16" in plan.name]
