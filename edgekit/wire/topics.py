"""MQTT topics under `edgekit/v1/devices/<device>/`."""

import re

ROOT = "edgekit/v1/devices"
DEVICE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")

DESIRED = "desired"
REPORTED = "reported"
STATUS = "status"
TELEMETRY = "telemetry"
ACK = "ack"
COMMAND = "command"
RESULT = "result"
# What devices send until the fleet acknowledges it; workers share it among them.
TAKEN_IN = (TELEMETRY, RESULT)


def of(device: str, leaf: str) -> str:
    """The topic of one device. `device` must match `DEVICE_ID`: no wildcard or slash can slip in."""
    if not DEVICE_ID.match(device):
        raise ValueError(
            f"device id {device!r}: letters, digits, '.', '_' and '-', at most 64, first a letter or digit"
        )
    return f"{ROOT}/{device}/{leaf}"


def of_all(leaf: str, *, group: str | None = None) -> str:
    """A subscription for every device; with `group` a shared one (MQTT 5, section 4.8.2: no retained messages)."""
    topic = f"{ROOT}/+/{leaf}"
    return f"$share/{group}/{topic}" if group else topic


def parse(topic: str) -> tuple[str, str] | None:
    """(device, leaf), or None for a topic that is not ours."""
    prefix, _, rest = topic.partition(f"{ROOT}/")
    device, _, leaf = rest.partition("/")
    if prefix or "/" in leaf or not leaf or not DEVICE_ID.match(device):
        return None
    return device, leaf
