"""Joining a fleet: one POST with the one-time token and the public half of the key made here."""

import asyncio
import http.client
import random
from urllib.parse import urlsplit

import msgspec

from device_agent import identity, log
from device_agent.blocking import run_blocking
from device_agent.folder import StateFolder
from device_agent.identity import DeviceIdentity
from device_agent.storage import Storage
from device_agent.update.fetch import connect, is_allowed, open_connection
from edgekit import __version__
from edgekit.errors import AuthError, FleetError, UsageError
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile, EnrolRequest

MAX_ANSWER_BYTES = 64 * 1024
LONGEST_BACKOFF_S = 30.0


class FleetUnreachableError(FleetError):
    """Nothing answers at the enrolment address; trying again may help."""

    code = "fleet-unreachable"


async def enrol(storage: Storage, state: StateFolder, file: EnrolmentFile, profile: str) -> DeviceIdentity:
    """Enrol, waiting for the fleet as long as it takes, and keep the identity.

    Raises: AuthError or FleetError if the fleet refuses; UsageError for an address that is not allowed, or a key that
    cannot be kept.
    """
    try:
        key = await storage.do(lambda: identity.key(state))
    except OSError as error:
        raise UsageError(f"{state.root}: the device key cannot be kept ({error.strerror})") from error
    public = key.public_key().public_bytes_raw().hex()
    request = EnrolRequest(file.device, file.token, public, profile, __version__)
    pause = 1.0
    while True:
        try:
            answer = await run_blocking(lambda: post(file, request))
            break
        except FleetUnreachableError as error:
            log.trouble("the fleet cannot be reached; trying again", reason=error, next_s=round(pause, 1))
        await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # jitter, no secret
        pause = min(LONGEST_BACKOFF_S, pause * 2)
    made = identity.made_of(file, answer, profile)
    await _keep(storage, state, made)
    log.event("enrolled", fleet=file.fleet, device=answer.device, enrolment=answer.enrolment)
    return made


async def _keep(storage: Storage, state: StateFolder, made: DeviceIdentity) -> None:
    """Until the identity is on disk: the token is used up, so giving it away would strand the device."""
    pause = 1.0
    while True:
        try:
            await storage.do(lambda: identity.save(state, made))
        except OSError as error:
            log.trouble("the identity cannot be kept; trying again", reason=error, next_s=pause)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(LONGEST_BACKOFF_S, pause * 2)


def post(file: EnrolmentFile, request: EnrolRequest) -> EnrolAnswer:
    """One try. Raises: FleetUnreachableError, AuthError, FleetError, UsageError."""
    url = urlsplit(file.enrol_url)
    if url.scheme not in ("http", "https") or url.hostname is None:
        raise UsageError(f"enrol_url {file.enrol_url!r} is no http address; ask for a new enrolment file")
    if not is_allowed(url.hostname, url.port, file.allowed_hosts):
        raise UsageError(f"enrol_url names {url.netloc}, which the enrolment file itself does not allow")
    connection = open_connection(url.scheme, url.hostname, url.port)
    try:
        connect(connection)
        connection.request(
            "POST", url.path or "/", msgspec.json.encode(request), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        body = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise FleetUnreachableError(f"{url.netloc}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status in (401, 403, 409):
        raise AuthError(f"the fleet refused to enrol {file.device}: {_told(body)}")
    if response.status >= 500 or response.status == 429:
        raise FleetUnreachableError(f"{url.netloc} answered {response.status}")
    if response.status not in (200, 201):
        raise FleetError(f"{url.netloc} answered {response.status} to enrolling: {_told(body)}")
    try:
        return msgspec.json.decode(body, type=EnrolAnswer)
    except msgspec.DecodeError as error:
        raise FleetError(f"{url.netloc} gave no enrolment answer: {error}") from error


class _Error(msgspec.Struct, frozen=True):
    message: str = ""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Error = _Error()


def _told(body: bytes) -> str:
    """The fleet's own sentence, if it gave one."""
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error.message or "no reason given"
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace")
