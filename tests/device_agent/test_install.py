"""`edgekit agent install` and `uninstall`: what a board has afterwards, and what stays the user's."""

import json
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from device_agent.cli import agent
from device_agent.install import carry, files, plan
from device_agent.install.files import Wanted
from device_agent.install.plan import Keep, Link, Remove, Run, Write
from edgekit.errors import NotPossibleError, ToolFailedError, UsageError
from edgekit.wire import enrolment
from edgekit.wire.enrolment import BrokerAddress, EnrolmentFile

ROOT = Path(__file__).parents[2]
NOTHING = dict.fromkeys(plan.looked_at())
DROP_IN = "etc/systemd/system/edgekit-agent.service.d/mine.conf"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.geteuid() != 0, reason="needs systemd-sysusers, and root"
)


def there():
    """A board on which it was installed."""
    return NOTHING | {path: text.encode() for path, text in files.texts(Wanted()).items()}


def words(steps):
    return [" ".join(step.words) for step in steps if isinstance(step, Run)]


def changed(steps):
    return {step.path for step in steps if isinstance(step, Write)}


def run(*given):
    return CliRunner().invoke(agent, [str(word) for word in given])


def tree_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def bare(monkeypatch):
    """A machine without systemd's tools."""
    monkeypatch.setattr(carry.shutil, "which", lambda *_, **__: None)


@pytest.fixture
def image(tmp_path):
    """A tree with an edit of the user's."""
    made = tmp_path / "image"
    (made / DROP_IN).parent.mkdir(parents=True)
    (made / DROP_IN).write_text("[Service]\nMemoryMax=1G\n")
    return made


@pytest.fixture
def enrolment_file(tmp_path):
    file = EnrolmentFile(
        format=enrolment.FORMAT, fleet="lab", device="board-1", token="t", enrol_url="http://127.0.0.1/v1/enrol",
        artifact_url="http://127.0.0.1/v1/artifacts", allowed_hosts=("127.0.0.1",), broker=BrokerAddress("127.0.0.1", 1883, tls=False),
        ca="", order_keys={}, tuf_root="{}", metadata_url="http://127.0.0.1/tuf", deployments=("digits",), labels={},
    )  # fmt: skip
    path = tmp_path / "board-1.json"
    path.write_bytes(msgspec.json.encode(file))
    return path


# -- what is written -----------------------------------------------------------------------------------------------------


def test_the_unit_in_deploy_is_what_an_install_writes():
    assert (ROOT / "deploy/systemd/edgekit-agent.service").read_text() == files.unit()


def test_the_watchdog_waits_for_more_than_one_turn_of_the_agent():
    from device_agent import notify

    (seconds,) = [line for line in files.unit().splitlines() if line.startswith("WatchdogSec=")]
    variables = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": f"{seconds.partition('=')[2]}000000"}
    pause_s = notify.of(variables, 1).pause_s
    assert pause_s is not None
    assert pause_s <= 60 / 2


def test_the_unit_gives_what_the_agent_asks_for_to_change_a_user_and_no_more():
    from device_agent import account

    unit = dict(line.partition("=")[::2] for line in files.unit().splitlines() if "=" in line)
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert set(unit[key].split()) == account.NEEDED.keys()
    allowed = [line for line in files.unit().splitlines() if line.startswith("SystemCallFilter=@setuid")]
    assert {"capset", "pidfd_getfd", "landlock_restrict_self"} <= set(allowed[0].split())


# -- which steps -----------------------------------------------------------------------------------------------------------


def test_a_first_install_makes_users_and_folders_before_it_starts_anything():
    steps = plan.install(Wanted(), NOTHING, root="", starts=True)
    assert changed(steps) == {str(path) for path in files.texts(Wanted())}
    assert words(steps) == [
        "systemd-sysusers edgekit.conf",
        "systemd-tmpfiles --create edgekit.conf",
        "systemctl daemon-reload",
        "systemctl try-restart systemd-journald",
        "systemctl enable edgekit-agent",
        "systemctl restart edgekit-agent",
    ]


@pytest.mark.parametrize("starts", [True, False])
def test_a_second_install_changes_nothing_and_restarts_nothing(starts):
    steps = plan.install(Wanted(), there(), root="", starts=starts)
    assert changed(steps) == set()
    assert not [told for told in words(steps) if "restart" in told or "reload" in told]


def test_a_newer_unit_is_put_in_place_and_a_running_agent_goes_on_with_it():
    old = there()
    old[files.UNIT] = b"[Service]\n"
    steps = plan.install(Wanted(), old, root="", starts=False)
    assert [(step.path, step.was) for step in steps if isinstance(step, Write)] == [
        (str(files.UNIT), "changed")
    ]
    assert words(steps)[-2:] == ["systemctl daemon-reload", "systemctl try-restart edgekit-agent"]


def test_an_enrolment_file_is_written_for_root_alone_and_left_when_none_is_given():
    steps = plan.install(Wanted(enrolment=b"{}"), there(), root="", starts=False)
    assert [(step.path, step.mode) for step in steps if isinstance(step, Write)] == [
        (str(files.ENROLMENT), 0o600)
    ]
    kept = plan.install(Wanted(), there() | {files.ENROLMENT: b"{}"}, root="", starts=False)
    assert str(files.ENROLMENT) not in {step.path for step in kept if isinstance(step, (Write, Remove))}


def test_a_tree_starts_its_agent_at_the_first_boot_and_nothing_here():
    steps = plan.install(Wanted(), NOTHING, root="/image", starts=True)
    assert words(steps) == [
        "systemd-sysusers --root=/image edgekit.conf",
        "systemd-tmpfiles --root=/image --create edgekit.conf",
    ]
    assert [step for step in steps if isinstance(step, Link)] == [Link(str(files.WANTED), str(files.UNIT))]


def test_an_uninstall_ends_the_service_first_and_leaves_what_is_the_users():
    board = there() | {files.STATE: b"", files.SETTINGS: b"", files.DROP_INS: b"", files.ENROLMENT: b"{}"}
    steps = plan.uninstall(board, root="", purge=False)
    assert steps[0] == Run(("systemctl", "disable", "--now", "edgekit-agent"))
    assert {step.path for step in steps if isinstance(step, Remove)} == {
        str(path) for path in files.texts(Wanted())
    }
    assert not [told for told in words(steps) if "userdel" in told]


def test_a_purge_takes_state_settings_and_users_too_after_the_service():
    board = there() | {files.STATE: b"", files.SETTINGS: b"", files.DROP_INS: b"", files.RUNTIME: b""}
    steps = plan.uninstall(board, root="", purge=True)
    removed = {step.path for step in steps if isinstance(step, Remove)}
    assert removed >= {str(path) for path in (files.STATE, files.SETTINGS, files.DROP_INS, files.RUNTIME)}
    assert words(steps) == [
        "systemctl disable --now edgekit-agent",
        "userdel edgekit-worker",
        "userdel edgekit",
        "systemctl daemon-reload",
    ]


def test_where_nothing_is_installed_nothing_is_removed():
    assert plan.uninstall(NOTHING, root="", purge=False) == []


# -- done in a tree --------------------------------------------------------------------------------------------------------


def test_an_install_into_a_tree_is_repeatable_and_an_uninstall_leaves_the_users_part(
    image, enrolment_file, monkeypatch
):
    bare(monkeypatch)
    given = ("install", "--root", image, "--enrolment", enrolment_file, "--start", "--json")
    first = json.loads(run(*given).stdout)
    assert {step["what"] for step in first["steps"]} == {"created", "left", "linked"}
    assert [step["detail"] for step in first["steps"] if step["what"] == "left"] == [
        "systemd-sysusers is not here; the first boot does it",
        "systemd-tmpfiles is not here; the first boot does it",
    ]
    made = tree_of(image)
    assert made["etc/systemd/system/edgekit-agent.service"].decode() == files.unit()
    assert made["etc/edgekit/enrolment.json"] == enrolment_file.read_bytes()
    assert stat.S_IMODE((image / "etc/edgekit/enrolment.json").stat().st_mode) == 0o600
    wanted = image / "etc/systemd/system/multi-user.target.wants/edgekit-agent.service"
    assert str(wanted.readlink()) == "/etc/systemd/system/edgekit-agent.service"

    second = json.loads(run(*given).stdout)
    assert {step["what"] for step in second["steps"]} == {"unchanged", "left", "linked"}
    assert tree_of(image) == made

    (image / "var/lib/edgekit").mkdir(parents=True)
    (image / "var/lib/edgekit/key.json").write_text("key")
    assert run("uninstall", "--root", image).exit_code == 0
    assert tree_of(image).keys() == {DROP_IN, "etc/edgekit/enrolment.json", "var/lib/edgekit/key.json"}
    assert not wanted.is_symlink()


def test_a_dry_run_prints_every_file_and_step_and_writes_nothing(image, enrolment_file):
    before = tree_of(image)
    done = run("install", "--root", image, "--enrolment", enrolment_file, "--start", "--dry-run")
    assert done.exit_code == 0
    for text in files.texts(Wanted()).values():
        assert text in done.stdout
    assert "would be created /etc/edgekit/enrolment.json" in done.stdout
    assert "would run        systemd-sysusers" in done.stdout
    assert enrolment_file.read_text() not in done.stdout
    assert tree_of(image) == before
    told = json.loads(run("uninstall", "--root", image, "--purge", "--dry-run", "--json").stdout)
    assert ["would be removed", "/etc/systemd/system/edgekit-agent.service.d"] in [
        [step["what"], step["subject"]] for step in told["steps"]
    ]
    assert tree_of(image) == before


@needs_systemd
def test_the_users_of_a_tree_share_a_group_and_the_worker_reads_none_of_the_agents_secrets(
    image, enrolment_file
):
    assert run("install", "--root", image, "--enrolment", enrolment_file).exit_code == 0
    users = [line.split(":") for line in (image / "etc/passwd").read_text().splitlines()]
    ids = {name: (int(uid), int(gid)) for name, _, uid, gid, *_ in users}
    groups = {
        line.split(":")[0]: (int(line.split(":")[2]), line.split(":")[3].split(","))
        for line in (image / "etc/group").read_text().splitlines()
    }
    assert ids["edgekit"][0] != ids["edgekit-worker"][0]
    assert ids["edgekit"][1] == ids["edgekit-worker"][1] == groups["edgekit"][0]
    assert "edgekit-worker" in groups["render"][1]
    assert "edgekit-worker" not in groups["audio"][1]

    def mode_of(path):
        found = (image / path).stat()
        return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid

    assert mode_of("etc/edgekit/enrolment.json") == (0o600, *ids["edgekit"])
    assert mode_of("etc/edgekit") == (0o750, 0, groups["edgekit"][0])
    assert mode_of("var/lib/edgekit") == (0o710, *ids["edgekit"])
    assert mode_of("run/edgekit") == (0o700, *ids["edgekit"])
    assert run("uninstall", "--root", image, "--purge").exit_code == 0
    assert "edgekit" not in (image / "etc/passwd").read_text()
    assert tree_of(image).keys().isdisjoint({DROP_IN, "etc/edgekit/enrolment.json"})


# -- what does not work is said --------------------------------------------------------------------------------------------


def refused(*given):
    done = run(*given)
    assert isinstance(done.exception, (UsageError, NotPossibleError)), done.output
    return str(done.exception)


def test_what_would_not_become_a_service_is_refused_before_anything_is_written(image, tmp_path):
    before = tree_of(image)
    given = ("install", "--root", image)
    assert "give a size" in refused(*given, "--journal-size", "much")
    assert "lies where the service sees nothing" in refused(*given, "--program", "/home/pi/venv/bin/edgekit")
    assert "give a whole path" in refused(*given, "--program", "bin/edgekit")
    (tmp_path / "bad.json").write_text("{}")
    assert "bad.json" in refused(*given, "--enrolment", tmp_path / "bad.json")
    assert tree_of(image) == before


def test_on_this_machine_it_takes_root_systemd_and_a_program(monkeypatch):
    monkeypatch.setattr("device_agent.install.commands.os.geteuid", lambda: 1000)
    told = refused("install", "--program", "/nowhere/edgekit")
    assert "run this as root" in told
    assert "/nowhere/edgekit is no program here" in told
    assert "run this as root" in refused("uninstall")
    assert "would be refused: " in run("install", "--dry-run").stdout


def test_a_program_that_is_missing_or_fails_says_what_is_left_to_do(tmp_path, monkeypatch):
    missing = Run(("systemctl-of-nobody", "daemon-reload"))
    with pytest.raises(ToolFailedError, match="what is left to do is: systemctl-of-nobody daemon-reload"):
        list(carry.carry_out(Path("/"), [missing]))
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ToolFailedError, match="ended with exit code 3: broken"):
        list(carry.carry_out(Path("/"), [Run((str(program),))]))


def test_a_file_that_cannot_be_written_stops_the_install_and_says_so(tmp_path):
    (tmp_path / "etc").write_text("in the way")
    steps = [Keep("/x"), Write("/etc/edgekit.conf", b"", 0o644, "created"), Keep("/y")]
    doing = carry.carry_out(tmp_path, steps)
    assert next(doing).subject == "/x"
    with pytest.raises(NotPossibleError, match="nothing after it was done"):
        next(doing)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_exposure_is_systemds_own_figure_and_rises_when_the_unit_is_opened():
    closed = carry.exposure(files.unit())
    assert closed is not None
    assert closed <= 3.0
    opened = carry.exposure(files.unit().replace("NoNewPrivileges=yes\n", "").replace("User=", "#User="))
    assert opened is not None
    assert opened > closed


def test_without_systemd_there_is_no_figure(monkeypatch):
    bare(monkeypatch)
    assert carry.exposure(files.unit()) is None
