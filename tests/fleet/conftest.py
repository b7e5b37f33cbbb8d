"""A fleet service as a real process, and empty databases of both kinds."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from fleet.server.database import Database, sqlite_url

# The tests share helpers, and importlib mode does not look beside a test for them.
sys.path.insert(0, str(Path(__file__).parent))

from fleet_support import Service, free_port, wait_until  # after the line that makes it importable


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def running(service: Service) -> Service:
    service.start()
    return service


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a throw-away PostgreSQL server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL server is installed")
    tools = found[-1].parent
    folder = Path("/tmp") / f"edgekit-pg-{os.getpid()}"
    folder.mkdir(mode=0o700)
    user: dict[str, object] = {}
    if os.geteuid() == 0:
        # initdb refuses to run as root.
        account = pwd.getpwnam("nobody")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    port = free_port()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        init = [
            tools / "initdb",
            "-D",
            folder / "data",
            "-U",
            "edgekit",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(init, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-k", str(folder), "-p", str(port)]
        server = subprocess.Popen(
            [tools / "postgres", "-D", folder / "data", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **user,  # type: ignore[call-overload]
        )
        stack.callback(server.wait, 20)
        stack.callback(server.send_signal, signal.SIGINT)
        ask = [tools / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        wait_until(
            lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, "PostgreSQL is up"
        )
        yield f"postgresql+psycopg://edgekit@127.0.0.1:{port}/postgres"


@pytest.fixture
def empty_postgresql(postgresql: str) -> str:
    """The URL of a PostgreSQL database with nothing in it."""
    with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return postgresql


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database of each kind."""
    if request.param == "sqlite":
        made = Database(sqlite_url(tmp_path))
    else:
        made = Database(request.getfixturevalue("empty_postgresql"))
    yield made
    made.close()
