"""Bringing one sample to the fleet: one PUT, as the device that its certificate names. Blocking."""

import http.client
from enum import Enum
from typing import NamedTuple
from urllib.parse import urlsplit

from device_agent.blocking import Stopper
from device_agent.network import Access
from edgekit.errors import UsageError

_ENDED = 410
_UNWANTED = frozenset({404, 409, 413, 422})
# An answer is a few words; more is not read.
_ANSWER_BYTES = 4096


class Outcome(Enum):
    """What to do with a sample after it was offered."""

    STORED = "stored"
    UNWANTED = "unwanted"
    ENDED = "ended"
    LATER = "later"


class Sent(NamedTuple):
    """`why` is for people; empty if the fleet has it."""

    outcome: Outcome
    why: str = ""


def send(access: Access, url: str, data: bytes, stopping: Stopper) -> Sent:
    """Offer one sample to `url`, which ends in its id."""
    parts = urlsplit(url)
    try:
        connection = access.open(url, "samples")
    except UsageError as error:
        return Sent(Outcome.LATER, str(error))
    try:
        connection.connect()
        stopping.watch(connection.sock)
        headers = {
            "Authorization": f"Bearer {access.credential}",
            "Content-Type": "application/octet-stream",
        }
        connection.request("PUT", parts.path, body=data, headers=headers)
        response = connection.getresponse()
        response.read(_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return Sent(Outcome.LATER, f"{parts.netloc}: {error or type(error).__name__}")
    finally:
        connection.close()
    return judged(response.status, response.reason)


def judged(status: int, reason: str) -> Sent:
    """What an answer means (`edgekit.wire.samples`)."""
    told = f"the fleet answered {status} {reason}"
    if status in (200, 201):
        return Sent(Outcome.STORED)
    if status == _ENDED:
        return Sent(Outcome.ENDED, told)
    return Sent(Outcome.UNWANTED if status in _UNWANTED else Outcome.LATER, told)
