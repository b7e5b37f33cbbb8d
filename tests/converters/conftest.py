"""A small CNN trained on scikit-learn's digits, as every kind of source, and builds of it that tests share."""

import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from sklearn.datasets import load_digits
from torch import nn

from converters.data import spool
from edgekit.cli import cli
from edgekit.errors import EdgeKitError

# Modules beside this file, for tests that share them, and the hand-written TFLite files beside the engines' tests.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "edgekit")]
PROFILES = ("x86-64-v3", "raspberry-pi-5", "intel-core-ultra-npu")
FACTORY = """
    from pathlib import Path
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1), nn.Hardswish(), nn.Flatten(), nn.Linear(256, 10),
            )

        def forward(self, x):
            return self.layers(x)

    def make():
        net = Net()
        net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
        return net.eval()
"""


@dataclass(frozen=True)
class Digits:
    """`folder` holds net.py, weights.pt, model.onnx, model.pt, model.pt2, calib.npz, calib/ and eval.npz."""

    folder: Path
    net: nn.Module

    def flags(self, source: str, *targets: str) -> list[str]:
        words = [
            str(self.folder / source), "--name", "digits", "--version", "1.0.0", "--shape", "x=1,1,8,8",
            "--calibration", str(self.folder / "calib.npz"), "--evaluation", str(self.folder / "eval.npz"),
            # Two hundred judged samples show no less of as many candidates as a target has.
            "--max-accuracy-drop", "0.06",
        ]  # fmt: skip
        return words + [word for target in targets for word in ("--target", target)]


@pytest.fixture(autouse=True)
def kept_bytes(monkeypatch):
    """Data of a test that must not be kept, for a worker to ask its code again, say so themselves, until its end."""
    monkeypatch.setattr(spool, "MOST_BYTES", spool.MOST_BYTES)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    (folder / "net.py").write_text(textwrap.dedent(FACTORY))
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(FACTORY), namespace)
    torch.manual_seed(0)
    net = namespace["Net"]()
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)[:, None]
    labels = data.target[order].astype(np.int64)
    train(net, images[:1200], labels[:1200])
    torch.save(net.state_dict(), folder / "weights.pt")
    example = torch.zeros(1, 1, 8, 8)
    torch.onnx.export(
        net, (example,), str(folder / "model.onnx"), dynamo=False, opset_version=11, input_names=["x"],
        output_names=["logits"],
    )  # fmt: skip
    torch.jit.trace(net, example).save(str(folder / "model.pt"))
    torch.export.save(torch.export.export(net, (example,)), str(folder / "model.pt2"))
    np.savez(folder / "calib.npz", x=images[1200:1300])
    np.savez(folder / "eval.npz", x=images[1300:], labels=labels[1300:])
    (folder / "calib").mkdir()
    for index in range(4):
        np.savez(folder / "calib" / f"{index}.npz", x=images[1200 + 25 * index :][:25])
    return Digits(folder, net)


@pytest.fixture(scope="session")
def outlier(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits net as ONNX with one channel of its first layer a thousand times larger, which the next layer takes back:
    the same function in float, but a scale that has to hold that channel rounds all others away.
    """
    net = type(digits.net)()
    net.load_state_dict(digits.net.state_dict())
    net.eval()
    with torch.no_grad():
        net.layers[1].weight[0] *= 1000
        net.layers[1].bias[0] *= 1000
        net.layers[4].weight[:, 0] /= 1000
    path = tmp_path_factory.mktemp("outlier") / "outlier.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 1, 8, 8),), str(path), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["logits"],
    )  # fmt: skip
    return path


def train(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(6):
        for batch in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    net.eval()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of converted artifacts for all tests that do not ask for their own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_build(cache: Path) -> Callable[..., Result]:
    """`edgekit build` in this process; errors of ours become their exit codes, as in the command."""

    def run(*words: str | Path, cache: Path | None = cache) -> Result:
        # Loading converters into workers takes seconds for each build; `test_jobs` has builds with workers.
        jobs = [] if "--jobs" in words else ["--jobs", "0"]
        keep = ["--no-cache"] if cache is None else ["--cache", str(cache)]
        result = CliRunner().invoke(cli, ["build", *map(str, words), *jobs, *keep])
        if isinstance(result.exception, EdgeKitError):
            result.exit_code = result.exception.exit_code
            result.stderr_bytes = (result.stderr_bytes or b"") + str(result.exception).encode()
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
