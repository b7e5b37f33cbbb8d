"""ONNX's own backend tests through the importer. `run.py` writes the list of failures that are expected."""

import hashlib
import json
from pathlib import Path

import pytest
from node_cases import load
from node_engines import litert_case, torch_case
from node_scope import CATEGORIES, category

EXPECTED = json.loads((Path(__file__).parent / "expected_failures.json").read_text())


@pytest.mark.slow
def test_a_fixed_sixteenth_in_torch_fails_exactly_where_expected():
    chosen = [case for case in load() if category(case) is None and is_one_of(16, case.name)]
    assert len(chosen) > 75
    failing = {case.name for case in chosen if torch_case(case)}
    assert failing == {name for name in EXPECTED["torch"] if is_one_of(16, name)}


@pytest.mark.slow
def test_a_fixed_share_through_litert_fails_exactly_where_expected():
    chosen = [case for case in load() if category(case) is None and is_one_of(271, case.name)]
    assert len(chosen) > 3
    failing = {case.name for case in chosen if litert_case(case)}
    assert failing == {name for name in EXPECTED["litert"] if is_one_of(271, name)}


def test_no_category_is_empty():
    found = {category(case) for case in load()}
    assert set(CATEGORIES) <= found


def is_one_of(parts, name):
    """Whether a case belongs to the share of the tests; `make conformance` tries all."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2]) % parts == 0
