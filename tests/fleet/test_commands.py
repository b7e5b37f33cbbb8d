"""What holds for every fleet command: JSON, examples, whole values on any width, and no text of others that acts."""

import contextlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import httpx
import msgspec
import pytest
from click.testing import CliRunner
from hostile import ACTS, ATTACK, answer, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from edgekit import safe
from edgekit.errors import EdgeKitError, UsageError
from fleet import api
from fleet.client import alerts_cli, device_views, devices_cli, render
from fleet.client.cli import fleet
from fleet.client.config import Access
from fleet.client.keys_cli import main as keys
from fleet.client.rest import Client
from fleet.client.sheet import Column, Sheet
from fleet.client.spans import span
from fleet.client.transport import Transport, part
from fleet.rules import filters

COMMANDS = dict([*walk(fleet, ("fleet",)), *walk(keys, ("keys",))])
SINGLE = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}
WITHOUT_JSON = {
    ("fleet", "up"): "runs until it is stopped; what it says is a log",
    ("fleet", "worker"): "runs until it is stopped; what it says is a log",
    ("fleet", "describe", "wire"): "is JSON in any case",
}


def name_of(path: Sequence[str]) -> str:
    return " ".join(path)


@pytest.mark.parametrize("path", SINGLE, ids=name_of)
def test_every_command_answers_as_json(path: tuple[str, ...]) -> None:
    has = any("--json" in parameter.opts for parameter in SINGLE[path].params)
    assert has is not (path in WITHOUT_JSON)


@pytest.mark.parametrize("path", COMMANDS, ids=name_of)
def test_every_command_and_group_shows_examples_of_itself(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    text = command.get_help(click.Context(command, info_name=name_of(path)))
    assert re.search(rf"Examples?:(.|\n)*edgekit {name_of(path)}", text), text


def test_the_walk_saw_the_commands() -> None:
    assert len(SINGLE) > 60
    assert ("fleet", "device", "label") in SINGLE


# Words of a command line where the name of a parameter is not enough; None for one that is tested where it is at home.
ARGUMENTS: dict[tuple[str, ...], list[str] | None] = {
    ("fleet", "init"): None,
    ("fleet", "up"): None,
    ("fleet", "worker"): None,
    ("fleet", "simulate"): None,
    ("fleet", "broker-config"): None,
    ("fleet", "login"): None,
    ("fleet", "logout"): None,
    ("fleet", "publish"): None,
    ("fleet", "backup"): None,
    ("fleet", "restore"): None,
    ("fleet", "move"): None,
    ("fleet", "describe", "api"): None,
    ("fleet", "describe", "wire"): None,
    ("fleet", "alert-targets", "add"): ["x", "webhook", "--url", "https://h.example"],
    ("fleet", "audit", "export"): ["{new}"],
    ("fleet", "audit", "verify"): [],
    ("fleet", "enroll"): ["x", "--deployment", "d", "--out", "{new}"],
    ("fleet", "device", "replace"): ["x", "--out", "{new}"],
    ("fleet", "device", "label"): ["x", "site=lab"],
    ("fleet", "device", "delete"): ["x", "y", "--yes"],
    ("fleet", "device", "decommission"): ["--where", "all", "--yes"],
    ("fleet", "device", "revoke"): ["x", "y", "--yes"],
    ("fleet", "device", "retry"): ["x", "y", "--yes"],
    ("fleet", "devices"): ["--columns", ",".join(device_views.COLUMNS)],
    ("fleet", "experiment", "adopt"): ["x", "A"],
    ("fleet", "device", "command", "log-level"): ["x", "debug"],
    ("fleet", "device", "command", "clear-refused"): ["x", "5" * 64],
    ("fleet", "rollout", "start"): ["a@1", "--to", "all"],
    ("fleet", "rollout", "watch"): ["r1", "--timeout", "0"],
    ("fleet", "samples", "delete"): ["x", "--yes"],
    ("fleet", "token", "add"): ["x", "--role", "viewer", "--out", "{new}"],
    ("fleet", "user", "add"): ["x", "--role", "viewer"],
    ("fleet", "user", "change"): ["x", "--role", "viewer"],
}
SHOWN = [path for path in SINGLE if path[0] == "fleet" and ARGUMENTS.get(path, []) is not None]


class Attacker:
    """A service whose every answer is an attack."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        # No connection, and none of the time that one takes to be made ready.
        monkeypatch.setattr(Transport, "__init__", lambda made, access, *_: setattr(made, "url", access.url))
        monkeypatch.setattr(Transport, "close", lambda _made: None)
        monkeypatch.setattr(Transport, "send", self._send)
        monkeypatch.setattr(Transport, "read", lambda _self, _response, _method, _path, kind: answer(kind))
        monkeypatch.setenv("EDGEKIT_FLEET_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", "t")
        monkeypatch.setenv(alerts_cli.SECRET, "s" * 40)
        monkeypatch.setenv("EDGEKIT_FLEET_NEW_PASSWORD", "a long phrase of nobody")
        monkeypatch.delenv("EDGEKIT_FLEET", raising=False)

    def _send(self, method: str, path: str, *_: Any, **__: Any) -> httpx.Response:
        self.paths.append(path)
        return httpx.Response(200, request=httpx.Request(method, "http://127.0.0.1/"))


@pytest.fixture
def attacker(monkeypatch: pytest.MonkeyPatch) -> Attacker:
    return Attacker(monkeypatch)


@pytest.mark.parametrize("width", ["60", "400"])
@pytest.mark.parametrize("path", SHOWN, ids=name_of)
def test_nothing_that_others_say_acts_on_the_terminal(
    path: tuple[str, ...], width: str, attacker: Attacker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal of either width, in a pipe and as JSON: it is shown as it is written, and markup is no markup."""
    monkeypatch.setattr(render, "_UNLIMITED", int(width))
    if path == ("fleet", "audit", "export"):
        # Its pages end where one is empty, and no attack is.
        monkeypatch.setattr(Client, "audit", lambda *_: [])
    for number, more in enumerate(([], ["--json"])):
        words = [word.format(new=tmp_path / f"new-{number}") for word in _words(path)]
        done = CliRunner().invoke(fleet, [*path[1:], *words, *more])
        # What a command ends with is made safe where it is printed, below.
        assert isinstance(done.exception, SystemExit | EdgeKitError | None), done.exception
        assert not ACTS & set(done.output), (path, more)
        assert attacker.paths
        if more and done.stdout.strip():
            for document in _documents(done.stdout):
                json.loads(document)
        if r"\x1b[2J" in done.stdout:
            # It may be folded in the middle.
            assert "[red]" in re.sub(r"\n *", "", done.stdout)


def _words(path: tuple[str, ...]) -> list[str]:
    given = ARGUMENTS.get(path)
    if given is not None:
        return given
    words = []
    for parameter in SINGLE[path].params:
        if isinstance(parameter, click.Argument):
            words.append("x")
        elif parameter.required:
            words += [parameter.opts[0], "x"]
    return words


def _documents(text: str) -> Iterator[str]:
    """One document, or a line each."""
    try:
        json.loads(text)
        yield text
    except json.JSONDecodeError:
        yield from text.splitlines()


def test_the_attack_is_seen_where_it_is_shown(attacker: Attacker) -> None:
    """The test above would pass with nothing shown at all."""
    assert attacker
    for words in (
        ["devices"],
        ["device", "explain", "x"],
        ["device", "show", "x"],
        ["rollout", "status", "r1"],
        ["waiting"],
    ):
        said = CliRunner().invoke(fleet, words).stdout
        assert r"\x1b[2J" in said, words
        assert "[red]x[/red]" in said, words
        assert r"\u202e" in said, words


def test_what_a_service_refuses_is_safe_to_read_too() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        body = msgspec.json.encode(api.ErrorAnswer(api.ErrorBody("not-found", f"no\n  {ATTACK}")))
        return httpx.Response(404, content=body, request=request)

    client = Client(Access("http://127.0.0.1:1", "t"))
    client._transport._http = httpx.Client(
        base_url="http://127.0.0.1:1", transport=httpx.MockTransport(refuse)
    )
    with pytest.raises(Exception, match=r"no\n  \\x1b") as caught:
        client.status()
    assert not ACTS & set(str(caught.value))


def test_what_a_command_ends_with_is_safe_to_read(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgekit",
        "fleet",
        "--fleet",
        str(tmp_path / "\x1b[31m\u202e"),
        "devices",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert r"\x1b[31m\u202e" in done.stderr
    assert not ACTS & set(done.stderr)


METHODS = [
    name
    for name, method in inspect.getmembers(Client, inspect.isfunction)
    if not name.startswith("_")
    and name != "events"  # its text goes into a header
    and any(p.annotation in (str, "str") for p in list(inspect.signature(method).parameters.values())[1:])
]


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_one_part_of_a_path_whatever_is_in_it(name: str, attacker: Attacker) -> None:
    bad = "../tokens?x=1#y/z%2e"
    method = getattr(Client, name)
    given: dict[str, Any] = {}
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.annotation in (str, "str"):
            given[parameter.name] = bad
        elif parameter.default is inspect.Parameter.empty:
            given[parameter.name] = _given(parameter.annotation)
    with contextlib.suppress(EdgeKitError):
        made = method(Client(Access("http://127.0.0.1:1", "t")), **given)
        if inspect.isgenerator(made):
            next(made, None)
    assert attacker.paths
    for path in attacker.paths:
        where, _, query = path.partition("?")
        assert bad not in path
        assert "#" not in path
        assert not any(step in ("..", ".") for step in where.split("/"))
        assert query.count("?") == 0
        if "tokens" in where and not name.endswith("token"):
            assert bad in unquote(where), "only as the name that it is"


def _given(annotation: Any) -> Any:
    if annotation is Path:
        return Path(__file__)
    is_type = isinstance(annotation, type) and annotation.__module__.startswith(("fleet.api", "builtins"))
    return answer(annotation) if is_type else lambda _: None


@pytest.mark.parametrize(
    ("name", "told"), [("..", "%2E%2E"), (".", "%2E"), ("a@1/b c", "a@1%2Fb%20c"), ("é", "%C3%A9")]
)
def test_parts_of_a_path(name: str, told: str) -> None:
    assert part(name) == told


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UsageError, match="a name is empty"):
        part("")


@given(st.text())
def test_safe_text_is_one_line_of_what_can_be_seen(text: str) -> None:
    shown = safe.text(text)
    assert not ACTS & set(shown)
    assert len(shown.splitlines()) <= 1
    assert safe.text(shown) == shown


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_safe_json_means_the_same(text: str) -> None:
    encoded = msgspec.json.encode({"x": text}).decode()
    shown = safe.json(encoded)
    assert json.loads(shown) == {"x": text}
    assert not ACTS & set(shown)


def test_the_help_and_the_docs_know_every_field_and_order_of_the_service() -> None:
    help_text = devices_cli.EPILOG
    docs = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()
    for field in filters.FIELDS:
        for text in (help_text, docs):
            assert re.search(rf"\b{field}( ~ |=| <)", text), field
    assert set(devices_cli.SORTS) == set(filters.SORTS)
    for order in filters.SORTS:
        assert f"`{order}`" in docs
    # Each example is one that the service reads.
    for where in re.findall(r"--where '([^']+)'", help_text + docs):
        filters.parse(where)


LONG = "digits-with-a-long-name@1.14.2-rc.3+build.20261127"
DIGEST = "9f2c41d07a" + "5" * 54


def drawn(renderable: Any, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable, highlight=False)
    return capture.get().splitlines()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.text("abcdef -", max_size=90)] * 4), min_size=1, max_size=5), st.integers(20, 250)
)
def test_a_sheet_shows_every_character_at_any_width(rows: list[tuple[str, ...]], width: int) -> None:
    made = Sheet(
        (Column("one"), Column("two"), Column("three", is_prose=True), Column("four", is_prose=True))
    )
    for row in rows:
        made.add(*row)
    lines = drawn(made, width)
    shown = "".join(lines)
    assert "…" not in shown
    assert max(map(len, lines), default=0) <= width
    # In as many pieces as it takes, each character of each cell is there.
    wanted = "".join("".join(row) for row in rows)
    for letter in "abcdef-":
        assert shown.count(letter) >= wanted.count(letter)


@pytest.mark.parametrize("width", [140, 200, 400])
def test_versions_and_digests_are_whole_words_where_there_is_room(width: int) -> None:
    made = Sheet((Column("device"), Column("runs"), Column("sha256"), Column("reason", is_prose=True)))
    made.add(
        "roof-1", LONG, DIGEST, "self-test: other outputs than the golden ones, by far more than is tolerated"
    )
    text = "\n".join(drawn(made, width))
    assert LONG in text
    assert DIGEST in text


def test_a_narrow_terminal_gets_records() -> None:
    made = Sheet((Column("device", is_shared=True), Column("deployment"), Column("runs"), Column("sha256")))
    made.add("roof-1", "digits", LONG, DIGEST)
    made.add("roof-1", "faces", "faces@2", DIGEST)
    lines = drawn(made, 90)
    assert [line.rstrip() for line in lines].count("roof-1") == 2, "each record says whose it is"
    assert any(line.split() == ["sha256", DIGEST] for line in lines)


def view(**more: Any) -> api.DeviceView:
    given: dict[str, Any] = {
        "device": "roof-1", "profile": "raspberry-pi-5", "labels": {"site": "roof"}, "enrolled": True, "online": True,
        "is_duplicate": False, "agent_version": "0.1.0", "last_seen": None, "order_counter": 3, "reported_counter": 3,
        "refused": "", "deployments": {"digits": api.DeploymentView("digits@2", DIGEST, "digits@1", DIGEST, state="idle")},
        "telemetry": api.Telemetry(),
    }  # fmt: skip
    return api.DeviceView(**{**given, **more})


def test_refusals_and_reasons_are_columns_only_where_there_are_some() -> None:
    calm = "\n".join(drawn(device_views.devices([view()]), 400))
    assert "refused" not in calm
    assert "reason" not in calm
    failed = {
        "digits": api.DeploymentView("digits@2", DIGEST, state="failed", reason="self-test: other outputs")
    }
    worse = drawn(
        device_views.devices([view(), view(device="roof-2", deployments=failed, refused="unknown key")]), 400
    )
    assert "refused" in worse[0]
    assert "reason" in worse[0]
    assert "self-test: other outputs" in worse[2]
    assert "unknown key" in worse[2]


def test_columns_may_be_labels_and_unknown_ones_are_refused_with_those_that_there_are() -> None:
    lines = drawn(device_views.devices([view()], ["device", "site"]), 80)
    assert [line.split() for line in lines] == [["device", "site"], ["roof-1", "roof"]]
    with pytest.raises(
        UsageError, match="'sight' is neither a column nor a label of these devices; columns are device,"
    ):
        device_views.devices([view()], ["sight"])


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0s"),
        (45.9, "45s"),
        (750, "12m 30s"),
        (3600, "1h"),
        (11_100, "3h 5m"),
        (187_200, "2d 4h"),
        (-5, "0s"),
    ],
)
def test_durations_are_said_in_their_two_largest_units(seconds: float, told: str) -> None:
    assert span(seconds) == told
