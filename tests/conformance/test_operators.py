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
def test_all_cases_in_torch_fail_exactly_where_expected():
    failing = {case.name for case in load() if category(case) is None and torch_case(case)}
    assert failing == set(EXPECTED["torch"])


@pytest.mark.slow
def test_a_fixed_fortieth_through_litert_fails_exactly_where_expected():
    chosen = [case for case in load() if category(case) is None and in_fortieth(case.name)]
    assert len(chosen) > 40
    failing = {case.name for case in chosen if litert_case(case)}
    assert failing == {name for name in EXPECTED["litert"] if in_fortieth(name)}


def test_no_category_is_empty():
    found = {category(case) for case in load()}
    assert set(CATEGORIES) <= found


def in_fortieth(name):
    return hashlib.sha256(name.encode()).digest()[0] % 40 == 0
