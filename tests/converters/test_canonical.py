"""A source as canonical ONNX: the names that the project gives, and a form that every engine reads."""

import numpy as np
import onnx
import openvino
import pytest
from litert_models import model, prepared
from onnx import helper

from converters.graph import canonical, stft
from converters.source.code import CodeGate
from converters.source.opening import open_source
from converters.source.project import from_flags
from edgekit.errors import ToolFailedError

# The layer's value is called `rows`, as the project calls the output.
NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rows = torch.nn.Embedding(10, 4)

    def forward(self, ids):
        rows = torch.nn.functional.embedding(ids, self.rows.weight)
        embedding = rows * 2
        return torch.relu(embedding)

def make():
    return Net()
"""


@pytest.fixture
def source(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    project = from_flags({
        "model": {"name": "m", "version": "1", "source": f"{tmp_path / 'net.py'}:make", "outputs": ["embedding"]},
        "inputs": {"ids": {"shape": [1, 3], "dtype": "int64"}},
        "targets": {"x86-64-v4-vnni": {}}, "data": {"evaluation": "unused"},
    })  # fmt: skip
    return open_source(project, CodeGate(True, lambda _: None))


@pytest.mark.parametrize("exporter", canonical.EXPORTERS)
def test_an_output_may_be_called_as_a_value_inside_the_program(source, tmp_path, exporter):
    feeds = [{"ids": np.array([[1, 2, 9]], np.int64)}]
    form = canonical.canonicalize(source, feeds, tmp_path, exporters=[exporter])
    assert form.parity < 1e-6
    graph = onnx.load(str(form.path)).graph
    assert [value.name for value in graph.input] == ["ids"]
    assert [value.name for value in graph.output] == ["embedding"]


def test_a_program_that_no_exporter_takes_is_told_with_what_each_said_and_what_to_do(
    source, tmp_path, monkeypatch
):
    def fails(_source):
        raise ValueError("no such operator: cdist")

    monkeypatch.setattr(canonical, "EXPORTERS", {"one": fails, "other": fails})
    with pytest.raises(ToolFailedError) as told:
        canonical.canonicalize(source, [{"ids": np.zeros((1, 3), np.int64)}], tmp_path)
    assert "one failed: ValueError: no such operator: cdist; other failed" in str(told.value)
    assert "write what they stop at with other operators, or export an ONNX file yourself" in str(told.value)


def spectrum(step):
    """Power of 129 frequencies, with all left out that STFT lets one leave out; `step` makes the value of that name."""
    return model(
        [
            step,
            helper.make_node("STFT", ["x", "step", "window"], ["s"]),
            helper.make_node("ReduceSumSquare", ["s"], ["p"], axes=[3], keepdims=0),
        ],
        {"short": np.array(80, np.int32), "window": np.hanning(256).astype(np.float32)},
        {"x": (1, 1600)},
        {"p": None},
    )  # fmt: skip


def test_an_stft_is_spelled_out_so_that_openvino_reads_it(tmp_path):
    feed = {"x": np.random.default_rng(1).standard_normal((1, 1600)).astype(np.float32)}
    ready = prepared(spectrum(helper.make_node("Cast", ["short"], ["step"], to=7)), tmp_path, [feed])
    wanted = ready.source.reference.run(feed)["p"]
    compiled = openvino.compile_model(str(ready.canonical.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.allclose(compiled(feed)[0], wanted, rtol=1e-4, atol=1e-3)


def test_an_stft_that_is_spelled_out_has_the_shape_of_one_side():
    made = stft.spelled_out(spectrum(helper.make_node("Constant", [], ["step"], value_int=80)))
    graph = onnx.shape_inference.infer_shapes(made, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info
    }
    assert shapes["s"] == [1, 17, 129, 2]
    assert stft.spelled_out(made) is made
