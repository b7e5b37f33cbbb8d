"""Joining a fleet: one POST with the token and a certificate request for the key made here; later, its renewal.

An answer that was lost, on the way or at a power cut, is asked for again with the same key, and given again.
"""

import asyncio
import http.client
import random
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from device_agent import hardware, identity, log
from device_agent.blocking import run_blocking
from device_agent.folder import StateFolder
from device_agent.hardware import Hardware
from device_agent.identity import DeviceIdentity, DeviceKey
from device_agent.network import Access
from device_agent.storage import Storage
from edgekit import __version__
from edgekit.errors import AuthError, FleetError, UsageError
from edgekit.wire.enrolment import (
    DeviceId,
    EnrolAnswer,
    EnrolmentFile,
    EnrolRequest,
    RenewRequest,
    renew_url,
)

MAX_ANSWER_BYTES = 64 * 1024
LONGEST_BACKOFF_S = 30.0
# How often a device asks whether somebody approved it by now.
APPROVAL_S = 20.0


class FleetUnreachableError(FleetError):
    """Nothing answers at the address, or not now; trying again may help."""

    code = "fleet-unreachable"


class NotApprovedYetError(FleetUnreachableError):
    """The fleet knows of this device, and an operator has yet to approve it."""

    code = "not-approved"


class Asking(NamedTuple):
    """Who wants to join: `name` is what a device calls itself where the file does not say."""

    file: EnrolmentFile
    profile: str
    here: Hardware
    name: str = ""


async def enrol(storage: Storage, state: StateFolder, asking: Asking) -> DeviceIdentity:
    """Enrol, waiting for the fleet as long as it takes, and keep the identity in place of the one before.

    Raises: AuthError or FleetError if the fleet refuses; UsageError for an address that is not allowed, or a key that
    cannot be kept.
    """
    file = asking.file
    device = name_of(asking)
    token = identity.token_digest(file.token)
    try:
        key = await storage.do(lambda: identity.key_for(state, token, asking.here))
    except OSError as error:
        raise UsageError(f"{state.root}: the device key cannot be kept ({error.strerror})") from error
    access = Access(file.ca, file.allowed_hosts, _no_time)
    csr = key.request(device, file.fleet)
    request = EnrolRequest(device, file.token, csr, asking.profile, __version__, asking.here.fingerprint)
    answer = await _until_answered(lambda: post(access, file.enrol_url, request))
    key.check(answer)
    if answer.device != device:
        raise AuthError(f"the fleet calls this device {answer.device}, it asked to be {device}")
    made = identity.made_of(file, answer, asking.profile, asking.here)
    await keep(storage, state, made)
    log.event("enrolled", fleet=file.fleet, device=answer.device, enrolment=answer.enrolment)
    return made


def name_of(asking: Asking) -> str:
    """The device's name. Raises: UsageError if nobody says it, or the file says another."""
    if asking.file.device:
        if asking.name not in ("", asking.file.device):
            raise UsageError(f"--name {asking.name}: the enrolment file is for {asking.file.device}")
        return asking.file.device
    found = asking.name or hardware.serial(hardware.root())
    if not found:
        raise UsageError(
            "this enrolment file is for many devices, and this board has no serial number; give --name NAME"
        )
    try:
        return msgspec.convert(found, DeviceId)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{found!r} cannot be a device's name: give --name with up to 64 letters, digits, '.', '_' and '-'"
        ) from error


def _no_time() -> datetime | None:
    """Before it has joined a device holds no server to the time: it gets the time from what the fleet signs."""
    return None


async def _until_answered(ask: Callable[[], EnrolAnswer]) -> EnrolAnswer:
    pause = 1.0
    while True:
        try:
            return await run_blocking(ask)
        except NotApprovedYetError:
            pause = APPROVAL_S
            log.trouble("waiting for an operator of the fleet to approve this device", next_s=pause)
        except FleetUnreachableError as error:
            log.trouble("the fleet cannot be reached; trying again", reason=error, next_s=round(pause, 1))
        await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # jitter, no secret
        pause = min(LONGEST_BACKOFF_S, pause * 2)


async def keep(storage: Storage, state: StateFolder, made: DeviceIdentity) -> None:
    """Until the identity is on disk: without it, the device would have to ask for it again after a restart."""
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


def renew(access: Access, known: DeviceIdentity, key: DeviceKey) -> EnrolAnswer:
    """A new certificate for the same key. Raises: FleetUnreachableError, AuthError, FleetError, UsageError.

    Where the present certificate cannot be shown, since it has run out or a proxy ends TLS, credential and proof say
    who asks.
    """
    url = renew_url(known.file.enrol_url)
    csr = key.request(known.answer.device, known.file.fleet)
    request = RenewRequest(csr, key.proof(csr), hardware.look(hardware.root()).fingerprint)
    headers = {"Authorization": f"Bearer {known.answer.credential}"}
    try:
        answer = post(access, url, request, headers)
    except FleetUnreachableError as error:
        if not isinstance(error.__cause__, (ssl.SSLError, ConnectionError)):
            raise
        answer = post(access.unnamed(), url, request, headers)
    key.check(answer)
    if (answer.device, answer.enrolment) != (known.answer.device, known.answer.enrolment):
        raise AuthError(
            f"the fleet renewed {answer.device}, enrolment {answer.enrolment}: that is another device"
        )
    return answer


def post(
    access: Access, url: str, request: EnrolRequest | RenewRequest, headers: Mapping[str, str] = {}
) -> EnrolAnswer:
    """One try. Raises: FleetUnreachableError, AuthError, FleetError, UsageError."""
    parts = urlsplit(url)
    connection = access.open(url)
    try:
        connection.connect()
        body = msgspec.json.encode(request)
        connection.request("POST", parts.path or "/", body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        told = response.read(MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise FleetUnreachableError(f"{parts.netloc}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if response.status == 202:
        raise NotApprovedYetError(f"{parts.netloc}: {_told(told)}")
    if response.status in (401, 403, 409):
        raise AuthError(f"the fleet refused: {_told(told)}")
    if response.status >= 500 or response.status == 429:
        raise FleetUnreachableError(f"{parts.netloc} answered {response.status}")
    if response.status not in (200, 201):
        raise FleetError(f"{parts.netloc} answered {response.status} to {parts.path}: {_told(told)}")
    try:
        return msgspec.json.decode(told, type=EnrolAnswer)
    except msgspec.DecodeError as error:
        raise FleetError(f"{parts.netloc} gave no enrolment answer: {error}") from error


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
