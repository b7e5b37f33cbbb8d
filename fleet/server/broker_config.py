"""The configuration of a mosquitto that knows who each client is: text only.

Always true
 1. A client is who its certificate says: that name is its user, and its client id too, so nobody takes over the session
    of another by giving its client id.
 2. A device reads what the fleet says to it and writes what it says itself; every other topic is nobody's.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgekit.wire import topics
from edgekit.wire.messages import MAX_MESSAGE_BYTES
from fleet.server.ca import MOST_WORKERS, SERVICE_NAME, worker_name
from fleet.server.home import Tls
from fleet.server.places import Places

# Room for the topic and the packet's own bytes around the largest payload.
PACKET_BYTES = MAX_MESSAGE_BYTES + 16 * 1024
READS = (topics.DESIRED, topics.ACK, topics.COMMAND)
WRITES = (topics.REPORTED, topics.STATUS, topics.TELEMETRY, topics.RESULT)
CONFIG, ACL = "mosquitto.conf", "acl"


@dataclass(frozen=True)
class Mosquitto:
    """Where mosquitto listens (`host` empty: everywhere) and where its files lie. `user` is whom it runs as; empty
    leaves that to it.
    """

    host: str
    port: int
    websocket_port: int | None
    ca: Path
    certificate: Path
    key: Path
    revocations: Path
    acl: Path
    data: Path
    user: str = ""


def mosquitto(wanted: Mosquitto) -> str:
    """`mosquitto.conf`, for mosquitto 2.0 or newer."""
    lines = [
        "# Written by EdgeKit: mutual TLS, a user per certificate, rules per device.",
        *([f"user {wanted.user}"] if wanted.user else []),
        "allow_anonymous false",
        f"acl_file {wanted.acl}",
        "persistence true",
        f"persistence_location {wanted.data}/",
        "autosave_interval 300",
        "persistent_client_expiration 14d",
        f"max_packet_size {PACKET_BYTES}",
        "# The default of 1000 drops QoS 1 messages under bursts.",
        "max_queued_messages 100000",
        "max_inflight_messages 100",
        "max_keepalive 3600",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "",
        f"listener {wanted.port} {wanted.host}".rstrip(),
        *_tls(wanted),
    ]
    if wanted.websocket_port is not None:
        lines += [
            "",
            f"listener {wanted.websocket_port} {wanted.host}".rstrip(),
            "protocol websockets",
            *_tls(wanted),
        ]
    return "\n".join(lines) + "\n"


def in_home(folder: Path, files: Tls, places: Places) -> str:
    """`mosquitto.conf` for a mosquitto that the service starts, over the files of the fleet's home (`certificates` writes them)."""
    keys, data = folder / "keys", folder / "mosquitto"
    data.mkdir(mode=0o700, exist_ok=True)
    host = "" if places.mqtt.host in ("0.0.0.0", "::") else places.mqtt.host
    return mosquitto(
        Mosquitto(
            host=host,
            port=places.mqtt.port,
            websocket_port=places.websocket_listener,
            ca=keys / "ca.pem",
            certificate=files.certificate,
            key=files.key,
            revocations=keys / "crl.pem",
            acl=keys / ACL,
            data=data,
            user=_same_user(),
        )
    )


def _same_user() -> str:
    """As root mosquitto would become a user of its own, who may not read the home, and would outlive its keeper."""
    return "root" if os.geteuid() == 0 else ""


def _tls(wanted: Mosquitto) -> list[str]:
    return [
        f"cafile {wanted.ca}",
        f"certfile {wanted.certificate}",
        f"keyfile {wanted.key}",
        f"crlfile {wanted.revocations}",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    ]


def acl(shut_out: Iterable[str] = ()) -> str:
    """Mosquitto's rules: `%u` is the certificate's name. Devices that are `shut_out` have no certificate that is not
    revoked; they are named because mosquitto 2.0 does not look at the list of revocations over WebSockets.
    """
    mine = f"{topics.ROOT}/%u"
    return "\n".join(
        [
            "# Written by EdgeKit. What no line allows is refused.",
            f"user {SERVICE_NAME}",
            f"topic readwrite {topics.ROOT}/#",
            "",
            "# Workers take reports in and acknowledge them.",
            *(
                line
                for number in range(1, MOST_WORKERS + 1)
                for line in (
                    f"user {worker_name(number)}",
                    f"topic read {topics.ROOT}/+/{topics.TELEMETRY}",
                    f"topic read {topics.ROOT}/+/{topics.RESULT}",
                    f"topic write {topics.ROOT}/+/{topics.ACK}",
                )
            ),
            "",
            *(line for name in shut_out for line in (f"user {name}", "topic deny #", "")),
            "# Every client, by its own name.",
            *(f"pattern read {mine}/{leaf}" for leaf in READS),
            *(f"pattern write {mine}/{leaf}" for leaf in WRITES),
            "",
        ]
    )


def is_ours(rules: str) -> bool:
    """Whether nobody has changed these rules by hand: they are `acl`'s, whoever is shut out, or those of a version whose
    workers did not take results in.
    """
    plain_rules = re.sub(r"user \S+\ntopic deny #\n\n", "", rules)
    return plain_rules in (acl(), acl().replace(f"topic read {topics.ROOT}/+/{topics.RESULT}\n", ""))


def plain(host: str, port: int) -> str:
    """A mosquitto on loopback that asks nobody who they are."""
    return f"""\
# Written by 'edgekit fleet up' at each start.
{f"user {_same_user()}" if _same_user() else "# As whoever started it."}
listener {port} {host}
allow_anonymous true
persistence false
max_packet_size {PACKET_BYTES}
# The default of 1000 drops QoS 1 messages under bursts.
max_queued_messages 100000
log_type error
log_type warning
"""
