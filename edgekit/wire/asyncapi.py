"""The AsyncAPI 3 document of the wire, made from the message structs; `docs/asyncapi.json` is its text.

It describes the fleet's side: what it sends, devices receive. What a schema cannot say stands in descriptions: what is
signed, and what each side may rest on.
"""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from edgekit.sketch import Sketch
from edgekit.trust.dsse import COMMAND_TYPE, ORDER_TYPE, Envelope, Signature
from edgekit.wire import topics
from edgekit.wire.commands import Command, CommandState, Result, SelfTest, SelfTested, Tested
from edgekit.wire.messages import (
    MAX_MESSAGE_BYTES,
    VERSION,
    Ack,
    Boot,
    DeploymentReport,
    DeploymentWindow,
    Fetched,
    Order,
    OrderedBundle,
    Report,
    Reported,
    Status,
    encode,
)
from edgekit.wire.states import AgentState

ASYNCAPI_VERSION = "3.0.0"
_REF = "#/components/schemas/{name}"
_SHA = "9f2c41d07a" + "5" * 54
_AT = datetime(2026, 11, 27, 8, 30, tzinfo=UTC)
_BOOT = Boot(2, 14, "0123456789abcdef")


@dataclass(frozen=True)
class Channel:
    """One topic of a device: who sends on it, how, and an example of what."""

    leaf: str
    sender: Literal["fleet", "device"]
    qos: Literal[0, 1]
    is_retained: bool
    words: str
    example: msgspec.Struct


_ORDER = Order(
    fleet="5d0c2f9e",
    device="lab-07",
    enrolment=2,
    deployments={"digits": OrderedBundle(f"digits/1.4.2/raspberry-pi-5/{_SHA}.edgekit", _SHA, 8_410_112)},
    counter=12,
    issued=_AT,
    expires=datetime(2027, 11, 27, 8, 30, tzinfo=UTC),
)
_COMMAND = Command(
    "5d0c2f9e", "lab-07", 2, "4f0c6c1e8a3b4b86", _AT, _AT + timedelta(hours=1), SelfTest("digits")
)
CHANNELS = (
    Channel(
        topics.DESIRED,
        "fleet",
        1,
        is_retained=True,
        words=(
            "What the device is to run: all of its deployments in one order, in a signed envelope (DSSE, ed25519). A device "
            "follows it only if a key that it trusts signed it, and its counter is above that of the order before. An "
            "empty message takes the retained one away."
        ),
        example=Envelope(
            base64.b64encode(encode(_ORDER)).decode(),
            ORDER_TYPE,
            (Signature("1b0e6c0d5a7f4e21", "3q2+7w=="),),
        ),
    ),
    Channel(
        topics.REPORTED,
        "device",
        1,
        is_retained=True,
        words="What the device runs and is; the newest by (enrolment, incarnation, seq) holds.",
        example=Reported(
            device="lab-07",
            boot=_BOOT,
            seq=3,
            order_counter=12,
            deployments={
                "digits": DeploymentReport(
                    AgentState.IDLE,
                    digest=_SHA,
                    committed=_SHA,
                    ordered=_SHA,
                    model="digits",
                    model_version="1.4.2",
                    memory_mb=61.5,
                    fetched=Fetched(_SHA, 702_311, by_delta=True),
                )
            },
            profile="raspberry-pi-5",
            isa=("neon", "dotprod"),
            engines={"onnxruntime": "1.32.0"},
            agent_version="0.1.0",
            bundle_format=1,
            free_bytes=21_474_836_480,
            labels={"site": "lab"},
        ),
    ),
    Channel(
        topics.STATUS,
        "device",
        1,
        is_retained=True,
        words="Whether it is connected; `online: false` is the last will that it leaves with the broker.",
        example=Status(online=True, boot=_BOOT),
    ),
    Channel(
        topics.TELEMETRY,
        "device",
        1,
        is_retained=False,
        words=(
            "A window of counters and sketches, an idle one too. It is sent again until an `ack` names its (boot, seq): the "
            "broker's PUBACK says nothing of the fleet's database."
        ),
        example=Report(
            device="lab-07",
            boot=_BOOT,
            seq=41,
            started=_AT,
            length_s=60.0,
            clock_ok=True,
            deployments=(
                DeploymentWindow(
                    "digits",
                    _SHA,
                    requests=120,
                    errors=1,
                    infer_ms=Sketch({70: 100, 71: 20}, 0, 492.0, 6.9),
                ),
            ),
            memory_mb=412.0,
        ),
    ),
    Channel(
        topics.ACK,
        "fleet",
        0,
        is_retained=False,
        words=(
            "These reports and results are committed in the fleet's database. Lost, it is repeated when they come again."
        ),
        example=Ack(_BOOT, (40, 41)),
    ),
    Channel(
        topics.COMMAND,
        "fleet",
        1,
        is_retained=False,
        words=(
            "What the device is asked to do once, signed like an order, with a type of its own. It is sent again until the "
            "device says something of it or it expires; the device remembers its `id`, and does it once."
        ),
        example=Envelope(
            base64.b64encode(encode(_COMMAND)).decode(),
            COMMAND_TYPE,
            (Signature("1b0e6c0d5a7f4e21", "3q2+7w=="),),
        ),
    ),
    Channel(
        topics.RESULT,
        "device",
        1,
        is_retained=False,
        words="Where a command stands. Sent again, with a new `seq`, until an `ack` names its (boot, seq).",
        example=Result(
            "lab-07",
            _BOOT,
            42,
            "4f0c6c1e8a3b4b86",
            CommandState.DONE,
            payload=SelfTested((Tested(_SHA, passed=True, deployment="digits", agreement=1.0),)),
        ),
    ),
)


def document() -> dict[str, Any]:
    """The whole document."""
    kinds = [*(type(channel.example) for channel in CHANNELS), Order, Command]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    payload = components["Envelope"]["properties"]["payload"]
    decoded = {"x-decoded": {"oneOf": schemas[-2:]}}
    payload |= {"contentEncoding": "base64", "contentMediaType": "application/json", **decoded}
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "EdgeKit: the fleet and its devices",
            "version": str(VERSION),
            "description": (
                "What an EdgeKit fleet and its devices say to each other over MQTT 5, seen from the fleet. A side ignores "
                "fields that it does not know, and refuses a `version` that it does not know. Every message may come "
                "twice, late or out of order without harm. A message is at most "
                f"{MAX_MESSAGE_BYTES // 1024} KiB. Who sends on the topics of a device is the device itself: the broker "
                "lets its certificate write nowhere else."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "{host}:{port}",
                "protocol": "secure-mqtt",
                "protocolVersion": "5.0",
                "description": "As the enrolment file says it. Without TLS on loopback only.",
                "variables": {
                    "host": {"default": "fleet.example.com"},
                    "port": {"default": "8883"},
                },
                "security": [{"$ref": "#/components/securitySchemes/deviceCertificate"}],
            }
        },
        "channels": {channel.leaf: _channel(channel) for channel in CHANNELS},
        "operations": dict(_operation(channel) for channel in CHANNELS),
        "components": {
            "messages": {
                channel.leaf: _message(channel, schema)
                for channel, schema in zip(CHANNELS, schemas, strict=False)
            },
            "schemas": components,
            "securitySchemes": {
                "deviceCertificate": {"type": "X509", "description": "What the device got by enrolling."}
            },
        },
    }


def text() -> str:
    """As `docs/asyncapi.json` holds it."""
    return msgspec.json.format(msgspec.json.encode(document(), order="sorted"), indent=2).decode() + "\n"


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": f"{topics.ROOT}/{{device}}/{channel.leaf}",
        "description": channel.words,
        "servers": [{"$ref": "#/servers/broker"}],
        "parameters": {
            "device": {
                "description": f"The device's name: {topics.DEVICE_ID.pattern}",
                "examples": ["lab-07"],
            }
        },
        "messages": {channel.leaf: {"$ref": f"#/components/messages/{channel.leaf}"}},
    }


def _operation(channel: Channel) -> tuple[str, dict[str, Any]]:
    action = "send" if channel.sender == "fleet" else "receive"
    return f"{action}_{channel.leaf}", {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel.leaf}"},
        "messages": [{"$ref": f"#/channels/{channel.leaf}/messages/{channel.leaf}"}],
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.is_retained, "bindingVersion": "0.2.0"}},
    }


def _message(channel: Channel, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": type(channel.example).__name__,
        "contentType": "application/json",
        "payload": schema,
        "examples": [{"payload": msgspec.to_builtins(channel.example, str_keys=True)}],
    }
