"""What the service manager hears, on a real socket of its kind."""

import os
import socket
import subprocess
import sys
import time

import pytest

from device_agent import notify

BEATING = """
import asyncio, os, time
from device_agent import notify
async def main():
    beating = asyncio.create_task(notify.of(os.environ, os.getpid()).beat())
    await asyncio.sleep(0.5)
    assert "NOTIFY_SOCKET" not in os.environ
    print("hangs", flush=True)
    time.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def manager(tmp_path):
    """The socket of a service manager; short names, since an address holds 108 bytes."""
    path = os.path.relpath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(10)
        yield sock, str(tmp_path / "notify")


def heard(sock, seconds=0.0):
    """What has come, or comes within so many seconds."""
    found, end = [], time.monotonic() + seconds
    while True:
        sock.settimeout(max(0.01, end - time.monotonic()))
        try:
            found.append(sock.recv(4096).decode())
        except TimeoutError:
            return found


def test_ready_and_stopping_are_told_with_a_line_for_people(manager):
    sock, path = manager
    told = notify.of({"NOTIFY_SOCKET": path}, 1)
    told.ready("serves\nREADY=0")
    told.stopping()
    assert sock.recv(4096) == b"READY=1\nSTATUS=serves READY=0"
    assert sock.recv(4096).startswith(b"STOPPING=1\n")
    assert told.pause_s is None


def test_an_abstract_socket_is_found_too():
    name = f"\0edgekit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        notify.of({"NOTIFY_SOCKET": f"@{name[1:]}"}, 1).ready("")
        assert sock.recv(4096).startswith(b"READY=1")


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1", "relative"])
def test_a_manager_that_is_not_there_is_no_reason_for_anything(address):
    told = notify.of({"NOTIFY_SOCKET": address}, 1)
    told.ready("serves")
    told.stopping()


@pytest.mark.parametrize(
    ("variables", "pause_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_petted_where_this_process_is_watched(variables, pause_s):
    environment = {"NOTIFY_SOCKET": "/somewhere", "PATH": "/bin", **variables}
    assert notify.of(environment, 7).pause_s == pause_s
    assert environment == {"PATH": "/bin"}


def test_a_full_socket_does_not_stop_the_loop(manager):
    _sock, path = manager
    told = notify.of({"NOTIFY_SOCKET": path}, 1)
    began = time.monotonic()
    for _ in range(1000):
        told.ready("serves")
    assert time.monotonic() - began < 5


def test_an_event_loop_that_hangs_stops_petting(manager):
    sock, path = manager
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "150000"}
    process = subprocess.Popen(
        [sys.executable, "-c", BEATING], env={**os.environ, **variables}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert sock.recv(4096) == b"WATCHDOG=1"
        assert sock.recv(4096) == b"WATCHDOG=1"
        assert process.stdout.readline() == b"hangs\n"
        assert len(heard(sock)) >= 2
        assert heard(sock, 0.5) == []
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
