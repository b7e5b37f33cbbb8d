"""What a layer's quantization costs: divergence where outputs are probabilities, noise elsewhere."""

import msgspec
import numpy as np
import pytest

from converters.quantize.sensitivity import LayerError, divergence


def outputs(*rows):
    return [{"y": np.array([row], np.float32)} for row in rows]


def test_divergence_of_two_distributions_is_kullback_and_leiblers():
    found = divergence(outputs([0.5, 0.5]), outputs([0.9, 0.1]))
    assert found == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), rel=1e-5)
    assert divergence(outputs([0.5, 0.5]), outputs([0.5, 0.5])) == 0


def test_an_output_that_holds_no_probabilities_has_none():
    assert divergence(outputs([3.0, -1.0]), outputs([3.0, -1.1])) is None
    assert divergence([{"y": np.array([0.7], np.float32)}], [{"y": np.array([0.6], np.float32)}]) is None


def test_what_is_not_finite_is_worst():
    """And survives a cache of JSON, which knows no infinity."""
    found = divergence(outputs([1.0, 0.0]), outputs([np.nan, 0.5]))
    assert found > divergence(outputs([1.0, 0.0]), outputs([0.0, 1.0]))
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_layers_rank_by_divergence_where_there_is_one_and_by_noise_elsewhere():
    assert LayerError("a", "Conv", 10.0, 0.2).harm > LayerError("b", "Conv", 5.0, 0.1).harm
    assert LayerError("a", "Conv", 5.0).harm > LayerError("b", "Conv", 10.0).harm
