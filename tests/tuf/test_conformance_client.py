"""The executable that the public conformance suite starts: its arguments, exit codes, and what it leaves behind."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from lying_repository import Repository

CLIENT = Path(__file__).parents[1] / "conformance" / "tuf-client"
ONLINE = ("targets", "snapshot", "timestamp")


class Runner:
    def __init__(self, folder: Path) -> None:
        self.repository = Repository(
            folder, expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
        )
        self.metadata, self.files = folder / "metadata", folder / "targets"
        self.metadata.mkdir()
        self.files.mkdir()
        self.root = folder / "initial_root.json"
        self.root.write_bytes(self.repository.first_root)
        self.told = ""

    def run(self, *words: str) -> int:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            [CLIENT, *words], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        self.told = done.stdout + done.stderr
        return done.returncode

    def init(self) -> int:
        return self.run("--metadata-dir", str(self.metadata), "init", str(self.root))

    def refresh(self, *more: str) -> int:
        url = f"{self.repository.url}/metadata/"
        return self.run("--metadata-url", url, "--metadata-dir", str(self.metadata), *more, "refresh")

    def download(self, *names: str) -> int:
        words = [word for name in names for word in ("--target-name", name)]
        return self.run(
            "--metadata-url", f"{self.repository.url}/metadata", "--metadata-dir", str(self.metadata),
            *words, "--target-dir", str(self.files), "--target-base-url", f"{self.repository.url}/targets/", "download",
        )  # fmt: skip

    def names(self) -> list[str]:
        return sorted(path.name for path in self.metadata.iterdir())


@pytest.fixture
def runner(tmp_path):
    made = Runner(tmp_path)
    yield made
    made.repository.close()


def test_init_asks_for_nothing(runner):
    assert runner.init() == 0
    assert (runner.metadata / "root.json").read_bytes() == runner.repository.first_root
    assert runner.names() == ["root.json"]
    assert runner.repository.asked == []


def test_refresh_leaves_each_role_under_its_plain_name(runner):
    runner.init()
    assert runner.refresh() == 0, runner.told
    assert runner.told == ""
    assert runner.names() == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    assert runner.refresh("-v") == 0
    assert "done" in runner.told


def test_several_targets_are_downloaded_at_once(runner):
    runner.repository.add("a/one", b"1")
    runner.repository.add("two", b"2")
    runner.repository.publish(*ONLINE)
    runner.init()
    assert runner.download("a/one", "two") == 0, runner.told
    assert sorted(path.read_bytes() for path in runner.files.iterdir() if path.is_file()) == [b"1", b"2"]


@pytest.mark.parametrize("instead", [404, b"{}"])
def test_a_refresh_that_fails_ends_with_1_and_a_sentence(runner, instead):
    runner.init()
    runner.repository.instead["/metadata/timestamp.json"] = instead
    assert runner.refresh() == 1
    assert runner.told.startswith("tuf-client: ")
    assert len(runner.told.splitlines()) == 1


def test_everything_else_that_is_wrong_ends_with_1(runner):
    assert runner.refresh() == 1
    assert runner.run("nonsense") == 1
    assert runner.run("--metadata-dir", str(runner.metadata), "init", "/nowhere") == 1
    assert runner.init() == 0
    assert runner.download("missing") == 1
    assert runner.run("--metadata-dir", str(runner.metadata), "refresh") == 1
    runner.root.write_text("no json")
    runner.init()
    runner.repository.asked.clear()
    assert runner.refresh() == 1
    assert runner.repository.asked == []
