"""What a device can run: the bundle of a release that is for it, or why it gets none.

Always true
 1. It is decided by what the device said of itself last, and by nothing else.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from edgekit import profile as profiles
from edgekit.errors import ProfileError
from edgekit.protocol import room
from fleet.rules import pace, stages, windows
from fleet.rules.members import Member, Part
from fleet.server.store import devices, releases
from fleet.server.store.devices import DeviceRow
from fleet.server.store.orders import DesiredRow
from fleet.server.store.releases import BundleRow

THERE = "is to run this bundle already"


class _Memory(msgspec.Struct, frozen=True):
    memory_mb: float | None = None


class Ability(msgspec.Struct, frozen=True):
    """What a device's self-description says that planning needs: a tenth of it, and as much less to read."""

    engines: dict[str, str]
    bundle_format: int
    free_bytes: int
    free_memory_mb: float | None = None
    overlap: bool = True
    refused: str = ""
    deployments: dict[str, _Memory] = {}
    labels: dict[str, str] = {}


@dataclass(frozen=True)
class Choice:
    """A device's bundle, or why it gets none. `refused` is what it said it had refused."""

    device: DeviceRow
    bundle: BundleRow | None
    reason: str = ""
    refused: str = ""


@dataclass(frozen=True)
class Side:
    """What one of the deployments that move together is to get: a bundle of these, by profile."""

    deployment: str
    bundles: dict[str, BundleRow]


@dataclass(frozen=True)
class Together:
    """A device's bundles, one of each side, or none and why. `refused` is what it said it had refused."""

    device: DeviceRow
    bundles: tuple[BundleRow, ...]
    reason: str = ""
    refused: str = ""


Present = Mapping[tuple[str, str], DesiredRow]
_ABILITY = msgspec.json.Decoder(Ability)


def choose_all(row: DeviceRow, sides: Sequence[Side], present: Present) -> Together:
    """A bundle of each, if the device can run all of them at once; otherwise why not, and which. Of several some may be
    there already.
    """
    if reason := next((told for side in sides if (told := _unfit(row, side.deployment))), None):
        return Together(row, (), reason)
    bundles: list[BundleRow] = []
    coming: list[BundleRow] = []
    refused = ""
    for side in sides:
        choice = choose(row, side.bundles, side.deployment, present.get((row.id, side.deployment)), coming)
        bundle = bundle_for(row, side.bundles) if choice.reason == THERE else choice.bundle
        if bundle is None:
            which = f"{side.deployment}: " if len(sides) > 1 else ""
            return Together(row, (), f"{which}{choice.reason}")
        bundles.append(bundle)
        if choice.bundle is not None:
            coming.append(bundle)
            refused = choice.refused
    return Together(row, tuple(bundles), refused=refused) if coming else Together(row, (), THERE)


def choose(
    row: DeviceRow,
    bundles: dict[str, BundleRow],
    deployment: str,
    present: DesiredRow | None,
    coming: Sequence[BundleRow] = (),
) -> Choice:
    """The most specific bundle of the device's profile chain that it can run, beside others that come with it."""
    bundle = bundle_for(row, bundles)
    reason, refused = _unfit(row, deployment), ""
    if reason is None and bundle is None:
        reason = f"no bundle for profile {row.profile} (there is {', '.join(sorted(bundles)) or 'none that is not blocked'})"
    if reason is None and bundle is not None:
        ability = _ABILITY.decode(row.reported)
        reason, refused = _cannot_run(ability, bundle, deployment, coming), ability.refused
        if present is not None and present.sha256 == bundle.sha256:
            reason = THERE
    return Choice(row, bundle, refused=refused) if reason is None else Choice(row, None, reason)


def bundle_for(row: DeviceRow, bundles: dict[str, BundleRow]) -> BundleRow | None:
    """The most specific one of the device's profile chain."""
    return next((bundles[profile] for profile in chain_of(row.profile) if profile in bundles), None)


def _unfit(row: DeviceRow, deployment: str) -> str | None:
    """Why this device takes part in no rollout of this deployment."""
    if row.enrolment == 0:
        return "has not enrolled yet"
    if row.is_duplicate:
        return "is a duplicate: two machines speak under its name; enrol it again"
    if deployment not in devices.deployments_of(row):
        return f"is not enrolled for deployment {deployment}"
    return None if row.reported else "has never reported"


def _cannot_run(
    reported: Ability, bundle: BundleRow, deployment: str, coming: Sequence[BundleRow]
) -> str | None:
    """Why it could not run this bundle, by what it reported; `coming` takes room at the same time."""
    if reported.bundle_format < bundle.format:
        return f"reads bundle format {reported.bundle_format}, this is {bundle.format}; update its agent"
    engine = reported.engines.get(bundle.engine)
    if engine is None:
        return f"has no engine {bundle.engine}"
    if not _in_range(engine, bundle.engine_versions):
        return f"{bundle.engine} {engine} is outside {bundle.engine_versions}"
    if told := room.refusal(reported.free_bytes, sum(one.length for one in (bundle, *coming))):
        return told
    present = reported.deployments.get(deployment)
    running_mb = (present.memory_mb if present is not None else None) or 0.0
    others_mb = sum(one.peak_memory_mb or 0.0 for one in coming)
    peak_mb = bundle.peak_memory_mb + others_mb if bundle.peak_memory_mb is not None else None
    told = room.memory_refusal(reported.free_memory_mb, peak_mb, running_mb, overlap=reported.overlap)
    return told or None


def member_of(
    choice: Together, rollout: str, had: Sequence[DesiredRow | None], held: frozenset[str], now: datetime
) -> Member:
    """The member as it starts; what the device said before is noted, so that it is not taken for an answer. `had` is
    what each side is ordered so far.
    """
    row = choice.device
    labels = devices.labels_of(row)
    first, *beside = [_part(bundle, was) for bundle, was in zip(choice.bundles, had, strict=True)]
    return Member(
        device=row.id,
        profile=choice.bundles[0].profile,
        key=stages.key(rollout, row.id),
        target=first.target,
        previous=first.previous,
        previous_title=first.previous_title,
        site=labels.get(pace.SITE, "")[:64],
        zone=zone_of(row),
        is_held=row.id in held,
        online_since=now if row.is_online else None,
        seen=(row.enrolment, row.incarnation, row.reported_seq),
        refused_before=choice.refused,
        beside=tuple(beside),
    )


def _part(bundle: BundleRow, had: DesiredRow | None) -> Part:
    if had is None:
        return Part(bundle.sha256, None, "no model")
    return Part(bundle.sha256, had.sha256, releases.title(had.name, had.version))


def zone_of(row: DeviceRow) -> str:
    """The device's time zone, as its operator says, or else as it does itself; "" where neither names one."""
    zone = devices.labels_of(row).get(pace.ZONE)
    if not zone and row.reported:
        zone = _ABILITY.decode(row.reported).labels.get(pace.ZONE)
    return zone if zone and windows.zone(zone) is not None else ""


@functools.lru_cache(maxsize=256)
def chain_of(profile: str) -> tuple[str, ...]:
    """The profiles whose bundles a device of this one can run, the most specific first."""
    try:
        return profiles.load(profile).chain
    except ProfileError:
        return (profile,)  # a profile file of the user's own, known on the device only


@functools.lru_cache(maxsize=1024)
def _in_range(version: str, versions: str) -> bool:
    try:
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
