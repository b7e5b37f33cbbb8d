"""The agent as the unit of `edgekit agent install` runs it: under a service manager, with a user of its own for workers."""

import json
import os
import platform
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from device_agent import account
from device_agent.install import files
from edgekit.errors import UsageError

# Accounts of every Debian that share a group, as the agent's and its workers' do.
AGENT, WORKER = "nobody", "_apt"
CAPABILITIES = "+setuid,+setgid,+kill"
HANGING = """
import time
from device_agent.supervisor import Agent
ticked = Agent._tick
async def tick(agent):
    open(MARK, "w").close()
    time.sleep(60)
Agent._tick = tick
from edgekit.cli import main
main()
"""


@pytest.fixture
def manager():
    """A service manager's socket."""
    with (
        tempfile.TemporaryDirectory(prefix="edgekit-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.bind(f"{folder}/notify")
        sock.settimeout(60)
        yield sock, {"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "600000"}


def told(sock, wanted):
    """Everything up to the first message that begins like this."""
    found = []
    while not found or not found[-1].startswith(wanted):
        found.append(sock.recv(4096).decode())
    return found


def test_an_agent_says_when_it_is_ready_lives_and_ends(manager, fleet, make_agent):
    sock, variables = manager
    agent = make_agent(fleet, start=False)
    agent.environment = variables
    agent.start()
    ready = told(sock, "READY=1")
    assert set(ready[:-1]) <= {"WATCHDOG=1"}
    assert f"STATUS={fleet.device} as x86-64-v3" in ready[-1]
    assert fleet.enrolled
    told(sock, "WATCHDOG=1")
    agent.process.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in told(sock, "STOPPING=1")[-1]
    assert agent.process.wait(30) == 0


def test_the_check_of_a_container_tells_an_agent_that_answers_from_one_that_does_not(
    fleet, make_agent, tools
):
    agent = make_agent(fleet, start=False)
    file = Path(__file__).parents[3] / "deploy/compose/agent.yaml"
    _, python, *words = yaml.safe_load(file.read_text())["services"]["agent"]["healthcheck"]["test"]
    assert python == "python"
    asked = [
        sys.executable,
        *(word.replace("${EDGEKIT_AGENT_PORT:-8500}", str(agent.port)) for word in words),
    ]

    def is_healthy():
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    assert not is_healthy()
    agent.start()
    tools.wait_until(is_healthy, "it answers, without a model")
    agent.process.send_signal(signal.SIGSTOP)
    assert not is_healthy()
    agent.process.send_signal(signal.SIGCONT)


def test_an_agent_that_cannot_start_is_never_ready(manager, fleet, make_agent, tmp_path):
    sock, variables = manager
    agent = make_agent(fleet, start=False)
    (tmp_path / "enrolment.json").write_text("{}")
    agent.environment = variables
    agent.start()
    assert agent.process.wait(60) == 2
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        told(sock, "READY=1")


def test_a_supervisor_whose_loop_hangs_is_given_up_by_the_watchdog(
    manager, fleet, make_agent, tmp_path, tools
):
    sock, variables = manager
    agent = make_agent(fleet, start=False)
    agent.environment = variables
    mark = tmp_path / "hangs"
    agent._words[:2] = ["-c", HANGING.replace("MARK", repr(str(mark)))]
    agent.start()
    tools.wait_until(mark.exists, "it hangs")
    sock.settimeout(1.5)  # what a manager would wait is 0.6
    with suppress(TimeoutError):
        for _ in range(100):
            sock.recv(4096)
    with pytest.raises(TimeoutError):
        sock.recv(4096)
    assert agent.process.poll() is None


# Twice: setpriv's own right to everything reaches as far as what it executes.
STARTS = "import device_agent, msgspec, numpy, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"


FILTERED = Path(__file__).with_name("filtered.py")
HAS_FILTER = (
    shutil.which("systemd-analyze") is not None
    and platform.machine() == "x86_64"
    and Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").exists()
)
needs_filter = pytest.mark.skipif(
    not HAS_FILTER, reason="needs systemd-analyze, and the kernel's headers of x86_64"
)


# -- a user of its own for workers -------------------------------------------------------------------------------------


def python_for_all():
    """A Python of this version that other users may run, with what is installed here."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        words = ["setpriv", f"--reuid={WORKER}", f"--regid={group()}", "--clear-groups", path, "-c", STARTS]  # fmt: skip
        if (
            subprocess.run(words, env=environment(), capture_output=True, check=False, cwd="/").returncode
            == 0
        ):
            return path
    return None


def group():
    return pwd.getpwnam(AGENT).pw_gid


def environment():
    return {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path.startswith("/"))}


def service_words(python):
    """As systemd would start it by the unit's User=, AmbientCapabilities= and CapabilityBoundingSet=."""
    return [f"--reuid={AGENT}", f"--regid={group()}", "--clear-groups", f"--inh-caps=-all,{CAPABILITIES}",
            f"--ambient-caps=-all,{CAPABILITIES}", f"--bounding-set=-all,{CAPABILITIES}", "--no-new-privs", python]  # fmt: skip


@pytest.fixture(scope="module")
def python():
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root may run an agent as another user")
    try:
        if pwd.getpwnam(WORKER).pw_gid != group():
            pytest.skip(f"{AGENT} and {WORKER} share no group here")
    except KeyError:
        pytest.skip(f"this system has no {AGENT} and {WORKER}")
    found = python_for_all()
    if found is None:
        pytest.skip("no Python here that another user may run")
    return found


@pytest.fixture
def place():
    """A folder that the agent's user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="edgekit-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def service_made(python, place, fleet, make_agent):
    """An agent as the service runs it, not started."""
    agent = make_agent(fleet, "--worker-user", WORKER, start=False)
    uid = pwd.getpwnam(AGENT).pw_uid
    state = place / "state"
    state.mkdir(mode=0o710)
    enrolment = shutil.copy(agent._words[agent._words.index("--enrolment") + 1], place)
    for path in (state, Path(enrolment)):
        os.chown(path, uid, group())
    Path(enrolment).chmod(0o600)
    agent._words = [*service_words(python), *agent._words]
    agent._words[agent._words.index("--state") + 1] = str(state)
    agent._words[agent._words.index("--enrolment") + 1] = enrolment
    agent.state, agent.python = state, "setpriv"
    agent.environment = {**environment(), "EDGEKIT_RUNTIME_DIR": str(place)}
    return agent


@pytest.fixture
def filtered(service_made, tmp_path):
    """The same under the unit's filter of system calls, where that can be made here."""
    if not HAS_FILTER:
        return service_made.start()
    (tmp_path / "unit").write_text(files.unit())
    agent = service_made
    agent._words = [str(FILTERED), str(tmp_path / "unit"), "setpriv", *agent._words]
    agent.python = sys.executable
    return agent.start()


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_workers_run_as_a_user_that_reads_no_key_and_the_rest_goes_on_as_ever(
    filtered, fleet, make_bundle, tools
):
    service = filtered
    first, second = make_bundle(), make_bundle(seed=2, version="1.1.0")
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "it is committed", 90)
    (pid,) = service.children()
    there = status_of(pid)
    assert set(there["Uid"]) == {str(pwd.getpwnam(WORKER).pw_uid)}
    assert there["Groups"] in ([], [str(group())])
    assert {there[name][0].strip("0") for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} <= {"", "e"}
    assert there["CapEff"][0].strip("0") == there["CapAmb"][0].strip("0") == ""
    supervisor = status_of(service.process.pid)
    assert supervisor["CapAmb"][0].strip("0") == ""
    assert set(supervisor["Uid"]) == {str(pwd.getpwnam(AGENT).pw_uid)}
    assert tools.predict(service) == first.manifest.version

    secrets = [path for path in service.state.rglob("*") if path.is_file() and path.name in SECRET]
    assert {path.name for path in secrets} >= {"key.json", "identity.json", "spool.db", "order.json"}
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        words = ["setpriv", f"--reuid={WORKER}", f"--regid={group()}", "--clear-groups", "cat", str(path)]
        assert subprocess.run(words, capture_output=True, check=False).returncode == 1, path

    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "it is committed", 90)
    assert tools.predict(service) == second.manifest.version
    assert service.stop() == 0


@pytest.mark.proof
def test_a_source_that_decodes_runs_as_the_workers_user_and_one_that_moves_files_as_the_agents(
    service_made, place, fleet, make_bundle, tools
):
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(place / "film.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 10, (8, 8))
    for number in range(20):
        film.write(np.full((8, 8, 3), number % 16, np.uint8))
    film.release()
    (place / "film.avi").chmod(0o644)
    for name, mode in (("inbox", 0o750), ("out", 0o770)):
        (place / name).mkdir()
        (place / name).chmod(mode)
        os.chown(place / name, pwd.getpwnam(AGENT).pw_uid, group())
    config = service_made.state / "agent.toml"
    config.write_text(f"""
[[source]]
kind = "folder"
name = "inbox"
path = "{place}/inbox"
settle_s = 0.1
[[source]]
kind = "camera"
name = "gate"
device = "{place}/film.avi"
colour = "grey"
repeat = true
[[sink]]
kind = "file"
name = "lines"
path = "{place}/out/answers.jsonl"
""")
    os.chown(config, pwd.getpwnam(AGENT).pw_uid, group())
    config.chmod(0o600)
    service = service_made.start()
    built = make_bundle(sturdy=True)
    fleet.order(fleet.publish(built))
    tools.wait_until(lambda: fleet.runs(built), "it is committed", 90)
    (place / "inbox/a.json").write_text(json.dumps({"input": np.ones((8, 8)).tolist()}))
    (place / "inbox/a.json").chmod(0o644)
    lines = place / "out/answers.jsonl"
    tools.wait_until(
        lambda: '"gate"' in lines.read_text() and '"inbox"' in lines.read_text(), "both answer", 90
    )
    users = sorted(status_of(pid)["Uid"][0] for pid in service.children("device_agent.sources.process"))
    assert users == sorted(str(pwd.getpwnam(name).pw_uid) for name in (AGENT, WORKER))
    assert (place / "inbox/done/a.json").exists()
    assert service.stop() == 0


SECRET = {"key.json", "identity.json", "boot.json", "order.json", "spool.db", "machine.json", "status.json"}


@needs_filter
def test_the_units_filter_allows_what_confines_a_worker_and_little_else(tmp_path):
    """Without what is given back after @privileged no worker could start: it would not be able to confine itself."""
    confining = (
        "from pathlib import Path; from device_agent.confined import Bounds, confine;"
        f"confine(Bounds((Path({str(tmp_path)!r}),), (), (), 2 << 30)); print('confined')"
    )
    rebooting = (
        "import os, ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.reboot(0), ctypes.get_errno())"
    )

    def told(unit, code):
        (tmp_path / "unit").write_text(unit)
        words = [sys.executable, FILTERED, tmp_path / "unit", sys.executable, "-c", code]
        return subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)

    whole = files.unit()
    assert told(whole, confining).stdout == "confined\n"
    assert told(whole, rebooting).stdout.split() == ["-1", "1"]
    closed = "\n".join(line for line in whole.splitlines() if not line.startswith("SystemCallFilter=@setuid"))
    assert "capset: Operation not permitted" in told(closed, confining).stderr


TAKING = """
import os, signal, socket, subprocess, sys
from device_agent import account
from device_agent.owed import IDLE, Owed, make_shared, taken_over
worker = account.take(sys.argv[1])
board = Owed(make_shared())
ours, theirs = socket.socketpair()
child = subprocess.Popen(["sleep", "60"], pass_fds=[theirs.fileno()], **worker.options())
board.set(theirs.fileno(), IDLE)
told = [len(taken_over(child.pid, board))]
(taken, state), = taken_over(child.pid, board, worker)
theirs.close()
child.kill()
child.wait()
taken.sendall(b"still here")
print(*told, state, ours.recv(20), os.geteuid() == os.getuid() != worker.uid)
"""


def test_the_clients_of_a_hung_worker_are_taken_over_from_its_own_user(python):
    words = ["setpriv", *service_words(python), "-c", TAKING, WORKER]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.strip() == "0 1 b'still here' True", done.stderr


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("nobody-of-that-name", "no such user"), ("root", "neither root"), ("daemon", "its group must be")],
)
def test_a_user_that_would_not_do_is_refused(name, complaint):
    with pytest.raises(UsageError, match=complaint):
        account.find(name)


def test_without_the_right_to_change_users_the_agent_says_what_it_needs(python, place):
    words = ["setpriv", f"--reuid={AGENT}", f"--regid={group()}", "--clear-groups", python, "-m", "edgekit",
             "agent", "run", "--state", str(place / "state"), "--worker-user", WORKER]  # fmt: skip
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 2
    assert "needs CAP_KILL, CAP_SETGID, CAP_SETUID" in done.stderr
