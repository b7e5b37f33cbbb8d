"""Ethos-U targets: real Vela output, judged on the model that went in, and refused where it does not fit."""

import json
import subprocess
from pathlib import Path

import odd_operators as odd
import pytest
from litert_models import prepared
from onnx import helper
from test_recurrent import gap

from converters.backends import get
from converters.backends.artifact import Artifact
from converters.backends.litert import vela
from converters.judge.fit import misfit
from converters.recipes.recipes import VelaConfig, plans
from converters.source import tflite
from edgekit import bundle, evidence, profile
from edgekit.errors import ToolFailedError

UNITS = ("nxp-imx93-ethos-u65", "arm-ethos-u55-128", "arm-ethos-u85-512")


@pytest.fixture(scope="module")
def built(digits, run_build, tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    result = run_build(*digits.flags("model.onnx", *UNITS), "--out", out, "--json", out / "result.json")
    assert result.exit_code == 0, result.output
    return json.loads((out / "result.json").read_text())


@pytest.mark.proof
def test_each_unit_gets_a_model_that_holds_its_operator(built, tmp_path):
    assert [entry["profile"] for entry in built["bundles"]] == list(UNITS)
    for entry in built["bundles"]:
        found = bundle.read(Path(entry["path"]))
        found.extract(tmp_path / found.sha256)
        assert tflite.NPU_OPERATOR in tflite.read(tmp_path / found.sha256 / "model" / vela.MODEL).operators
        assert not any(vela.JUDGED in item.path for item in found.manifest.files)
        assert found.manifest.tools[vela.PACKAGE] == "5.2.0"


def test_the_evidence_has_the_compilers_figures_as_estimates(built):
    for entry in built["bundles"]:
        told = evidence.decode(evidence.beside(Path(entry["path"])).read_bytes()).predicate
        made = told.compiled
        assert made.how == "estimated"
        assert made.accelerator == profile.load(entry["profile"]).accelerator.config
        assert made.cycles > 1000
        assert 0 < made.sram_kb < 100
        assert made.inferences_per_s == pytest.approx(1000 / made.latency_ms, rel=1e-4)
        assert told.latency_p50_ms.how == "estimated"
        assert told.latency_p50_ms.value == made.latency_ms
        assert made.accelerator in told.latency_p50_ms.on.cpu
        assert told.accuracy.how == "measured"


@pytest.mark.proof
def test_one_conversion_serves_all_units_and_none_meets_a_budget_by_estimate(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", *UNITS), "--memory-mb", "4", "--latency-p95-ms", "1000"]
    result = run_build(*words, "--out", tmp_path / "d", "--json", tmp_path / "r.json", cache=tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert result.output.count("converting litert/static-int8") == 1
    assert result.output.count("compiling litert/static-int8") == 3
    for entry in json.loads((tmp_path / "r.json").read_text())["bundles"]:
        assert entry["budgets"]["memory_mb"] == entry["budgets"]["latency_p95_ms"] == "unverified"


def test_memory_that_the_compiler_allocates_beyond_the_budget_misses_the_contract(
    digits, run_build, tmp_path
):
    words = [*digits.flags("model.onnx", UNITS[1]), "--memory-mb", "0.001"]
    result = run_build(*words, "--out", tmp_path)
    assert result.exit_code == 3
    assert "memory_mb: 0.00" in str(result.exception)


@pytest.fixture(scope="module")
def uncompiled(built, cache, tmp_path_factory):
    """The int8 model of the digits, out of the cache."""
    return next(file for file in cache.rglob(vela.JUDGED))


U55 = VelaConfig("ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram")


def test_the_same_model_compiles_to_the_same_bytes(uncompiled, tmp_path):
    made = [compile_into(uncompiled, U55, tmp_path / name) for name in ("one", "two")]
    first, second = ((item.folder / item.model).read_bytes() for item in made)
    assert first == second
    assert [path.name for path in made[0].files] == [vela.MODEL]


def test_operators_left_on_the_cpu_are_counted_by_name(digits, tmp_path):
    """A softmax in float has no place on the accelerator."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(self.net(x), dim=-1)

    path = tmp_path / "mixed.tflite"
    litert_torch.convert(Mixed().eval(), (torch.zeros(1, 1, 8, 8),)).export(str(path))
    tool = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    ranges = tool.calibrate({"serving_default": [{"args_0": torch.rand(1, 1, 8, 8).numpy()}]})
    path.write_bytes(tool.quantize(ranges).quantized_model)
    made = compile_into(path, U55, tmp_path / "out")
    assert made.compiled.on_cpu["CUMSUM"] == 1
    assert "left on the CPU" in made.notes[-1]
    assert "CUMSUM x 1" in made.notes[-1]


def test_what_vela_cannot_do_is_told_in_its_words(uncompiled, tmp_path):
    with pytest.raises(ToolFailedError, match=r"Vela failed for ethos-u55-128: .*Section System_Config.Nope"):
        compile_into(uncompiled, VelaConfig("ethos-u55-128", "Nope", "Shared_Sram"), tmp_path / "a")
    (tmp_path / "bad.tflite").write_bytes(uncompiled.read_bytes()[:900])
    with pytest.raises(ToolFailedError, match="Failed to load"):
        compile_into(tmp_path / "bad.tflite", U55, tmp_path / "b")


def test_a_board_too_small_is_refused_with_the_figure_that_says_so(uncompiled, tmp_path):
    from msgspec.structs import replace

    board = profile.load(UNITS[1])
    made = compile_into(uncompiled, U55, tmp_path / "a").compiled
    assert misfit(board, 8_000_000, None, made) == ""
    assert "2 slots of 9 MB (model and self-test) need 18 MB" in misfit(board, 9_000_000, None, made)
    assert "5 MB at its peak" in misfit(board, 1000, 5.0, None)
    assert "allocates" in misfit(replace(board, memory_mb=0.0001), 1000, None, made)
    assert "of SRAM, and Shared_Sram gives 0.5 kB" in misfit(
        board, 1000, None, replace(made, sram_limit_kb=0.5)
    )


def compile_into(model: Path, config: VelaConfig, folder: Path) -> Artifact:
    folder.mkdir()
    return vela.compiled(Artifact(model.parent, model.name, {}), config, folder)


def test_velas_own_reason_is_told_not_only_that_it_failed():
    said = (
        'Traceback (most recent call last):\n  File "vela.py", line 137, in process_regor\n    compiled_model = regor\n'
        "RuntimeError: Compilation failed: Error: HARD_SWISH 'a' Does not have valid TFLite Semantics.\n"
        " - IFM has to be 8bit\n   IFM type=FLOAT32,\nFailed to parse TFLite file\n\n"
    )
    done = subprocess.CompletedProcess(["vela"], 1, "", said)
    assert vela._complaint(done) == (
        "RuntimeError: Compilation failed: Error: HARD_SWISH 'a' Does not have valid TFLite Semantics."
        " - IFM has to be 8bit IFM type=FLOAT32, Failed to parse TFLite file"
    )


def test_a_swish_that_16_bits_leave_in_float_costs_no_more_than_itself(tmp_path):
    """Vela takes that operator in 8 bits alone, and failed on the whole file."""
    model = odd.between(helper.make_node("HardSwish", ["a"], ["b"], "swish"))
    made = prepared(model, tmp_path, odd.feeds(model))
    (plan,) = plans(profile.load("arm-ethos-u55-128"), ["litert/static-int16x8"])
    (tmp_path / "made").mkdir()
    artifact = get("litert").convert(made, plan, tmp_path / "made")
    assert gap(made, plan, artifact) < 0.01
    (tmp_path / "vela").mkdir()
    compiled = vela.compiled(artifact, plan.constraints.vela, tmp_path / "vela").compiled
    assert compiled.on_cpu["MUL"] == 2
    assert "HARD_SWISH" not in compiled.on_cpu
