"""Torch architectures from their configuration, through every engine in float: the matrix of docs/models.md cannot rot."""

import sys
from pathlib import Path

import pytest

MATRIX = Path(__file__).parents[1] / "conformance"
# The importer's own way has its own tests, and `make conformance`.
ENGINES = ("ONNX Runtime", "OpenVINO", "LiteRT from torch")
# One with a mask and integers, one recurrent, two that see; the others are of the same engines at greater length.
QUICK = ("distilbert",)
OTHERS = (
    "resnet",
    "lstm_classifier",
    "vit",
    "mobilenet_v2",
    "convnext",
    "segformer",
    "whisper_encoder",
    "wav2vec2",
)


@pytest.fixture(scope="module")
def matrix():
    pytest.importorskip("transformers")
    sys.path.insert(0, str(MATRIX))
    try:
        import models
        import run_models

        yield models, run_models
    finally:
        sys.path.remove(str(MATRIX))


def test_no_architecture_is_left_out(matrix):
    models, _ = matrix
    assert sorted(models.INPUTS) == sorted((*QUICK, *OTHERS))


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.proof) for name in OTHERS)])
def test_an_architecture_computes_the_same_in_every_engine(matrix, name):
    _, run_models = matrix
    found = run_models.cells(name, ENGINES)
    assert {column: text for column, text in found.items() if not text.startswith("ok")} == {}


def test_random_weights_let_the_signal_through(matrix):
    """Parity of constant outputs would show nothing."""
    import torch

    models, _ = matrix
    model = models.mobilenet_v2()
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = model(torch.randn(16, 3, 64, 64)).logits
    assert outputs.std(dim=0).min() > 0.1 * outputs.abs().max()
