"""Canonical ONNX from files that people have: LSTMs under branches, open dimensions, a newer file format."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters.prepare import canonical, onnx_source
from converters.prepare.project import from_flags
from edgekit.errors import EdgeKitError

VOICE = {"input": ([1, 576], "float32"), "state": ([2, 1, 128], "float32"), "sr": ([], "int64")}


def file_of(package, *parts):
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(found.origin).parent.joinpath(*parts)


def opened(path, inputs=None):
    declared = {name: {"shape": shape, "dtype": dtype} for name, (shape, dtype) in (inputs or {}).items()}
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": str(path)}, "inputs": declared,
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    return onnx_source.open_file(project, path)


@pytest.mark.parametrize("name", ["silero_vad_16k_op15.onnx", "silero_vad_op18_ifless.onnx"])
def test_a_voice_detector_becomes_canonical(name, tmp_path):
    source = opened(file_of("silero_vad", "data", name), VOICE)
    random = np.random.default_rng(0)
    feeds = [
        {"input": random.standard_normal((1, 576)).astype(np.float32), "state": np.zeros((2, 1, 128), np.float32),
         "sr": np.array(16000)}
        for _ in range(2)
    ]  # fmt: skip
    assert canonical.canonicalize(source, feeds, tmp_path).parity < 1e-4


def test_open_dimensions_are_refused_with_what_to_give():
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    with pytest.raises(EdgeKitError, match="shape"):
        opened(path)


def test_open_dimensions_that_are_given_are_fixed(tmp_path):
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    source = opened(path, {"x": ([1, 3, 48, 192], "float32")})
    feeds = [{"x": np.random.default_rng(0).random((1, 3, 48, 192)).astype(np.float32)}]
    form = canonical.canonicalize(source, feeds, tmp_path)
    (given,) = onnx.load(str(form.path)).graph.input
    assert [item.dim_value for item in given.type.tensor_type.shape.dim] == [1, 3, 48, 192]


def test_a_file_format_newer_than_the_engine_is_refused(tmp_path):
    path = file_of("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    model = onnx.load(str(path))
    model.ir_version = 99
    newer = tmp_path / "newer.onnx"
    newer.write_bytes(model.SerializeToString())
    with pytest.raises(EdgeKitError, match=r"(?i)ir.version"):
        opened(newer, {"x": ([1, 3, 48, 192], "float32")})
