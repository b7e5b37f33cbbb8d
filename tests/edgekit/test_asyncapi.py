"""The description of the wire is what the structs say, and what the programs do."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator

from edgekit.trust.dsse import Envelope
from edgekit.wire import asyncapi, commands, messages, topics
from edgekit.wire.asyncapi import CHANNELS
from edgekit.wire.commands import Command
from edgekit.wire.messages import Order

FILE = Path(__file__).parents[2] / "docs" / "asyncapi.json"
DOCUMENT: Any = asyncapi.document()


def refs_in(value: Any) -> list[str]:
    if isinstance(value, list):
        return [ref for one in value for ref in refs_in(one)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [ref for one in value.values() for ref in refs_in(one)]


def at(ref: str) -> Any:
    found = DOCUMENT
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def validated(schema: Any, value: Any) -> None:
    Draft7Validator({"allOf": [schema], "components": DOCUMENT["components"]}).validate(value)


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(msgspec.json.encode(value))


def test_the_file_is_current() -> None:
    wanted = asyncapi.text()
    assert FILE.read_text() == wanted, "write it anew: edgekit fleet describe wire > docs/asyncapi.json"


def test_every_reference_leads_somewhere() -> None:
    for ref in set(refs_in(DOCUMENT)):
        assert at(ref), ref


def test_an_operation_names_messages_of_its_channel() -> None:
    assert {operation["action"] for operation in DOCUMENT["operations"].values()} == {"send", "receive"}
    for operation in DOCUMENT["operations"].values():
        channel = operation["channel"]["$ref"]
        assert all(one["$ref"].startswith(f"{channel}/messages/") for one in operation["messages"])


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda one: one.leaf)
def test_an_example_is_what_the_programs_read(channel: asyncapi.Channel) -> None:
    message = DOCUMENT["components"]["messages"][channel.leaf]
    [example] = message["examples"]
    validated(message["payload"], plain(example["payload"]))
    data = msgspec.json.encode(channel.example)
    if isinstance(channel.example, Envelope):
        kind: Any = Command if channel.leaf == topics.COMMAND else Order
        validated(
            DOCUMENT["components"]["schemas"]["Envelope"]["properties"]["payload"]["x-decoded"],
            plain(messages.decode(base64.b64decode(channel.example.payload), kind)),
        )
    else:
        assert messages.decode(data, type(channel.example)) == channel.example


def test_a_message_that_is_wrong_is_refused_by_its_schema_too() -> None:
    """What judges is judged."""
    status = DOCUMENT["components"]["messages"]["status"]
    wrong = {**status["examples"][0]["payload"], "online": "yes"}
    with pytest.raises(Exception, match="'yes' is not of type 'boolean'"):
        validated(status["payload"], wrong)


def test_every_kind_of_message_has_its_channel() -> None:
    kinds = {type(channel.example) for channel in CHANNELS} - {Envelope} | {Order, Command}
    structs = {
        found
        for module in (messages, commands)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, msgspec.Struct)
    }
    assert kinds == {found for found in structs if "version" in found.__struct_fields__}
