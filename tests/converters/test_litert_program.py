"""Torch programs whose plain way through litert-torch fails or gives wrong values, on the way that the backend goes."""

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from litert_models import converted, operators, prepared_program
from torch import nn
from torch.nn import functional

from converters.backends.litert import vela
from converters.backends.litert.program import convert
from converters.recipes.recipes import plans
from edgekit import profile
from edgekit.quiet import quietly


class Program(nn.Module):
    def __init__(self, function, **constants):
        super().__init__()
        self.function = function
        for name, tensor in constants.items():
            self.register_buffer(name, tensor)

    def forward(self, *arguments):
        return self.function(self, *arguments)


def check(function, *arguments, **constants):
    """The program gives the same in LiteRT as in torch."""
    program = Program(function, **constants).eval()
    with torch.no_grad():
        wanted = program(*arguments).numpy()
    made = quietly(lambda: convert(program, arguments))
    have = np.asarray(quietly(lambda: made(*arguments)))
    assert np.allclose(have, wanted, atol=1e-4 * np.abs(wanted).max())


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 1},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (3, 2), "padding": (1, 2)},
        {"stride": 3, "padding": 1, "output_padding": 2},
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 3},
    ],
    ids=str,
)
def test_a_transposed_convolution_takes_any_pads(settings):
    channels = 4 // (1 if settings.get("groups", 1) == 1 else 4) or 1
    check(
        lambda held, x: functional.conv_transpose2d(x, held.weight, held.bias, **settings),
        drawn(1, 3, 6, 5),
        weight=drawn(3, channels, 3, 3),
        bias=drawn(channels * settings.get("groups", 1)),
    )


def test_a_transposed_convolution_over_time_takes_pads():
    check(
        lambda held, x: functional.conv_transpose1d(x, held.weight, stride=2, padding=1, output_padding=1),
        drawn(1, 3, 6),
        weight=drawn(3, 4, 3),
    )


def test_what_is_made_from_numbers_alone_is_known_when_converting():
    check(lambda _, x: x + torch.eye(6) * torch.arange(6), drawn(6, 6))


HARD_SIGMOID = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            y = self.first(x)
            return y * torch.clamp(self.gate(y.mean((2, 3), keepdim=True)) / 6 + 0.5, 0, 1)

    def make():
        torch.manual_seed(0)
        return Net().eval()
"""


@pytest.mark.proof
def test_an_ethos_u_takes_a_hard_sigmoid_that_is_spelled_as_a_clamp(tmp_path):
    feeds = [{"x": np.random.default_rng(seed).random((1, 3, 12, 12), np.float32)} for seed in range(4)]
    ready = prepared_program(HARD_SIGMOID, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8", "arm-ethos-u55-128")
    assert "RELU_0_TO_1" not in operators(artifact)
    (plan,) = plans(profile.load("arm-ethos-u55-128"), ["litert/static-int8"])
    made = tmp_path / "compiled"
    made.mkdir()
    assert vela.compiled(artifact, plan.constraints.vela, made).compiled.on_cpu == {}


def test_a_truth_that_is_passed_through_is_an_output_of_its_own(tmp_path):
    program = Program(lambda _, x, is_there: (x * 2, is_there, x + 1)).eval()
    given = (drawn(1, 4), torch.tensor([[True, False, True, False]]))
    quietly(lambda: convert(program, given).export(str(tmp_path / "m.tflite")))
    interpreter = Interpreter(model_path=str(tmp_path / "m.tflite"))
    names = [detail["name"] for detail in interpreter.get_output_details()]
    assert names == [f"serving_default_output_{index}_output" for index in range(3)]
    run = interpreter.get_signature_runner()
    found = run(args_0=given[0].numpy(), args_1=given[1].numpy())
    np.testing.assert_array_equal(found["output_1"], given[1].numpy())
