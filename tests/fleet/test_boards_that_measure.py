"""Several boards asked to measure: what one does not do costs that one alone (the service is played here)."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from edgekit.wire.commands import Measured
from fleet import api
from fleet.client import onboard

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DONE = Measured((), "a cpu")


class Boards:
    """Answers by name: what a board measured, or its command's state and reason; None is an offline board."""

    def __init__(self, **answers):
        self.answers = answers

    def explain(self, device):
        return SimpleNamespace(device=SimpleNamespace(online=self.answers[device] is not None))

    def command(self, device, new):
        return api.CommandView(device, device, new.action, "waiting", "", NOW, "me", NOW, NOW)

    def command_of(self, device, _command):
        answer = self.answers[device]
        state, reason, payload = ("done", "", answer) if isinstance(answer, Measured) else (*answer, None)
        ask = api.MeasureHere(("0" * 64,), "", 1.0)
        return api.CommandView(device, device, ask, state, reason, NOW, "me", NOW, NOW, payload)


def asked(monkeypatch, **answers):
    monkeypatch.setattr(onboard, "LOOK_S", 0.001)
    return onboard.on_boards(Boards(**answers), list(answers), ["0" * 64], 1.0)


def test_a_board_that_is_away_or_refuses_is_left_out_with_its_reason_and_the_others_count(monkeypatch):
    found = asked(monkeypatch, good=DONE, away=None, full=("refused", "no space left"))
    assert found.measured == {"good": DONE}
    assert found.left_out == {
        "away": "the board is offline; nobody would hear it",
        "full": "refused: no space left",
    }


def test_where_no_board_measures_it_is_an_error_that_names_them_all(monkeypatch):
    with pytest.raises(
        onboard.NotMeasuredError, match=r"away: the board is offline.*full: failed: no reason given"
    ):
        asked(monkeypatch, away=None, full=("failed", ""))
