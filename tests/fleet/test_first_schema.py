"""A database of the first release becomes one of this release, and the service starts on it with all that was in it.

`first_schema/` holds what the first migration made on each database, and the rows that its own service had written in the
middle of a rollout: three devices, two releases, one of them given to one of three. Nobody edits it: it is what was.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fleet_support import Service, wait_until
from sqlalchemy import Boolean, MetaData, create_engine, func, insert, select
from store_support import unlike

from fleet import audit as audit_rules
from fleet.rules.rollout import Status
from fleet.server import home, schema
from fleet.server.database import Database, sqlite_url
from fleet.server.keep import rows, toml
from fleet.server.schema_audit import audit as audit_table
from fleet.server.state import load_keys
from fleet.server.store import audit, orders, rollouts, settings, telemetry

HERE = Path(__file__).with_name("first_schema")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database as the first release left it."""
    is_sqlite = request.param == "sqlite"
    url: str = sqlite_url(tmp_path) if is_sqlite else request.getfixturevalue("empty_postgresql")
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in (HERE / f"{request.param}.sql").read_text().split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
        found = MetaData()
        found.reflect(connection)
        for line in (HERE / "rows.jsonl").read_text().splitlines():
            given = json.loads(line)
            table = found.tables[given["table"]]
            connection.execute(
                insert(table), {name: _value(table.c[name].type, v) for name, v in given["row"].items()}
            )
        for table in found.sorted_tables:
            rows.go_on_counting(connection, table)
    engine.dispose()
    return url


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return bool(value) if isinstance(kind, Boolean) and value is not None else value


@pytest.fixture
def database(old: str) -> Iterator[Database]:
    with closing(Database(old)) as made:
        yield made


def test_the_first_releases_database_becomes_this_releases_with_all_its_rows(database: Database) -> None:
    with database.engine.connect() as connection:
        assert unlike(connection) == []
    with database.read() as connection:
        counts = {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (
                schema.devices,
                schema.releases,
                schema.bundles,
                schema.orders,
                schema.totals,
                audit_table,
            )
        }
        assert counts == {"devices": 3, "releases": 2, "bundles": 2, "orders": 4, "totals": 4, "audit": 12}
        walk = audit_rules.Walk()
        assert len(list(walk.over(audit.entries(connection)))) == 12
        assert walk.problem == ""
        first, second = rollouts.get(connection, 1), rollouts.get(connection, 2)
        assert (first.status, second.status) == (Status.COMPLETED, Status.RUNNING)
        assert sorted(second.members) == ["lab-a", "lab-b", "lab-c"]
        assert [m.device for m in second.members.values() if m.order_counter] == ["lab-a"]
        wanted = orders.desired_of(connection)
        assert {device: row.version for (device, _), row in wanted.items()} == {
            "lab-a": "1.1.0", "lab-b": "1.0.0", "lab-c": "1.0.0",
        }  # fmt: skip
        seen = telemetry.totals_of(connection, ["lab-a"])
        assert all(row.windows and row.requests for row in seen.values())


def test_the_service_starts_on_it(old: str, tmp_path: Path) -> None:
    """In a home of this release, which the fleet of then had not: its id is the database's."""
    service = Service(tmp_path / "service", more=("--database", old))
    service.folder.mkdir()
    home.create(service.state, {}, None, None, 1_795_800_000.0)
    engine = create_engine(old)
    with engine.connect() as connection:
        fleet = connection.exec_driver_sql("SELECT value FROM settings WHERE key = 'fleet'").scalar_one()
    engine.dispose()
    config = service.state / home.CONFIG_FILE
    config.write_text(toml.with_setting(config.read_text(), "fleet", fleet))
    service.start()
    try:
        client = service.client()
        assert client.status().devices == 3
        assert [device.device for device in client.devices()] == ["lab-a", "lab-b", "lab-c"]
        assert {one.id: one.status for one in client.rollouts()}.keys() == {"r1", "r2"}
        assert [release.version for release in client.releases()] == ["1.1.0", "1.0.0"]
        keyid = load_keys(service.state / "keys").order.keyid
        with closing(Database(old)) as database:

            def is_signed_anew() -> bool:
                with database.read() as connection:
                    return not orders.signed_by_another(connection, keyid, 1)

            wait_until(is_signed_anew, "orders are signed by this home's key", timeout_s=30)
            with database.read() as connection:
                assert settings.get(connection, settings.FLEET) == fleet
    finally:
        service.stop()
