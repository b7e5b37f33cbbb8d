"""docs/security.md names tests that there are; docs/network.md gives other brokers the rules that mosquitto gets."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from edgekit.wire import topics
from fleet.server.broker_config import READS, WRITES
from fleet.server.ca import SERVICE_NAME

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
HEADINGS = (
    "On the network, between device and fleet",
    "At the broker",
    "In the fleet's database",
    "On one device",
    "Holding an online key",
    "Between people and the service",
    "A lying mirror",
)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@cache
def names_in(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def missing(text: str) -> list[str]:
    return [f"{file}::{name}" for file, name in REFERENCE.findall(text) if name not in names_in(file)]


def rows(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| the attacker", "| ---"))
    ]


def test_every_test_that_the_page_names_is_there() -> None:
    assert missing(page("security.md")) == []
    assert missing("`tests/security/test_pages.py::test_gone`") == ["tests/security/test_pages.py::test_gone"]
    assert missing("`tests/security/gone.py::test_a`") == ["tests/security/gone.py::test_a"]


def test_every_kind_of_attacker_has_rows_and_every_row_a_test() -> None:
    parts = re.split(r"^## (.*)$", page("security.md"), flags=re.MULTILINE)[1:]
    assert tuple(parts[::2]) == HEADINGS
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        assert len(rows(body)) >= 5, heading
        for row in rows(body):
            assert row.count("|") == 4, row
            assert REFERENCE.search(row.split("|")[3]), row


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", page("network.md"), re.MULTILINE | re.DOTALL)
    return str(found)


def own(leaf: str, placeholder: str) -> str:
    return f"{topics.ROOT}/{placeholder}/{leaf}"


def test_emqx_gets_the_rules_of_mosquitto() -> None:
    """Erlang terms, the first that matches holds, as docs.emqx.com says (ACL file)."""
    term = re.compile(
        r'^\{(allow|deny), (all|\{username, "\w+"\})(?:, (publish|subscribe|all), (\[.*\]))?\}\.$'
    )
    lines = [
        line for line in re.sub(r",\n\s+", ", ", block("erlang")).splitlines() if line[:2] not in ("", "%%")
    ]
    found = [match.groups() for line in lines if (match := term.match(line))]
    assert len(found) == len(lines)
    told = {(verb, who, how): re.findall(r'"([^"]+)"', listed or "") for verb, who, how, listed in found}
    name = "${username}"
    assert told == {
        ("allow", f'{{username, "{SERVICE_NAME}"}}', "all"): [f"{topics.ROOT}/#"],
        ("allow", "all", "subscribe"): [own(leaf, name) for leaf in READS],
        ("allow", "all", "publish"): [own(leaf, name) for leaf in WRITES],
        ("deny", "all", None): [],
    }
    assert found[-1][0] == "deny"


def test_hivemq_gets_the_rules_of_mosquitto() -> None:
    """Rows of the extension's table `permissions`."""
    pattern = re.compile(
        r"\((\d+), '([^']+)', (true|false), (true|false), true, true, true, (true|false), (true|false), ''\)"
    )
    found = [match.groups() for match in pattern.finditer(block("sql"))]
    name = "${mqtt-clientid}"
    expected = {(f"{topics.ROOT}/#", "true", "true")}
    expected |= {(own(leaf, name), "false", "true") for leaf in READS}
    expected |= {(own(leaf, name), "true", "false") for leaf in WRITES}
    assert {(topic, publish, subscribe) for _, topic, publish, subscribe, *_ in found} == expected
    assert len(found) == len(expected)
    shared = {topic for _, topic, *_, is_shared in found if is_shared == "true"}
    assert shared == {f"{topics.ROOT}/#"}, "no device joins the fleet's shared subscription"


@pytest.mark.parametrize("name", ["security.md", "network.md", "deploy.md", "raspberry-pi.md"])
def test_what_a_page_points_to_is_there(name: str) -> None:
    for target in re.findall(r"`((?:docs|deploy|tests)/[\w./-]+)`", page(name)):
        assert (ROOT / target).exists(), target
