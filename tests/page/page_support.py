"""A fleet as rows, and people who are signed in to its page."""

import re
from datetime import timedelta
from typing import Any

import msgspec
from access_support import NOW, Inside
from sqlalchemy import insert

from edgekit.wire.states import FleetState
from fleet.rules import gates
from fleet.rules.access import Role, Scope
from fleet.rules.members import Member
from fleet.rules.rollout import Rollout, Spec
from fleet.rules.stages import Stage
from fleet.server import passwords, schema
from fleet.server.store import audit, rollouts, sessions, users
from fleet.server.store.tokens import Grant

PASSWORD = "correct horse battery staple"
DIGEST = {"1.0": "a" * 64, "2.0": "b" * 64}


class Site(Inside):
    """`person` signs in; `add` writes rows that no process would have to make."""

    def person(self, name: str, role: Role = Role.ADMIN, scope: str = "") -> Any:
        """A browser in which this person is signed in."""
        now = self.clock()
        with self.database.begin() as connection:
            grant = Grant(role, Scope(scope))
            users.add(connection, name, passwords.hashed(PASSWORD), grant, now=now, who=audit.FLEET)
            secret = sessions.begin(connection, name, now=now, who=audit.Who(f"user:{name}"))
        client = self.client()
        client.cookies.set("edgekit", secret)
        client.headers["accept"] = "text/html"
        return client

    def devices(self, names: list[str], **given: Any) -> None:
        usual = {
            "labels": "{}", "deployments": '["digits"]', "created_at": NOW, "enrolment": 1, "is_online": True,
            "profile": "x86-64-v3", "last_seen_at": self.context.time.now().steady,
        }  # fmt: skip
        with self.database.begin() as connection:
            connection.execute(insert(schema.devices), [{**usual, "id": name, **given} for name in names])

    def releases(self) -> None:
        with self.database.begin() as connection:
            for version, digest in DIGEST.items():
                row = {"name": "digits", "version": version, "published_at": NOW - 1000 + float(version)}
                connection.execute(insert(schema.releases), [row])
                bundle = {
                    **row, "sha256": digest, "profile": "x86-64-v3", "length": 1000, "engine": "onnxruntime",
                    "engine_versions": ">=1.20", "format": 1,
                }  # fmt: skip
                connection.execute(insert(schema.bundles), [bundle])

    def rollout(self, states: dict[str, FleetState], **given: Any) -> Rollout:
        """One of 2.0 under way in its first stage, in which all devices are but those that are pending."""
        now = rollouts.moment(self.context.time.now().steady)
        spec = Spec(
            "digits", "2.0", "digits", "all", (Stage(0.5, "50 %"), Stage(1.0, "all devices", needs_approval=True)),
            (gates.parse("error_rate < 1%"),), 60.0, "rollback", 600.0, 86_400.0,
        )  # fmt: skip
        with self.database.begin() as connection:
            number = rollouts.next_id(connection)
            members = {
                name: Member(
                    name, "x86-64-v3", f"{order:064}", DIGEST["2.0"], DIGEST["1.0"], "digits@1.0", state=state,
                    stage=None if state is FleetState.PENDING else 0,
                    order_counter=0 if state is FleetState.PENDING else 7,
                )
                for order, (name, state) in enumerate(states.items())
            }  # fmt: skip
            made = Rollout(number, spec, members, now - timedelta(seconds=30), stage=0, stage_opened_at=now)
            made = msgspec.structs.replace(made, **given)
            rollouts.add(connection, made, self.clock())
        return made


def token_of(page: str) -> str:
    """What a page's forms show that they are the page's."""
    found = re.search(r'name="csrf-token" content="([0-9a-f]{64})"', page)
    assert found is not None
    return found.group(1)


def form_of(client: Any, path: str) -> dict[str, str]:
    """What the form that is posted to `path` carries by itself, from the page that asks, or else from any."""
    shown = client.get(path)
    text = shown.text if shown.status_code == 200 else client.get("/settings").text
    return {**dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', text)), "csrf": token_of(text)}


def post(client: Any, path: str, **fields: Any) -> Any:
    """As somebody does who looks at the page first."""
    return client.post(path, data={**form_of(client, path), **fields})
