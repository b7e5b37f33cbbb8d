"""Filters: how they are read, and that the database finds just the devices that a filter means, page by page."""

import base64
import random
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from access_support import Inside
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, insert, select
from store_support import NEW, NONCE, NOW, OLD, rollout_of

from edgekit.errors import UsageError
from edgekit.wire.messages import Boot, Condition, DeploymentReport, Reported
from edgekit.wire.states import AgentState
from fleet.rules import boolean, facts, filters
from fleet.rules.access import Role
from fleet.rules.filters import FieldHas, LabelHas, OfField, OfLabel, Seen
from fleet.server import schema
from fleet.server.database import Database, _no_foreign_keys
from fleet.server.store import devices as device_store
from fleet.server.store import finding, known, rollouts
from fleet.server.store.finding import Wanted


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("site", "expected '=', '!=', '~' or 'in'", 4),
        ("state=fialed", "there is no such state; there are idle, fetch", 6),
        ("site=lab and state in (idle, up)", "there is no such state", 29),
        ("state ~ fail", "can be asked for with =, != and in", 6),
        ("online=maybe", "'online' is yes or no", 7),
        ("last_seen < soon", "is no duration", 12),
        ("last_seen = 5m", "write last_seen < 5m", 10),
        ("release=digits", "write NAME@VERSION", 8),
        ("rollout=soon", "is no rollout", 8),
        ("reason=full", "reason is text; write reason ~ word", 6),
        ("site=lab or", "expected a field or a label", 11),
        ("site=lab state=idle", "expected 'and', 'or' or the end", 9),
        ("site=lab; drop", "';' means nothing here", 8),
        ('reason ~ "disk', "'\"' means nothing here", 9),
        ("(" * 60 + "all" + ")" * 60, "more than 40 levels", 40),
        ("not " * 60 + "all", "more than 40 levels", 160),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_at_the_place(text: str, message: str, column: int) -> None:
    with pytest.raises(UsageError) as caught:
        filters.parse(text)
    first, shown, caret = str(caught.value).split("\n")
    assert message in first
    assert shown == f"  {text}"
    assert caret == f"  {' ' * column}^"


@given(st.text(max_size=60))
def test_no_text_is_half_understood(text: str) -> None:
    try:
        filters.parse(text)
    except UsageError as error:
        assert "^" in str(error)  # noqa: PT017  # any other error is a failure


def test_names_that_nobody_has_are_said_with_those_that_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"'sight' is neither a field nor a label of any device; fields are state,"
    ):
        filters.check_names(filters.parse("sight=lab"), ["site"])
    filters.check_names(filters.parse("site=lab and device=d1 and state=idle"), ["site"])


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "device"), ("-last_seen", "-last_seen"), ("site", "site"), ("label.state", "label.state")],
)
def test_an_order_is_read_as_it_is_written(text: str, told: str) -> None:
    assert filters.sort(text).text == told


@pytest.mark.parametrize("text", ["-", "a b", "release", "--device"])
def test_an_order_that_there_is_not_is_refused(text: str) -> None:
    if text == "-":
        assert filters.sort(text) == filters.Sort()
        return
    with pytest.raises(UsageError, match=r"sort: "):
        filters.sort(text)


def test_what_a_device_says_cannot_pass_for_another_fact() -> None:
    """Its names come from it: an attempt to say a second line, or half of one, stays within its own."""
    said = reported("d1", DeploymentReport(AgentState.IDLE, OLD, OLD, OLD, "x\x7fstate=failed", "1"))
    text = facts.of(said)
    assert facts.line("state", "idle") in text
    assert facts.line("state", "failed") not in text
    assert facts.line("model", "x") not in text


def reported(device: str, report: DeploymentReport, **more: Any) -> Reported:
    return Reported(
        device=device, boot=Boot(1, 2, NONCE), seq=1, order_counter=0, deployments={"digits": report}, profile="p",
        isa=(), engines={}, agent_version="1", bundle_format=1, free_bytes=0, **more,
    )  # fmt: skip


class Zoo:
    """Devices of all kinds, and a judge of single tests that looks at what was made, not at the database."""

    def __init__(self, database: Database, seed: int, count: int = 60) -> None:
        chance = random.Random(seed)
        self.made = {f"d{n:02}": self._device(chance) for n in range(count)}
        bundle = {
            "name": "digits", "profile": "p", "length": 10, "engine": "onnxruntime", "engine_versions": ">=1",
            "format": 1, "published_at": NOW,
        }  # fmt: skip
        with database.begin() as connection:
            versions = ((OLD, "1"), (NEW, "2"))
            connection.execute(
                insert(schema.bundles), [bundle | {"sha256": s, "version": v} for s, v in versions]
            )
            rows = [
                {
                    "id": name, "labels": msgspec.json.encode(one["labels"]).decode(), "deployments": '["digits"]',
                    "created_at": NOW, "enrolment": one["enrolment"], "profile": one["profile"],
                    "is_online": one["online"], "is_duplicate": one["duplicate"], "last_seen_at": one["seen"],
                    "agent_version": one["agent"], "credential_hash": "0" * 64,
                }
                for name, one in self.made.items()
            ]  # fmt: skip
            connection.execute(insert(schema.devices), rows)
            rows_known = known.lock(connection, self.made)
            for name, one in self.made.items():
                if one["state"]:
                    digest = {"1": OLD, "2": NEW}.get(one["version"])
                    report = DeploymentReport(
                        AgentState(one["state"]),
                        digest,
                        digest,
                        digest,
                        "digits",
                        one["version"],
                        one["reason"],
                    )
                    conditions = tuple(
                        Condition(code, "of it", datetime.now(UTC)) for code in one["conditions"]
                    )
                    said = reported(name, report, refused=one["refused"], conditions=conditions)
                    device_store.reported(rows_known[name], said, one["seen"] or 0.0)
                    rows_known[name].change(last_seen_at=one["seen"], agent_version=one["agent"])
            known.write(connection, rows_known.values())
            ordered = [
                {
                    "device": name,
                    "deployment": "digits",
                    "sha256": one["ordered"],
                    "because": "test",
                    "set_at": NOW,
                }
                for name, one in self.made.items()
                if one["ordered"]
            ]
            connection.execute(insert(schema.desired), ordered)
            rollouts.add(
                connection, rollout_of([name for name, one in self.made.items() if one["in_rollout"]]), NOW
            )

    @staticmethod
    def _device(chance: random.Random) -> dict[str, Any]:
        labels = {"site": chance.choice(["lab", "roof", "attic"]), "state": "bavaria"}
        return {
            "labels": {name: value for name, value in labels.items() if chance.random() < 0.7},
            "profile": chance.choice(["p", "raspberry-pi-5"]),
            "enrolment": chance.choice([0, 1]),
            "online": chance.random() < 0.5,
            "duplicate": chance.random() < 0.2,
            "seen": chance.choice([None, NOW - 10, NOW - 400, NOW - 4000]),
            "agent": chance.choice(["1", "2"]),
            "state": chance.choice(["", "idle", "failed", "fetch"]),
            "version": chance.choice(["", "1", "2"]),
            "reason": chance.choice(["", "Disk FULL", "50%_of"]),
            "refused": chance.choice(["", "unknown key"]),
            "conditions": chance.choice([(), ("storage-full",)]),
            "ordered": chance.choice([None, OLD, NEW]),
            "in_rollout": chance.random() < 0.3,
        }

    def judge(self, name: str, test: filters.Test) -> bool:
        one = self.made[name]
        has = {**one["labels"], "device": name, "profile": one["profile"]}
        said = bool(one["state"])
        runs = one["version"] if said else ""
        match test:
            case OfLabel(label, values):
                return has.get(label) in values
            case LabelHas(label, text):
                return text.lower() in has.get(label, "").lower()
            case FieldHas(_, text):
                told = (one["refused"], one["reason"], *("of it" for _ in one["conditions"]))
                return said and any(text.lower() in word.lower() for word in told)
            case Seen(than, seconds):
                age = NOW - (one["seen"] or 0.0)
                return age <= seconds if than == "<" else age > seconds
            case OfField(field, values):
                digest = {"1": OLD, "2": NEW}.get(runs)
                version = {OLD: "1", NEW: "2", None: ""}
                is_so = {
                    "online": one["online"], "enrolled": one["enrolment"] > 0, "duplicate": one["duplicate"],
                    "refused": said and bool(one["refused"]),
                    "behind": one["ordered"] is not None and one["ordered"] != digest,
                }  # fmt: skip
                words = {
                    "state": {one["state"]}, "version": {runs} - {""}, "model": {"digits"} if runs else set(),
                    "release": {f"digits@{runs}"} if runs else set(), "agent": {one["agent"]}, "deployment": {"digits"},
                    "wanted": {f"digits@{version[one['ordered']]}"} if one["ordered"] else set(),
                    "condition": {*one["conditions"], "any"} if said and one["conditions"] else set(),
                    "rollout": {"r1", "1"} if one["in_rollout"] else set(),
                }  # fmt: skip
                return is_so[field] if field in is_so else bool(words[field] & values)
        raise AssertionError(test)

    def expected(self, where: filters.Filter) -> list[str]:
        return [name for name in self.made if boolean.holds(where, partial(self.judge, name))]


TESTS = (
    "site=lab", "site!=lab", "site in (lab, roof)", "site ~ OO", "label.state=bavaria", "label.state ~ bav", "device ~ d1",
    "device in (d03, d04)", "profile=p", "state=failed", "state!=idle", "state in (idle, fetch)", "online=yes", "online=no",
    "enrolled=yes", "duplicate=no", "last_seen < 5m", "last_seen > 5m", "last_seen >= 1h", "release=digits@1",
    "model=digits", "version=2", "version!=2", "wanted=digits@2", "behind=yes", "behind=no", "deployment=digits",
    "deployment=faces", "rollout=r1", "rollout!=r1", "refused=yes", "condition=any", "condition=storage-full", "agent=2",
    "reason ~ full", 'reason ~ "disk full"', "reason ~ %", "reason ~ 50%_", "reason ~ unknown", "all",
)  # fmt: skip
# '%' and '_' are no wildcards, and only quotes let them through.
TEXTS = tuple(text.replace("~ 50%_", '~ "50%_"').replace("~ %", '~ "%"') for text in TESTS)


def test_every_field_is_among_the_tests() -> None:
    asked = {getattr(test, "field", "last_seen") for t in TEXTS for test in boolean.tests(filters.parse(t))}
    assert set(filters.FIELDS) <= asked


def compound(chance: random.Random, depth: int = 3) -> str:
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(TEXTS)
    shape = chance.choice(["not ({})", "({}) and ({})", "({}) or ({})"])
    return shape.format(*(compound(chance, depth - 1) for _ in range(2)))


def found(
    database: Database, text: str, sort: str = "", limit: int = 1000, after: str = ""
) -> tuple[list[str], str]:
    wanted = Wanted(filters.parse(text), filters.sort(sort), NOW)
    with database.read() as connection:
        page = finding.page(connection, wanted, after, limit)
        return [row.id for row in page.rows], page.after


def test_the_database_finds_what_a_filter_means(database: Database) -> None:
    zoo = Zoo(database, seed=1)
    chance = random.Random(2)
    for text in [*TEXTS, *(compound(chance) for _ in range(150))]:
        assert found(database, text)[0] == zoo.expected(filters.parse(text)), text
        with database.read() as connection:
            wanted = Wanted(filters.parse(text), filters.Sort(), NOW)
            assert finding.count(connection, wanted) == len(zoo.expected(filters.parse(text))), text
    assert any(zoo.expected(filters.parse(text)) for text in TEXTS)


def test_pages_of_every_order_are_together_all_devices_once(database: Database) -> None:
    zoo = Zoo(database, seed=3)
    for by in (*filters.SORTS, "site", "label.state", "nobody-has-it"):
        for order in (by, f"-{by}"):
            whole, _ = found(database, "", order)
            assert sorted(whole) == sorted(zoo.made)
            pages, after = found(database, "", order, 7)
            while after:
                some, after = found(database, "", order, 7, after)
                pages += some
            assert pages == whole, order
        assert whole == list(reversed(found(database, "", by)[0])), "turned round"
    states = [zoo.made[name]["state"] for name in found(database, "", "state")[0]]
    assert states == sorted(states, key=["failed", "fetch", "idle", ""].index), "the worst off first"
    seen = [zoo.made[name]["seen"] or 0.0 for name in found(database, "", "last_seen")[0]]
    assert seen == sorted(seen), "the longest silent first"
    for after in ("nonsense!", _place([1, "d1"]), _place({}), _place([None, "d1"]), _place(["a", "d\0"])):
        with pytest.raises(UsageError, match=r"after: "):
            found(database, "", "site", 5, after)
    with pytest.raises(UsageError, match=r"after: "):
        found(database, "", "", 5, "d\0")


def _place(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()


def test_what_was_said_before_the_facts_were_kept_is_found_after_the_migration(database: Database) -> None:
    zoo = Zoo(database, seed=6, count=20)
    # One that an older version believed and this one cannot read is left for it to say again.
    with database.begin() as connection:
        connection.execute(
            insert(schema.devices).values(
                id="odd", labels="{}", deployments="[]", created_at=NOW, reported="{}"
            )
        )
    go_back(database, "0017")
    database.migrate()
    for text in ("state=failed", "version=1", "reason ~ full", "condition=any"):
        assert found(database, text)[0] == zoo.expected(filters.parse(text)), text
    assert found(database, "", "state")[0][-1] == "odd"


def go_back(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    with database.engine.connect() as connection, _no_foreign_keys(connection), connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


@pytest.fixture
def inside(tmp_path: Path) -> Any:
    made = Inside(tmp_path)
    yield made
    made.close()


def test_the_api_pages_by_filter_and_order_and_counts(inside: Inside) -> None:
    zoo = Zoo(inside.database, seed=7)
    client = inside.client(inside.token("all", Role.VIEWER))
    expected = zoo.expected(filters.parse("site=lab or behind=yes"))
    path, names = "/api/v1/devices?where=site%3Dlab+or+behind%3Dyes&sort=-state&limit=4&count=true", []
    while path:
        response = client.get(path)
        names += [one["device"] for one in response.json()]
        assert response.headers.get("X-Total-Count", str(len(expected))) == str(len(expected))
        path = response.links.get("next", {}).get("url", "")
    assert sorted(names) == expected
    assert "X-Total-Count" in client.get("/api/v1/devices?count=1").headers
    for query, told in (("where=site", "^"), ("where=sight%3Dlab", "labels are"), ("sort=release", "sort: ")):
        answer = client.get(f"/api/v1/devices?{query}")
        assert answer.status_code == 400
        assert told in answer.json()["error"]["message"]


def test_scoped_access_sees_its_devices_only_whatever_it_asks(inside: Inside) -> None:
    """Also where a scope's label is called like a field, and where the filter ends in `or all`."""
    zoo = Zoo(inside.database, seed=8)
    mine = sorted(name for name, one in zoo.made.items() if one["labels"].get("state") == "bavaria")
    client = inside.client(inside.token("south", Role.VIEWER, scope="state=bavaria"))
    for query in ("", "?where=site%3Dlab+or+all", "?where=all&sort=-site", "?limit=5000"):
        assert sorted(one["device"] for one in client.get(f"/api/v1/devices{query}").json()) == mine
    assert client.get("/api/v1/devices?count=true&limit=1").headers["X-Total-Count"] == str(len(mine))
    north = inside.client(inside.token("north", Role.VIEWER, scope="site=attic and device=none"))
    told = north.get("/api/v1/devices?where=sight%3Dlab").json()["error"]["message"]
    assert told.endswith("labels are device, profile"), "labels of others are not told"


@pytest.mark.parametrize("text", ["site=lab", "state=failed", "behind=yes", "online=no and not site ~ a"])
def test_counting_reads_the_narrow_index_and_not_what_devices_said(tmp_path: Path, text: str) -> None:
    """SQLite: the table is ten times as wide, and a count of 100,000 devices goes over all of it."""
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    with database.read() as connection:
        condition = finding.condition(connection, filters.parse(text))
        query = select(func.count()).select_from(schema.devices).where(condition)
        compiled = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").scalars(3)
        steps = list(plan)
    assert "SCAN devices USING COVERING INDEX ix_devices_search" in steps
    assert not [step for step in steps if "desired" in step and "COVERING" not in step]
    database.close()
