"""Who may do what: the table against the application, roles, scopes, tokens and users."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access_support import NOW, Inside
from fleet_support import make_bundle
from sqlalchemy import update
from starlette.routing import Route

from edgekit import bundle as bundles
from fleet.rules.access import RULES, Open, Reach, Role, Rule
from fleet.server import passwords, schema, schema_access
from fleet.server.store import audit, releases, users

PASSWORD = "correct horse battery staple"
# `test_events` listens to it.
ENDLESS = "/api/v1/events"
ROUTES = sorted((key for key, rule in RULES.items() if isinstance(rule, Rule)))


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(tmp_path / "fleet")
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Inside, dict[Role, str], str]]:
    """A fleet with a token of each role, and one of an admin for the lab only."""
    made = Inside(tmp_path_factory.mktemp("access") / "fleet")
    held = {role: made.token(role.word, role) for role in Role}
    yield made, held, made.token("lab", Role.ADMIN, "site=lab")
    made.close()


def test_every_route_of_the_application_is_in_the_table_and_the_table_names_no_other(shared: Any) -> None:
    found = {
        (method, route.path)
        for route in routes_of(shared[0].app)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert found == set(RULES)


def routes_of(app: Any) -> list[Route]:
    """Every one, also where the framework keeps included routers as they are."""
    found = []
    for route in app.routes:
        if hasattr(route, "effective_route_contexts"):
            found += list(route.effective_route_contexts())
        else:
            found.append(route)
    return found


def path_of(template: str) -> str:
    return re.sub(r"\{verb\}", "pause", re.sub(r"\{(?!verb)\w+\}", "x", template))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_is_closed_without_a_token_and_to_each_lower_role(
    shared: Any, method: str, path: str
) -> None:
    inside, held, _ = shared
    rule = RULES[method, path]
    assert isinstance(rule, Rule)
    for nobody in (inside.client(), inside.client("ekt_nonsense")):
        answer = nobody.request(method, path_of(path))
        if path == "/":
            # Where a person comes to without having signed in.
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        else:
            assert answer.status_code == 401
    for role in Role:
        if path == ENDLESS and role >= rule.needs:
            continue
        answer = inside.client(held[role]).request(method, path_of(path))
        if role < rule.needs:
            assert answer.status_code == 403
            assert (
                f"needs the role {rule.needs.word}; yours is {role.word}" in answer.json()["error"]["message"]
            )
        elif rule.is_form:
            # A form is for a person: it shows the token of a page, and a machine's token has none.
            assert (answer.status_code, "did not come from a page" in answer.text) == (403, True)
        else:
            # It is let in; what it asks for makes no sense, or is not there.
            assert answer.status_code not in (401, 403)


@pytest.mark.parametrize(
    ("method", "path"), [key for key in ROUTES if getattr(RULES[key], "reach", "") is Reach.FLEET]
)
def test_what_concerns_the_whole_fleet_is_closed_to_scoped_access(
    shared: Any, method: str, path: str
) -> None:
    inside, _, lab = shared
    answer = inside.client(lab).request(method, path_of(path))
    assert answer.status_code == 403
    assert "reaches only site=lab" in answer.json()["error"]["message"]


def test_a_route_that_the_table_forgets_is_closed_to_the_admin_too(shared: Any) -> None:
    inside = shared[0]
    made = Inside(inside.path.parent / "other")
    made.app.get("/api/v1/forgotten")(lambda: "secret")
    answer = made.client(made.token("a", Role.ADMIN)).get("/api/v1/forgotten")
    assert (answer.status_code, "no rule names it" in answer.text) == (403, True)
    made.close()


def test_open_routes_say_what_protects_them() -> None:
    assert all(rule.because for rule in RULES.values() if isinstance(rule, Open))


# -- scope -----------------------------------------------------------------------------------------------------------


def invite(client: Any, name: str, **labels: str) -> Any:
    return client.post("/api/v1/devices", json={"device": name, "deployments": ["digits"], "labels": labels})


@pytest.fixture
def two_sites(inside: Inside) -> tuple[Inside, Any, Any]:
    """The admin's client, and that of an operator for the lab; `roof-1` is elsewhere."""
    admin = inside.client(inside.token("admin", Role.ADMIN))
    lab = inside.client(inside.token("lab", Role.OPERATOR, "site=lab"))
    assert invite(admin, "roof-1", site="roof").status_code == 201
    assert invite(lab, "lab-1", site="lab").status_code == 201
    return inside, admin, lab


def test_a_scoped_operator_sees_and_counts_only_their_devices(two_sites: Any) -> None:
    _, admin, lab = two_sites
    assert [d["device"] for d in admin.get("/api/v1/devices").json()] == ["lab-1", "roof-1"]
    assert [d["device"] for d in lab.get("/api/v1/devices").json()] == ["lab-1"]
    assert admin.get("/api/v1/status").json()["devices"] == 2
    assert lab.get("/api/v1/status").json()["devices"] == 1
    assert lab.get("/api/v1/whoami").json() == {"name": "token:lab", "role": "operator", "scope": "site=lab"}


def test_a_device_outside_the_scope_is_not_there(two_sites: Any) -> None:
    _, admin, lab = two_sites
    for method, leaf, body in (
        ("GET", "explain", None),
        ("POST", "revoke", {}),
        ("POST", "decommission", {}),
        ("POST", "deployments", {"deployment": "more"}),
    ):
        outside = lab.request(method, f"/api/v1/devices/roof-1/{leaf}", json=body)
        absent = lab.request(method, f"/api/v1/devices/nobody/{leaf}", json=body)
        assert outside.status_code == absent.status_code == 404
        assert (
            outside.json()["error"]["message"].replace("roof-1", "nobody")
            == absent.json()["error"]["message"]
        )
    assert lab.post("/api/v1/devices/lab-1/deployments", json={"deployment": "more"}).status_code == 201
    assert admin.get("/api/v1/devices/roof-1/explain").status_code == 200


def test_nobody_is_invited_out_of_the_scope_or_taken_into_it(two_sites: Any) -> None:
    _, _, lab = two_sites
    assert invite(lab, "attic-1", site="attic").status_code == 403
    assert invite(lab, "bare").status_code == 403
    assert invite(lab, "roof-1", site="lab").status_code == 403
    batch = {"count": 2, "deployments": ["digits"], "labels": {"site": "roof"}}
    assert lab.post("/api/v1/batches", json=batch).status_code == 403
    assert lab.post("/api/v1/batches", json={**batch, "labels": {"site": "lab"}}).status_code == 201


def can_run(inside: Inside, device: str) -> None:
    """As if it had enrolled and reported."""
    from edgekit.wire.messages import Boot, Reported, encode

    reported = Reported(
        device=device,
        boot=Boot(1, 1, "0" * 16),
        seq=1,
        order_counter=0,
        deployments={},
        profile="x86-64-v3",
        isa=("avx2",),
        engines={"onnxruntime": "1.22.0"},
        agent_version="0.1.0",
        bundle_format=1,
        free_bytes=10**9,
        refused="",
    )
    values = {"enrolment": 1, "profile": "x86-64-v3", "reported": encode(reported).decode()}
    with inside.database.begin() as connection:
        connection.execute(update(schema.devices).where(schema.devices.c.id == device).values(**values))


def test_a_scoped_rollout_reaches_no_further_than_the_scope(two_sites: Any, tmp_path: Path) -> None:
    inside, admin, lab = two_sites
    for device in ("roof-1", "lab-1"):
        can_run(inside, device)
    bundle = bundles.read(make_bundle(tmp_path, "1.0.0"))
    with inside.database.begin() as connection:
        releases.publish(connection, bundle, None, now=NOW, who=audit.FLEET)
    wanted = {"release": "digits@1.0.0", "to": "all", "gates": ["error_rate < 1%"]}
    assert lab.post("/api/v1/rollouts", json={**wanted, "to": "all) or (all"}).status_code == 400
    started = lab.post("/api/v1/rollouts", json=wanted)
    assert started.status_code == 201, started.text
    # The selector itself is narrowed: what joins later is within the scope too.
    assert started.json()["rollout"]["to"] == "(all) and (site=lab)"
    assert [m["device"] for m in started.json()["rollout"]["members"]] == ["lab-1"]
    roof = inside.client(inside.token("roof", Role.OPERATOR, "site=roof"))
    assert [len(who.get("/api/v1/rollouts").json()) for who in (admin, lab, roof)] == [1, 1, 0]
    assert [who.get("/api/v1/status").json()["active_rollouts"] for who in (admin, lab, roof)] == [1, 1, 0]
    assert roof.get("/api/v1/rollouts/r1").status_code == 404
    assert roof.post("/api/v1/rollouts/r1/pause").status_code == 404
    assert lab.post("/api/v1/rollouts/r1/pause").json()["status"] == "paused"


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_told_once_kept_hashed_and_listed_with_its_last_use(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    made = admin.post("/api/v1/tokens", json={"name": "ci", "role": "publisher", "expires": "90d"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret = made.json()["secret"]
    with inside.database.begin() as connection:
        assert secret not in str(connection.execute(schema_access.access_tokens.select()).all())
    [_, ci] = admin.get("/api/v1/tokens").json()
    assert (ci["state"], ci["last_used"], ci["created_by"]) == ("good", None, "token:admin")
    assert inside.client(secret).get("/api/v1/status").status_code == 200
    [_, ci] = admin.get("/api/v1/tokens").json()
    assert (ci["last_used"][:10], ci["last_used_from"]) == ("2026-09-21", "192.0.2.7")
    assert admin.post("/api/v1/tokens", json={"name": "ci", "role": "viewer"}).status_code == 409


def test_a_token_ends_when_it_is_revoked_or_has_run_out(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    short = inside.client(inside.token("short", Role.VIEWER, expires_at=NOW + 10))
    lost = inside.client(inside.token("lost", Role.VIEWER))
    assert short.get("/api/v1/status").status_code == lost.get("/api/v1/status").status_code == 200
    inside.clock.now += 10
    assert "has run out" in short.get("/api/v1/status").json()["error"]["message"]
    assert admin.post("/api/v1/tokens/lost/revoke").json() == {"name": "lost", "is_changed": True}
    assert admin.post("/api/v1/tokens/lost/revoke").json()["is_changed"] is False
    answer = lost.get("/api/v1/status")
    assert (answer.status_code, "was revoked" in answer.text) == (401, True)
    assert [t["state"] for t in admin.get("/api/v1/tokens").json()] == ["good", "expired", "revoked"]
    assert admin.post("/api/v1/tokens/none/revoke").status_code == 404
    # The name is free again.
    assert admin.post("/api/v1/tokens", json={"name": "lost", "role": "viewer"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "A", "role": "viewer"}, "name"),
        ({"name": "a:b", "role": "viewer"}, "name"),
        ({"name": "a", "role": "root"}, "there are viewer, operator, publisher, admin"),
        ({"name": "a", "role": "viewer", "scope": "site="}, "selector"),
        ({"name": "a", "role": "viewer", "expires": "soon"}, "no duration"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(inside: Inside, body: dict[str, str], said: str) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    answer = admin.post("/api/v1/tokens", json=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (400, True)


def test_a_token_for_no_time_at_all_is_not_made(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    answer = admin.post("/api/v1/tokens", json={"name": "a", "role": "viewer", "expires": "0d"})
    assert (answer.status_code, "longer than nothing" in answer.text) == (409, True)
    assert answer.json()["error"]["code"] == "not-possible"


def test_the_admin_token_of_a_database_before_roles_goes_on(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    from fleet.server.database import Database, sqlite_url
    from fleet.server.store import tokens
    from fleet.server.store.settings import secret_hash

    database = Database(sqlite_url(tmp_path))
    config = Config()
    folder = Path(schema.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    with database.engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
        connection.exec_driver_sql(
            f"INSERT INTO tokens (hash, name, created_at) VALUES ('{secret_hash('old')}', 'admin', {NOW})"
        )
        command.upgrade(config, "head")
    with database.begin() as connection:
        row = tokens.find(connection, "old", NOW)
    assert (row.name, row.role, row.scope) == ("admin", "admin", "")
    database.close()


# -- users -----------------------------------------------------------------------------------------------------------


def test_a_user_is_added_listed_given_another_password_and_removed(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    new = {"name": "ann", "password": PASSWORD, "role": "operator", "scope": "site=lab"}
    assert admin.post("/api/v1/users", json=new).status_code == 201
    assert admin.post("/api/v1/users", json=new).status_code == 409
    [ann] = admin.get("/api/v1/users").json()
    assert (ann["name"], ann["role"], ann["scope"], ann["last_used"]) == ("ann", "operator", "site=lab", None)
    with inside.database.begin() as connection:
        kept = users.get(connection, "ann").password
    assert PASSWORD not in kept
    assert passwords.is_right(PASSWORD, kept)
    other = {"password": PASSWORD + " other"}
    assert admin.post("/api/v1/users/ann/password", json=other).status_code == 200
    with inside.database.begin() as connection:
        kept = users.get(connection, "ann").password
    assert (passwords.is_right(PASSWORD, kept), passwords.is_right(other["password"], kept)) == (False, True)
    assert admin.post("/api/v1/users/ann/remove").status_code == 200
    assert admin.get("/api/v1/users").json() == []
    assert admin.post("/api/v1/users/ann/remove").status_code == 404


def test_a_change_of_a_user_leaves_the_rest_as_it_was_and_says_before_and_after(inside: Inside) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    new = {"name": "ann", "password": PASSWORD, "role": "operator", "scope": "site=lab"}
    admin.post("/api/v1/users", json=new)

    def change(**wanted: str) -> tuple[Any, ...]:
        done = admin.post("/api/v1/users/ann", json=wanted)
        assert done.status_code == 200, done.text
        [ann] = admin.get("/api/v1/users").json()
        return done.json()["is_changed"], ann["role"], ann["scope"], ann["expires"] is not None

    assert change(role="viewer") == (True, "viewer", "site=lab", False)
    assert change(role="viewer") == (False, "viewer", "site=lab", False)
    assert change(expires="30d") == (True, "viewer", "site=lab", True)
    assert change(scope="", role="admin") == (True, "admin", "", True)
    assert change(expires="") == (True, "admin", "", False)
    entries = [entry for entry in admin.get("/api/v1/audit").json() if entry["action"] == "user.change"]
    assert len(entries) == 4
    first = entries[-1]
    assert json.loads(first["before"]) == {"role": "operator", "scope": "site=lab", "expires_at": None}
    assert json.loads(first["after"]) == {"role": "viewer", "scope": "site=lab", "expires_at": None}
    assert (first["actor"], first["subject"]) == ("token:admin", "ann")


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("ann", {}, 409),
        ("ann", {"role": "owner"}, 400),
        ("ann", {"expires": "0s"}, 409),
        ("ann", {"expires": "soon"}, 400),
        ("ann", {"scope": "=="}, 400),
        ("nobody", {"role": "viewer"}, 404),
    ],
)
def test_a_change_that_makes_no_sense_changes_nothing(
    inside: Inside, name: str, body: dict[str, str], status: int
) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    admin.post("/api/v1/users", json={"name": "ann", "password": PASSWORD, "role": "operator"})
    before = admin.get("/api/v1/users").json()
    assert admin.post(f"/api/v1/users/{name}", json=body).status_code == status
    assert admin.get("/api/v1/users").json() == before


@pytest.mark.parametrize("password", ["short", "a" * 20, "annann" * 3, "x" * 300])
def test_an_easy_password_is_refused_and_never_repeated(inside: Inside, password: str) -> None:
    admin = inside.client(inside.token("admin", Role.ADMIN))
    answer = admin.post("/api/v1/users", json={"name": "ann", "password": password, "role": "viewer"})
    assert answer.status_code == 400
    assert password not in answer.text
    assert admin.get("/api/v1/users").json() == []


def test_a_hash_is_salted_and_a_name_that_nobody_has_is_never_right() -> None:
    one, two = passwords.hashed(PASSWORD), passwords.hashed(PASSWORD)
    assert one != two
    assert one.startswith("scrypt$15$8$3$")
    assert not passwords.is_right("", None)
