"""What the tests of power cuts and faults share: one recorded life, in memory, and how much of it to try.

`EDGEKIT_CHAOS=1` (`make chaos`) tries everything; without it a seeded share is tried, so that the normal tests stay short.
"""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cut_device import Fleet  # after the line that makes it importable
from cut_story import Story, tell


@pytest.fixture(scope="session")
def everything() -> bool:
    return os.environ.get("EDGEKIT_CHAOS") == "1"


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder in memory: thousands of states are made, and none needs a disk."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="edgekit-cut-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def scratch(memory: Path) -> Path:
    folder = memory / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture(scope="session")
def story(fleet: Fleet, memory: Path, scratch: Path) -> Story:
    """The recorded life; the folder it was lived on is of no further use."""
    (memory / "live").mkdir()
    logging.getLogger("edgekit.agent").setLevel(logging.CRITICAL)
    return tell(fleet, memory / "live" / "state", scratch)


@pytest.fixture
def empty(memory: Path) -> Iterator[Path]:
    """An empty folder in memory."""
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)
