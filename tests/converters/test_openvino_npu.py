"""The NPU's compiler is asked for; where it is missing, nothing claims a compiled blob."""

from types import SimpleNamespace

import pytest

from converters.backends.openvino import npu
from converters.backends.openvino.backend import BACKEND
from converters.recipes.recipes import plans
from edgekit import profile
from edgekit.engines.openvino import core


@pytest.fixture
def asked(monkeypatch):
    """Answers of a pretended OpenVINO."""
    npu.obstacle.cache_clear()
    yield lambda compile_model: monkeypatch.setattr(
        npu, "core", lambda: SimpleNamespace(compile_model=compile_model)
    )
    npu.obstacle.cache_clear()


def test_the_wheel_without_a_compiler_says_so():
    if "NPU" in core().available_devices:
        pytest.skip("there is an NPU here")
    assert "compiler" in npu.obstacle().lower()
    assert "no NPU compiler answers here" in npu.note()


def test_a_compiler_that_answers_is_believed(asked):
    asked(lambda *_: object())
    assert npu.obstacle() == ""
    assert "no NPU compiler" not in npu.note()


def test_the_reason_is_told_without_this_machines_folders(asked):
    def refuse(*_):
        raise RuntimeError("Exception from src/a.cpp:1:\nCannot load library /home/me/lib/libnpu.so\n")

    asked(refuse)
    assert npu.note().endswith("(Cannot load library libnpu.so)")


def test_a_candidate_for_an_npu_carries_the_note_and_no_blob(digits, tmp_path):
    (plan,) = plans(profile.load("intel-core-ultra-npu"), ["openvino/fp16"])
    canonical = SimpleNamespace(path=digits.folder / "model.onnx")
    prepared = SimpleNamespace(canonical=canonical, source=SimpleNamespace(native=None, quantized=None))
    artifact = BACKEND.convert(prepared, plan, tmp_path)
    assert npu.note() in artifact.notes
    assert {path.suffix for path in artifact.files} == {".xml", ".bin"}
