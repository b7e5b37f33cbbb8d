"""How a device joins: the file an operator carries to it, one HTTP exchange, and its renewal.

The device makes its own key (EC P-256), which never leaves it, and sends a certificate request with the token to
`enrol_url`, over TLS that the file's `ca` pins. The answer is its identity: a certificate by the fleet's own CA, which
it shows to the broker, to the artifact store and where it renews. No URL ever travels in an order: the file pins all.

What the answers of `enrol_url` and `renew_url` mean
 200, 201  an `EnrolAnswer`. The same key gets the same answer again, until the device has used it (by speaking to the
           broker, fetching an artifact or renewing) or the token has run out.
 202       waits for an operator's approval: the same request may be sent again after a while, with the same key.
 401, 403  refused for good (another key used this token, run out, revoked): the operator must act.
 409       contradicts what is there (a batch file, and a device of this name that is not of this batch).
 429, 5xx  passing: try again.
"""

import ipaddress
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from edgekit.manifest import Name
from edgekit.wire.messages import Plain, Word

FORMAT = 2
# A certificate is renewed at this share of its life, with jitter; one that has run out may only renew, so long after.
RENEW_AT = 2 / 3
EXPIRED_MAY_RENEW_S = 90 * 86_400.0
# What the key that is given up signs, before the new request's PEM text, where a proxy ends TLS (`RenewRequest.proof`).
PROOF_PREFIX = b"edgekit renew v1\n"

Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
DeviceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Port = Annotated[int, Meta(gt=0, lt=65536)]
Csr = Annotated[str, Meta(max_length=8192)]
# sha256 in hex, or empty where there is nothing to tell.
Fingerprint = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")]


class BrokerAddress(msgspec.Struct, frozen=True):
    """An MQTT 5 listener. With `tls` it is pinned by the file's `ca`, and asks for the device's certificate.

    A `websocket_path` says that the same broker speaks MQTT over WebSockets too, at `host:websocket_port`.
    """

    host: str
    port: Port
    tls: bool = False
    websocket_path: str = ""
    websocket_port: Port = 443


class EnrolmentFile(msgspec.Struct, frozen=True):
    """One file to the device.

    `device` is empty in the file of a batch: the device gives its own serial as its name. `ca` is a PEM bundle that
    pins every TLS connection of this fleet; empty means plain HTTP and MQTT, which only loopback may use
    (`unprotected`). Order keys map a key id to a raw ed25519 public key in hex; they count until the publisher lists
    others. `tuf_root` is the text of a root.json, which says whose bundles are run, and `metadata_url` where the metadata
    lies that follow from it (docs/tuf.md).
    """

    format: int
    fleet: str
    device: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")]
    token: str
    enrol_url: str
    artifact_url: str
    allowed_hosts: tuple[str, ...]
    broker: BrokerAddress
    order_keys: dict[str, Key]
    tuf_root: str
    metadata_url: str
    deployments: tuple[Name, ...]
    labels: dict[str, str] = {}
    ca: str = ""


class EnrolRequest(msgspec.Struct, frozen=True):
    """POST `enrol_url`. `csr` is PEM, PKCS#10, EC P-256, its common name the device's name.

    `fingerprint` is the sha256 of what tells this hardware from a copy of its card.
    """

    device: DeviceId
    token: Annotated[str, Meta(max_length=256)]
    csr: Csr
    profile: Word
    agent_version: Plain
    fingerprint: Fingerprint = ""


class EnrolAnswer(msgspec.Struct, frozen=True):
    """`certificate` is a PEM chain: the device's, then the CA's. It runs out at `not_after`.

    `credential` authenticates as a bearer where a proxy ends TLS; the fleet keeps only its hash.
    """

    device: DeviceId
    enrolment: int
    certificate: str
    not_after: datetime
    credential: str


class RenewRequest(msgspec.Struct, frozen=True):
    """POST `renew_url`, over TLS with the present certificate; the answer is an `EnrolAnswer` of the same enrolment.

    Where a proxy ends TLS (or a certificate that has run out cannot be shown): the credential as bearer, and `proof`,
    the base64 of the *present* key's ECDSA signature (SHA-256, DER) over `PROOF_PREFIX` and the bytes of `csr`.
    `fingerprint` is as in `EnrolRequest`, of the hardware that renews.
    """

    csr: Csr
    proof: Annotated[str, Meta(max_length=256)] = ""
    fingerprint: Fingerprint = ""


def renew_url(enrol_url: str) -> str:
    """Where a device that joined at `enrol_url` renews: beside it, `…/v1/enrol` and `…/v1/renew`."""
    parts = urlsplit(enrol_url)
    folder, _, _ = parts.path.rpartition("/")
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/renew", "", ""))


def unprotected(file: EnrolmentFile) -> tuple[str, ...]:
    """Addresses that the file would have spoken to without pinned TLS, though they are not loopback; both sides refuse
    a file with any.
    """
    found = []
    for url in (file.enrol_url, file.artifact_url, file.metadata_url):
        parts = urlsplit(url)
        is_pinned = parts.scheme == "https" and bool(file.ca)
        if not is_pinned and not is_loopback(parts.hostname or ""):
            found.append(url)
    if not (file.broker.tls and file.ca) and not is_loopback(file.broker.host):
        found.append(f"mqtt{'s' if file.broker.tls else ''}://{file.broker.host}:{file.broker.port}")
    return tuple(found)


def is_loopback(host: str) -> bool:
    """Whether this host can only ever be this machine; a name other than `localhost` is not believed."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
