"""Signing in through an OpenID provider: the way there and back, what it grants, and each way to cheat."""

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from access_support import NOW, Clock, Inside
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import RSAKey
from oidc_provider import CLIENT, SECRET, OpenIdProvider, by_hand

from edgekit.errors import AuthError, UsageError
from fleet.rules import people
from fleet.rules.access import Role, Scope
from fleet.rules.attempts import PER_ADDRESS
from fleet.rules.people import GroupGrant, Oidc
from fleet.server import home, passwords, signin
from fleet.server.oidc import Provider
from fleet.server.once import Once
from fleet.server.signin import CALLBACK, SignIns
from fleet.server.store import audit, sessions, users
from fleet.server.store.tokens import Grant

GRANTS = (
    GroupGrant("ops", "operator"),
    GroupGrant("lab", "operator", "site=lab"),
    GroupGrant("roof", "operator", "site=roof"),
    GroupGrant("heads", "admin"),
)
ANN = {"sub": "s-1", "email": "Ann@Example.com", "email_verified": True, "groups": ["ops", "others"]}


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs are not what is tested here."""
    monkeypatch.setattr(passwords, "_LOG2_N", 4)
    monkeypatch.setattr(passwords, "_NOBODY", passwords._NOBODY.replace("scrypt$15$", "scrypt$4$"))


@dataclass
class Scene:
    """A fleet, its provider, and browsers."""

    inside: Inside
    provider: OpenIdProvider
    clients: list[Any] = field(default_factory=list)

    def browser(self) -> Any:
        return self.inside.client()

    def go(self, browser: Any, then: str = "/") -> str:
        """To the provider, signing in there; the address that it sends the browser back to."""
        going = browser.get("/login/oidc", params={"next": then})
        assert going.status_code == 303, going.text
        back = httpx.get(going.headers["location"], trust_env=False)
        assert back.status_code == 302
        return str(back.headers["location"])

    def come_back(self, browser: Any, address: str) -> Any:
        url = urlsplit(address)
        return browser.get(f"{url.path}?{url.query}")

    def sign_in(self, browser: Any | None = None, then: str = "/") -> Any:
        browser = browser or self.browser()
        return self.come_back(browser, self.go(browser, then))

    def audited(self, count: int = 1) -> list[Any]:
        with self.inside.database.begin() as connection:
            return audit.newest(connection, count)

    def sessions(self) -> int:
        from fleet.server import schema_access

        with self.inside.database.begin() as connection:
            return len(connection.execute(schema_access.sessions.select()).all())


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Inside, OpenIdProvider]]:
    """Making a fleet's keys takes longer than all tests here: they share one, and get it empty."""
    clock = Clock()
    provider = OpenIdProvider(clock, dict(ANN))
    inside = Inside(tmp_path_factory.mktemp("oidc") / "fleet", clock)
    yield inside, provider
    provider.close()
    inside.close()


@pytest.fixture
def scene(shared_home: tuple[Inside, OpenIdProvider]) -> Scene:
    from dataclasses import replace

    from fleet.rules.attempts import Limits
    from fleet.server import schema_access

    inside, provider = shared_home
    inside.clock.now = NOW
    provider.person, provider.spoil, provider.sign = dict(ANN), lambda _claims: None, None
    for kept in (provider.answers, provider.description, provider.userinfo, provider.asked, provider.codes):
        kept.clear()  # type: ignore[attr-defined]
    real = Provider(oidc_of(provider), SECRET, f"http://127.0.0.1:8080{CALLBACK}", inside.clock)
    inside.context = replace(inside.context, sign_ins=SignIns(real), limits=Limits())
    inside.app.state.context = inside.context
    with inside.database.begin() as connection:
        for table in (schema_access.sessions, schema_access.users):
            connection.execute(table.delete())
    return Scene(inside, provider)


def oidc_of(provider: OpenIdProvider, **more: Any) -> Oidc:
    return Oidc(issuer=provider.issuer, client_id=CLIENT, grants=GRANTS, label="Example <b>", **more)


# -- the way there and back ------------------------------------------------------------------------------------------


def test_signing_in_at_the_provider_opens_the_page_and_the_api_as_that_person(scene: Scene) -> None:
    browser = scene.browser()
    assert "Sign in with Example &lt;b&gt;" in browser.get("/login").text
    done = scene.sign_in(browser)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert "Signed in as <b>ann@example.com</b>: operator." in browser.get("/").text
    assert browser.get("/api/v1/whoami").json() == {
        "name": "user:ann@example.com",
        "role": "operator",
        "scope": "",
    }
    # The same protection as after a password: the cookie alone changes nothing.
    assert browser.post("/api/v1/freeze", json={"is_frozen": True}).status_code == 403
    [began, added] = scene.audited(2)
    assert (began.actor, began.action, began.origin) == ("user:ann@example.com", "session.begin", "192.0.2.7")
    assert (began.detail, added.action, added.subject) == ("page, by oidc", "user.add", "ann@example.com")
    assert f"{scene.provider.issuer} s-1" in added.after


def test_who_came_is_listed_with_the_others_and_their_last_use(scene: Scene) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    scene.inside.clock.now += 300
    assert browser.get("/api/v1/status").status_code == 200
    with scene.inside.database.begin() as connection:
        users.add(connection, "bob", "scrypt$", Grant(Role.VIEWER), now=NOW, who=audit.FLEET)
    admin = scene.inside.client(scene.inside.token(f"a-{id(scene)}", Role.ADMIN))
    shown = {one["name"]: one for one in admin.get("/api/v1/users").json()}
    ann = shown["ann@example.com"]
    assert (ann["kind"], ann["role"], ann["state"]) == ("oidc", "operator", "good")
    assert (ann["subject"], ann["last_used_from"]) == (f"{scene.provider.issuer} s-1", "192.0.2.7")
    assert ann["last_used"] > ann["created"]
    assert (shown["bob"]["kind"], shown["bob"]["subject"]) == ("password", "")
    # Of a password they know nothing, so none opens, and none is set.
    for word in ("", "scrypt$"):
        with scene.inside.database.begin() as connection:
            assert not passwords.is_right(word, users.get(connection, "ann@example.com").password or None)
    refused = admin.post("/api/v1/users/ann@example.com/password", json={"password": "correct horse battery"})
    assert (refused.status_code, "has no password here" in refused.text) == (409, True)


def test_the_role_is_taken_anew_each_time(scene: Scene) -> None:
    first = scene.browser()
    scene.sign_in(first)
    scene.provider.person["groups"] = ["heads"]
    scene.sign_in()
    # Of the row, so for sessions that are open too.
    assert first.get("/api/v1/whoami").json()["role"] == "admin"
    [_, changed] = scene.audited(2)
    assert (changed.action, changed.before, changed.after) == (
        "user.role",
        '{"role":"operator","scope":""}',
        '{"role":"admin","scope":""}',
    )


def test_who_has_no_role_any_more_is_told_what_to_do_and_their_sessions_end(scene: Scene) -> None:
    first = scene.browser()
    scene.sign_in(first)
    scene.provider.person["groups"] = ["others"]
    refused = scene.sign_in()
    assert refused.status_code == 403
    assert "You have no role here" in refused.text
    assert "[[oidc.grants]]" in refused.text
    assert first.get("/api/v1/status").status_code == 401
    [entry] = scene.audited()
    assert (entry.action, entry.subject) == ("session.refuse", "ann@example.com")


def test_who_was_left_out_for_too_many_groups_is_told_so(scene: Scene) -> None:
    del scene.provider.person["groups"]
    scene.provider.person["_claim_names"] = {"groups": "src1"}
    scene.provider.userinfo["sub"] = "s-1"
    assert "in so many groups" in scene.sign_in().text


def test_who_is_blocked_stays_out_until_let_in_again(scene: Scene) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    admin = scene.inside.client(scene.inside.token(f"b-{id(scene)}", Role.ADMIN))
    path = "/api/v1/users/ann@example.com"
    assert admin.post(f"{path}/block", json={"reason": "left"}).json()["is_changed"] is True
    assert admin.post(f"{path}/block", json={}).json()["is_changed"] is False
    assert browser.get("/api/v1/status").status_code == 401
    refused = scene.sign_in(browser)
    assert (refused.status_code, "You are blocked here" in refused.text) == (403, True)
    assert [entry.action for entry in scene.audited(2)] == ["session.refuse", "user.block"]
    assert admin.post(f"{path}/unblock", json={}).status_code == 200
    assert scene.sign_in(browser).status_code == 303


def test_a_role_that_follows_from_groups_is_not_changed_here_but_an_end_may_be_set(scene: Scene) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    admin = scene.inside.client(scene.inside.token(f"r-{id(scene)}", Role.ADMIN))
    path = "/api/v1/users/ann@example.com"
    refused = admin.post(path, json={"role": "admin"})
    assert (refused.status_code, "from their groups" in refused.text) == (409, True)
    assert admin.post(path, json={"expires": "1h"}).status_code == 200
    assert browser.get("/api/v1/status").status_code == 200
    scene.inside.clock.now += 3601
    assert browser.get("/api/v1/status").status_code == 401
    assert "Your time here is over" in scene.sign_in(browser).text


def test_nobody_comes_in_under_the_name_of_somebody_else(scene: Scene) -> None:
    with scene.inside.database.begin() as connection:
        kept = passwords.hashed("correct horse battery staple")
        users.add(connection, "ann@example.com", kept, Grant(Role.ADMIN), now=NOW, who=audit.FLEET)
    refused = scene.sign_in()
    assert (refused.status_code, "another user" in refused.text) == (403, True)
    # Nor under that of another account there, whatever it says of its address.
    with scene.inside.database.begin() as connection:
        users.remove(connection, "ann@example.com", now=NOW, who=audit.FLEET)
    assert scene.sign_in().status_code == 303
    scene.provider.person["sub"] = "s-2"
    assert "another user" in scene.sign_in().text
    assert scene.sessions() == 1


def test_groups_that_only_the_user_info_tells_count_for_the_same_person_only(scene: Scene) -> None:
    del scene.provider.person["groups"]
    scene.provider.userinfo.update(sub="s-1", groups=["heads"])
    assert scene.sign_in().status_code == 303
    scene.provider.userinfo["sub"] = "s-2"
    assert "does not prove who you are" in scene.sign_in().text


# -- each way to cheat -----------------------------------------------------------------------------------------------


def with_claim(name: str, value: Any) -> Callable[[OpenIdProvider], None]:
    def lie(provider: OpenIdProvider) -> None:
        def spoil(claims: dict[str, Any]) -> None:
            claims[name] = value(claims) if callable(value) else value

        provider.spoil = spoil

    return lie


def without_claim(name: str) -> Callable[[OpenIdProvider], None]:
    def lie(provider: OpenIdProvider) -> None:
        provider.spoil = lambda claims: claims.pop(name)

    return lie


def unsigned(provider: OpenIdProvider) -> None:
    provider.sign = lambda claims: by_hand({"alg": "none"}, claims, lambda _: b"")


def with_the_public_key_as_secret(provider: OpenIdProvider) -> None:
    """RS256 turned into HS256: what everybody knows would be what signs."""
    key = provider.keys[0]
    pem = key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signature(signed: bytes) -> bytes:
        return hmac.digest(pem, signed, "sha256")

    provider.sign = lambda claims: by_hand({"alg": "HS256", "kid": key.kid}, claims, signature)


def with_the_client_secret(provider: OpenIdProvider) -> None:
    def signature(signed: bytes) -> bytes:
        return hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()

    provider.sign = lambda claims: by_hand({"alg": "HS256"}, claims, signature)


def by_a_key_that_is_not_published(provider: OpenIdProvider) -> None:
    stranger = RSAKey.generate_key(2048, {"kid": "stranger"}, private=True)
    provider.sign = lambda claims: provider.signed(claims, stranger)


def by_a_key_that_takes_a_published_name(provider: OpenIdProvider) -> None:
    stranger = RSAKey.generate_key(2048, {"kid": provider.keys[0].kid}, private=True)
    provider.sign = lambda claims: provider.signed(claims, stranger)


def with_a_key_of_its_own_in_the_header(provider: OpenIdProvider) -> None:
    from joserfc import jwt

    stranger = RSAKey.generate_key(2048, {"kid": "mine"}, private=True)
    header = {"alg": "RS256", "kid": "mine", "jwk": stranger.as_dict(private=False)}
    provider.sign = lambda claims: jwt.encode(header, claims, stranger)


def with_parts_of_another_kind(provider: OpenIdProvider) -> None:
    provider.sign = lambda claims: by_hand({"alg": "RS256", "crit": 5}, claims, lambda _: b"x")


def changed_after_signing(provider: OpenIdProvider) -> None:
    def sign(claims: dict[str, Any]) -> str:
        head, _, tail = provider.signed(claims).split(".")
        return f"{head}.{provider.signed({**claims, 'groups': ['heads']}).split('.')[1]}.{tail}"

    provider.sign = sign


LIES = {
    "wrong nonce": (with_claim("nonce", "another"), "claim 'nonce'"),
    "no nonce": (without_claim("nonce"), "claim 'nonce'"),
    "wrong audience": (with_claim("aud", "another-client"), "claim 'aud'"),
    "for another party too": (with_claim("aud", [CLIENT, "another-client"]), "claim 'azp'"),
    "given to another party": (with_claim("azp", "another-client"), "claim 'azp'"),
    "no audience": (without_claim("aud"), "claim 'aud'"),
    "wrong issuer": (with_claim("iss", "https://evil.example"), "claim 'iss'"),
    "expired": (with_claim("exp", lambda claims: claims["iat"] - 61), "claim 'exp'"),
    "never expires": (without_claim("exp"), "claim 'exp'"),
    "of the future": (with_claim("iat", lambda claims: claims["iat"] + 3600), "claim 'iat'"),
    "not yet good": (with_claim("nbf", lambda claims: claims["iat"] + 3600), "claim 'nbf'"),
    "of nobody": (with_claim("sub", ""), "claim 'sub'"),
    "for another access token": (with_claim("at_hash", "AAAAAAAAAAAAAAAAAAAAAA"), "claim 'at_hash'"),
    "alg none": (unsigned, "signature"),
    "HS256 with the public key": (with_the_public_key_as_secret, "signature"),
    "HS256 with the client's secret": (with_the_client_secret, "signature"),
    "a key that is not published": (by_a_key_that_is_not_published, "signature"),
    "another key of a published name": (by_a_key_that_takes_a_published_name, "signature"),
    "a key in the header": (with_a_key_of_its_own_in_the_header, "signature"),
    "parts of another kind": (with_parts_of_another_kind, "form"),
    "a list as hash": (with_claim("at_hash", ["x"]), "form"),
    "changed after signing": (changed_after_signing, "signature"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_token_that_proves_nothing_lets_nobody_in(scene: Scene, lie: str) -> None:
    spoil, what = LIES[lie]
    spoil(scene.provider)
    refused = scene.sign_in()
    assert refused.status_code == 403
    assert f"does not prove who you are ({what})" in refused.text.replace("&#x27;", "'")
    assert scene.sessions() == 0
    # And what is right is let in, by the very same way.
    scene.provider.spoil, scene.provider.sign = lambda _claims: None, None
    assert scene.sign_in().status_code == 303


def test_a_key_that_was_rotated_is_fetched_and_works(scene: Scene) -> None:
    scene.sign_in()
    scene.provider.rotate()
    scene.provider.asked.clear()
    assert scene.sign_in().status_code == 303
    assert scene.provider.asked == ["authorize", "token", "keys"]


def test_an_answer_with_a_wrong_state_is_refused(scene: Scene) -> None:
    browser = scene.browser()
    address = scene.go(browser)
    for wrong in ("", "x" * 43, "\u00e9"):
        answer = browser.get(CALLBACK, params={**parts(address), "state": wrong})
        assert (answer.status_code, "Please try again" in answer.text) == (403, True)
    assert scene.provider.codes  # nothing was asked of the provider
    assert scene.sessions() == 0


def test_an_answer_counts_once(scene: Scene) -> None:
    browser = scene.browser()
    address = scene.go(browser)
    kept = dict(browser.cookies)
    assert scene.come_back(browser, address).status_code == 303
    browser.cookies.update(kept)
    scene.provider.asked.clear()
    assert scene.come_back(browser, address).status_code == 403
    # Not left to the provider, for which the code is used up too.
    assert scene.provider.asked == []
    assert scene.sessions() == 1


def test_an_answer_that_comes_too_late_is_refused(scene: Scene) -> None:
    browser = scene.browser()
    address = scene.go(browser)
    scene.inside.clock.now += 601
    assert scene.come_back(browser, address).status_code == 403


def test_nobody_is_signed_in_as_who_began_elsewhere(scene: Scene) -> None:
    """Login CSRF: the attacker's own answer, opened in a browser that did not ask, or that asked for its own."""
    attacker, victim = scene.browser(), scene.browser()
    address = scene.go(attacker)
    assert scene.come_back(victim, address).status_code == 403
    own = scene.go(victim)
    address = scene.go(attacker)
    assert scene.come_back(victim, address).status_code == 403
    mixed = {**parts(own), "code": parts(address)["code"]}
    # Its own state with the attacker's code: the verifier is not that code's.
    assert "does not prove who you are" in victim.get(CALLBACK, params=mixed).text
    assert scene.sessions() == 0


@pytest.mark.parametrize("said", ["https://evil.example", ""])
def test_an_answer_of_another_provider_is_refused(scene: Scene, said: str) -> None:
    """The mix-up attack (RFC 9207): the code is never sent on."""
    browser = scene.browser()
    address = scene.go(browser)
    answer = browser.get(CALLBACK, params={**parts(address), "iss": said})
    assert (answer.status_code, "not from the provider that was asked" in answer.text) == (403, True)
    assert scene.provider.codes


def test_the_providers_own_words_of_refusal_are_not_repeated(scene: Scene) -> None:
    browser = scene.browser()
    state = parts(scene.go(browser))["state"]
    given = {"state": state, "error": "access_denied", "error_description": "call 555-EVIL"}
    answer = browser.get(CALLBACK, params=given)
    assert (answer.status_code, "EVIL" in answer.text) == (403, False)
    assert "did not sign you in" in answer.text


ELSEWHERE = [
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example",
    "/\t/evil.example",
    "\\\\evil.example",
    "javascript:alert(1)",
    "/x\r\nSet-Cookie: a=b",
    "/" + "x" * 2000,
    "",
]


@pytest.mark.parametrize("then", ELSEWHERE)
def test_nobody_is_sent_to_another_site_afterwards(scene: Scene, then: str) -> None:
    assert people.local(then) == "/"
    assert scene.sign_in(then=then).headers["location"] == "/"
    page = scene.browser().get("/login", params={"next": then})
    assert 'name="next" value="/"' in page.text


def test_one_is_sent_to_the_page_that_one_came_for(scene: Scene) -> None:
    assert people.local("/login/terminal?port=1&state=a-b_c") == "/login/terminal?port=1&state=a-b_c"
    assert scene.sign_in(then="/api/v1/status").headers["location"] == "/api/v1/status"


def test_attempts_are_limited_by_address_as_those_with_a_password_are(scene: Scene) -> None:
    browser = scene.browser()
    for _ in range(PER_ADDRESS.burst):
        assert browser.get(CALLBACK, params={"state": "x", "code": "y"}).status_code == 403
        assert browser.get("/login/oidc").status_code == 303
    refused = browser.get(CALLBACK, params={"state": "x", "code": "y"})
    assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
    assert browser.get("/login/oidc").status_code == 429
    scene.inside.clock.now += PER_ADDRESS.every_s
    assert browser.get("/login/oidc").status_code == 303


# -- a provider in trouble -------------------------------------------------------------------------------------------

TROUBLE: dict[str, tuple[str, tuple[int, bytes], str]] = {
    "it is down": (".well-known/openid-configuration", (503, b"down"), "it answered 503"),
    "a page instead": (".well-known/openid-configuration", (200, b"<html>"), "makes no sense"),
    "a list": (".well-known/openid-configuration", (200, b"[]"), "makes no sense"),
    "no end": (".well-known/openid-configuration", (200, b" " * (2 << 20)), "makes no sense"),
    "no keys": ("keys", (200, b"{}"), "does not prove"),
    "broken keys": (
        "keys",
        (200, b'{"keys": [1, {"kty": "RSA"}, {"kty": "oct", "k": "AA"}]}'),
        "does not prove",
    ),
    "no token": ("token", (200, b"{}"), "it sent no ID token"),
    "a token of another kind": ("token", (200, b'{"id_token": 1}'), "it sent no ID token"),
    "a token that is none": ("token", (200, b'{"id_token": "a.b"}'), "does not prove"),
    "tokens that fail": ("token", (502, b""), "it answered 502"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_provider_in_trouble_is_a_sentence_and_others_still_sign_in(scene: Scene, trouble: str) -> None:
    leaf, answer, sentence = TROUBLE[trouble]
    scene.provider.answers[leaf] = answer
    browser = scene.browser()
    shown = browser.get("/login/oidc") if "." in leaf else scene.sign_in(browser)
    assert shown.status_code in (403, 503)
    assert sentence in shown.text
    with_a_password(scene)
    scene.provider.answers.clear()
    scene.inside.clock.now += 10
    assert scene.sign_in(browser).status_code == 303


def with_a_password(scene: Scene) -> None:
    import re

    with scene.inside.database.begin() as connection:
        kept = passwords.hashed("correct horse battery staple")
        users.add(connection, "bob", kept, Grant(Role.VIEWER), now=NOW, who=audit.FLEET)
    client = scene.browser()
    [csrf] = re.findall(r'name="csrf" value="([0-9a-f]+)"', client.get("/login").text)
    given = {"csrf": csrf, "name": "bob", "password": "correct horse battery staple"}
    assert client.post("/login", data=given).status_code == 303


def test_a_provider_that_cannot_be_reached_is_not_asked_again_at_once(scene: Scene) -> None:
    gone = OpenIdProvider(scene.inside.clock)
    gone.close()
    real = Provider(oidc_of(gone), SECRET, f"http://127.0.0.1:8080{CALLBACK}", scene.inside.clock)
    object.__setattr__(scene.inside.context.sign_ins, "provider", real)
    for _ in range(2):
        shown = scene.browser().get("/login/oidc")
        assert (shown.status_code, "cannot be reached (ConnectError)" in shown.text) == (503, True)
    with_a_password(scene)


def test_a_provider_that_never_answers_holds_nobody_up_for_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from fleet.server import oidc

    monkeypatch.setattr(oidc, "_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = Oidc(f"http://127.0.0.1:{mute.getsockname()[1]}", CLIENT, GRANTS)
        real = Provider(settings, SECRET, f"http://127.0.0.1:8080{CALLBACK}", scene.inside.clock)
        object.__setattr__(scene.inside.context.sign_ins, "provider", real)
        shown = scene.browser().get("/login/oidc")
    assert (shown.status_code, "cannot be reached (ReadTimeout)" in shown.text) == (503, True)


def test_only_so_many_wait_for_the_provider_and_the_others_are_told(scene: Scene) -> None:
    real = scene.inside.context.sign_ins.provider
    assert isinstance(real, Provider)
    taken = 0
    while real._turn.acquire(blocking=False):
        taken += 1
    shown = scene.browser().get("/login/oidc")
    assert (shown.status_code, "too many sign-ins wait for it" in shown.text) == (503, True)
    for _ in range(taken):
        real._turn.release()
    # That says nothing about the provider, so nobody else is turned away for it.
    assert scene.sign_in().status_code == 303


def test_a_provider_that_calls_itself_otherwise_is_not_the_one(scene: Scene) -> None:
    scene.provider.description["issuer"] = "https://login.example/{tenantid}/v2.0"
    shown = scene.browser().get("/login/oidc")
    assert (shown.status_code, "it calls itself" in shown.text) == (503, True)


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
def test_an_endpoint_in_the_clear_elsewhere_is_not_used(scene: Scene, name: str) -> None:
    scene.provider.description[name] = "http://login.example/here"
    shown = scene.browser().get("/login/oidc")
    assert (shown.status_code, f"its {name} is no https address" in shown.text) == (503, True)


def test_the_client_shows_its_secret_to_the_token_endpoint_and_nobody_else(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    real = Provider(oidc_of(scene.provider), "wrong " + SECRET, f"http://x{CALLBACK}", scene.inside.clock)
    object.__setattr__(scene.inside.context.sign_ins, "provider", real)
    browser = scene.browser()
    refused = scene.sign_in(browser)
    # The provider's answer repeats it all; ours says the code of the error only.
    assert "(invalid_client)" in refused.text
    said = "\n".join(record.getMessage() for record in caplog.records) + caplog.text
    for text in (refused.text, said, repr(real), repr(scene.inside.context), str(scene.audited(50))):
        assert "of the client" not in text


# -- settings --------------------------------------------------------------------------------------------------------

TABLE = """
fleet = "fleet-1"
[oidc]
issuer = "https://login.example"
client_id = "edgekit"
client_secret_file = "oidc.secret"
[[oidc.grants]]
group = "ops"
role = "operator"
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("https://", "http://", "issuer"),
        ('"operator"', '"owner"', "there are viewer, operator, publisher, admin"),
        ('"operator"', '"operator"\nscope = "site="', "selector"),
        ("[[oidc.grants]]", "[oidc.other]", "oidc"),
        ("client_secret_file", "client_secret", "unknown field"),
        ('"edgekit"', '""', "client_id"),
        ('"edgekit"', '"edgekit"\nscopes = ["email"]', "openid"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_with_their_file(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(TABLE)
    config = home.read_config(tmp_path).oidc
    assert config is not None
    assert config.grants == (GroupGrant("ops", "operator"),)
    file.write_text(TABLE.replace(old, new))
    with pytest.raises(UsageError, match=said) as caught:
        home.read_config(tmp_path)
    assert str(file) in str(caught.value)


def test_the_secret_comes_from_a_file_of_its_own_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(signin.SECRET, raising=False)
    oidc = Oidc("https://login.example", CLIENT, GRANTS)
    with pytest.raises(UsageError, match="the client's secret"):
        signin.provider(oidc, tmp_path, "http://127.0.0.1:8080")
    monkeypatch.setenv(signin.SECRET, SECRET)
    assert SECRET not in repr(signin.provider(oidc, tmp_path, "http://127.0.0.1:8080"))
    named = msgspec.structs.replace(oidc, client_secret_file="oidc.secret")
    file = tmp_path / "oidc.secret"
    file.write_text(SECRET)
    file.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        signin.provider(named, tmp_path, "http://127.0.0.1:8080")
    file.chmod(0o600)
    signin.provider(named, tmp_path, "http://127.0.0.1:8080")
    with pytest.raises(UsageError, match="no PEM certificates"):
        signin.provider(msgspec.structs.replace(named, ca="oidc.secret"), tmp_path, "http://127.0.0.1:8080")


def test_without_authlib_the_service_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setenv(signin.SECRET, SECRET)
    monkeypatch.delitem(sys.modules, "fleet.server.oidc")
    monkeypatch.setitem(sys.modules, "authlib.common.errors", None)
    with pytest.raises(UsageError, match=r"edgekit-toolkit\[fleet,oidc\]"):
        signin.provider(Oidc("https://login.example", CLIENT, GRANTS), tmp_path, "http://127.0.0.1:8080")


# -- the rules by themselves -----------------------------------------------------------------------------------------

SETTINGS = Oidc("https://login.example", CLIENT, GRANTS)


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ((), None),
        (("others",), None),
        (("ops",), (Role.OPERATOR, Scope())),
        (("lab",), (Role.OPERATOR, Scope("site=lab"))),
        (("roof", "lab"), (Role.OPERATOR, Scope("(site=lab) or (site=roof)"))),
        (("lab", "ops"), (Role.OPERATOR, Scope())),
        (("lab", "heads"), (Role.ADMIN, Scope())),
    ],
)
def test_the_highest_role_counts_with_the_scopes_of_its_own_grants(
    groups: tuple[str, ...], found: Any
) -> None:
    assert people.access(groups, SETTINGS) == found


def test_a_higher_role_for_some_is_never_widened_by_a_lower_one_for_all() -> None:
    grants = (GroupGrant("all", "viewer"), GroupGrant("lab", "admin", "site=lab"))
    settings = msgspec.structs.replace(SETTINGS, grants=grants)
    assert people.access(("all", "lab"), settings) == (Role.ADMIN, Scope("site=lab"))


@pytest.mark.parametrize(
    ("claims", "path", "found"),
    [
        ({"groups": ["a", "b", 1]}, "groups", ("a", "b")),
        ({"groups": "a"}, "groups", ("a",)),
        ({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ("a",)),
        ({"https://example.com/groups": ["a"]}, "https://example.com/groups", ("a",)),
        ({"realm_access": "x"}, "realm_access.roles", ()),
        ({"groups": {"a": 1}}, "groups", ()),
        ({"email": "A@x.org", "email_verified": True}, "email", ("a@x.org",)),
        ({"email": "a@x.org"}, "email", ()),
        ({"email": "a@x.org", "email_verified": "false"}, "email", ()),
    ],
)
def test_groups_are_found_where_providers_put_them(claims: Any, path: str, found: tuple[str, ...]) -> None:
    assert people.groups(claims, path) == found


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "1"},
        {"sub": "1", "email": "a@example.com"},
        {"sub": "1", "email": "a@example.com", "email_verified": False},
        {"sub": "1", "email": "a@evil.example", "email_verified": True},
        {"sub": "1", "email": "a@example.com.evil.example", "email_verified": True},
        {"sub": "1", "email": "example.com", "email_verified": True, "hd": "example.com"},
        {"sub": "1", "email": ["a@example.com"], "email_verified": True},
    ],
)
def test_only_verified_addresses_of_the_allowed_domains_may_come(claims: Any) -> None:
    settings = msgspec.structs.replace(SETTINGS, domains=("Example.com",))
    with pytest.raises(AuthError, match="verified e-mail address"):
        people.person(claims, settings)
    right = {"sub": "1", "email": "A@EXAMPLE.com", "email_verified": True}
    assert people.person(right, settings).name == "a@example.com"


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"email": "a@x.org", "email_verified": True, "preferred_username": "ann"}, "a@x.org"),
        ({"email": "boss@x.org", "preferred_username": "Ann"}, "ann"),
        ({"preferred_username": "../ann"}, "oidc-"),
        ({"preferred_username": ["ann"]}, "oidc-"),
        ({}, "oidc-"),
    ],
)
def test_a_name_is_one_that_the_provider_vouches_for_and_the_audit_log_can_hold(
    claims: Any, name: str
) -> None:
    found = people.person({"sub": "1", **claims}, SETTINGS).name
    assert found.startswith(name)
    assert people.NAME.match(found)


def test_what_waits_is_claimed_once_in_its_time_and_takes_bounded_memory() -> None:
    waiting: Once[int] = Once(10.0, capacity=3)
    secrets = [waiting.put(number, float(number)) for number in range(5)]
    assert len(waiting) == 3
    assert [waiting.take(secret, 5.0) for secret in secrets] == [None, None, 2, 3, 4]
    assert waiting.take(secrets[4], 5.0) is None
    late = waiting.put(9, 0.0)
    assert waiting.take(late, 10.0) is None
    waiting.put(1, 0.0)
    waiting.put(2, 10.0)
    assert len(waiting) == 1


def parts(address: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


# -- at a terminal ---------------------------------------------------------------------------------------------------

VERIFIER = "v" * 43
CHALLENGE = "7w_YNF9DSfIdPf_pRjSq646_kPr-2-o9NAl16JGghdM"
WANTED = {"port": "4711", "state": "s" * 43, "challenge": CHALLENGE}


def permitted(scene: Scene, browser: Any) -> str:
    """The code that the browser brings to the terminal, once the person has said so."""
    import re

    page = browser.get("/login/terminal", params=WANTED)
    [csrf] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
    going = browser.post("/login/terminal", data={**WANTED, "csrf": csrf})
    assert going.headers["location"].startswith("http://127.0.0.1:4711/?")
    # A browser holds a form to the places that the page's policy names, also where the answer redirects.
    assert "form-action 'self' http://127.0.0.1:4711;" in page.headers["content-security-policy"]
    found = parts(going.headers["location"])
    assert found["state"] == WANTED["state"]
    return found["code"]


def test_a_terminal_acts_as_the_person_for_a_working_day_and_no_longer(scene: Scene) -> None:
    browser = scene.browser()
    # Who is not signed in comes back here afterwards.
    asked = browser.get("/login/terminal", params=WANTED)
    form = browser.get(asked.headers["location"]).text
    assert (asked.status_code, 'name="next" value="/login/terminal?port=4711' in form) == (303, True)
    [then] = parse_qs(urlsplit(asked.headers["location"]).query)["next"]
    assert scene.sign_in(browser, then).headers["location"] == then
    made = scene.browser().post(
        "/api/v1/session/terminal", json={"code": permitted(scene, browser), "verifier": VERIFIER}
    )
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret = made.json()["secret"]
    terminal = scene.inside.client(secret)
    assert terminal.get("/api/v1/whoami").json()["name"] == "user:ann@example.com"
    [entry] = scene.audited()
    assert (entry.actor, entry.detail) == ("user:ann@example.com", "terminal, by its page")
    # Neither is good in the other's place.
    borrowed = scene.browser()
    borrowed.cookies.set("edgekit", secret)
    assert borrowed.get("/api/v1/whoami").status_code == 401
    assert scene.inside.client(browser.cookies["edgekit"]).get("/api/v1/whoami").status_code == 401
    scene.inside.clock.now += sessions.TERMINAL.life_s - 1
    assert terminal.get("/api/v1/whoami").status_code == 200
    scene.inside.clock.now += 1
    over = terminal.get("/api/v1/whoami")
    assert (over.status_code, "edgekit fleet login" in over.text) == (401, True)


@pytest.mark.parametrize("ending", ["sign-out", "block", "remove"])
def test_a_terminal_ends_with_its_person(scene: Scene, ending: str) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    given = {"code": permitted(scene, browser), "verifier": VERIFIER}
    terminal = scene.inside.client(browser.post("/api/v1/session/terminal", json=given).json()["secret"])
    admin = scene.inside.client(scene.inside.token(f"c-{id(scene)}", Role.ADMIN))
    if ending == "sign-out":
        assert terminal.post("/api/v1/session/end").status_code == 200
        assert admin.post("/api/v1/session/end").status_code == 409
    else:
        body = {} if ending == "block" else None
        assert admin.post(f"/api/v1/users/ann@example.com/{ending}", json=body).status_code == 200
    assert terminal.get("/api/v1/whoami").status_code == 401
    assert browser.get("/api/v1/whoami").status_code == (200 if ending == "sign-out" else 401)


def test_a_code_for_a_terminal_opens_once_soon_and_for_its_verifier_only(scene: Scene) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    other = {"code": permitted(scene, browser), "verifier": "w" * 43}
    assert browser.post("/api/v1/session/terminal", json=other).status_code == 403
    # A wrong verifier spends it: whoever stole the code has one try.
    assert browser.post("/api/v1/session/terminal", json={**other, "verifier": VERIFIER}).status_code == 403
    good = {"code": permitted(scene, browser), "verifier": VERIFIER}
    late = {"code": permitted(scene, browser), "verifier": VERIFIER}
    assert browser.post("/api/v1/session/terminal", json=good).status_code == 201
    assert browser.post("/api/v1/session/terminal", json=good).status_code == 403
    scene.inside.clock.now += 61
    assert browser.post("/api/v1/session/terminal", json=late).status_code == 403


def test_another_site_lets_no_terminal_in(scene: Scene) -> None:
    browser = scene.browser()
    assert browser.post("/login/terminal", data=WANTED).status_code == 403
    scene.sign_in(browser)
    for csrf in ("", "0" * 64):
        assert browser.post("/login/terminal", data={**WANTED, "csrf": csrf}).status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [{"port": "80@evil.example"}, {"port": "99999"}, {"port": "0"}, {"state": "x"}, {"challenge": "short"}],
)
def test_a_code_goes_to_loopback_only(scene: Scene, wrong: dict[str, str]) -> None:
    browser = scene.browser()
    scene.sign_in(browser)
    assert browser.get("/login/terminal", params={**WANTED, **wrong}).status_code == 400
    assert browser.post("/login/terminal", data={**WANTED, **wrong}).status_code == 400
