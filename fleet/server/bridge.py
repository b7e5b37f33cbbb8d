"""Stage evidence in the form in which the gates take it until they are judged per device."""

from fleet.rules.cohorts import Cohorts, DeviceData, Past
from fleet.rules.evidence import Arm, DeviceEvidence, StageEvidence
from fleet.rules.rollout import Rollout


def cohorts_of(rollout: Rollout, evidence: StageEvidence) -> Cohorts:
    """Both cohorts of the open stage."""
    canary = [d for d in evidence.devices.values() if d.arm is Arm.CANARY]
    control = [d for d in evidence.devices.values() if d.arm is Arm.CONTROL]
    quiet = {d.device for d in (*canary, *control) if d.at_risk and evidence.silence_of(d) is not None}
    heard = {m.device for m in rollout.members.values() if m.notified_at is not None}
    at_risk = [d for d in control if d.at_risk]
    return Cohorts(
        canary=tuple(map(_data, canary)),
        control=tuple(map(_data, control)),
        silent=frozenset(quiet & heard),
        control_silent=sum(d.device in quiet for d in at_risk),
        control_total=len(at_risk),
    )


def _data(device: DeviceEvidence) -> DeviceData:
    past = device.past
    return DeviceData(
        device=device.device,
        profile=device.profile,
        windows=device.windows,
        warm_windows=device.warm_windows,
        requests=device.requests,
        errors=device.errors,
        infer_ms=device.sketch,
        past=Past(past.windows, past.requests, past.errors, past.infer_ms) if past is not None else None,
    )
