"""What an operator does all day: many devices at once, a rollout watched, names completed."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from access_support import Inside
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from rich.console import Console
from store_support import enrolled

from edgekit.cli import cli
from edgekit.errors import NotFoundError, UsageError
from fleet import api
from fleet.api.history import ArmPoint
from fleet.client import bulk, complete, watch_views, watching
from fleet.client.cli import fleet
from fleet.client.config import Access
from fleet.client.rest import Client
from fleet.client.transport import AwayError
from fleet.client.watching import Look
from fleet.rules.access import Role


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    """A service in this process; commands reach it as they would over the network."""
    made = Inside(tmp_path)
    enrolled(made.database, ["roof-1", "roof-2", "van-1"])
    http = made.client(made.token("ops", Role.ADMIN), base_url="http://127.0.0.1:8080/api/v1")
    init = Client.__init__

    def within(self: Client, access: Access, *more: Any) -> None:
        init(self, access, *more)
        self._http.close()
        self._http = cast("httpx.Client", http)
        monkeypatch.setattr(http, "close", lambda: None)

    monkeypatch.setattr(Client, "__init__", within)
    monkeypatch.setenv("EDGEKIT_FLEET_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", "t")
    monkeypatch.delenv("EDGEKIT_FLEET", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield made
    made.close()


def run(*words: str, typed: str = "") -> Result:
    return CliRunner().invoke(fleet, words, input=typed)


def devices() -> dict[str, dict[str, str]]:
    found = json.loads(run("devices", "--json").stdout)
    return {
        one["device"]: {k: v for k, v in one["labels"].items() if k not in ("device", "profile")}
        for one in found
    }


def at_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a person sat there; what they type comes through `CliRunner`."""
    monkeypatch.setattr(bulk, "_is_asked", lambda: True)


def test_labels_of_all_that_a_filter_finds(inside: Inside) -> None:
    assert inside
    assert run("device", "label", "roof-1", "site=roof").exit_code == 0
    assert run("device", "label", "roof-2", "site=roof").exit_code == 0
    refused = run("device", "label", "--where", "site=roof", "floor=2")
    assert isinstance(refused.exception, UsageError)
    assert "change labels (floor=2) of 2 devices (roof-1, roof-2); give --yes" in str(refused.exception)
    assert devices()["roof-1"] == {"site": "roof"}, "nothing was done"
    done = run("device", "label", "--where", "site=roof", "floor=2", "--yes", "--json")
    assert [one["device"] for one in json.loads(done.stdout)] == ["roof-1", "roof-2"]
    assert devices() == {
        "roof-1": {"site": "roof", "floor": "2"},
        "roof-2": {"site": "roof", "floor": "2"},
        "van-1": {},
    }
    assert run("device", "label", "--where", "site=roof", "floor-", "--yes").exit_code == 0
    assert devices()["roof-2"] == {"site": "roof"}


def test_devices_by_filter_order_and_columns(inside: Inside) -> None:
    assert inside
    run("device", "label", "van-1", "site=road")
    shown = run(
        "devices", "--where", "site=road or device ~ roof", "--sort", "-device", "--columns", "device,site"
    ).stdout
    assert [line.split() for line in shown.splitlines()] == [
        ["device", "site"],
        ["van-1", "road"],
        ["roof-2"],
        ["roof-1"],
    ]
    some = run("devices", "--limit", "2")
    assert "and 1 more" in some.stderr
    assert run("devices", "--where", "state=failed").stdout == "no device is found by this filter\n"
    wrong = run("devices", "--where", "state=fialed")
    assert "^" in str(wrong.exception)


def test_out_of_service_by_filter_asks_a_person_and_takes_no_for_an_answer(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside
    at_terminal(monkeypatch)
    words = ("device", "decommission", "--where", "device ~ roof")
    asked = run(*words, typed="n\n")
    assert asked.exit_code == 1
    assert "take 2 devices (roof-1, roof-2) out of service" in asked.stderr
    assert len(devices()) == 3
    assert run(*words, typed="y\n").exit_code == 0
    assert list(devices()) == ["van-1"]


def test_deleting_asks_for_the_name_or_the_number(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inside
    at_terminal(monkeypatch)
    assert run("device", "delete", "van-1", typed="yes\n").exit_code == 1
    assert run("device", "delete", "--where", "device ~ roof", typed="roof-1\n").exit_code == 1
    assert len(devices()) == 3
    assert run("device", "delete", "van-1", typed="van-1\n").exit_code == 0
    assert run("device", "delete", "--where", "device ~ roof", typed="2\n").exit_code == 0
    assert devices() == {}


def test_a_script_that_names_one_device_is_taken_at_its_word_and_one_that_names_more_is_not(
    inside: Inside,
) -> None:
    assert inside
    assert isinstance(run("device", "delete", "roof-1", "roof-2").exception, UsageError)
    assert run("device", "delete", "roof-1").exit_code == 0
    assert list(devices()) == ["roof-2", "van-1"]


def test_one_that_is_refused_stops_none_of_the_others(inside: Inside) -> None:
    assert inside
    done = run("device", "revoke", "roof-1", "nobody", "van-1", "--yes")
    assert "1 of 3 devices were refused, the others are done" in str(done.exception)
    assert "nobody: there is no device" in str(done.exception)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["roof-1", "van-1"]
    assert isinstance(run("device", "revoke", "nobody").exception, NotFoundError)


def test_what_is_not_clear_is_not_done(inside: Inside) -> None:
    assert inside
    for words, told in (
        (("device", "revoke"), "which devices"),
        (("device", "revoke", "a", "--where", "all"), "which devices"),
        (("device", "revoke", "--where", "device=none", "--yes"), "finds no device; nothing was done"),
        (("device", "label", "roof-1"), "which labels"),
        (("device", "label", "--where", "all"), "which labels"),
    ):
        assert told in str(run(*words).exception), words


NOW = datetime(2026, 11, 27, 14, 0, tzinfo=UTC)


def rollout(**more: Any) -> api.RolloutView:
    given: dict[str, Any] = {
        "id": "r3", "release": "digits@1.4.2", "deployment": "digits", "to": "site=lab", "status": "running", "reason": "",
        "stage": 2, "stages": ("24 devices", "50 %", "all devices"), "counts": {"succeeded": 37, "fetching": 2, "pending": 61},
        "gates": (), "members": (), "created": NOW - timedelta(minutes=12, seconds=30), "soak_ends": None,
    }  # fmt: skip
    return api.RolloutView(**{**given, **more})


def point(arm: Any, at: float, share: float, ms: float | None, stage: int = 2) -> ArmPoint:
    return ArmPoint(at, 60.0, stage, arm, 24, 12_400, 12, share, share / 2, share * 2, ms, ms, ms, ms)


WAITING = (api.GateView("error_rate < 1%", "waiting", "40 of 100 requests so far"),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ["waits for 2 devices to settle: 2 fetching"]),
        (
            {"waiting": 5},
            ["waits for 2 devices to settle: 2 fetching", "5 devices of this stage wait for their turn"],
        ),
        (
            {"counts": {"succeeded": 50}, "soak_ends": NOW + timedelta(minutes=5)},
            ["soaks until 14:05:00 UTC, another 5m"],
        ),
        (
            {"counts": {"succeeded": 50}, "soak_ends": NOW - timedelta(minutes=5)},
            ["has soaked since 13:55:00 UTC"],
        ),
        ({"counts": {}, "gates": WAITING}, ["gate error_rate < 1%: 40 of 100 requests so far"]),
        ({"counts": {}, "awaits": 2}, ["stage 2 waits for approval: edgekit fleet rollout approve r3"]),
        ({"counts": {}, "held_profiles": ("pi",)}, ["held: pi"]),
        ({"counts": {}}, ["waits for its devices' first reports"]),
        ({"status": "queued", "reason": "waits for r2"}, ["waits for r2"]),
        (
            {"status": "paused", "reason": "2 failed"},
            [
                "paused: 2 failed; go on with 'edgekit fleet rollout resume r3', or give up with 'edgekit fleet rollout abort r3'"
            ],
        ),
        ({"status": "rolling_back", "counts": {"rolling_back": 3}}, ["3 devices are on their way back"]),
        ({"status": "completed"}, []),
    ],
)
def test_what_a_rollout_waits_for_in_words(changes: dict[str, Any], told: list[str]) -> None:
    assert watching.waits(rollout(**changes), NOW) == told


def drawn(look: Look, width: int = 160) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(watch_views.screen(look, NOW))
    return capture.get()


def test_the_screen_shows_elapsed_time_the_track_and_both_arms_on_one_scale() -> None:
    arms = (
        point("canary", 1, 0.001, 6.5), point("control", 1, 0.001, 6.4), point("canary", 2, 0.02, None), point("control", 2, 0.0, 6.4),
    )  # fmt: skip
    text = drawn(Look(rollout(gates=WAITING), arms))
    assert "running, 12m 30s" in text
    assert "✓ 24 devices → ▶ 50 % → all devices" in text
    assert "2 fetching, 61 pending, 37 succeeded" in text
    canary, control = (
        next(line for line in text.splitlines() if line.startswith(arm)) for arm in ("canary", "control")
    )
    assert "2.00% (1.00% to 4.00%) of 12400 requests on 24 devices" in canary
    assert "▁█" in canary, "the newest share is the largest there is"
    assert "no latency yet" in canary
    assert "▁▁" in control
    assert "6.4 ms (6.4 to 6.4)" in control
    assert "waits for 1 of 1 gates: error_rate < 1%" in text
    assert "40 of 100 requests so far" in text


def test_few_bad_devices_are_seen_among_many() -> None:
    bar = watch_views.bar({"succeeded": 9_999, "failed": 1}).plain
    assert bar.startswith("█" * 39 + "!")
    assert watch_views.bar({}).plain.strip() == ""


def test_every_frame_fits_a_narrow_terminal_whole() -> None:
    member = api.MemberView(
        "roof-1",
        "raspberry-pi-5",
        2,
        "failed",
        "self-test: other outputs than the golden ones",
        "digits@1.4.1",
    )
    text = drawn(Look(rollout(members=(member,), gates=WAITING), (point("canary", 1, 0.001, 6.5),)), 48)
    assert max(map(len, text.splitlines())) <= 48
    assert "…" not in text
    assert "digits@1.4.1" in text


class Scripted:
    """A client whose rollout is one after another of these; an exception is raised."""

    def __init__(self, *steps: "api.RolloutView | Exception", arms: list[ArmPoint] | None = None) -> None:
        self._steps, self._arms = list(steps), arms

    def rollout(self, _rollout_id: str) -> api.RolloutView:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def rollout_history(self, _rollout_id: str) -> list[ArmPoint]:
        if self._arms is None:
            raise NotFoundError("GET /rollouts/r3/history: Not Found")
        return self._arms


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`rollout watch` of a script, without a wait."""
    monkeypatch.setattr(watching, "_LOOK_S", 0.0)
    monkeypatch.setenv("EDGEKIT_FLEET_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("EDGEKIT_FLEET_TOKEN", "t")

    def made(script: Scripted, *more: str) -> Result:
        monkeypatch.setattr(Client, "rollout", lambda _self, name: script.rollout(name))
        monkeypatch.setattr(Client, "rollout_history", lambda _self, name: script.rollout_history(name))
        return CliRunner().invoke(fleet, ["rollout", "watch", "r3", *more])

    return made


def test_lines_come_when_something_changes_and_the_exit_code_says_how_it_ended(
    watch: Callable[..., Result],
) -> None:
    script = Scripted(rollout(), rollout(), rollout(counts={"succeeded": 39}), rollout(status="completed"))
    done = watch(script)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "waits for 2 devices to settle" in lines[0]
    assert "r3 completed" in lines[2]
    for ended in ("rolled_back", "aborted", "paused"):
        assert watch(Scripted(rollout(status=ended))).exit_code == 5
    assert watch(Scripted(rollout()), "--timeout", "0").exit_code == 5


def test_arms_are_in_the_lines_where_the_service_keeps_history(watch: Callable[..., Result]) -> None:
    arms = [
        point("canary", 1, 0.5, 9.0, stage=1),
        point("canary", 1, 0.001, 6.5),
        point("control", 1, 0.002, 6.4),
    ]
    line = watch(Scripted(rollout(status="completed"), arms=arms)).stdout
    assert (
        "canary: errors 0.10% (0.05% to 0.20%) of 12400 requests on 24 devices, p95 6.5 ms (6.5 to 6.5)"
        in line
    )
    assert "control: errors 0.20%" in line
    assert "50.00%" not in line, "of an earlier stage"


def test_json_lines_are_the_rollout(watch: Callable[..., Result]) -> None:
    lines = watch(Scripted(rollout(), rollout(status="completed")), "--json").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["running", "completed"]


def test_a_service_that_is_away_for_a_while_ends_no_watch(watch: Callable[..., Result]) -> None:
    away = AwayError("the fleet cannot be reached")
    done = watch(Scripted(rollout(), away, away, rollout(status="completed")))
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "cannot be reached" in lines[1]
    assert "as of" in drawn(Look(rollout(), away_since=NOW))
    assert isinstance(watch(Scripted(away)).exception, AwayError), "one that is not there at all does"


def completions(words: list[str], incomplete: str) -> list[str]:
    return [one.value for one in ShellComplete(cli, {}, "edgekit", "_X").get_completions(words, incomplete)]


def test_names_are_completed_as_the_fleet_has_them(inside: Inside) -> None:
    run("token", "add", "ci", "--role", "viewer", "--out", "-")
    assert completions(["fleet", "device", "explain"], "roof") == ["roof-1", "roof-2"]
    assert completions(["fleet", "device", "revoke", "roof-1"], "v") == ["van-1"]
    assert completions(["fleet", "token", "revoke"], "") == ["ops", "ci"]
    assert completions(["fleet", "rollout", "pause"], "") == []
    assert completions(["fleet", "devices", "--sort"], "la") == ["last_seen"]
    assert completions(["fleet", "devices", "--columns"], "device,wan") == [
        "device,wanted",
        "device,wanted_digest",
    ]
    files = list((inside.path / "cache" / "edgekit" / "completion").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert not any(b'"t"' in file.read_bytes() for file in files), "no token is kept"


def test_what_was_found_is_kept_for_some_seconds_and_not_longer(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside
    asked: list[str] = []

    def answer(_client: Client, typed: str) -> list[tuple[str, str]]:
        asked.append(typed)
        return [("roof-1", "")]

    monkeypatch.setitem(complete._KINDS, "device", answer)
    for _ in range(3):
        assert completions(["fleet", "device", "show"], "r") == ["roof-1"]
    assert asked == ["r"]
    for file in complete._folder().iterdir():
        then = time.time() - 2 * complete.KEEP_S
        os.utime(file, (then, then))
    assert completions(["fleet", "device", "show"], "r") == ["roof-1"]
    assert asked == ["r", "r"]


def test_only_what_a_shell_does_not_act_on_is_offered(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inside
    found = [("$(rm -rf x)", ""), ("a b", ""), ("`x`", ""), ("ok-1", "\x1b[31m"), ("-rf", ""), ("a\nb", "")]
    monkeypatch.setitem(complete._KINDS, "device", lambda *_: found)
    items = ShellComplete(cli, {}, "edgekit", "_X").get_completions(["fleet", "device", "show"], "")
    assert [(one.value, one.help) for one in items if one.type == "plain"] == [("ok-1", r"\x1b[31m")]


def complete_in(shell: str, line: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What the program answers a shell."""
    words = (
        {"COMP_LINE": line} if shell == "bash" else {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()))}
    )
    return subprocess.run(
        [sys.executable, "-m", "edgekit"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            **environment,
            **words,
        },
    )


def test_while_the_fleet_is_away_completion_is_silent(tmp_path: Path) -> None:
    environment = {
        "_EDGEKIT_COMPLETE": "bash_complete", "EDGEKIT_FLEET_URL": "http://127.0.0.1:9", "EDGEKIT_FLEET_TOKEN": "t",
        "XDG_CACHE_HOME": str(tmp_path),
    }  # fmt: skip
    done = complete_in("bash", "edgekit fleet device explain ro", environment)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    nowhere = complete_in(
        "bash",
        "edgekit fleet device explain ro",
        {"_EDGEKIT_COMPLETE": "bash_complete", "HOME": str(tmp_path)},
    )
    assert (nowhere.stdout.strip(), nowhere.stderr) == ("", "")
    option = complete_in("bash", "edgekit fleet rollout ab", environment)
    assert option.stdout == "plain,abort\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert f"_EDGEKIT_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("line", "words", "given", "replies"),
    [
        (
            "edgekit fleet assign digits@1",
            ["edgekit", "fleet", "assign", "digits", "@", "1"],
            "digits@1.0.0",
            "1.0.0",
        ),
        (
            "edgekit fleet assign digits@",
            ["edgekit", "fleet", "assign", "digits", "@"],
            "digits@1.0.0",
            "1.0.0",
        ),
        ("edgekit fleet assign dig", ["edgekit", "fleet", "assign", "dig"], "digits@1.0.0", "digits@1.0.0"),
        ("edgekit fleet assign ", ["edgekit", "fleet", "assign", ""], "digits@1.0.0", "digits@1.0.0"),
    ],
)
def test_bash_completes_names_with_an_at_sign_in_them(
    line: str, words: list[str], given: str, replies: str, tmp_path: Path
) -> None:
    """bash ends words at '@': it replaces only what follows the last one."""
    script = CliRunner().invoke(cli, ["completion", "bash"]).stdout
    program = tmp_path / "edgekit"
    program.write_text(f'#!/bin/sh\necho "$COMP_LINE" > {tmp_path}/line\necho plain,{given}\n')
    program.chmod(0o755)
    array = " ".join(f"'{word}'" for word in words)
    asked = (
        f"{script}\nCOMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}\n"
        f'_edgekit_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    done = subprocess.run(["bash", "--norc", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == replies, done.stderr
    assert (tmp_path / "line").read_text() == f"{line}\n"
