"""An OpenID provider on loopback that can be told to lie: discovery, keys, authorize, token, user info, over real HTTP."""

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey
from joserfc.jws import JWSRegistry

CLIENT, SECRET = "edgekit fleet", "s3cret: of the client/+&%, not ours to tell"
Claims = dict[str, Any]
Sign = Callable[[Claims], str]


@dataclass
class OpenIdProvider:
    """`person` is who signs in; `spoil` changes an ID token's claims, `sign` is how it is signed, `answers` come instead."""

    clock: Callable[[], float]
    person: Claims = field(default_factory=lambda: {"sub": "s-1", "groups": ["ops"]})
    spoil: Callable[[Claims], object] = lambda _claims: None
    sign: Sign | None = None
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    description: Claims = field(default_factory=dict)
    userinfo: Claims = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys: list[RSAKey] = []
        self.rotate()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.serve(self, {})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                fields = parse_qs(self.rfile.read(length).decode(), keep_blank_values=True)
                provider.serve(self, {name: values[0] for name, values in fields.items()})

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}/realm"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def rotate(self) -> None:
        """A new key; what was published before is gone."""
        self.keys = [RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"}, private=True)]

    def serve(self, handler: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        leaf = url.path.removeprefix("/realm/")
        self.asked.append(leaf)
        if leaf in self.answers:
            self._send(handler, *self.answers[leaf])
        elif leaf == ".well-known/openid-configuration":
            self._json(handler, self._described())
        elif leaf == "keys":
            self._json(handler, {"keys": [key.as_dict(private=False) for key in self.keys]})
        elif leaf == "authorize":
            handler.send_response(302)
            handler.send_header("Location", self.authorize(query))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif leaf == "token":
            self._json(handler, *self._token(handler, form))
        elif leaf == "userinfo":
            self._json(handler, self.userinfo)
        else:
            self._json(handler, {"error": "not_found"}, 404)

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser is sent back to, once somebody has signed in here."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT
        assert (query["code_challenge_method"], len(query["code_challenge"])) == ("S256", 43)
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.issuer}
        return f"{query['redirect_uri']}?{urlencode(back)}"

    def _described(self) -> Claims:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "authorization_response_iss_parameter_supported": True,
            **self.description,
        }

    def _token(self, handler: BaseHTTPRequestHandler, form: dict[str, str]) -> tuple[Claims, int]:
        scheme, _, given = handler.headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(given).decode().partition(":")
        if scheme != "Basic" or (unquote_plus(client), unquote_plus(secret)) != (CLIENT, SECRET):
            return {"error": "invalid_client", "error_description": f"not {given} {SECRET}"}, 401
        asked = self.codes.pop(form.get("code", ""), None)
        shown = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(shown).rstrip(b"=").decode()
        if (
            asked is None
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            return {"error": "invalid_grant"}, 400
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": int(self.clock()),
            "exp": int(self.clock()) + 300,
            "nonce": asked["nonce"],
            **self.person,
        }
        self.spoil(claims)
        token = (self.sign or self.signed)(claims)
        return {"access_token": "access-of-" + claims["sub"], "token_type": "Bearer", "id_token": token}, 200

    def signed(self, claims: Claims, key: RSAKey | None = None) -> str:
        key = key or self.keys[0]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key, registry=JWSRegistry())

    def _json(self, handler: BaseHTTPRequestHandler, value: Claims, status: int = 200) -> None:
        self._send(handler, status, json.dumps(value).encode())

    def _send(self, handler: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


def by_hand(header: Claims, claims: Claims, signature: Callable[[bytes], bytes]) -> str:
    """A token as an attacker makes it, with what no library would sign."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signed = b".".join(parts)
    return b".".join([signed, base64.urlsafe_b64encode(signature(signed)).rstrip(b"=")]).decode()
