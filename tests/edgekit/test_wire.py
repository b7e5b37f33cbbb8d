"""Topics and messages: tolerant of what is added later, strict about everything else."""

import json
from datetime import UTC, datetime

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
