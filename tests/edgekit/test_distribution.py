"""What installs EdgeKit: one name in one place, and no message that sends anybody to somebody else's package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgekit.distribution import DISTRIBUTION, PROVIDERS, engine_extras, extra
from edgekit.plugins import ADAPTERS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = (
    "edgekit",
    "converters",
    "device_agent",
    "fleet",
    "hardware_profiles",
    "docs",
    "examples",
    "bench",
)
# "edgekit[" or a pip line that names "edgekit" alone: the package of that name on PyPI is not this one.
FOREIGN = re.compile(r"(?<![\w-])edgekit\[|pip install[^\n`]*?[\s'\"]edgekit(?![\w/.-])")


def texts() -> list[Path]:
    folders = [path for name in PACKAGES for path in (ROOT / name).rglob("*")]
    found = [path for path in folders if path.suffix in (".py", ".md", ".toml", ".txt", ".html")]
    return [*found, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml"))]


def test_the_name_is_the_projects_and_not_the_one_that_is_taken() -> None:
    assert PROJECT["name"] == DISTRIBUTION != "edgekit"
    assert extra("agent", "litert") == "pip install 'edgekit-toolkit[agent,litert]'"


@pytest.mark.parametrize(
    ("line", "is_foreign"),
    [
        ("pip install 'edgekit[agent]'", True),
        ("install edgekit[build]", True),
        ("pip install edgekit", True),
        ("pip install -U 'edgekit'", True),
        ("pip install 'edgekit-toolkit[agent]'", False),
        ("pip install '.[agent]', then edgekit/cli", False),
        ("the edgekit command", False),
    ],
)
def test_the_search_for_the_foreign_name_finds_it(line: str, is_foreign: bool) -> None:
    assert bool(FOREIGN.search(line)) == is_foreign


def test_nothing_suggests_the_package_of_that_name_that_is_somebody_elses() -> None:
    hits = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts()
        for line in path.read_text(errors="replace").splitlines()
        if FOREIGN.search(line)
    ]
    assert hits == []


def test_every_extra_that_a_message_names_exists() -> None:
    call = re.compile(r"\bextra\(([^()]*)\)")
    named = {
        word
        for path in texts()
        if path.suffix == ".py" and path.name != "distribution.py"
        for call_of in call.findall(path.read_text())
        for word in re.findall(r"['\"]([\w-]+)['\"]", call_of)
    }
    assert {"agent", "build", "fleet", "images", "litert-convert", "postgres"} <= named <= set(EXTRAS)
    from edgekit.cli import EXTRAS as OF_COMMANDS

    assert set(OF_COMMANDS.values()) <= set(EXTRAS)


def test_every_engine_has_an_extra_of_its_own() -> None:
    assert set(PROVIDERS) == set(ADAPTERS.own)
    assert {name for extras in PROVIDERS.values() for name in extras.values()} <= set(EXTRAS)
    assert engine_extras("onnxruntime") == extra("onnxruntime")


def test_tflite_runtime_comes_with_the_numpy_it_was_built_for() -> None:
    (numpy,) = (line for line in EXTRAS["tflite"] if line.startswith("numpy"))
    assert "<2" in numpy


def test_the_extra_for_pictures_goes_with_the_build_and_the_tests() -> None:
    assert any(line.startswith("pillow") for line in EXTRAS["images"])
    assert any(line.startswith("pillow") for line in EXTRAS["build"])


def test_a_command_whose_package_is_missing_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['httptools'] = None\n"
        "from edgekit.cli import main; sys.argv = ['edgekit', 'agent', 'doctor', '--state', 'x']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert done.returncode == 1
    assert "install it with: pip install 'edgekit-toolkit[agent]'" in done.stderr


def test_a_picture_without_pillow_names_its_extra(maker, tmp_path: Path, monkeypatch) -> None:
    from edgekit.decode import decode
    from edgekit.errors import DataError, InputError
    from edgekit.inputs import read_input

    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "a.png").write_bytes(b"")
    manifest = maker.manifest({})
    with pytest.raises(
        DataError, match=r"need Pillow, which is not installed here: pip install 'edgekit-toolkit\[images\]'"
    ):
        read_input(tmp_path / "a.png", manifest)
    with pytest.raises(InputError, match=r"pip install 'edgekit-toolkit\[images\]'"):
        decode("image", b"", manifest)
