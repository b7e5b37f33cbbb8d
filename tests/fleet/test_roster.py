"""The roster's indices say what a look at all members would find, whatever changed before."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from edgekit.wire.states import FleetState
from fleet.rules.members import SETTLED, Member
from fleet.rules.roster import Roster

T = datetime(2026, 1, 1, tzinfo=UTC)

members = st.builds(
    Member,
    device=st.sampled_from([f"d{n}" for n in range(6)]),
    profile=st.sampled_from(["p0", "p1"]),
    key=st.sampled_from(["a", "b", "c", "d"]),
    target=st.just("b" * 64),
    previous=st.none(),
    previous_title=st.just(""),
    is_held=st.booleans(),
    state=st.sampled_from(list(FleetState)),
    order_counter=st.integers(0, 1),
    online_since=st.sampled_from([None, T]),
    is_leaving=st.booleans(),
    is_returning=st.booleans(),
)
some = st.lists(members, max_size=4).map(lambda found: {m.device: m for m in found})
steps = st.lists(
    st.tuples(some, st.sets(st.sampled_from([f"d{n}" for n in range(6)]), max_size=2)), max_size=8
)


def check(roster: Roster) -> None:
    everyone = list(roster.values())
    asked = [m for m in everyone if m.order_counter]
    assert roster.moving == {m.device: m for m in asked if m.state not in SETTLED}
    assert roster.leaving == {m.device: m for m in everyone if m.is_leaving}
    assert roster.returning == {m.device: m for m in everyone if m.is_returning}
    for profile in ("p0", "p1"):
        mine = [m for m in asked if m.profile == profile]
        assert roster.asked.get(profile, 0) == len(mine)
        there = sum(m.state in SETTLED or m.is_online for m in mine)
        assert roster.there.get(profile, 0) == there
        for is_held in (False, True):
            waits = [m for m in everyone if (m.profile, m.is_held, m.order_counter) == (profile, is_held, 0)]
            waits.sort(key=lambda m: (m.key, m.device))
            assert list(roster.waiting(profile, is_held=is_held)) == waits
            early = [m for m in waits if m.key <= "b"]
            assert list(roster.waiting(profile, is_held=is_held, until="b")) == early


@given(some, steps)
def test_indices_are_those_of_a_roster_made_afresh(first: dict[str, Member], changes: list[tuple]) -> None:
    rosters = [Roster(first)]
    for changed, gone in changes:
        rosters.append((rosters[-1] | changed).without(gone))
    plain = dict(first)
    for at, (changed, gone) in enumerate(changes):
        plain = {device: m for device, m in (plain | changed).items() if device not in gone}
        assert rosters[at + 1] == plain
    for roster in rosters:
        check(roster)


@given(some, steps, some)
def test_what_changed_is_what_a_comparison_finds_also_after_a_branch(
    first: dict[str, Member], changes: list[tuple], other: dict[str, Member]
) -> None:
    rosters = [Roster(first)]
    for changed, gone in changes:
        rosters.append(rosters[-1] | changed)
        rosters.append(rosters[-1].without(gone))
        rosters.append(rosters[0] | other)
    for before in rosters:
        for after in rosters:
            found = {m.device for m in after.changed_since(before)}
            assert found == {device for device, m in after.items() if before.get(device) is not m}
