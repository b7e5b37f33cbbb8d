"""Enrolment of virtual devices: through the fleet's own API with one batch file, each with a key of its own.

Always true
 1. Who has enrolled is written down at once in pieces, so that a run that is broken off is not wasted.
 2. A folder of identities belongs to one fleet.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edgekit.errors import ConflictError, FleetError, UsageError
from edgekit.wire.enrolment import EnrolAnswer, EnrolmentFile, EnrolRequest
from fleet.simulate.device import Identity
from fleet.simulate.tally import Tally

_AT_ONCE = 8
_SAVE_EVERY = 1000
# A run that was killed may have started its devices anew some times; the fleet allows for many more.
_STARTS = 1000
FILE = "devices.json"


class Book(msgspec.Struct):
    """The batch file by which the newest of them joined, and who has joined."""

    file: EnrolmentFile
    devices: list[Identity] = []


def load(folder: Path | None, fleet: str) -> Book | None:
    """Those of an earlier run, as they come up after a restart. Raises: ConflictError, UsageError."""
    if folder is None or not (folder / FILE).exists():
        return None
    try:
        book = msgspec.json.decode((folder / FILE).read_bytes(), type=Book)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{folder / FILE}: cannot be used ({error}); choose another --state folder"
        ) from error
    if book.file.fleet != fleet:
        raise ConflictError(f"{folder}: its devices are of {book.file.fleet}, this is {fleet}")
    book.devices = [one._replace(incarnation=one.incarnation + _STARTS) for one in book.devices]
    save(folder, book)
    return book


def save(folder: Path | None, book: Book) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = folder / f"{FILE}.part"
    partial.touch(mode=0o600)
    partial.write_bytes(msgspec.json.encode(book))
    partial.replace(folder / FILE)


async def join(  # who, where, and what is told meanwhile
    book: Book, names: list[tuple[str, str]], folder: Path | None, tally: Tally, told: Callable[[], None]
) -> None:
    """Enrol devices of these (name, profile). Raises: FleetError if the fleet refuses one."""
    started, waiting = time.monotonic(), list(reversed(names))
    verify: ssl.SSLContext | bool = ssl.create_default_context(cadata=book.file.ca) if book.file.ca else True
    async with httpx.AsyncClient(trust_env=False, verify=verify, timeout=60) as client:

        async def enrol() -> None:
            while waiting:
                name, profile = waiting.pop()
                book.devices.append(await _enrol(client, book.file, name, profile))
                tally.enrolled += 1
                tally.enrol_s = time.monotonic() - started
                if tally.enrolled % _SAVE_EVERY == 0:
                    save(folder, book)
                told()

        tasks = [asyncio.ensure_future(enrol()) for _ in range(_AT_ONCE)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            save(folder, book)


async def _enrol(client: httpx.AsyncClient, file: EnrolmentFile, name: str, profile: str) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    asked = EnrolRequest(
        name, file.token, csr.public_bytes(Encoding.PEM).decode(), profile, "simulated", fingerprint=""
    )
    content = msgspec.json.encode(asked)
    for attempt in range(10):
        try:
            response = await client.post(file.enrol_url, content=content)
        except httpx.TransportError as error:
            if attempt == 9:
                raise FleetError(f"{file.enrol_url} cannot be reached ({error})") from error
        else:
            if response.is_success and response.status_code != httpx.codes.ACCEPTED:
                break
            if response.status_code < 429 or attempt == 9:
                raise FleetError(f"{name} was not let in: {response.status_code} {response.text[:300]}")
        await asyncio.sleep(0.2 * 2**attempt)
    answer = msgspec.json.decode(response.content, type=EnrolAnswer)
    certificate = ""
    if file.broker.tls:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        certificate = private.decode() + answer.certificate
    return Identity(name, answer.enrolment, profile, 1, certificate)
