"""docs/raspberry-pi.md, typed from top to bottom: a fleet on TLS, a board that joins by its unit file, a served request.

Always true
 1. Every line of a block meets exactly one entry of `LINES`; a new one without an entry fails.
 2. A line runs as it stands but for what its entry says: the folders of the board lie below one of the test's, ports are
    this run's own, and programs that would change this machine (`PRETENDED`) only note what they were told.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import readme
from desk import Desk
from ports import free_port
from readme import ROOT

pytestmark = pytest.mark.broker
PAGE = (ROOT / "docs" / "raspberry-pi.md").read_text(encoding="utf-8")
UNIT = "edgekit-agent.service"
# Folders of the board that a line may name.
BOARD_FOLDERS = ("/opt/edgekit", "/etc/edgekit", "/etc/systemd/system", "/var/lib/edgekit", "/run/edgekit")
PRETENDED = ("apt-get", "systemd-sysusers", "systemd-tmpfiles")
# sudo as whoever runs the tests.
SHIMS = {
    "sudo": 'if [ "$1" = -u ]; then shift 2; fi\nexec "$@"',
    **{name: f'echo "{name} $*" >> "$NOTED"' for name in PRETENDED},
}


@dataclass(eq=False)
class Home:
    """The computer (`desk`) and the board, whose `/` is `root` and whose owner's folder is `owner`."""

    desk: Desk
    root: Path
    fleet_port: int = field(default_factory=free_port)
    broker_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.owner = self.root / "home"
        self.owner.mkdir(parents=True)
        for name in BOARD_FOLDERS:
            (self.root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (self.root / "etc/systemd/system").mkdir(parents=True)
        programs = self.desk.folder.parent / "bin"
        for name, text in SHIMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        self.noted = self.root / "noted"
        self.noted.touch()
        self.desk.environment["NOTED"] = str(self.noted)

    def here(self, text: str) -> str:
        """A line of the page with the places of this run."""
        for name in BOARD_FOLDERS:
            text = re.sub(rf"(?<![\w/]){name}(?![\w-])", str(self.root / name[1:]), text)
        for theirs, ours in (("8443", self.fleet_port), ("8883", self.broker_port)):
            text = text.replace(f"$FLEET:{theirs}", f"$FLEET:{ours}")
        return text.replace("127.0.0.1:8500", self.desk.agent)

    def on_board(self, line: str, *, codes: tuple[int, ...] = (0,)) -> str:
        return self.desk.run(f"cd {self.owner}\n{self.here(line)}", codes=codes)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    place = tmp_path_factory.mktemp("pi")
    desk = Desk(place / "checkout" / "edgekit")
    try:
        yield Home(desk, place / "board")
    finally:
        desk.stop_all()


# -- the computer ----------------------------------------------------------------------------------------------------


def typed(home: Home, line: str) -> None:
    home.desk.run(home.here(line))


def export(home: Home, line: str) -> None:
    """The address is this machine's."""
    name, _, value = line.removeprefix("export ").partition("=")
    home.desk.environment[name] = {"FLEET": "localhost"}.get(name, value)


def fleet_up(home: Home, line: str) -> None:
    def is_up() -> bool:
        return '"' in home.desk.run("edgekit fleet --fleet ../fleet status --json", codes=(0, 2, 5))

    home.desk.start("fleet", line, is_up)


def build(home: Home, line: str) -> None:
    """One recipe of those that the page has tried."""
    assert "'onnxruntime/*'" in line
    home.desk.run(line.replace("'onnxruntime/*'", "onnxruntime/static-int8"))


def wheel(home: Home, line: str) -> None:
    """Needs what hatchling is fetched from; tests/newcomer/test_readme_installs.py installs from the checkout by pip."""
    folder = home.desk.folder / shlex.split(line)[-2]
    folder.mkdir()
    (folder / "edgekit_toolkit-0.1.0-py3-none-any.whl").touch()


def copy_to_board(home: Home, line: str) -> None:
    words = line.removeprefix("scp ").removesuffix(" pi-1.local:")
    assert words != line
    home.desk.run(f"cp {words} {home.owner}")


def devices(home: Home, line: str) -> None:
    home.desk.wait(lambda: is_online(home), "the board is online")
    assert "pi-1" in home.desk.run(line)


def is_online(home: Home) -> bool:
    return [device["online"] for device in json.loads(home.desk.run("edgekit fleet devices --json"))] == [
        True
    ]


def watch(home: Home, line: str) -> None:
    said = home.desk.run(f"{line} --timeout 120")
    assert "completed" in said


# -- the board ---------------------------------------------------------------------------------------------------------


def board(home: Home, line: str) -> None:
    home.on_board(line)


def packages(home: Home, line: str) -> None:
    """Into the environment that the line before made: what is installed here, and the checkout."""
    extras = set(re.findall(r"\[([\w,]+)\]", line)[0].split(","))
    assert extras == {"agent", "onnxruntime", "images"}
    assert home.on_board("ls edgekit_toolkit-*.whl constraints.txt").count("\n") == 2
    (site,) = (home.root / "opt/edgekit/lib").glob("python3*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "here.pth").write_text("\n".join([str(home.desk.folder), *ours]) + "\n")
    program = home.root / "opt/edgekit/bin/edgekit"
    program.write_text(f'#!/bin/sh\nexec "{program.with_name("python")}" -m edgekit "$@"\n')
    program.chmod(0o755)


def install(home: Home, line: str) -> None:
    """Into the board's tree. Then what systemd would run, by the unit as it was installed: as whoever runs the tests, and
    the profile is said, since this is no Pi.
    """
    home.on_board(f"{line} --root {home.root}")
    assert (home.root / "etc/systemd/system/multi-user.target.wants" / UNIT).is_symlink()
    unit = (home.root / "etc/systemd/system" / UNIT).read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    variables = " ".join(re.findall(r"^Environment=(.*)$", unit, re.MULTILINE))
    for folder in re.findall(r"^(?:State|Runtime)Directory=(.*)$", unit, re.MULTILINE):
        (home.root / ("run" if "run/" in folder else "var/lib") / folder).mkdir(parents=True, exist_ok=True)
    (home.root / "run/edgekit").mkdir(parents=True, exist_ok=True)
    command = re.sub(r" --worker-user \S+", "", command)
    started = f"env {variables} {command} --profile raspberry-pi-5 --http {home.desk.agent}"
    home.desk.start("agent", home.here(started), lambda: True)


def status(home: Home, line: str) -> None:
    home.desk.wait(lambda: "certificate until" in home.on_board(line, codes=(0, 2, 3, 4, 5)), "it has joined")


def doctor(home: Home, line: str) -> None:
    """This is no Pi: only what concerns fleet and broker must be good."""
    said = home.on_board(line, codes=(0, 1))
    assert "certificate valid until" in said


def request(home: Home, line: str) -> None:
    deadline = time.monotonic() + 30
    while '"label"' not in (said := home.on_board(line, codes=(0, 7))):
        assert time.monotonic() < deadline, said
        time.sleep(0.3)
    assert json.loads(said)["label"] == "2"


# The beginning of a line → what it does here. The order of the page is the order in which they run.
LINES: Mapping[str, Callable[[Home, str], None]] = {
    r"export \w+=": export,
    r"\(umask 077; openssl rand": typed,
    r"edgekit fleet init ": typed,
    r"edgekit fleet up ": fleet_up,
    r"python examples/digits/digits\.py small$": typed,
    r"edgekit build ": build,
    r"edgekit fleet publish ": typed,
    r"edgekit fleet enroll ": typed,
    r"pip wheel ": wheel,
    r"scp ": copy_to_board,
    r"sudo apt-get ": board,
    r"sudo python3 -m venv ": board,
    r"sudo /opt/edgekit/bin/pip install ": packages,
    r"sudo /opt/edgekit/bin/edgekit agent install --enrolment pi-1\.json --start$": install,
    r"rm pi-1\.json$": board,
    r"sudo -u edgekit /opt/edgekit/bin/edgekit agent status ": status,
    r"sudo -u edgekit /opt/edgekit/bin/edgekit agent doctor ": doctor,
    r"edgekit fleet devices$": devices,
    r"edgekit fleet rollout start ": typed,
    r"edgekit fleet rollout watch ": watch,
    r"curl -s 127\.0\.0\.1:8500/predict ": request,
}


def lines(page: str) -> list[str]:
    """The commands of the page's blocks. A line goes on behind a backslash, and inside quotes."""
    found: list[str] = []
    for language, body in readme._FENCE.findall(page):
        assert not language
        pending = ""
        for line in re.sub(r"\\\n\s*", "", body).splitlines():
            pending = f"{pending}\n{line}" if pending else readme._COMMENT.sub("", line)
            if pending.count("'") % 2 == 0:
                found.append(pending)
                pending = ""
        assert not pending
    return found


def test_every_line_of_the_page_has_an_entry_and_every_entry_a_line() -> None:
    met = {line: [pattern for pattern in LINES if re.match(pattern, line)] for line in lines(PAGE)}
    assert [line for line, patterns in met.items() if len(patterns) != 1] == []
    assert {patterns[0] for patterns in met.values()} == LINES.keys()


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_from_an_empty_card_to_a_served_request(home: Home) -> None:
    for line in lines(PAGE):
        (run,) = (entry for pattern, entry in LINES.items() if re.match(pattern, line))
        run(home, line)
    installed = home.noted.read_text().splitlines()
    assert installed == [
        "apt-get update",
        "apt-get install -y python3-venv",
        f"systemd-sysusers --root={home.root} edgekit.conf",
        f"systemd-tmpfiles --root={home.root} --create edgekit.conf",
    ]
    assert home.desk.stop("agent") == 0
