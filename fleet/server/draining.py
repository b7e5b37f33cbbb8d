"""Orders that wait in the outbox, brought to the broker."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from edgekit.wire import topics
from fleet.server.link import Link

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0


def drain(link: Link, waiting: Sequence[Row[Any]]) -> dict[str, int]:
    """Publish rows of the outbox; device → counter of those that the broker has confirmed."""
    sent = [
        (row.device, row.counter, link.publish(row.device, topics.DESIRED, row.payload, qos=1, retain=True))
        for row in waiting
    ]
    confirmed: dict[str, int] = {}
    deadline = time.monotonic() + _PATIENCE_S
    for device, counter, message in sent:
        try:
            message.wait_for_publish(max(0.0, deadline - time.monotonic()))
        except (ValueError, RuntimeError) as error:
            log.warning("order %d of %s was not published: %s", counter, device, error)
            continue
        if message.is_published():
            confirmed[device] = counter
    return confirmed
