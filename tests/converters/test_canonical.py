"""A torch program as canonical ONNX: the names that the project gives, whatever stands inside the program."""

import numpy as np
import onnx
import pytest

from converters.prepare import canonical
from converters.prepare.code import CodeGate
from converters.prepare.opening import open_source
from converters.prepare.project import from_flags

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
