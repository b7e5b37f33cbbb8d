"""How the service and its workers show a broker who they are."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.errors import UsageError
from fleet.publish import SigningKey
from fleet.server.link import Login
from fleet.server.places import MOSQUITTO, Places
from fleet.server.state import secret_name


@dataclass(frozen=True)
class BrokerLogin:
    """For a broker that is not ours; the secrets stay in their files."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    password: bytes | None = field(default=None, repr=False)


def telemetry_group(secrets: SigningKey) -> str:
    """The group that shares the reports (MQTT 5, 4.8.2). Who knew it could take a part of them, so nobody can guess it."""
    return secret_name(secrets, "telemetry group")


def how_to_log_in(
    given: BrokerLogin, places: Places, broker_files: Path | None, own: Callable[[], ssl.SSLContext]
) -> Login:
    """`own` is the context with a certificate of the fleet's own authority. Raises: UsageError."""
    if not places.has_mqtt_tls:
        return Login()
    if places.broker == MOSQUITTO or broker_files is not None:
        return Login(tls=own())
    try:
        context = ssl.create_default_context(cafile=given.authorities)
        if given.certificate is not None:
            context.load_cert_chain(given.certificate, given.key)
    except OSError as error:
        raise UsageError(f"--broker-ca, --broker-cert, --broker-key: cannot be used ({error})") from error
    if places.user and given.password is None and given.certificate is None:
        raise UsageError(
            f"--broker …{places.user}@…: its password? give --broker-password-file, or EDGEKIT_BROKER_PASSWORD"
        )
    return Login(context, places.user, given.password.decode() if given.password else None)
