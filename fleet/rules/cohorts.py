"""How the devices that were ordered to move have fared, counted from a stage's evidence."""

from collections.abc import Mapping

import msgspec

from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence

FIRST_DEVICES = 5


class Tally(msgspec.Struct, frozen=True):
    """`asked` have an order and can be reached, `heard` accepted it, `failures` did not install or left the release again while they could be heard,
    `moving` are reachable and not there yet; `reached` and `not_reached` count by profile. `untried` profiles have
    devices waiting, and nobody of theirs in the stage either reached the release or failed to. `silent` are silent now, `fell_silent` are the moments at which devices first
    did. Devices whose failure the operator excused are in none of them.
    """

    asked: int
    heard: int
    settled: int
    failures: frozenset[str]
    silent: frozenset[str]
    fell_silent: tuple[float, ...]
    control_silent: int
    control_fell_silent: tuple[float, ...]
    first_failures: int
    reached: Mapping[str, int]
    not_reached: Mapping[str, int]
    moving: int
    untried: frozenset[str]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def lost(self) -> frozenset[str]:
        return self.failures | self.silent


def tally_of(data: StageEvidence) -> Tally:
    ordered = [d for d in data.devices.values() if d.arm is Arm.CANARY and not d.is_excused]
    control = [d for d in data.devices.values() if d.arm is Arm.CONTROL]
    heard = [d for d in ordered if d.notified_at is not None or d.installed is False]
    # One that went away in the middle counts as silent, beside the silence of control, and not as a failure.
    failures = [d for d in heard if d.installed is False and data.silent_s(d) <= d.patience_s]
    tried = {d.profile for d in heard if d.installed is not None}
    waiting = {d.profile for d in control if d.is_online}
    canary_silences = _silences(data, ordered)
    control_silences = _silences(data, control)
    return Tally(
        asked=sum(1 for d in ordered if d.is_online or d.notified_at is not None or d.installed is False),
        heard=len(heard),
        settled=sum(1 for d in heard if d.installed) + len(failures),
        failures=frozenset(d.device for d in failures),
        silent=frozenset(d.device for d in ordered if _is_silent(data, d)),
        fell_silent=canary_silences,
        control_silent=sum(1 for d in control if _is_silent(data, d)),
        control_fell_silent=control_silences,
        first_failures=sum(1 for d in failures if d.order is not None and d.order < FIRST_DEVICES),
        reached=_by_profile([d for d in heard if d.installed]),
        not_reached=_by_profile(failures),
        moving=sum(1 for d in ordered if d.installed is None and (d.is_online or d.notified_at is not None)),
        untried=frozenset(({d.profile for d in ordered} - tried) & waiting),
    )


def _is_silent(data: StageEvidence, device: DeviceEvidence) -> bool:
    return device.at_risk and data.silent_s(device) > device.patience_s


def _silences(data: StageEvidence, devices: list[DeviceEvidence]) -> tuple[float, ...]:
    moments = (data.silence_of(device) for device in devices if device.at_risk)
    return tuple(moment for moment in moments if moment is not None)


def _by_profile(devices: list[DeviceEvidence]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for device in devices:
        counts[device.profile] = counts.get(device.profile, 0) + 1
    return counts
