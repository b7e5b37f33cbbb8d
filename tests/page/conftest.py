"""The page inside the test (no process, a database of its own), and a fleet of rows to show on it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# It shares the helpers of the fleet's tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "fleet"))
sys.path.insert(0, str(Path(__file__).parent))

from fleet_support import Service  # after the lines that make it importable
from page_support import Site  # after the lines that make it importable

from fleet.server import passwords
from fleet.server.database import Database, sqlite_url


@pytest.fixture(scope="module", autouse=True)
def cheap_hashes() -> Iterator[None]:
    """The costs are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_LOG2_N", 4)
        patch.setattr(passwords, "_NOBODY", passwords._NOBODY.replace("scrypt$15$", "scrypt$4$"))
        yield


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of this version: bringing one there takes longer than most tests."""
    folder = tmp_path_factory.mktemp("migrated")
    Database(sqlite_url(folder)).close()
    return folder / "fleet.db"


def made_site(folder: Path, migrated: Path) -> Iterator[Site]:
    folder.mkdir()
    shutil.copy(migrated, folder / "fleet.db")
    made = Site(folder)
    yield made
    made.close()


@pytest.fixture
def site(tmp_path: Path, migrated: Path) -> Iterator[Site]:
    yield from made_site(tmp_path / "fleet", migrated)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Site]:
    """One in which nothing is and nothing happens, shared by those who only look."""
    yield from made_site(tmp_path_factory.mktemp("empty") / "fleet", migrated)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A fleet in a process of its own."""
    made = Service(tmp_path)
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()
