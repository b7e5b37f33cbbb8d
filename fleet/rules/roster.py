"""The members of a rollout, and who of them stands where, kept as they change: a step looks at who is concerned, not at
everybody.

Always true
 1. A roster is never changed: `|` and `without` make another, as with a plain dict of members.
 2. `waiting` have no order, `moving` have one and are not settled, `leaving` and `returning` are on their way back; each
    says what a look at all members would find.
 3. `since` names every device that may differ, or says that it does not know.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from fleet.rules.members import BAD, SETTLED, Member

# Changes that a line of rosters remembers; who asks less often looks at all members.
_REMEMBERED = 512
_Queue = list[tuple[str, str]]


class _Place(NamedTuple):
    """Where a member stands: which of the indices hold it."""

    waits: bool
    moves: bool
    leaves: bool
    returns: bool
    is_asked: bool
    is_there: bool


_NOWHERE = _Place(*[False] * 6)


def _place_of(member: Member) -> _Place:
    is_asked = member.order_counter > 0
    is_settled = member.state in SETTLED
    return _Place(
        waits=not is_asked,
        moves=is_asked and not is_settled,
        leaves=member.is_leaving,
        returns=member.is_returning,
        is_asked=is_asked,
        is_there=is_asked
        and (is_settled or member.is_online)
        and not (member.is_excused and member.state in BAD),
    )


class Roster(dict[str, Member]):
    """Members by device. Made of any mapping once (`of`), and then by what changes."""

    def __init__(self, members: Mapping[str, Member] = {}) -> None:
        super().__init__(members)
        self.moving: dict[str, Member] = {}
        self.leaving: dict[str, Member] = {}
        self.returning: dict[str, Member] = {}
        # Profile → how many of it have an order, and how many of those can show the release (connected or
        # settled, and no failure that the operator went on with).
        self.asked: dict[str, int] = {}
        self.there: dict[str, int] = {}
        # (profile, held) → (key, device) of those without an order, in the order in which devices move.
        self.queues: dict[tuple[str, bool], _Queue] = {}
        # Those of them that no other roster shares.
        self.own: set[tuple[str, bool]] = set()
        self.journal: list[Collection[str]] = []
        self.version = 0
        for member in self.values():
            place = _place_of(member)
            self._index(member, place)
            if place.waits:
                self.queues.setdefault((member.profile, member.is_held), []).append(
                    (member.key, member.device)
                )
        for queue in self.queues.values():
            queue.sort()

    @classmethod
    def of(cls, members: Mapping[str, Member]) -> "Roster":
        return members if isinstance(members, Roster) else cls(members)

    def __or__(self, changed: Mapping[str, Member]) -> "Roster":  # type: ignore[override]  # a roster of what it is made of
        made = self._copy(tuple(changed))
        for device, member in changed.items():
            made._replace(self.get(device), member)
            dict.__setitem__(made, device, member)
        return made

    def without(self, gone: Collection[str]) -> "Roster":
        """The roster without these devices."""
        made = self._copy(tuple(gone))
        for device in gone:
            member = dict.pop(made, device, None)
            if member is not None:
                made._replace(member, None)
        return made

    def waiting(self, profile: str, *, is_held: bool, until: str | None = None) -> Iterator[Member]:
        """Those of a profile without an order, in the order in which devices move; up to the key `until`."""
        queue = self.queues.get((profile, is_held), [])
        end = len(queue) if until is None else bisect_right(queue, (until, "\U0010ffff"))
        return (self[device] for _, device in queue[:end])

    def since(self, before: Mapping[str, Member]) -> Collection[str] | None:
        """Devices whose members may not be the same objects as in `before`; None if that is not known."""
        if before is self:
            return ()
        if not isinstance(before, Roster) or before.journal is not self.journal:
            return None
        if before.version > self.version:
            return None
        return {device for some in self.journal[before.version : self.version] for device in some}

    def changed_since(self, before: Mapping[str, Member]) -> Iterator[Member]:
        """Members that are new or another object than in `before`."""
        known = self.since(before)
        if known is None:
            return (member for device, member in self.items() if before.get(device) is not member)
        return (self[device] for device in known if device in self and before.get(device) is not self[device])

    def gone_since(self, before: Mapping[str, Member]) -> Collection[str]:
        """Devices of `before` that are members no more."""
        known = self.since(before)
        return (before.keys() if known is None else before.keys() & set(known)) - self.keys()

    def _copy(self, changed: Collection[str]) -> "Roster":
        """The same one once more, of the next version; a line that branches goes on with a journal of its own."""
        made = Roster.__new__(Roster)
        dict.__init__(made, self)
        made.moving, made.leaving, made.returning = (
            dict(self.moving),
            dict(self.leaving),
            dict(self.returning),
        )
        made.asked, made.there = dict(self.asked), dict(self.there)
        made.queues, made.own = dict(self.queues), set()
        is_newest = self.version == len(self.journal)
        if is_newest and len(self.journal) < _REMEMBERED:
            made.journal = self.journal
            made.journal.append(changed)
            made.version = self.version + 1
        else:
            made.journal, made.version = [], 0
        return made

    def _replace(self, old: Member | None, new: Member | None) -> None:
        was = _place_of(old) if old is not None else _NOWHERE
        now = _place_of(new) if new is not None else _NOWHERE
        if old is not None:
            self._forget(old, was)
        if new is not None:
            self._index(new, now)
        if old is not None and was.waits and not (new is not None and now.waits and _same_queue(old, new)):
            queue = self._own_queue(old)
            del queue[bisect_left(queue, (old.key, old.device))]
        if new is not None and now.waits and not (old is not None and was.waits and _same_queue(old, new)):
            insort(self._own_queue(new), (new.key, new.device))

    def _own_queue(self, member: Member) -> _Queue:
        """The queue of this roster alone, to be changed."""
        at = (member.profile, member.is_held)
        if at not in self.own:
            self.own.add(at)
            self.queues[at] = list(self.queues.get(at, []))
        return self.queues[at]

    def _index(self, member: Member, place: _Place) -> None:
        if place.moves:
            self.moving[member.device] = member
        if place.leaves:
            self.leaving[member.device] = member
        if place.returns:
            self.returning[member.device] = member
        if place.is_asked:
            self.asked[member.profile] = self.asked.get(member.profile, 0) + 1
        if place.is_there:
            self.there[member.profile] = self.there.get(member.profile, 0) + 1

    def _forget(self, member: Member, place: _Place) -> None:
        if place.moves:
            del self.moving[member.device]
        if place.leaves:
            del self.leaving[member.device]
        if place.returns:
            del self.returning[member.device]
        if place.is_asked:
            self.asked[member.profile] -= 1
        if place.is_there:
            self.there[member.profile] -= 1


def _same_queue(one: Member, other: Member) -> bool:
    return (one.profile, one.is_held, one.key) == (other.profile, other.is_held, other.key)
