"""Words, charts and tracks: pure."""

import ast
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleet.server
from fleet.api import ArmPoint
from fleet.audit_entry import Entry
from fleet.rules import gates as gate_rules
from fleet.rules.gates import Outcome, Verdict
from fleet.rules.rollout import Rollout, Spec, Status
from fleet.rules.stages import Stage
from fleet.server.store.glance import Tally
from fleet.server.web import auditing, chart, charts, track, words
from fleet.server.web.auditing import line
from fleet.server.web.chart import Chart, Mark, Point, Series
from fleet.server.web.frame import assets
from fleet.server.web.memory import Memory

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (59, "59 s"), (80, "1 min 20 s"), (120, "2 min"), (725, "12 min"), (4800, "1 h 20 min"),
     (90_000, "1 day 1 h"), (86_400 * 3.2, "3 days")],
)  # fmt: skip
def test_durations_are_as_people_say_them(seconds: float, told: str) -> None:
    assert words.span(seconds) == told


def test_a_moment_is_told_from_now_both_ways() -> None:
    assert words.ago(NOW - timedelta(minutes=3), NOW) == "3 min ago"
    assert words.ago(NOW + timedelta(minutes=3), NOW) == "in 3 min"
    assert words.ago(NOW, NOW) == "now"


def test_each_kind_of_state_has_a_shape_of_its_own_in_the_style_sheet() -> None:
    css = next(
        content
        for name, (_, content) in assets().items()
        if name.startswith("page-") and name.endswith(".css")
    )
    kinds = {words.state(name).kind for name in words._KINDS}
    shapes = {kind: re.findall(rf"i\.{kind} \{{([^}}]*)", css.decode()) for kind in kinds}
    assert all(shapes.values()), shapes
    assert len({found[0] for found in shapes.values()}) == len(kinds)


def test_style_and_script_together_stay_small() -> None:
    assert sum(len(content) for _, content in assets().values()) < 60_000


# -- charts ----------------------------------------------------------------------------------------------------------


def steps(*values: float, start: float = 1000.0) -> list[Point]:
    return [Point(start + 60 * n, 60, value, value * 0.8, value * 1.2) for n, value in enumerate(values)]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.booleans())
def test_whatever_is_drawn_lies_inside_of_the_picture(values: list[float], is_log: bool) -> None:
    made = Chart("Errors", "%", (Series("new", "new", steps(*values)),), scale=100.0, is_log=is_log)
    for picture, (width, height) in ((made.wide, chart.WIDE), (made.narrow, chart.NARROW)):
        assert picture.count('class="grid"') < 30
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", str(picture)):
            assert -0.1 <= float(x) <= width + 0.1
            assert -0.1 <= float(y) <= height + 0.1


def test_a_gap_in_what_was_measured_breaks_the_line() -> None:
    whole = Chart("t", "ms", (Series("new", "new", steps(1, 2, 3)),)).wide
    broken = Chart("t", "ms", (Series("new", "new", [*steps(1, 2), *steps(3, 4, start=9000)]),)).wide
    assert (whole.count('class="line new"'), broken.count('class="line new"')) == (1, 2)


def test_a_chart_says_its_unit_its_marks_and_its_limits_and_escapes_them() -> None:
    made = Chart(
        "Errors", "%", (Series("<b>", "new", steps(0.01, 0.02)),), (Mark(1030, "stage <1>"),), ((0.03, "error_rate < 3%"),), 100.0
    )  # fmt: skip
    picture = str(made.wide)
    assert "error_rate &lt; 3%" in picture
    assert "stage &lt;1&gt;" in picture
    assert "<b>" not in picture
    assert ">%</text>" in picture
    assert "logarithmic" in str(made._replace(is_log=True).wide)


def test_behind_a_chart_stands_a_table_with_the_same_figures() -> None:
    made = Chart(
        "Errors",
        "%",
        (Series("new", "new", steps(0.01)), Series("old", "old", steps(0.02, 0.03))),
        scale=100.0,
    )
    assert [cells for _, cells in made.rows] == [
        ["\N{EN DASH}", "3 % (2.4 to 3.6)"],
        ["1 % (0.8 to 1.2)", "2 % (1.6 to 2.4)"],
    ]


def arm(name: Literal["canary", "control"], at: float, share: float) -> ArmPoint:
    return ArmPoint(at, 60.0, 0, name, 10, 100, 1, share, share / 2, share * 2, 3.0, 5.0)


def test_a_rollout_has_its_gates_as_limits_the_relative_ones_following_control() -> None:
    head = rollout(gates=("error_rate < 1%", "latency_p95 <= 1.1 * control"))
    points = [arm(name, 1000 + 60 * n, 0.004) for n in range(3) for name in ("canary", "control")]
    errors, latency = charts.of_rollout(points, head)
    assert errors.limits == ((0.01, "error_rate < 1%"),)
    [allowed] = [series for series in latency.series if series.css == "limit"]
    assert [point.value for point in allowed.points] == [pytest.approx(5.5)] * 3
    assert errors.marks == (Mark(1000, "stage 1"),)
    assert charts.of_rollout([], head) == []


# -- tracks ----------------------------------------------------------------------------------------------------------


def rollout(gates: tuple[str, ...] = ("error_rate < 1%",), **given: object) -> Rollout:
    spec = Spec(
        "digits", "2.0", "digits", "all",
        (Stage(0.1, "10 %"), Stage(1.0, "all devices"), Stage(1.0, "the held-back devices", is_closing=True)),
        tuple(gate_rules.parse(text) for text in gates), 600.0, "rollback", 600.0, 86_400.0,
    )  # fmt: skip
    return Rollout(**{"id": 3, "spec": spec, "members": {}, "created_at": NOW, "stage": 0, **given})  # type: ignore[arg-type]


TALLIES = [
    Tally("pi", 0, "succeeded", False, 6), Tally("pi", 0, "fetching", False, 3), Tally("pi", 0, "failed", False, 1),
    Tally("pi", None, "pending", False, 90), Tally("pi", None, "pending", True, 10),
]  # fmt: skip


def waits(head: Rollout, tallies: list[Tally] | None = None) -> str:
    found = tallies or TALLIES
    said = track.waits_for(head, found, track.track(head, found), now=NOW, shift=timedelta())
    return f"{said.text}{f' {words.ago(said.until, NOW)}' if said.until else ''}{said.rest}"


def test_a_track_has_every_device_once() -> None:
    steps = track.track(rollout(), TALLIES)
    assert [(step.devices, step.state) for step in steps] == [(10, "open"), (90, "to come"), (10, "to come")]
    assert [(part.word, part.many) for part in steps[0].parts] == [("done", 6), ("moving", 3), ("failed", 1)]
    assert sum(part.many for step in steps for part in step.parts) == 110
    assert all(sum(part.width for part in step.parts) == pytest.approx(100, abs=0.01) for step in steps)


def test_a_track_that_was_turned_back_stopped_where_it_was() -> None:
    steps = track.track(rollout(status=Status.ROLLED_BACK), TALLIES)
    assert [step.state for step in steps] == ["stopped", "not begun", "not begun"]


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (rollout(), "3 devices of stage 1 move; watching begins once all that can be reached have settled."),
        (rollout(awaits=1), "Stage 2 (all devices, 90 devices) waits for somebody to approve it."),
        (rollout(soak_from=NOW - timedelta(minutes=4)), "The gates of stage 1 decide in 6 min."),
        (
            rollout(
                soak_from=NOW - timedelta(hours=1), verdicts=(Verdict("error_rate < 1%", Outcome.INCONCLUSIVE, "few"),)
            ),
            "Stage 1 has been watched long enough, but error_rate < 1% has too little data to decide on.",
        ),
        (
            rollout(
                soak_from=NOW, verdicts=(
                    Verdict("a", Outcome.SATISFIED, ""), Verdict("b", Outcome.INCONCLUSIVE, ""), Verdict("c", Outcome.VIOLATED, ""),
                ),
            ),
            "The gates of stage 1 decide in 10 min. So far, c is violated.",
        ),
        (rollout(status=Status.PAUSED, reason="gate x is violated"), "Gate x is violated."),
        (rollout(status=Status.PAUSED, reason="error_rate < 1%: 3 %"), "error_rate < 1%: 3 %."),
        (rollout(status=Status.ROLLING_BACK, reason="ann said so"), "Ann said so. Its devices go back; 10 are still on their way."),
    ],
)  # fmt: skip
def test_what_a_rollout_waits_for_is_a_sentence(head: Rollout, told: str) -> None:
    assert waits(head) == told


def test_devices_that_did_not_take_their_order_are_told_of() -> None:
    assert waits(rollout(), [Tally("pi", None, "pending", False, 100)]).startswith(
        "10 devices of stage 1 have not taken their order yet;"
    )


# -- the audit log ---------------------------------------------------------------------------------------------------


def test_a_change_is_a_line_with_what_it_was_and_is() -> None:
    entry = Entry(
        1,
        0.0,
        "user:ann",
        "device.label",
        "roof-1",
        "",
        '{"site":"lab","a":"1"}',
        '{"site":"roof","a":"1"}',
        "",
        "",
        "",
    )
    told = line(entry)
    assert (told.who, told.did, told.subject, told.to) == (
        "ann",
        "changed the labels of",
        "roof-1",
        "/devices/roof-1",
    )
    assert told.changes == (("site", "lab", "roof"),)
    damaged = Entry(1, 0.0, "token:ci", "new.thing", "x", "", "{", '"', "", "", "")
    assert (line(damaged).did, line(damaged).changes) == ("new.thing", ())


# -- counts that are kept ----------------------------------------------------------------------------------------------


def test_what_took_long_to_count_is_kept_ten_times_as_long() -> None:
    now, counted = [0.0], []

    def count(took: float) -> int:
        now[0] += took
        counted.append(took)
        return len(counted)

    memory = Memory(lambda: now[0])
    assert [memory.counted("a", lambda: count(0.3)) for _ in range(3)] == [1, 1, 1]
    now[0] += 3.1
    assert memory.counted("a", lambda: count(0.0)) == 2
    assert memory.counted("a", lambda: count(0.0)) == 3, "what costs nothing is always fresh"


def test_what_has_a_version_is_counted_once_for_each() -> None:
    memory, counted = Memory(), []

    def count() -> int:
        counted.append(0)
        return len(counted)

    assert [memory.counted("a", count, version=version) for version in (1, 1, 2, 2)] == [1, 1, 2, 2]


def test_everything_that_the_audit_log_may_say_has_words() -> None:
    """What is written by the name of a verb is of a rollout or an experiment, and listed with them."""
    said = set()
    for path in (Path(fleet.server.__file__).parent).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "append"
            ):
                texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
                said |= {
                    text
                    for text in texts
                    if isinstance(text, str) and re.fullmatch(r"[a-z-]+\.[a-z-]+", text)
                }
    assert len(said) > 30
    assert said - auditing.DID.keys() == set()
