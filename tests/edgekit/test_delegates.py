"""External delegates of LiteRT: a real library, built here in C, that takes operators of a real model."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from toy_tflite import expected, mlp

from edgekit import engines
from edgekit.engines import _delegates
from edgekit.errors import EngineError, EngineMissingError
from edgekit.manifest import EngineSpec, TensorSpec

SOURCE = Path(__file__).with_name("toy_delegate.c")
NAME = "libtoy_delegate.so"
X = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The folder of a board's delegates."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    folder = tmp_path_factory.mktemp("delegates")
    words = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", folder / NAME, SOURCE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def load(library, tmp_path, monkeypatch):
    """The model with these engine options."""
    monkeypatch.setenv("EDGEKIT_DELEGATES", str(library))
    path = tmp_path / "model.tflite"
    path.write_bytes(mlp())

    def loaded(**options):
        spec = EngineSpec("litert", ">=2", "model.tflite", {"delegate": NAME, **options}, 1)
        specs = (TensorSpec("x", "float32", (1, 4)),), (TensorSpec("y", "float32", (1, 3)),)
        return engines.load(tmp_path, spec, *specs)

    return loaded


def test_a_delegate_computes_what_it_took_and_the_cpu_the_rest(load):
    for options in ({}, {"delegate_operators": 3}, {"delegate.most": 2, "delegate_operators": 2}):
        model = load(**options)
        assert np.allclose(model.run({"x": X})["y"], expected(X), atol=1e-5)
        model.close()


def test_its_part_of_the_work_is_really_its_own(load):
    model = load(**{"delegate.fails": 1})
    with pytest.raises(EngineError, match="litert failed"):
        model.run({"x": X})


def test_a_delegate_that_takes_fewer_operators_than_it_should_is_no_silent_fallback(load):
    with pytest.raises(EngineError, match=r"took 1 of the 4 operators, where it should take 3; left to the CPU: FULLY_CONNECTED, LOGISTIC"):  # fmt: skip
        load(**{"delegate.most": 1, "delegate_operators": 3})


@pytest.mark.parametrize("expected_of_it", [{}, {"delegate_operators": 3}])
def test_a_delegate_that_takes_nothing_is_an_error_whatever_was_expected(load, expected_of_it):
    with pytest.raises(EngineError, match=r"took none of the 4 operators"):
        load(**{"delegate.most": 0}, **expected_of_it)


def test_what_the_delegate_says_of_a_missing_accelerator_is_passed_on(load):
    with pytest.raises(EngineError, match=r"cannot be loaded: .*not plugged in"):
        load(**{"delegate.refuses": 1})


def test_a_library_that_is_no_delegate_is_refused_with_its_name(load, library):
    (library / "libnoise.so").write_bytes(b"not an ELF file")
    with pytest.raises(EngineError, match=r"the delegate libnoise\.so cannot be loaded"):
        load(delegate="libnoise.so")


def test_a_library_of_another_kind_is_refused_before_it_is_asked_for_anything(load, library, tmp_path):
    (tmp_path / "empty.c").write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", library / "libempty.so", tmp_path / "empty.c"], check=True)
    with pytest.raises(EngineError, match="is no external delegate of LiteRT"):
        load(delegate="libempty.so")


@pytest.mark.parametrize(
    "name",
    ["/tmp/libtoy_delegate.so", "../libtoy_delegate.so", "lib/../x.so", "toy", "libx.so/..", "libx.so\0", ""],
)
def test_a_bundle_names_no_path(load, name):
    with pytest.raises(EngineError, match="litert takes the option delegate"):
        load(delegate=name)
    with pytest.raises(EngineError, match="no name of a delegate's library"):
        _delegates.find(name)


def test_a_library_is_looked_up_in_the_boards_folders_only(load, library, tmp_path, monkeypatch):
    shutil.copy(library / NAME, tmp_path / "libother.so")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(EngineMissingError, match=r"the delegate libother\.so is not on this machine"):
        load(delegate="libother.so")
    monkeypatch.setenv("EDGEKIT_DELEGATES", f".:{tmp_path}")
    assert load(delegate="libother.so").run({"x": X})
    monkeypatch.setenv("EDGEKIT_DELEGATES", ".:")
    with pytest.raises(EngineMissingError, match="looked in no folder"):
        load(delegate="libother.so")


def test_a_library_that_others_may_write_is_not_loaded(load, library, tmp_path, monkeypatch):
    shutil.copy(library / NAME, tmp_path / NAME)
    (tmp_path / NAME).chmod(0o777)
    monkeypatch.setenv("EDGEKIT_DELEGATES", str(tmp_path))
    with pytest.raises(EngineError, match="can be written by others"):
        load()


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.5])
def test_an_expectation_that_is_no_number_of_operators_is_refused(load, value):
    with pytest.raises(EngineError, match="is a number of operators"):
        load(delegate_operators=value)


def test_options_of_a_delegate_need_one(load):
    with pytest.raises(EngineError, match="litert takes the option delegate"):
        load(delegate="xnnpack", delegate_operators=3)


def test_what_was_taken_is_told_from_what_only_lies_beside_it():
    def node(name, inputs, outputs):
        return {"op_name": name, "inputs": inputs, "outputs": outputs}

    graph = [
        node("A", [0, 9], [1]),
        node("B", [1], [2]),
        node("C", [1], [3]),
        node("D", [2, 3, -1], [4]),
        node("E", [4], [5]),
    ]
    assert _delegates.taken(graph) == (0, ["A", "B", "C", "D", "E"])
    assert _delegates.taken([*graph, node("DELEGATE", [1], [4])]) == (3, ["A", "E"])
    two = [*graph, node("DELEGATE", [0, 9], [1]), node("DELEGATE", [4], [5])]
    assert _delegates.taken(two) == (2, ["B", "C", "D"])
