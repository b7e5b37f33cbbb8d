"""A model of more than two gigabytes: built, published, fetched by a board that loses power on the way, served."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from agent_support import made
from field_support import Field
from large_models import perceptron

pytestmark = [pytest.mark.slow, pytest.mark.proof]

PROFILE = "x86-64-v4-vnni"
WIDTH = 6000
# Of the processes that carry the file and do not run it.
MOST_MB = 400


def built(folder: Path) -> Path:
    """A bundle of a float model that keeps its weights beside its graph."""
    folder.mkdir()
    perceptron(folder, 15, WIDTH)
    (folder / "edgekit.toml").write_text(
        '[model]\nname = "large"\nversion = "1"\nsource = "model.onnx"\n'
        f'[data]\ncalibration = "calib.npz"\nevaluation = "eval.npz"\n[targets.{PROFILE}]\n'
    )
    words = ["--project", folder / "edgekit.toml", "--out", folder / "dist", "--no-cache"]
    command = [sys.executable, "-m", "edgekit", "build", *words, "--recipe", "onnxruntime/fp32"]
    subprocess.run(list(map(str, command)), check=True)
    (path,) = (folder / "dist").glob("*.edgekit")
    return path


def most_mb(pid: int) -> float:
    """The largest resident set that a process has had, in megabytes of 10^6 bytes."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e6


def carried(field: Field, path: Path) -> tuple[float, float]:
    """Publish it, assign it to a board that is killed in the middle of the download, and ask the board; what the service and
    the agent's own process took.
    """
    published = subprocess.run(
        field.operator.line("publish", path), capture_output=True, text=True, check=False, timeout=900
    )
    assert published.returncode == 0, published.stderr
    board = field.board("north", profile=PROFILE, deployments=("large",))
    field.operator.types("assign", "large@1", "--to", "site=field", "--probation", "1s")

    def came() -> int:
        parts = [each.name.split(".") for each in board.agent.state.rglob("*.part")]
        return max((int(part[1]) for part in parts if len(part) == 3 and part[1].isdigit()), default=0)

    field.wait(lambda: came() > path.stat().st_size // 4, "a quarter of it has come", 900)
    board.agent.kill_tree()
    before = came()
    assert 0 < before < path.stat().st_size
    board.agent.start()
    seen: list[int] = []

    def serves() -> bool:
        seen.append(came())
        return board.runs("1", "large")

    field.wait(serves, "it serves", 1800)
    # Not from the beginning again: the part that was there only grew.
    assert min(filter(None, seen)) >= before
    image = np.random.default_rng(0).standard_normal((1, WIDTH)).astype(np.float32)
    answer = made.Client(board.agent.port).post("/predict", {"x": image.tolist()})
    assert answer.status == 200, answer.body
    assert field.service.process is not None
    return most_mb(field.service.process.pid), most_mb(board.agent.process.pid)


@pytest.mark.timeout(5400)
def test_more_than_two_gigabytes_reach_a_board_that_no_process_holds_in_memory(field: Field) -> None:
    service_mb, agent_mb = carried(field, built(field.folder / "model"))
    assert max(service_mb, agent_mb) < MOST_MB, (service_mb, agent_mb)
