"""Orders and commands that wait in the outbox, brought to the broker."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from edgekit.wire import topics
from fleet.server.link import Link
from fleet.server.store.commands import Waiting

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0


def drain(link: Link, waiting: Sequence[Row[Any]]) -> dict[str, int]:
    """Publish rows of the outbox; device → counter of those that the broker has confirmed."""
    sent = [
        (row.device, row.counter, link.publish(row.device, topics.DESIRED, row.payload, qos=1, retain=True))
        for row in waiting
    ]
    deadline = time.monotonic() + _PATIENCE_S
    return {
        device: counter
        for device, counter, message in sent
        if _is_sent(message, deadline, f"order {counter} of {device}")
    }


def drain_commands(link: Link, waiting: Sequence[Waiting]) -> set[str]:
    """Publish commands; the ids of those that the broker has confirmed. None is retained: it is meant for now."""
    sent = [
        (one.id, link.publish(one.device, topics.COMMAND, one.envelope, qos=1, retain=False))
        for one in waiting
    ]
    deadline = time.monotonic() + _PATIENCE_S
    return {number for number, message in sent if _is_sent(message, deadline, f"command {number}")}


def _is_sent(message: Any, deadline: float, what: str) -> bool:
    try:
        message.wait_for_publish(max(0.0, deadline - time.monotonic()))
    except (ValueError, RuntimeError) as error:
        log.warning("%s was not published: %s", what, error)
        return False
    return bool(message.is_published())
