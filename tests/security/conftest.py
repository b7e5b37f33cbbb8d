"""One fleet on TLS for the tests of a module."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests share helpers, also with the fleet's, and importlib mode does not look beside a test for them.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fleet")]

from tls_support import TlsFleet, make_fleet  # noqa: E402  # after the line that makes it importable


@pytest.fixture(scope="module")
def tls_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsFleet]:
    made = make_fleet(tmp_path_factory.mktemp("tls"))
    yield made
    made.service.stop()
