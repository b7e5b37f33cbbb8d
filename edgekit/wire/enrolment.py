"""How a device joins: the file an operator carries to it, and one HTTP exchange.

The device makes its own ed25519 key, which never leaves it, and posts the public half with the one-time token to
`enrol_url`. The answer is its identity. No URL ever travels in an order: the file pins them all.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.manifest import Name

FORMAT = 1
Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
DeviceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class BrokerAddress(msgspec.Struct, frozen=True):
    """An MQTT 5 listener; `tls_ca` is PEM text, and its presence turns TLS on."""

    host: str
    port: Annotated[int, Meta(gt=0, lt=65536)]
    tls_ca: str | None = None
    username: str | None = None
    password: str | None = None


class EnrolmentFile(msgspec.Struct, frozen=True):
    """One file to the device. Keys map a key id to a raw ed25519 public key in hex.

    `tuf_root` is the text of a root.json, and `metadata_url` where its metadata lies (docs/tuf.md): with them a bundle
    must be a target there; without, its publisher's statement beside it is enough.
    """

    format: int
    fleet: str
    device: DeviceId
    token: str
    enrol_url: str
    artifact_url: str
    allowed_hosts: tuple[str, ...]
    broker: BrokerAddress
    order_keys: dict[str, Key]
    publisher_keys: dict[str, Key]
    deployments: tuple[Name, ...]
    labels: dict[str, str] = {}
    tuf_root: str = ""
    metadata_url: str = ""


class EnrolRequest(msgspec.Struct, frozen=True):
    """POST enrol_url."""

    device: DeviceId
    token: str
    public_key: Key
    profile: str
    agent_version: str


class EnrolAnswer(msgspec.Struct, frozen=True):
    """`credential` authenticates artifact downloads (`Authorization: Bearer`); the fleet keeps only its hash."""

    device: DeviceId
    enrolment: int
    credential: str
