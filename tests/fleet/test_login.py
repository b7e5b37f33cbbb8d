"""Signing in to the page: cookie, page token, limits, the ways out."""

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from access_support import NOW, Inside

from fleet.rules.access import Role, Scope
from fleet.rules.attempts import PER_ADDRESS, PER_NAME, Allowance, Attempts, Limits
from fleet.server import passwords
from fleet.server.places import Wanted
from fleet.server.schema_access import sessions as table
from fleet.server.store import audit, sessions, tokens, users
from fleet.server.store.tokens import Grant

PASSWORD = "correct horse battery staple"


@pytest.fixture(scope="module", autouse=True)
def cheap_hashes() -> Iterator[None]:
    """The costs are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_LOG2_N", 4)
        patch.setattr(passwords, "_NOBODY", passwords._NOBODY.replace("scrypt$15$", "scrypt$4$"))
        yield


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    with made.database.begin() as connection:
        for name, role, scope in (("ann", Role.ADMIN, ""), ("bob", Role.VIEWER, "site=lab")):
            grant = Grant(role, Scope(scope))
            users.add(connection, name, passwords.hashed(PASSWORD), grant, now=NOW, who=audit.FLEET)
    yield made
    made.close()


def sign_in(client: Any, name: str = "ann", password: str = PASSWORD) -> Any:
    page = client.get("/login")
    [token] = re.findall(r'name="csrf" value="([0-9a-f]+)"', page.text)
    return client.post("/login", data={"csrf": token, "name": name, "password": password})


def page_token(client: Any) -> str:
    [token] = re.findall(r'name="csrf-token" content="([0-9a-f]+)"', client.get("/").text)
    return token


def test_a_user_whose_time_is_over_is_out_and_stays_out_until_it_is_prolonged(inside: Inside) -> None:
    client = inside.client()
    sign_in(client, "bob")

    def ends(at: float | None) -> None:
        with inside.database.begin() as connection:
            users.change(connection, "bob", lambda old: replace(old, expires_at=at), now=NOW, who=audit.FLEET)

    ends(NOW + 10)
    assert client.get("/api/v1/whoami").status_code == 200
    inside.clock.now += 10
    assert client.get("/api/v1/whoami").status_code == 401
    refused = sign_in(inside.client(), "bob")
    assert (refused.status_code, "Your time here is over" in refused.text) == (403, True)
    ends(None)
    assert sign_in(inside.client(), "bob").status_code == 303


def test_a_role_that_was_changed_holds_from_the_next_request_on(inside: Inside) -> None:
    client = inside.client()
    sign_in(client, "ann")
    assert client.get("/api/v1/users").status_code == 200
    with inside.database.begin() as connection:
        users.change(connection, "ann", lambda old: replace(old, role=Role.VIEWER), now=NOW, who=audit.FLEET)
    assert client.get("/api/v1/users").status_code == 403


def test_who_is_not_signed_in_is_shown_the_form_and_nothing_else(inside: Inside) -> None:
    client = inside.client()
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    form = client.get("/login")
    assert form.status_code == 200
    assert "frame-ancestors 'none'" in form.headers["content-security-policy"]
    assert form.headers["cache-control"] == "no-store"


def test_signing_in_opens_the_page_and_the_api_as_that_user(inside: Inside) -> None:
    client = inside.client()
    done = sign_in(client, " Bob ")
    assert (done.status_code, done.headers["location"]) == (303, "/")
    assert "Signed in as <b>bob</b>: viewer, for site=lab" in client.get("/").text
    assert client.get("/api/v1/whoami").json() == {"name": "user:bob", "role": "viewer", "scope": "site=lab"}
    assert client.get("/api/v1/tokens").status_code == 403
    with inside.database.begin() as connection:
        row = users.get(connection, "bob")
        [entry] = audit.newest(connection, 1)
    assert (row.last_used_at, row.last_used_from) == (NOW, "192.0.2.7")
    assert (entry.actor, entry.action, entry.origin) == ("user:bob", "session.begin", "192.0.2.7")


@pytest.mark.parametrize(
    ("wanted", "name", "is_secure"),
    [
        (Wanted(), "edgekit", False),
        (Wanted(public_url="https://localhost:8443"), "__Host-edgekit", True),
        (Wanted(public_url="https://localhost:8443", plain_http=True), "__Host-edgekit", True),
    ],
)
def test_the_cookie_is_for_the_browser_alone_and_for_tls_where_there_is_tls(
    tmp_path: Path, wanted: Wanted, name: str, *, is_secure: bool
) -> None:
    inside = Inside(tmp_path / "fleet", wanted=wanted)
    with inside.database.begin() as connection:
        grant = Grant(Role.ADMIN, Scope())
        users.add(connection, "ann", passwords.hashed(PASSWORD), grant, now=NOW, who=audit.FLEET)
    client = inside.client(base_url="https://localhost:8443" if is_secure else "http://127.0.0.1:8080")
    cookies = sign_in(client).headers.get_list("set-cookie")
    [cookie] = [one for one in cookies if one.startswith(f"{name}=")]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= parts
    assert ("secure" in parts) is is_secure
    secret = client.cookies[name]
    with inside.database.begin() as connection:
        assert secret not in str(connection.execute(table.select()).all())
    inside.close()


def test_a_cookie_alone_changes_nothing(inside: Inside) -> None:
    client = inside.client()
    sign_in(client)
    freeze = {"is_frozen": True}
    for headers in ({}, {"X-CSRF-Token": "0" * 64}, {"X-CSRF-Token": "é"}):
        sent = {name: value.encode() for name, value in headers.items()}
        answer = client.post("/api/v1/freeze", json=freeze, headers=sent)
        assert (answer.status_code, "did not come from a page" in answer.text) == (403, True)
    assert client.get("/api/v1/status").json()["is_frozen"] is False
    token = page_token(client)
    assert client.post("/api/v1/freeze", json=freeze, headers={"X-CSRF-Token": token}).status_code == 200
    other = inside.client()
    sign_in(other)
    # One session's page token is worth nothing with another's cookie.
    assert other.post("/api/v1/freeze", json=freeze, headers={"X-CSRF-Token": token}).status_code == 403


def test_nobody_is_signed_in_or_out_by_another_site(inside: Inside) -> None:
    client = inside.client()
    for csrf in ("", "0" * 64):
        answer = client.post("/login", data={"csrf": csrf, "name": "ann", "password": PASSWORD})
        assert answer.status_code == 403
        assert "edgekit" not in client.cookies
    sign_in(client)
    assert client.post("/logout", data={"csrf": "0" * 64}).status_code == 403
    assert client.get("/").status_code == 200


def test_signing_out_ends_the_session_for_whoever_kept_the_cookie(inside: Inside) -> None:
    client = inside.client()
    sign_in(client)
    kept = client.cookies["edgekit"]
    assert client.post("/logout", data={"csrf": page_token(client)}).headers["location"] == "/login"
    assert "edgekit" not in client.cookies
    client.cookies.set("edgekit", kept)
    assert client.get("/api/v1/status").status_code == 401
    with inside.database.begin() as connection:
        assert [entry.action for entry in audit.newest(connection, 2)] == ["session.end", "session.begin"]


@pytest.mark.parametrize("step_s", [sessions.IDLE_S, sessions.LIFE_S])
def test_a_session_ends_unused_and_at_the_end_of_its_life(inside: Inside, step_s: float) -> None:
    client = inside.client()
    sign_in(client)
    if step_s == sessions.LIFE_S:
        while inside.clock.now + sessions.IDLE_S / 2 < NOW + step_s:
            inside.clock.now += sessions.IDLE_S / 2
            assert client.get("/api/v1/status").status_code == 200
    inside.clock.now = max(inside.clock.now, NOW) + (sessions.IDLE_S if step_s == sessions.IDLE_S else 1800)
    assert client.get("/api/v1/status").status_code == 401


@pytest.mark.parametrize("verb", ["remove", "password"])
def test_a_session_ends_with_its_user_or_their_password(inside: Inside, verb: str) -> None:
    client = inside.client()
    sign_in(client, "bob")
    admin = inside.client(inside.token("admin", Role.ADMIN))
    body = {"password": "another one of those"} if verb == "password" else None
    assert admin.post(f"/api/v1/users/bob/{verb}", json=body).status_code == 200
    assert client.get("/api/v1/status").status_code == 401
    assert sign_in(client, "bob").status_code == 401


def test_who_is_blocked_is_told_so_once_they_have_shown_who_they_are(inside: Inside) -> None:
    client = inside.client()
    sign_in(client, "bob")
    with inside.database.begin() as connection:
        users.set_blocked(connection, "bob", is_blocked=True, reason="left", now=NOW, who=audit.FLEET)
    assert client.get("/api/v1/status").status_code == 401
    refused = sign_in(inside.client(), "bob")
    assert (refused.status_code, "You are blocked here" in refused.text) == (403, True)
    assert sign_in(inside.client(), "bob", "wrong password").status_code == 401


@pytest.mark.parametrize(
    ("then", "goes"), [("//evil.example/", "/"), ("https://evil.example/", "/"), ("/x?y=1", "/x?y=1")]
)
def test_after_signing_in_nobody_is_sent_to_another_site(inside: Inside, then: str, goes: str) -> None:
    client = inside.client()
    [token] = re.findall(r'name="csrf" value="([0-9a-f]+)"', client.get("/login", params={"next": then}).text)
    given = {"csrf": token, "name": "ann", "password": PASSWORD, "next": then}
    assert client.post("/login", data=given).headers["location"] == goes


def test_a_wrong_name_and_a_wrong_password_are_answered_alike_and_logged_without_either(
    inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [sign_in(inside.client(), *who) for who in (("ann", "wrong password"), ("eve<b>", PASSWORD))]
    assert [answer.status_code for answer in answers] == [401, 401]
    shown = [re.sub(r'value="[0-9a-f]+"', "", answer.text) for answer in answers]
    assert shown[0] == shown[1]
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("fleet"))
    assert "192.0.2.7" in said
    assert not any(secret in said for secret in ("wrong password", "eve", PASSWORD))


def test_attempts_are_limited_by_name_also_for_the_right_password(inside: Inside) -> None:
    for _ in range(PER_NAME.burst):
        assert sign_in(inside.client(), "ann", "x").status_code == 401
    refused = sign_in(inside.client())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) <= PER_NAME.every_s + 1
    assert sign_in(inside.client(), "bob").status_code == 303
    inside.clock.now += PER_NAME.every_s
    assert sign_in(inside.client()).status_code == 303


def test_attempts_are_limited_by_address_whatever_the_names(inside: Inside) -> None:
    for number in range(PER_ADDRESS.burst):
        assert sign_in(inside.client(), f"n{number}", "x").status_code == 401
    assert sign_in(inside.client()).status_code == 429


def test_a_form_that_is_too_large_is_refused(inside: Inside) -> None:
    assert inside.client().post("/login", data={"name": "x" * 5000}).status_code == 413


# -- the rule by itself ----------------------------------------------------------------------------------------------


def test_an_allowance_fills_again_one_by_one() -> None:
    attempts = Attempts(Allowance(burst=2, every_s=10.0))
    assert [attempts.wait_s("a", 0.0) for _ in range(4)] == [0, 0, 10, 10]
    assert attempts.wait_s("a", 4.0) == 6
    assert attempts.wait_s("a", 10.0) == 0
    assert attempts.wait_s("a", 10.0) == 10
    assert attempts.wait_s("b", 10.0) == 0
    attempts.forget("a")
    assert attempts.wait_s("a", 10.0) == 0


def test_a_flood_of_names_takes_bounded_memory_and_lets_nobody_off() -> None:
    attempts = Attempts(PER_NAME, capacity=100)
    while attempts.wait_s("ann", 0.0) == 0:
        pass
    for number in range(10_000):
        attempts.wait_s(f"n{number}", 0.0)
        assert len(attempts) <= 100
    assert attempts.wait_s("ann", 0.0) > 0


def test_a_whole_ipv6_network_counts_as_one_address() -> None:
    limits = Limits()
    for number in range(PER_ADDRESS.burst):
        assert limits.wait_s(f"n{number}", f"2001:db8:1:2::{number:x}", 0.0) == 0
    assert limits.wait_s("other", "2001:db8:1:2:ffff::1", 0.0) > 0
    assert limits.wait_s("other", "2001:db8:1:3::1", 0.0) == 0


# -- behind a proxy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (Wanted(), "127.0.0.1"),
        (Wanted(public_url="https://localhost:8443", plain_http=True), "203.0.113.9"),
    ],
)
def test_where_a_request_comes_from_is_the_proxys_to_say_only_where_there_is_one(
    tmp_path: Path, wanted: Wanted, shown: str
) -> None:
    from types import SimpleNamespace

    from starlette.testclient import TestClient

    from fleet.server import service

    inside = Inside(tmp_path / "fleet", wanted=wanted)
    trust: Any = SimpleNamespace(api=None)
    certificates: Any = SimpleNamespace()
    app: Any = service._uvicorn(inside.context, trust, certificates).loaded_app
    token = inside.token("ci", Role.VIEWER)
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
    client = TestClient(app, base_url="http://127.0.0.1:8080", client=("127.0.0.1", 5000))
    assert client.get("/api/v1/whoami", headers=headers).status_code == 200
    with inside.database.begin() as connection:
        [row] = tokens.everything(connection)
    assert row.last_used_from == shown
    inside.close()
