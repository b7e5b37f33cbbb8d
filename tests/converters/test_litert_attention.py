"""Attention on the way to LiteRT: masks with infinities, rows that are masked as a whole, heads that share their keys."""

import numpy as np
import pytest
import torch
from litert_models import converted, outputs, prepared_program
from torch import nn
from torch.nn import functional

from converters.backends.litert.program import convert
from converters.graph import canonical
from edgekit.quiet import quietly

INFINITE = float("-inf")
QUERIES = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
KEYS = torch.randn(1, 1, 6, 8, generator=torch.Generator().manual_seed(1))
BAND = torch.zeros(6, 6).masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), INFINITE)


class Program(nn.Module):
    """A function of tensors, and a mask that it holds."""

    def __init__(self, function, mask=BAND):
        super().__init__()
        self.function = function
        self.register_buffer("mask", mask.clone())

    def forward(self, *arguments):
        return self.function(self.mask, *arguments)


def through_litert(program, *arguments):
    made = quietly(lambda: convert(program.eval(), arguments))
    return np.asarray(quietly(lambda: made(*arguments)))


def spelled(mask, q, k):
    """Attention as older models write it: one head of keys, repeated for every head of queries."""
    k = k[:, :, None].expand(1, 1, 4, 6, 8).reshape(1, 4, 6, 8)
    return torch.softmax(q @ k.transpose(-1, -2) * 0.3 + mask, -1) @ k


SAME = {
    "a mask of the model's own": (spelled, (QUERIES, KEYS)),
    "causal": (
        lambda _, q, k: functional.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True),
        (QUERIES, KEYS),
    ),
    "keys repeated with repeat": (lambda _, k: k.repeat(1, 4, 1, 1).transpose(-1, -2), (KEYS,)),
    "keys repeated many times": (lambda _, k: k.expand(1, 40, 6, 8).permute(0, 1, 3, 2), (KEYS,)),
    "a bool mask with a row of nothing": (
        lambda _, q, mask: functional.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        (QUERIES, torch.ones(6, 6, dtype=torch.bool).tril(-1)),
    ),
    "a float mask with a row of nothing": (
        lambda _, q, mask: functional.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        (QUERIES, BAND.masked_fill(torch.eye(6, dtype=torch.bool), INFINITE)),
    ),
    "a mask of the model's own with a row of nothing": (
        lambda mask, q: functional.scaled_dot_product_attention(
            q, q, q, attn_mask=mask.masked_fill(torch.eye(6, dtype=torch.bool), INFINITE)
        ),
        (QUERIES,),
    ),
    "scores and mask in one": (
        lambda _, x: torch.ops.aten._safe_softmax(torch.where(x > 0, x, INFINITE), -1),
        (torch.tensor([[1.0, -1.0, 2.0], [-1.0, -2.0, -3.0]]),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_attention_gives_what_torch_gives(name):
    function, arguments = SAME[name]
    program = Program(function)
    with torch.no_grad():
        wanted = program(*arguments).numpy()
    assert np.isfinite(wanted).all()
    assert np.allclose(through_litert(program, *arguments), wanted, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_infinities_stay_infinite(sign):
    found = through_litert(Program(lambda mask, x: x + sign * mask), torch.zeros(6, 6))
    assert np.array_equal(found, sign * BAND.numpy())


def test_an_infinity_among_the_inputs_is_known_as_one():
    found = through_litert(
        Program(lambda mask, x: (x == mask[0, 1]).float()),
        torch.tensor([0.0, INFINITE, -3.4028234663852886e38]),
    )
    assert found.tolist() == [0, 1, 0]


def test_the_program_keeps_its_infinities():
    program = Program(spelled)
    through_litert(program, QUERIES, KEYS)
    assert torch.equal(program.mask, BAND)


MASKED = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x, mask):
            q, k, v = (part.reshape(1, 12, 2, 8).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
            seen = (mask > 0)[:, None, None, :]
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            return self.out(y.transpose(1, 2).reshape(1, 12, 16))

    def make():
        torch.manual_seed(0)
        return Net().eval()
"""


def test_int8_keeps_what_an_infinite_mask_goes_through_in_float(tmp_path):
    random = np.random.default_rng(0)
    feeds = [
        {"x": random.standard_normal((1, 12, 16)).astype(np.float32), "mask": (np.arange(12) < count)[None].astype(np.int64)}
        for count in (3, 6, 12)
    ]  # fmt: skip
    ready = prepared_program(MASKED, tmp_path, feeds)
    artifact = converted(ready, tmp_path, "litert/static-int8")
    wanted = [ready.source.reference.run(feed) for feed in feeds]
    assert canonical.parity(wanted, [outputs(artifact, ready, feed) for feed in feeds]) < 0.05
