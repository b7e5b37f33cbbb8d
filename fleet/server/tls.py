"""TLS of the HTTP side: one context for as long as the service runs, and who is at the other end of a connection.

Always true
 1. TLS 1.2 or newer.
 2. A client may show a certificate; one that the fleet's own authority did not issue ends the connection. Whether it has
    run out is left to who looks at it (`fleet.server.api.identity`): a certificate that has may still renew.
"""

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# X509_V_FLAG_NO_CHECK_TIME of OpenSSL (x509_vfy.h), which the standard library does not name.
_NO_CHECK_TIME = 0x200000
PEER = "edgekit.peer_certificate"


def server_context(certificate: Path, key: Path, client_authorities: Iterable[str]) -> ssl.SSLContext:
    """A server's context that asks for a client certificate and does without. Raises: OSError, ssl.SSLError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(certificate, key)
    made.verify_mode = ssl.CERT_OPTIONAL
    made.load_verify_locations(cadata="".join(client_authorities))
    made.verify_flags |= _NO_CHECK_TIME
    # A session that is taken up again would not show the certificate again.
    made.options |= ssl.OP_NO_TICKET
    return made


Application = Callable[[Any, Any, Any], Any]


class Protocol(AutoHTTPProtocol):  # type: ignore[valid-type,misc]  # which class it is depends on what is installed
    """uvicorn's HTTP protocol; the peer's certificate (DER) comes with each request, as an extension of the scope."""

    app: Application

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        session = transport.get_extra_info("ssl_object")
        found = session.getpeercert(binary_form=True) if session is not None else None
        if found:
            self.app = _with_peer(self.app, found)


def _with_peer(app: Application, certificate: bytes) -> Application:
    async def told(scope: Any, receive: Any, send: Any) -> None:
        scope = {**scope, "extensions": {**(scope.get("extensions") or {}), PEER: certificate}}
        await app(scope, receive, send)

    return told
