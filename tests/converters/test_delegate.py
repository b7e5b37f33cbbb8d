"""An accelerator behind an external delegate: what it should take is counted at build, and held to where it runs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit import bundle, selftest
from edgekit.engines import LoadedBundle
from edgekit.errors import EngineError, EngineMissingError

SOURCE = Path(__file__).parents[1] / "edgekit" / "toy_delegate.c"
BOARD = """
extends = "x86-64-v3"
title = "A board with a toy of an accelerator"
engines = {{ litert = ">=2.1,<3" }}
precisions = ["fp32"]
[quantization]
static_shapes_only = true
[accelerator]
kind = "litert-delegate"
delegate = "libtoy_delegate.so"
operators = {operators}
"""


@pytest.fixture
def delegates(tmp_path, monkeypatch):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    folder = tmp_path / "delegates"
    folder.mkdir()
    words = [compiler, "-shared", "-fPIC", "-o", folder / "libtoy_delegate.so", SOURCE]
    subprocess.run(words, check=True)
    monkeypatch.setenv("EDGEKIT_DELEGATES", str(folder))
    return folder


def boards(folder, **operators):
    """Profile files by name, each with the operators that its delegate is said to take."""
    made = {}
    for name, named in operators.items():
        made[name] = folder / f"{name}.toml"
        made[name].write_text(f'name = "{name}"\n{BOARD.format(operators=json.dumps(named))}')
    return made


def test_the_device_sees_whether_the_delegate_took_what_the_build_counted(
    digits, run_build, delegates, tmp_path
):
    made = boards(
        tmp_path, true=["FULLY_CONNECTED"], false=["FULLY_CONNECTED", "CONV_2D"], none=["TRANSPOSE_CONV"]
    )
    result = run_build(
        *digits.flags("model.onnx", *map(str, made.values())), "--recipe", "litert/fp32", "--out", tmp_path / "out",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    told = json.loads((tmp_path / "r.json").read_text())
    assert {entry["profile"] for entry in told["bundles"]} == {"true", "false"}, result.output
    reasons = [item["reason"] for item in told["candidates"] if item["status"] == "failed"]
    assert any("takes TRANSPOSE_CONV, and the model has none of them" in reason for reason in reasons)

    def loaded(name):
        (path,) = [Path(entry["path"]) for entry in told["bundles"] if entry["profile"] == name]
        found = bundle.read(path)
        found.extract(tmp_path / name)
        return found.manifest, LoadedBundle(found.manifest, tmp_path / name)

    manifest, model = loaded("true")
    options = manifest.engine.options
    assert options == {"delegate": "libtoy_delegate.so", "delegate_operators": options["delegate_operators"]}
    assert int(options["delegate_operators"]) >= 1
    assert selftest.check(manifest, model, tmp_path / "true").passed
    model.close()
    with pytest.raises(EngineError, match=r"took \d of the \d+ operators, where it should take \d; left to the CPU: CONV_2D"):  # fmt: skip
        loaded("false")
    (delegates / "libtoy_delegate.so").unlink()
    with pytest.raises(EngineMissingError, match="is not on this machine"):
        loaded("true")
