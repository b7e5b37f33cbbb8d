"""What importing a package loads, where import-linter cannot see: names in strings, and third-party surprises."""

import json
import subprocess
import sys

import pytest

import edgekit

HEAVY = ("torch", "onnx", "nncf", "litert_torch", "onnxruntime", "openvino", "sqlalchemy", "fastapi")


def loaded_by(code: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "edgekit.manifest",
        "edgekit.bundle",
        "edgekit.profile",
        "edgekit.wire.messages",
        "edgekit.protocol.orders",
        "edgekit.trust.target",
    ],
)
def test_what_the_supervisor_needs_loads_no_numpy(module: str) -> None:
    assert not {"numpy", *HEAVY} & loaded_by(f"import {module}")


def test_help_loads_neither_numpy_nor_rich_nor_any_engine() -> None:
    loaded = loaded_by(
        "from edgekit.cli import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert not {"numpy", "rich", *HEAVY} & loaded


def test_the_library_loads_neither_numpy_nor_a_converter_before_a_call() -> None:
    loaded = loaded_by("import edgekit; edgekit.build; edgekit.BuildResult; dir(edgekit)")
    assert not {"numpy", "rich", "converters", *HEAVY} & loaded


def test_a_loaded_bundle_needs_no_converter() -> None:
    loaded = loaded_by("import edgekit; edgekit.load")
    assert not {"converters", "rich", *HEAVY} & loaded


def test_a_name_that_the_library_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        edgekit.bild  # noqa: B018
