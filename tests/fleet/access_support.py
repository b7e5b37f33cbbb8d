"""The service's application inside the test, with a database of its own: for what needs neither broker nor process."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from fleet.publish import make_key
from fleet.rules.access import Role, Scope
from fleet.server.api.app import make_app
from fleet.server.api.context import Context
from fleet.server.database import Database, sqlite_url
from fleet.server.metrics import Metrics, Process
from fleet.server.notary import Notary
from fleet.server.places import Wanted, settle
from fleet.server.signin import SignIns
from fleet.server.state import Keys, StateFolder
from fleet.server.store import audit, settings, tokens
from fleet.server.store.orders import Issuer
from fleet.server.store.tokens import Grant
from fleet.tuf import together
from fleet.tuf.online import Online

NOW = 1_790_000_000.0


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Inside:
    """One fleet service without its network."""

    path: Path
    clock: Clock = field(default_factory=Clock)
    wanted: Wanted = field(default_factory=Wanted)
    sign_ins: SignIns = field(default_factory=SignIns)
    # Of its database; one of SQLite below `path` unless set.
    url: str = ""

    def __post_init__(self) -> None:
        self.folder = StateFolder(self.path)
        self.database = Database(self.url or sqlite_url(self.path))
        with self.database.begin() as connection:
            settings.put(connection, settings.FLEET, "fleet-1")
        keys = Keys(make_key(self.path / "keys" / "order.key"), make_key(self.path / "keys" / "secrets.key"))
        link: Any = SimpleNamespace(
            address="127.0.0.1:1883",
            is_connected=True,
            inbox=SimpleNamespace(overflowed=0),
            publish=lambda *_, **__: None,
        )
        certificates: Any = SimpleNamespace(revoked=lambda *_: None)
        tuf = Online(self.path / "tuf")
        together.start(self.path, tuf, datetime.fromtimestamp(NOW, UTC))
        self.context = Context(
            database=self.database,
            folder=self.folder,
            keys=keys,
            issuer=Issuer("fleet-1", keys.order),
            link=link,
            places=settle(self.wanted),
            certificates=certificates,
            ca_bundle="",
            wake=lambda: None,
            tuf=tuf,
            metrics=Metrics(self.database, Process(), "fleet-1"),
            notary=Notary(self.database, "fleet-1", keys.audit, self.path),
            clock=self.clock,
            sign_ins=self.sign_ins,
        )
        self.app: FastAPI = make_app(self.context)

    def token(self, name: str, role: Role, scope: str = "", expires_at: float | None = None) -> str:
        with self.database.begin() as connection:
            grant = Grant(role, Scope(scope), expires_at)
            return tokens.make(connection, name, grant, now=self.clock(), who=audit.FLEET)

    def client(self, token: str = "", *, base_url: str = "http://127.0.0.1:8080") -> TestClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return TestClient(
            self.app, base_url=base_url, headers=headers, follow_redirects=False, client=("192.0.2.7", 5000)
        )

    def close(self) -> None:
        self.database.close()
        self.folder.close()
