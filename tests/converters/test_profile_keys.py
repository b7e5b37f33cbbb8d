"""No key of a profile is decoration: changing any one of them changes something that a build or an agent does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from msgspec import structs
from onnx import TensorProto, helper

from converters import backends
from converters.emulation import verify
from converters.judge.fit import misfit
from converters.measure import roofline
from converters.measure.host import Host
from converters.recipes.recipes import plans
from converters.source.project import ContractTable, ModelTable, Project, ProjectFile
from converters.source.work import Work
from device_agent import probe
from edgekit import profile
from edgekit.cli.profiles import profiles
from edgekit.engines.openvino import core
from edgekit.errors import ToolFailedError
from edgekit.evidence import Where
from edgekit.profile import Accelerator, Budgets, Profile, Quantization


def planned(made: Profile, *_: Any) -> Any:
    return plans(made)


def estimated(made: Profile, *_: Any) -> Any:
    # Many products and little traffic, then the other way round: each speed decides once.
    works = Work(10**9, 10, 10, 1), Work(10, 10**9, 10, 1)
    return [roofline.estimate(work, made, precision) for work in works for precision in ("fp32", "int8")]


def fitting(made: Profile, *_: Any) -> Any:
    return misfit(made, 10**9, 3000, None), misfit(made, 1, 3000, None), misfit(made, 1, 5000, None)


def limited(made: Profile, *_: Any) -> Any:
    model = ModelTable(source="m.onnx", name="m", version="1")
    project = Project(ProjectFile(model, {made.name: ContractTable()}), profile_folder, "edgekit.toml")
    return project.contract(made.name, made.budgets)


def measured_here(made: Profile, *_: Any) -> Any:
    return Host("a board", ("neon", "dotprod", "fp16"), "aarch64", 4).matches(made)


def offered(made: Profile, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(profile, "load", lambda _name: made)
    platform = probe.look("mine")
    return platform.profiles, platform.overlap


def listed(made: Profile, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(profile, "load", lambda _name: made)
    return CliRunner().invoke(profiles, ["list"]).output


def emulated(made: Profile, monkeypatch: pytest.MonkeyPatch) -> Any:
    def fails(*_: Any) -> Any:
        raise ToolFailedError("no emulator in this test")

    told: list[str] = []
    monkeypatch.setattr(verify.setup, "installed", object)
    monkeypatch.setattr(verify, "_cached", fails)
    where = Where(cpu="", isa=(), engine="litert", engine_version="2")
    return verify.of_build(profile_folder, made, where, None, told.append), told


profile_folder = next(iter(profile.shipped().values())).parent
Look = Callable[[Profile, pytest.MonkeyPatch], Any]
PI, U65, NPU = "raspberry-pi-5", "nxp-imx93-ethos-u65", "intel-core-ultra-npu"
DELEGATED = structs.replace(
    profile.load(PI),
    accelerator=Accelerator("litert-delegate", delegate="libnpu.so", operators=("CONV_2D",)),
)
# Key → the profile that is changed, the new value, what must come out otherwise.
CASES: dict[str, tuple[str | Profile, Any, Look]] = {
    "name": (PI, "mine", fitting),
    "title": (PI, "A board of mine", listed),
    "arch": (PI, "x86_64", measured_here),
    "isa": (PI, ("neon", "dotprod", "fp16", "i8mm"), measured_here),
    "cores": (PI, 1, planned),
    "memory_mb": (PI, 2000, fitting),
    "storage_mb": (PI, 1000, fitting),
    "gmacs_int8": (PI, 1, estimated),
    "gmacs_fp32": (PI, 1, estimated),
    "mem_gbps": (PI, 1, estimated),
    "engines": (PI, {"litert": ">=2.1,<3"}, planned),
    "precisions": (PI, ("int8",), planned),
    "quantization.symmetric_activations": (PI, True, planned),
    "quantization.per_channel": (PI, False, planned),
    "quantization.static_shapes_only": (PI, True, planned),
    "quantization.reduce_range": (PI, True, planned),
    "overlap": (PI, False, offered),
    "accelerator.kind": (U65, "openvino-npu", planned),
    "accelerator.config": (U65, "ethos-u65-512", planned),
    "accelerator.system_config": (U65, "Ethos_U65_Embedded", planned),
    "accelerator.memory_mode": (U65, "Sram_Only", planned),
    "accelerator.delegate": (DELEGATED, "libother.so", planned),
    "accelerator.operators": (DELEGATED, ("CONV_2D", "ADD"), planned),
    "accelerator.options": (DELEGATED, {"cores": 2}, planned),
    "emulator": (PI, "cortex-a53", emulated),
    "budgets.latency_p95_ms": (PI, 7.0, limited),
    "budgets.memory_mb": (PI, 7.0, limited),
    "budgets.size_mb": (PI, 7.0, limited),
    "chain": (PI, (PI,), offered),
}


def test_every_key_of_the_schema_stands_in_the_table() -> None:
    tables = {"quantization": Quantization, "accelerator": Accelerator, "budgets": Budgets}
    keys = {name for name in Profile.__struct_fields__ if name not in tables}
    keys |= {f"{name}.{key}" for name, table in tables.items() for key in table.__struct_fields__}
    assert set(CASES) == keys


@pytest.mark.parametrize("key", CASES)
def test_changing_a_key_changes_what_is_done(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, value, look = CASES[key]
    before = profile.load(name) if isinstance(name, str) else name
    table, _, inner = key.rpartition(".")
    assert getattr(getattr(before, table) if table else before, inner) != value
    new = structs.replace(getattr(before, table), **{inner: value}) if table else value
    after = structs.replace(before, **{table or inner: new})
    with monkeypatch.context() as patch:
        was = look(before, patch)
    with monkeypatch.context() as patch:
        assert look(after, patch) != was


def data_dependent(path: Path) -> None:
    """logits of x (1, 4), scaled by how many elements of it are positive."""
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["where"]),
        helper.make_node("Shape", ["where"], ["size"]),
        helper.make_node("Gather", ["size", "one"], ["count"], axis=0),
        helper.make_node("Cast", ["count"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("zero", TensorProto.FLOAT, [], [0]), helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_shapes_that_depend_on_the_data_are_found_in_each_format(digits, tmp_path):
    import openvino as ov

    data_dependent(tmp_path / "m.onnx")
    assert "where" in backends.get("onnxruntime").open_shapes(tmp_path / "m.onnx")
    ov.save_model(core().read_model(tmp_path / "m.onnx"), tmp_path / "m.xml")
    assert len(backends.get("openvino").open_shapes(tmp_path / "m.xml")) > 0
    assert backends.get("onnxruntime").open_shapes(digits.folder / "model.onnx") == ()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_static_shapes_only_refuses_a_model_with_data_dependent_shapes_that_others_take(
    engine, run_build, tmp_path
):
    data_dependent(tmp_path / "m.onnx")
    np.savez(tmp_path / "e.npz", x=np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32))
    codes = {}
    for switch in ("false", "true"):
        (tmp_path / f"{switch}.toml").write_text(
            f'extends = "x86-64-v3"\nprecisions = ["fp32"]\n[engines]\n{engine} = ">=1"\n'
            f"[quantization]\nstatic_shapes_only = {switch}\n"
        )
        result = run_build(
            tmp_path / "m.onnx", "--name", "m", "--version", "1.0.0", "--evaluation", tmp_path / "e.npz",
            "--max-accuracy-drop", "0.1", "--target", tmp_path / f"{switch}.toml",
            "--out", tmp_path / switch, "--json", tmp_path / f"{switch}.json",
        )  # fmt: skip
        codes[switch] = result.exit_code
        told = str(result.exception)
    assert codes == {"false": 0, "true": 3}
    assert "static shapes only" in told
