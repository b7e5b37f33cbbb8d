"""What is wrong with the fleet now, from facts that the service gathers: one function for each thing that can be.

Pure. Times named `_at` are steady; those that people are told are wall time.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from fleet.rules.alerts import Finding
from fleet.rules.rollout import Rollout, Status
from fleet.rules.text import show_duration

_NAMED = 5
# Warned of this long before; a week before it is critical.
CRITICAL_S = 3 * 86_400.0
LOW_SHARE = 0.05
LOW_BYTES = 1 << 30
LATE_S = 30.0
# How long a rollout that went back by itself is shown as an alert.
STOPPED_SHOWN_S = 86_400.0
# A device of a site that is heard, or of none.
DEVICE_SILENT_S = 3600.0


class Stopped(msgspec.Struct, frozen=True):
    """A rollout, without its members, that stands or turned back; `by` is who did it."""

    rollout: Rollout
    by: str


class Site(msgspec.Struct, frozen=True):
    """The devices with one label `site`: all that were ever heard, those that are silent, and when the last was heard
    (wall). `name` is empty for those without the label.
    """

    name: str
    devices: int
    silent: int
    last_heard: float


class Silent(msgspec.Struct, frozen=True):
    device: str
    site: str
    last_heard: float


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """What a device reports of itself: a condition by its code, or with `digest` that it does not run that bundle."""

    code: str
    detail: str
    deployment: str = ""
    digest: str = ""


class Expiry(msgspec.Struct, frozen=True):
    """`at` is wall time; `warn_s` is how long before it a person is to know."""

    subject: str
    at: float
    warn_s: float
    words: str = ""


class Drifted(msgspec.Struct, frozen=True):
    """A release whose inputs drifted at `devices` of `measured`; `sites` counts them. `level` is their median index, `moved`
    what moved there (`SECTION/LABEL`), at most devices first.
    """

    release: str
    deployment: str
    digests: tuple[str, ...]
    devices: tuple[str, ...]
    measured: int
    sites: dict[str, int]
    level: float
    since: float
    moved: tuple[str, ...] = ()


REFUSED = "release-refused"


def moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def of_rollouts(rollouts: Iterable[Stopped], steady: float) -> list[Finding]:
    """Those that a gate or another rule of the fleet's stopped, and those that wait for a word."""
    found: list[Finding] = []
    for one in rollouts:
        rollout, spec = one.rollout, one.rollout.spec
        what = f"{rollout.label} ({spec.name}@{spec.version} to {spec.selector})"
        if rollout.awaits is not None and rollout.status in (Status.RUNNING, Status.PAUSED):
            found.append(
                Finding("rollout-waits", rollout.label, f"{what}: {rollout.reason or 'waits for approval'}")
            )
        turned = rollout.turned_at.timestamp() if rollout.turned_at else steady
        is_old = rollout.status in (Status.ROLLED_BACK, Status.ABORTED) and steady - turned > STOPPED_SHOWN_S
        if rollout.status not in _STOPPED or one.by != "fleet" or is_old:
            continue
        words = f"{what} {_STOPPED[rollout.status]}: {rollout.reason}"
        severity: Any = "warning" if rollout.status is Status.PAUSED else "critical"
        about: dict[str, object] = {"status": rollout.status.value, "stage": rollout.stage + 1}
        found.append(Finding("rollout-stopped", rollout.label, words, severity=severity, about=about))
    return found


_STOPPED = {
    Status.PAUSED: "was paused by the fleet",
    Status.ROLLING_BACK: "goes back",
    Status.ROLLED_BACK: "went back",
    Status.ABORTING: "is being aborted by the fleet",
    Status.ABORTED: "was aborted by the fleet",
}


def of_sites(sites: Iterable[Site]) -> list[Finding]:
    """Sites none of whose devices is heard."""
    return [
        Finding(
            "site-silent",
            site.name,
            f"site {site.name}: none of its {site.devices} devices was heard since {moment(site.last_heard)}"
            if site.devices > 1
            else f"site {site.name}: its only device was not heard since {moment(site.last_heard)}",
            count=site.devices,
        )
        for site in sites
        if site.name and site.silent == site.devices
    ]


def of_silent(devices: Iterable[Silent], silent_sites: frozenset[str]) -> list[Finding]:
    """Devices that are not heard, where not the whole site is silent."""
    return [
        Finding(
            "device-silent",
            one.device,
            f"{one.device}{f' at site {one.site}' if one.site else ''} was not heard since {moment(one.last_heard)}",
        )
        for one in devices
        if one.site not in silent_sites
    ]


def of_troubles(devices: Iterable[tuple[str, Sequence[Trouble]]], titles: dict[str, str]) -> list[Finding]:
    """Conditions, each of a device; and releases that devices refuse, each a finding for all of them.

    `titles` has the release of each digest.
    """
    found: list[Finding] = []
    refused: dict[str, list[tuple[str, Trouble]]] = {}
    for device, troubles in devices:
        for one in troubles:
            if one.code == REFUSED:
                refused.setdefault(titles.get(one.digest, one.digest[:12]), []).append((device, one))
                continue
            where = f" ({one.deployment})" if one.deployment else ""
            subject = f"{device}: {one.code}{where}"
            words = f"{device} reports {one.code}{where}: {one.detail}"
            about: dict[str, object] = {"device": device, "code": one.code}
            found.append(Finding("device-condition", subject, words, topic=one.code, about=about))
    for release, those in refused.items():
        names = sorted({device for device, _ in those})
        shown = ", ".join(names[:_NAMED]) + (
            f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        )
        of_how_many = "1 device does" if len(names) == 1 else f"{len(names)} devices do"
        words = f"{of_how_many} not run {release} ({shown}): {those[0][1].detail}"
        found.append(Finding(REFUSED, release, words, count=len(names), about={"devices": names[:100]}))
    return found


def of_copies(devices: Iterable[str]) -> list[Finding]:
    return [
        Finding("device-copied", device, f"two boards speak as {device}: one of them is a copy")
        for device in devices
    ]


def of_expiries(expiries: Iterable[Expiry], wall: float) -> list[Finding]:
    """What runs out soon, or has."""
    found = []
    for one in expiries:
        left = one.at - wall
        if left > one.warn_s:
            continue
        when = (
            f"ran out on {moment(one.at)}"
            if left <= 0
            else f"runs out in {show_duration(left)}, on {moment(one.at)}"
        )
        words = f"{one.subject} {when}" + (f"; {one.words}" if one.words else "")
        severity: Any = "critical" if left <= CRITICAL_S else "warning"
        found.append(Finding("expiring", one.subject, words, severity=severity))
    return found


def of_disk(place: str, free: int, total: int) -> list[Finding]:
    """A disk with less than a twentieth, or a gigabyte, left: whichever is less."""
    if free >= min(LOW_SHARE * total, LOW_BYTES):
        return []
    words = f"{place}: {free / 1e6:.0f} MB of {total / 1e9:.1f} GB are left"
    return [Finding("storage", place, words, about={"free_bytes": free})]


def of_ingest(late_since: float | None, steady: float) -> list[Finding]:
    """`late_since` is when the database began to refuse."""
    if late_since is None or steady - late_since < LATE_S:
        return []
    words = f"the database has refused what devices say for {show_duration(steady - late_since)}"
    return [Finding("ingest-late", "database", words)]


def of_queue(overflowed: int) -> list[Finding]:
    """`overflowed` are reports that were left out in the last minute."""
    if not overflowed:
        return []
    words = (
        f"{overflowed} reports were left out in a minute: the service cannot follow; devices send them again"
    )
    return [Finding("queue-full", "reports", words)]


def of_drift(drifted: Iterable[Drifted]) -> list[Finding]:
    """A finding for each release; `about` is what a retraining needs to know."""
    found = []
    for one in drifted:
        sites = ", ".join(
            f"{name or 'no site'} {count}" for name, count in sorted(one.sites.items())[:_NAMED]
        )
        of_how_many = (
            f"{len(one.devices)} of {one.measured} devices" if one.measured > 1 else "its only device"
        )
        words = (
            f"{_what_moved(one.moved)} of {one.release} drifted at {of_how_many} ({sites}): index {one.level:.2f}, "
            f"first seen {moment(one.since)}{_and_outputs(one.moved)}"
        )
        about: dict[str, object] = {
            "release": one.release,
            "deployment": one.deployment,
            "digests": list(one.digests),
            "devices": list(one.devices[:100]),
            "device_count": len(one.devices),
            "measured": one.measured,
            "sites": one.sites,
            "level": one.level,
            "since": one.since,
            "moved": list(one.moved),
        }
        is_own_slot = one.release.partition("@")[0] == one.deployment
        subject = one.release if is_own_slot else f"{one.release} as {one.deployment}"
        found.append(Finding("drift", subject, words, count=len(one.devices), about=about))
    return found


def _named(moved: Iterable[str], section: str) -> list[str]:
    return [label.removeprefix(section) for label in moved if label.startswith(section)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ("" if len(names) == 1 else "s") + " " + ", ".join(names[:_NAMED]) + more


def _what_moved(moved: Iterable[str]) -> str:
    inputs = _named(moved, "inputs/")
    return f"input{_listed(inputs)}" if inputs else "the inputs"


def _and_outputs(moved: Iterable[str]) -> str:
    outputs = _named(moved, "outputs/")
    return f"; so did output{_listed(outputs)}" if outputs else ""
