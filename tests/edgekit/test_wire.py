"""Topics and messages: tolerant of what is added later, strict about everything else."""

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import MessageError
from edgekit.sketch import Sketch
from edgekit.wire import messages, topics
from edgekit.wire.messages import Ack, Boot, DeploymentWindow, Report, Status

BOOT = Boot(1, 2, "0123456789abcdef")
REPORT = Report(
    "board-1", BOOT, 7, datetime(2026, 1, 1, tzinfo=UTC), 60.0, True,
    (DeploymentWindow("digits", None, requests=3, infer_ms=Sketch({-3: 2, 5: 1})),),
)  # fmt: skip


def test_a_message_survives_the_wire() -> None:
    assert messages.decode(messages.encode(REPORT), Report) == REPORT


def test_a_field_of_a_later_version_is_ignored() -> None:
    later = {**json.loads(messages.encode(REPORT)), "colour": "blue"}
    assert messages.decode(json.dumps(later).encode(), Report) == REPORT


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2 is not known"),
        ({"seq": -1}, ">= 0"),
        ({"boot": {"enrolment": 1, "incarnation": 1, "nonce": "x"}}, "nonce"),
        ({"started": "yesterday"}, "started"),
    ],
)
def test_refuses(change: dict[str, object], says: str) -> None:
    data = json.dumps({**json.loads(messages.encode(REPORT)), **change}).encode()
    with pytest.raises(MessageError, match=says):
        messages.decode(data, Report)


def test_refuses_what_is_too_large_without_parsing_it() -> None:
    with pytest.raises(MessageError, match="at most"):
        messages.decode(b"[" * (messages.MAX_MESSAGE_BYTES + 1), Ack)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_our_error(data: bytes) -> None:
    try:
        messages.decode(data, Status)
    except MessageError:
        return


def test_messages_order_by_enrolment_then_incarnation() -> None:
    assert Boot(1, 9, "0" * 16) < Boot(2, 1, "0" * 16) < Boot(2, 2, "0" * 16)


def test_a_topic_names_its_device_and_leaf() -> None:
    assert topics.parse(topics.of("board-1", topics.ACK)) == ("board-1", "ack")
    assert topics.of_all(topics.TELEMETRY, group="fleet") == "$share/fleet/edgekit/v1/devices/+/telemetry"


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "-a", "a" * 65])
def test_no_device_id_can_reach_another_topic(device: str) -> None:
    with pytest.raises(ValueError, match="device id"):
        topics.of(device, topics.ACK)


@pytest.mark.parametrize(
    "topic", ["other", "edgekit/v1/devices/a", "edgekit/v1/devices/a/b/c", "x/edgekit/v1/devices/a/ack"]
)
def test_a_foreign_topic_is_nobodys(topic: str) -> None:
    assert topics.parse(topic) is None


def _report_json(**more: object) -> dict[str, object]:
    boot = {"enrolment": 1, "incarnation": 2, "nonce": "0" * 16}
    plain = {"device": "d1", "boot": boot, "seq": 1, "started": "2026-01-01T00:00:00Z", "length_s": 60.0}
    return plain | {"clock_ok": True, "deployments": [_window_json()]} | more


def _window_json(**more: object) -> dict[str, object]:
    return {"deployment": "digits", "digest": "d" * 64, "requests": 3, "errors": 0} | more


@pytest.mark.parametrize(
    "broken",
    [
        _report_json(seq=2**63),
        _report_json(seq=-1),
        _report_json(lost_reports=2**64),
        _report_json(boot={"enrolment": 2**31, "incarnation": 2, "nonce": "0" * 16}),
        _report_json(boot={"enrolment": 1, "incarnation": 2**62, "nonce": "0" * 16}),
        _report_json(length_s=1e9),
        _report_json(started="2026-01-01T00:00:00"),
        _report_json(device="a/b"),
        _report_json(deployments=[_window_json()] * 2),
        _report_json(deployments=[_window_json(deployment=f"d{n}") for n in range(200)]),
        _report_json(deployments=[_window_json(requests=10**7)]),
        _report_json(deployments=[_window_json(errors=2**63)]),
        _report_json(deployments=[_window_json(worker_deaths=10**6)]),
        _report_json(deployments=[_window_json(infer_ms={"bins": {"100000": 1}})]),
        _report_json(deployments=[_window_json(infer_ms={"bins": {"-100000": 1}})]),
        _report_json(deployments=[_window_json(infer_ms={"bins": {"5": 10**7}})]),
        _report_json(deployments=[_window_json(infer_ms={"bins": {"5": 1}, "total": 1e300})]),
        _report_json(deployments=[_window_json(infer_ms={"bins": {"5": 1}, "largest": -1.0})]),
    ],
)
def test_a_report_of_impossible_values_is_refused_where_it_is_read(broken: dict[str, object]) -> None:
    assert messages.decode(msgspec.json.encode(_report_json()), messages.Report).seq == 1
    with pytest.raises(MessageError):
        messages.decode(msgspec.json.encode(broken), messages.Report)


@pytest.mark.parametrize(
    "broken",
    [
        {"agent_version": "1" * 300},
        {"agent_version": "1\x00"},
        {"profile": "p" * 65},
        {"order_counter": 2**63},
        {"bundle_format": 2**40},
        {"free_bytes": 2**63},
        {"isa": ["x"] * 1000},
        {"engines": {"e" * 100: "1"}},
        {"labels": {str(n): "" for n in range(100)}},
        {"deployments": {f"d{n}": {"state": "idle"} for n in range(40)}},
        {"deployments": {"digits": {"state": "idle", "model_version": "v" * 300}}},
    ],
)
def test_a_self_description_beyond_its_bounds_is_refused_where_it_is_read(broken: dict[str, object]) -> None:
    boot = {"enrolment": 1, "incarnation": 2, "nonce": "0" * 16}
    good = {"device": "d1", "boot": boot, "seq": 1, "order_counter": 1, "deployments": {}, "profile": "p"}
    good |= {"isa": [], "engines": {}, "agent_version": "1", "bundle_format": 1, "free_bytes": 1}
    assert messages.decode(msgspec.json.encode(good), messages.Reported).profile == "p"
    with pytest.raises(MessageError):
        messages.decode(msgspec.json.encode(good | broken), messages.Reported)
