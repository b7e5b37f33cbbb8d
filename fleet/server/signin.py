"""Signing in through other places than our form: what is on its way, and who knows a provider.

Nothing here needs Authlib: the service runs without it where `fleet.toml` names no provider.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from edgekit.distribution import extra
from edgekit.errors import FleetError, UsageError
from fleet.rules.people import Claims, Oidc
from fleet.server import home
from fleet.server.once import Once

SECRET = "EDGEKIT_OIDC_SECRET"  # noqa: S105  # the name of a variable, not a secret
CALLBACK = "/login/oidc/callback"
# How long a person has at the provider; then again from the start.
_AWAY_S = 600.0
# How long a browser takes to hand a code to the terminal that waits for it.
_HANDOVER_S = 60.0


@dataclass(frozen=True)
class Started:
    """A sign-in that is on its way at the provider. `browser` is the hash of a cookie: only where it began may it end."""

    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    browser: str
    then: str


@dataclass(frozen=True)
class Permit:
    """A person let a terminal act as them; `challenge` is of its verifier (RFC 7636, S256)."""

    user: str
    challenge: str


class ProviderError(FleetError):
    """The provider cannot be used now, whoever asks; `why` is for a sentence."""

    code = "provider"
    http_status = 503

    def __init__(self, issuer: str, why: str) -> None:
        super().__init__(f"signing in through {issuer} does not work at the moment: {why}")
        self.why = why


class Provider(Protocol):
    """As `fleet.server.oidc.Provider` is."""

    oidc: Oidc

    def address(self, state: str, started: Started) -> str: ...

    def claims(self, code: str, started: Started, issuer: str) -> Claims: ...


@dataclass(frozen=True)
class SignIns:
    """What endpoints need for it; `provider` is None where there is none."""

    provider: Provider | None = None
    started: Once[Started] = field(default_factory=lambda: Once(_AWAY_S))
    permits: Once[Permit] = field(default_factory=lambda: Once(_HANDOVER_S))


def provider(oidc: Oidc, folder: Path, url: str) -> Provider:
    """The provider of a home in `folder`; it is not asked anything yet, so the service starts without it.

    Raises: UsageError if its secret is missing, or Authlib.
    """
    file = folder / oidc.client_secret_file if oidc.client_secret_file else None
    secret = home.secret(file, SECRET, "the secret of the OpenID client")
    if secret is None:
        raise UsageError(
            "[oidc]: the client's secret? put it in a file and name it as client_secret_file in fleet.toml, or set "
            f"{SECRET}"
        )
    try:
        from fleet.server.oidc import Provider as Real
    except ModuleNotFoundError as error:
        raise UsageError(
            f"[oidc] needs {error.name}, which is not installed here: {extra('fleet', 'oidc')}"
        ) from error
    if oidc.ca:
        oidc = msgspec.structs.replace(oidc, ca=str(folder / oidc.ca))
    try:
        text = secret.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file or SECRET}: the secret of the OpenID client is no text") from None
    return Real(oidc, text, url + CALLBACK)
