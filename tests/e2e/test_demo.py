"""The whole product over real processes: what `make demo` promises, checked by the demo itself."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "digits" / "demo.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_releases_go_out_bad_ones_are_stopped_and_drift_is_learnt_from(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DEMO, "--folder", tmp_path / "run", "--agents", "3"],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,  # half of it on a machine that does nothing else
    )
    logs = "\n".join(f"== {log.name}\n{log.read_text()[-3000:]}" for log in (tmp_path / "run").glob("*.log"))
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}\n{logs}"
    assert "The demo did what it promised" in done.stdout
    promised = (
        "a device says that its inputs drift",
        "samples came",
        "release 5 completed",
        "was lost through all of it",
    )
    told = [done.stdout.find(words) for words in promised]
    assert -1 not in told, done.stdout[-6000:]
    assert told == sorted(told)


def test_the_demo_never_deletes_a_folder_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, DEMO, "--folder", tmp_path], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "was not made by this demo" in " ".join(done.stdout.split())
    assert (tmp_path / "precious.txt").read_text() == "mine"
