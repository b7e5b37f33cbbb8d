"""Whole agents of a whole fleet: what was built on both sides, met by real processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests share helpers, also with the fleet's, the agents' and the converters', and importlib mode does not look beside a
# test for them.
sys.path[:0] = [
    str(Path(__file__).parents[1] / name) for name in ("field", "security", "fleet", "converters")
]

from field_support import Field  # noqa: E402  # after the line that makes it importable


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    """A fleet that runs; boards join it by `field.board(...)`."""
    made = Field(tmp_path)
    try:
        yield made
    except AssertionError as error:
        raise AssertionError(f"{error}\n{made.logs}") from error
    finally:
        made.close()
