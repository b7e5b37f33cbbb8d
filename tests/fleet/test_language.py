"""What operators type: selectors, gates, stages, durations; and refusals that point at the place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from fleet.rules import gates, selectors, stages
from fleet.rules.text import duration, show_duration

ROOF = {"site": "roof", "profile": "raspberry-pi-5", "device": "r1"}
LAB = {"site": "lab", "profile": "x86-64-v3", "device": "l1", "beta": "yes"}


@pytest.mark.parametrize(
    ("text", "roof", "lab"),
    [
        ("all", True, True),
        ("*", True, True),
        ("site=roof", True, False),
        ("site != roof", False, True),
        ("beta != yes", True, False),
        ("beta=yes", False, True),
        ("site=roof and profile=raspberry-pi-5", True, False),
        ("site=roof or site=lab", True, True),
        ("not site=roof and profile=x86-64-v3", False, True),
        ("not (site=roof or site=attic)", False, True),
        ("site in (roof, attic)", True, False),
        ("site=lab or site=roof and profile=none", False, True),
        ("device=l1", False, True),
    ],
)
def test_selectors(text: str, roof: bool, lab: bool) -> None:
    selector = selectors.parse(text)
    assert (selector.matches(ROOF), selector.matches(LAB)) == (roof, lab)


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "expected a label", 0),
        ("site", "expected '=', '!=' or 'in'", 4),
        ("site=", "expected a value", 5),
        ("site=lab site=roof", "expected 'and', 'or' or the end", 9),
        ("(site=lab", "expected ')'", 9),
        ("site=lab and", "expected a label", 12),
        ("site in lab", "expected '('", 8),
        ("site=lab; rm", "';' means nothing here", 8),
        ("and=x", "expected a label", 0),
    ],
)
def test_a_selector_that_cannot_be_read_is_refused_at_the_place(text: str, message: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        selectors.parse(text)
    first, shown, caret = str(caught.value).split("\n")
    assert message in first
    assert shown == f"  {text}"
    assert caret == f"  {' ' * column}^"


def test_an_unknown_label_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        UsageError, match=r"no device has the label 'sight'; known labels are device, profile, site"
    ):
        selectors.check_names(selectors.parse("sight=lab"), ["site", "profile", "device"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("error_rate < 1%", "errors per accepted request below 1 %, judged on at least 100 requests"),
        (
            "error_rate<0.5% min 50 requests",
            "errors per accepted request below 0.5 %, judged on at least 50 requests",
        ),
        (
            "latency_p95 <= 5ms",
            "the 95th percentile of engine time at most 5 ms, judged on at least 100 requests",
        ),
        (
            "latency_p99 < 5 ms min 3 windows",
            "the 99th percentile of engine time below 5 ms, judged on at least 3 windows",
        ),
        (
            "install_failures < 5% min 20 devices",
            "devices that failed to install below 5 %, judged on at least 20 devices",
        ),
        (
            "drift_psi < 0.2",
            "the drift of inputs (PSI against the reference) below 0.2, judged on at least 3 windows",
        ),
        ("metric:sold >= 0.8", "sold at least 0.8, judged on at least 3 windows"),
        (
            "error_rate <= control + 0.5%",
            (
                "errors per accepted request at most 0.5 points above that of devices still on the old release, device by "
                "device, each against its own past"
            ),
        ),
        (
            "metric:sold >= 0.95 * before",
            (
                "sold at least 0.95 times what the same devices had before (the hour may confound this: it pauses, and "
                "never rolls back)"
            ),
        ),
        ("lost <= 10%", "devices lost to the move at most 10 %, judged on at least 1 devices"),
    ],
)
def test_a_gate_says_in_words_what_it_judges(text: str, words: str) -> None:
    assert gates.parse(text).words == words


def test_a_gate_against_control_says_that_devices_are_compared_with_their_own_past() -> None:
    gate = gates.parse("latency_p95 <= 1.1 * control")
    assert (gate.is_relative, gate.limit) == (True, 1.1)
    assert "1.1 times that of devices still on the old release" in gate.words


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("", "expected a metric", 0),
        ("eror_rate < 1%", "unknown metric 'eror_rate'; known are error_rate", 0),
        ("error_rate > 1%", "expected '<' or '<='", 11),
        ("error_rate < 1", "expected '%'", 14),
        ("error_rate < 101%", "a share is at most 100%", 13),
        ("error_rate < one%", "expected a number", 13),
        ("latency_p95 <= 5", "expected 'ms'", 16),
        ("latency_p95 <= 5s", "expected 'ms'", 16),
        ("latency_p95 <= control", "give control some room", 15),
        ("latency_p95 <= 0.9 * control", "give control some room", 15),
        ("lost <= 1.1 * control", "cannot be compared with control", 8),
        ("latency_p95 <= 1.1 * controls", "expected 'control' or 'before'", 21),
        ("latency_mean <= 5ms", "can only be compared", 16),
        ("latency_p95 <= control + 5%", "give control some room", 15),
        ("error_rate <= control + 5", "expected points of a share", 24),
        ("error_rate <= control + 0%", "expected points of a share", 24),
        ("error_rate >= 1%", "expected '<' or '<='", 11),
        ("metric: >= 1", "':' means nothing here", 6),
        ("metric:sold == 1", "expected '<' or '<=' or '>' or '>='", 12),
        ("metric:sold >= 1.1 * before", "give control some room", 15),
        ("metric:sold >= control", "give control some room", 15),
        ("latency_p95 <= 1.1 * control min 5 windows", "decides itself", 33),
        ("error_rate < 1% min 5 apples", "expected 'requests', 'windows' or 'devices'", 22),
        ("error_rate < 1% min 0 requests", "at least 1", 20),
        ("install_failures < 5% min 20 requests", "this metric counts devices", 29),
        ("error_rate < 1% or so", "expected the end", 16),
        ("error_rate < 1% # x", "'#' means nothing here", 16),
    ],
)
def test_a_gate_that_cannot_be_read_is_refused_at_the_place(text: str, message: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        gates.parse(text)
    first, _, caret = str(caught.value).split("\n")
    assert message in first
    assert caret == f"  {' ' * column}^"


@given(st.text(max_size=40))
def test_no_text_is_half_understood(text: str) -> None:
    for parse in (gates.parse, selectors.parse):
        try:
            parse(text)
        except UsageError as error:
            assert "^" in str(error) or "label" in str(error)  # noqa: PT017  # any other error is a failure


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6s", 6), ("30m", 1800), ("2d", 172_800), ("1.5h", 5400), ("250ms", 0.25), ("1w", 604_800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text, "soak") == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5s", "1 h 5 m", "5x"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"soak: .* is no duration"):
        duration(text, "soak")


def test_durations_are_shown_in_their_largest_unit() -> None:
    assert [show_duration(s) for s in (0.25, 6, 1800, 5400, 172_800)] == ["250ms", "6s", "30m", "1.5h", "2d"]


@pytest.mark.parametrize(
    ("text", "eligible", "shares"),
    [
        ("1%,10%,100%", 1000, [0.01, 0.1, 1.0]),
        ("1,100%", 4, [0.25, 1.0]),
        ("1,10,100%", 10, [0.1, 1.0]),
        ("100%", 3, [1.0]),
        ("", 4, [0.25, 1.0]),
        ("", 1000, [0.024, 0.1, 0.5, 1.0]),
        ("", 100_000, [0.01, 0.1, 0.5, 1.0]),
    ],
)
def test_stages(text: str, eligible: int, shares: list[float]) -> None:
    assert [stage.share for stage in stages.parse(text, eligible)] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10%", "must end with 100%"),
        ("10%,5%,100%", "must grow"),
        ("10%,10%,100%", "must grow"),
        ("0%,100%", "above 0"),
        ("0,100%", "above 0"),
        ("ten,100%", "is no stage"),
        ("200%", "at most at 100%"),
        (",", "is no stage"),
    ],
)
def test_stages_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stages.parse(text, 100)


@given(st.integers(1, 60), st.integers(1, 4), st.lists(st.floats(0.01, 0.99), max_size=4, unique=True))
def test_a_stage_takes_its_share_of_every_profile_and_only_grows(
    count: int, kinds: int, shares: list[float]
) -> None:
    keys: dict[str, list[str]] = {}
    for number in range(count):
        keys.setdefault(f"p{number % kinds}", []).append(stages.key("r1", str(number)))
    taken_before: set[str] = set()
    for share in [*sorted(shares), 1.0]:
        limits = stages.thresholds(stages.Stage(share, ""), keys)
        taken = {key for profile, own in keys.items() for key in own if key <= limits[profile]}
        for own in keys.values():
            expected = len(own) if share == 1.0 else max(1, -int(-share * len(own) // 1))
            assert len(taken & set(own)) == expected
        assert taken_before <= taken
        taken_before = taken


def test_held_devices_are_the_last_in_order_and_leave_every_profile_a_mover() -> None:
    profiles = {f"d{n}": "rare" if n == 0 else "common" for n in range(20)}
    held = stages.choose_held(profiles, "r1", 6)
    assert len(held) == 6
    assert "d0" not in held
    common = sorted((d for d in profiles if d != "d0"), key=lambda d: stages.key("r1", d))
    assert held == set(common[-6:])


@pytest.mark.parametrize(
    ("text", "eligible", "count"),
    [("", 4, 0), ("", 60, 10), ("", 1000, 20), ("0", 1000, 0), ("5", 8, 5), ("10%", 95, 10)],
)
def test_holdback(text: str, eligible: int, count: int) -> None:
    assert stages.parse_holdback(text, eligible) == count


def test_a_holdback_of_everyone_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves none to move"):
        stages.parse_holdback("100%", 4)
