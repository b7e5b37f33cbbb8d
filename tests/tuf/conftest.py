"""A repository that can be told to lie, and a client of it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# SoftHSM2 is the fleet's tests' too.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "fleet")]

from lying_repository import Repository  # noqa: E402  # after the line that makes it importable


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path)
    yield made
    made.close()
