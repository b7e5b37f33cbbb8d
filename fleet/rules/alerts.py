"""Alerts: what is wrong with the fleet, from the moment a person should know until it is over.

Pure: what is known of alerts, what is found wrong now and the time in; alerts as they are from now on, and what there is
to tell, out. Findings are levels: each look says again all that is wrong, and forgets nothing that it did not look at.

Always true
 1. An alert is told once when it opens and once when it ends, however often it is seen between.
 2. What lasts shorter than its kind's `raise_after_s` is never told; what is gone for less than `clear_after_s` has not
    ended: flapping is one alert.
 3. More than `FOLD_ABOVE` findings of one kind and topic are one alert, be they nine or ten thousand. It is told again
    only when it has grown tenfold, and not within an hour. When few have been left for a while it ends, and they go on
    as alerts of their own that were told with it.
 4. What was not looked at neither opens nor ends anything.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

Severity = Literal["warning", "critical"]
FOLD_ABOVE = 8
GROWN_FACTOR = 10
GROWN_AFTER_S = 3600.0
# Names that a sentence about many holds.
_NAMED = 5
_ALL = "*"
MAX_WORDS = 1000


@dataclass(frozen=True)
class Kind:
    """What all alerts of a kind share. `many` is how more than one of its subjects are called."""

    severity: Severity
    what_to_do: str
    many: str = "subjects"
    raise_after_s: float = 60.0
    clear_after_s: float = 300.0
    # Whether it is told when it is over.
    tells_end: bool = True


KINDS: Mapping[str, Kind] = {
    "rollout-stopped": Kind(
        "critical",
        "'edgekit fleet rollout status ID' says why; resume it, roll it back, or mend the release",
        "rollouts",
        raise_after_s=0.0,
        clear_after_s=0.0,
        tells_end=False,
    ),
    "rollout-waits": Kind(
        "warning",
        "'edgekit fleet rollout approve ID', or abort it",
        "rollouts",
        raise_after_s=0.0,
        clear_after_s=0.0,
        tells_end=False,
    ),
    "drift": Kind(
        "warning",
        "compare its inputs with those that it was trained on; retrain where the world has changed (docs/monitoring.md)",
        "releases",
        raise_after_s=0.0,
        clear_after_s=6 * 3600.0,
    ),
    "release-refused": Kind(
        "warning",
        "'edgekit fleet device explain DEVICE' says why; mend the release, or try again with 'edgekit fleet device retry'",
        "releases",
    ),
    "site-silent": Kind("critical", "look at the site's power and network", "sites"),
    "device-silent": Kind(
        "warning",
        "look at the board; 'edgekit fleet device decommission DEVICE' if it will not come back",
        "devices",
        raise_after_s=0.0,
    ),
    "device-condition": Kind(
        "warning",
        "'edgekit fleet device explain DEVICE', or 'edgekit agent doctor' on the board",
        "devices",
    ),
    "device-copied": Kind(
        "critical",
        "two boards speak with one identity: revoke it, and enrol each of them anew (docs/identity.md)",
        "devices",
        raise_after_s=0.0,
    ),
    "expiring": Kind(
        "warning",
        "renew it before then (docs/operations.md)",
        "keys, certificates and tokens",
        raise_after_s=0.0,
        clear_after_s=0.0,
    ),
    "storage": Kind(
        "critical", "make room, or move the fleet's home to a larger disk", "disks", raise_after_s=0.0
    ),
    "ingest-late": Kind(
        "critical",
        "the database does not take what devices say, or too slowly: look at the service's log (docs/scale.md)",
        raise_after_s=30.0,
    ),
    "queue-full": Kind("warning", "add workers (docs/scale.md)", raise_after_s=0.0),
    "broker-lost": Kind("critical", "look at the broker and the network to it", "brokers"),
    "no-workers": Kind("critical", "start one: edgekit fleet worker (docs/scale.md)"),
    "audit-broken": Kind(
        "critical", "'edgekit fleet audit verify' says what is missing or was changed", raise_after_s=0.0
    ),
    "target-failing": Kind(
        "warning", "'edgekit fleet alert-targets list' has the reason; 'test' tries it", "targets"
    ),
}


class Finding(msgspec.Struct, frozen=True):
    """Something is wrong now. `topic` keeps apart what is not to be told as one, such as conditions by their code.

    `about` is what a program wants to know of it besides; `count` is how many devices it is about.
    """

    kind: str
    subject: str
    words: str
    topic: str = ""
    severity: Severity | None = None
    count: int = 1
    about: dict[str, object] = {}


class Alert(msgspec.Struct, frozen=True):
    """`id` is 0 until it is stored. `since` and `ended` are wall time, what ends in `_at` is steady.

    It is pending until `opened_at`. `told` counts the subjects that it was told about with; `few_at` is since when so few
    are left of many that they need not be one.
    """

    kind: str
    subject: str
    words: str
    since: float
    found_at: float
    seen_at: float
    id: int = 0
    topic: str = ""
    severity: Severity = "warning"
    opened_at: float | None = None
    ended: float | None = None
    count: int = 1
    told: int = 0
    told_at: float | None = None
    few_at: float | None = None
    acknowledged_by: str = ""
    about: dict[str, object] = {}

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None and self.ended is None

    @property
    def is_of_many(self) -> bool:
        return self.subject.endswith(_ALL)


Key = tuple[str, str]


class Told(msgspec.Struct, frozen=True):
    """What there is to tell: alerts that opened, ended, or grew tenfold."""

    opened: tuple[Alert, ...] = ()
    ended: tuple[Alert, ...] = ()
    grown: tuple[Alert, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.opened or self.ended or self.grown)


class Step(msgspec.Struct, frozen=True):
    """`changed` are alerts to store, new ones with id 0; `forgotten` were pending, and never told."""

    changed: tuple[Alert, ...]
    forgotten: tuple[int, ...]
    told: Told


def step(
    known: Iterable[Alert],
    findings: Iterable[Finding],
    looked: Collection[str],
    *,
    wall: float,
    steady: float,
) -> Step:
    """One look. `known` are the alerts that have not ended; `looked` the kinds that this look was about."""
    book = _Book(known, wall, steady)
    groups: dict[tuple[str, str], dict[str, Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, finding.topic), {}).setdefault(finding.subject, finding)
    for (kind, topic), found in sorted(groups.items()):
        _group(book, kind, topic, found)
    for alert in list(book.alerts.values()):
        if alert.kind in looked:
            book.miss(alert)
    return book.done()


def _group(book: "_Book", kind: str, topic: str, found: dict[str, Finding]) -> None:
    """Findings of one kind and topic: each an alert of its own, or all one."""
    whole = (kind, f"{topic}{_ALL}")
    present = book.alerts.get(whole)
    if len(found) > FOLD_ABOVE or (present is not None and book.is_many_yet(present, len(found))):
        book.fold(whole, topic, found)
        return
    if present is not None:
        book.unfold(book.alerts[whole], found)
    for finding in found.values():
        book.see(finding)


class _Book:
    """The alerts of one step."""

    def __init__(self, known: Iterable[Alert], wall: float, steady: float) -> None:
        self.alerts: dict[Key, Alert] = {(a.kind, a.subject): a for a in known}
        self._before = dict(self.alerts)
        self._wall, self._steady = wall, steady
        self._seen: set[Key] = set()
        self._forgotten: list[int] = []
        self._closed: list[Alert] = []
        self._opened: list[Alert] = []
        self._ended: list[Alert] = []
        self._grown: list[Alert] = []

    def see(self, finding: Finding, *, found_at: float | None = None, has_been_told: bool = False) -> None:
        """A finding is there. With `has_been_told` its alert opens without a word."""
        key = (finding.kind, finding.subject)
        kind = KINDS[finding.kind]
        alert = self.alerts.get(key)
        if alert is None:
            start = self._steady if found_at is None else found_at
            since = self._wall - (self._steady - start)
            alert = Alert(finding.kind, finding.subject, "", since, start, self._steady, topic=finding.topic)
        alert = msgspec.structs.replace(
            alert,
            words=finding.words[:MAX_WORDS],
            severity=finding.severity or kind.severity,
            seen_at=self._steady,
            count=finding.count,
            about=finding.about,
        )
        is_due = self._steady - alert.found_at >= kind.raise_after_s
        if alert.opened_at is None and (is_due or has_been_told):
            alert = msgspec.structs.replace(
                alert, opened_at=self._steady, told=finding.count, told_at=self._steady
            )
            if not has_been_told:
                self._opened.append(alert)
        elif alert.is_open and alert.is_of_many and self._has_grown(alert):
            alert = msgspec.structs.replace(alert, told=alert.count, told_at=self._steady)
            self._grown.append(alert)
        self.alerts[key] = alert
        self._seen.add(key)

    def _has_grown(self, alert: Alert) -> bool:
        assert alert.told_at is not None
        is_late = self._steady - alert.told_at >= GROWN_AFTER_S
        return is_late and alert.count >= GROWN_FACTOR * max(1, alert.told)

    def fold(self, whole: Key, topic: str, found: dict[str, Finding]) -> None:
        """Many are one alert, as old as the oldest of them; their own go without a word."""
        kind, subject = whole
        own = [alert for name in found if (alert := self.alerts.get((kind, name))) is not None]
        pending = [alert for alert in own if alert.opened_at is None]
        about: dict[str, object] = {"subjects": sorted(found)[:100]}
        words = _of_many(kind, topic, found)
        worst: Severity | None = "critical" if any(f.severity == "critical" for f in found.values()) else None
        merged = Finding(kind, subject, words, topic, worst, len(found), about)
        self.see(merged, found_at=min((alert.found_at for alert in pending), default=None))
        # Those that were told stand until the one that takes them in is told.
        is_open = self.alerts[whole].is_open
        for alert in own:
            if is_open or alert.opened_at is None:
                self._drop(alert)
            else:
                self.see(found[alert.subject])

    def is_many_yet(self, whole: Alert, count: int) -> bool:
        """Whether they stay one; notes since when they are few."""
        few_at = None
        if count <= FOLD_ABOVE // 2:
            few_at = self._steady if whole.few_at is None else whole.few_at
        self.alerts[whole.kind, whole.subject] = msgspec.structs.replace(whole, few_at=few_at)
        return few_at is None or self._steady - few_at < KINDS[whole.kind].clear_after_s

    def unfold(self, whole: Alert, left: dict[str, Finding]) -> None:
        """Few are left of many: the one ends, and says who is left; they are told with it."""
        self.alerts.pop((whole.kind, whole.subject))
        if whole.opened_at is None:
            self._forgotten.append(whole.id)
            return
        names = ", ".join(sorted(left))
        words = f"{whole.words[: MAX_WORDS - 400]}; over but for {names}"[:MAX_WORDS]
        ended = msgspec.structs.replace(whole, ended=self._wall, words=words)
        self._closed.append(ended)
        self._ended.append(ended)
        for finding in left.values():
            self.see(finding, found_at=whole.found_at, has_been_told=True)

    def miss(self, alert: Alert) -> None:
        """Not found in a look that was about its kind."""
        key = (alert.kind, alert.subject)
        kind = KINDS[alert.kind]
        is_lasting = alert.opened_at is not None and self._steady - alert.seen_at < kind.clear_after_s
        if key in self._seen or is_lasting:
            return
        del self.alerts[key]
        if alert.opened_at is None:
            self._forgotten.append(alert.id)
            return
        ended = msgspec.structs.replace(alert, ended=self._wall)
        self._closed.append(ended)
        if kind.tells_end:
            self._ended.append(ended)

    def _drop(self, alert: Alert) -> None:
        """Without a word."""
        del self.alerts[alert.kind, alert.subject]
        if alert.opened_at is None:
            self._forgotten.append(alert.id)
        else:
            self._closed.append(msgspec.structs.replace(alert, ended=self._wall))

    def done(self) -> Step:
        changed = [a for key, a in self.alerts.items() if self._before.get(key) != a]
        forgotten = tuple(number for number in self._forgotten if number)
        return Step(
            (*self._closed, *changed), forgotten, Told(*map(tuple, (self._opened, self._ended, self._grown)))
        )


def _of_many(kind: str, topic: str, found: Mapping[str, Finding]) -> str:
    names = sorted(found)
    rest = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
    what = f" ({topic})" if topic else ""
    return f"{len(names)} {KINDS[kind].many}{what}: {shown}; the first: {found[names[0]].words}"
