"""A share of the hour (`hour.py`): memory of open pages is flat under events, and a page that keeps things is found."""

from itertools import count
from pathlib import Path

import pytest
from browser_support import CHROMIUM
from hour import Held, fleet, leaks, left_open


def looks(*heaps: int, nodes: int = 900, listeners: int = 11) -> list[Held]:
    minutes = count()
    return [Held(next(minutes), "overview", heap, nodes, listeners, 2, 10) for heap in heaps]


def test_what_is_made_once_is_no_leak() -> None:
    assert leaks(looks(500_000, 900_000, 910_000, 905_000)) == []


@pytest.mark.parametrize(
    ("last", "what"),
    [
        (Held(9, "overview", 1_300_000, 900, 11, 2, 90), "heap_bytes"),
        (Held(9, "overview", 900_000, 900, 14, 2, 90), "listeners"),
        (Held(9, "overview", 900_000, 2000, 11, 2, 90), "nodes"),
    ],
)
def test_a_page_that_keeps_what_it_replaced_is_named(last: Held, what: str) -> None:
    [told] = leaks([*looks(500_000, 900_000, 950_000), last])
    assert told.startswith(f"overview: {what} went from")


@pytest.mark.proof
@pytest.mark.browser
def test_pages_left_open_hold_no_more_after_many_events(tmp_path: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed")
    with fleet(tmp_path) as (client, url):
        found = list(left_open(client, url, minutes=1.5, seed=7, every_s=20.0, pause_s=0.5))
    last = {one.page: one for one in found}
    assert all(one.asked >= 3 for one in last.values()), f"too few events to say anything: {last}"
    assert leaks(found) == []
