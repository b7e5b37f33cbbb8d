"""What a worker is asked for: all that is not known yet, and nothing that is."""

from types import SimpleNamespace

import pytest

from converters.work.findings import Findings
from converters.work.orders import Ledger, Order
from edgekit.errors import ToolFailedError

KEYS = SimpleNamespace(artifact=lambda _: "made", run=lambda *_: "run")
ORDER = Order(SimpleNamespace(), 2, is_judged=True, is_searched=True, is_glimpsed=True)


def ledger(**known):
    return Ledger(Findings(**{table: {at: object()} for table, at in known.items()}), KEYS)


def test_of_an_order_whose_candidate_was_searched_over_and_glimpsed_the_judged_half_is_left():
    """A repair's try that is to be judged: searching over it again would take seconds."""
    rest = ledger(artifacts="made", glimpsed="run", searched="run").rest(ORDER)
    assert (rest.is_judged, rest.is_searched, rest.is_glimpsed, rest.is_analysed) == (
        True,
        False,
        False,
        False,
    )
    assert (rest.plan, rest.threads) == (ORDER.plan, 2)


def test_nothing_is_left_of_an_order_of_which_all_is_known():
    assert ledger(artifacts="made", glimpsed="run", searched="run", evaluated="run").rest(ORDER) is None


def test_nothing_is_left_where_the_artifact_could_not_be_made():
    found = Findings(artifacts={"made": ToolFailedError("no")})
    assert Ledger(found, KEYS).rest(ORDER) is None


@pytest.mark.parametrize("table", ["glimpsed", "evaluated", "searched"])
def test_what_failed_is_known(table):
    found = Findings(artifacts={"made": object()}, **{table: {"run": ToolFailedError("no")}})
    rest = Ledger(found, KEYS).rest(ORDER)
    asked = {"glimpsed": rest.is_glimpsed, "evaluated": rest.is_judged, "searched": rest.is_searched}
    assert [name for name, is_asked in asked.items() if not is_asked] == [table]


def test_who_dies_is_blamed_for_the_first_step_that_is_not_known():
    book = ledger(artifacts="made", glimpsed="run")
    book.blame(ORDER, ToolFailedError("died"))
    assert str(book.findings.evaluated["run"]) == "died"
