"""Whose times they are: a CPU with more than the profile promises verifies no budget of the profile's."""

import json

import pytest

from converters.judge.select import Contender, budgets
from converters.measure.footing import footing
from converters.measure.host import this_host
from edgekit import detect, profile
from edgekit.manifest import Contract

N100 = profile.load("intel-n100").isa
V4 = profile.load("x86-64-v4-vnni").isa
AMX = ("avx2", "avx512", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
ALL = [("openvino", "int8"), ("onnxruntime", "fp32"), ("litert", "int8")]


def timed(**more):
    return Contender(
        "a/fp32",
        0,
        "fp32",
        0,
        1000,
        "met",
        "",
        latency_p50_ms=1.0,
        latency_p95_ms=1.2,
        memory_mb=50.0,
        **more,
    )


def test_times_of_an_amx_server_are_not_those_of_an_n100():
    found = footing(N100, AMX, ALL)
    assert not found.is_own
    assert {"avx512", "amx_int8"} <= set(found.beyond)
    assert found.free == ("litert", "onnxruntime", "openvino")
    assert "avx512" in found.note("intel-n100")
    assert "rank" in found.note("intel-n100")


def test_openvino_alone_is_held_to_the_profile_and_its_times_count():
    found = footing(N100, AMX, [("openvino", "int8"), ("openvino", "fp32")])
    assert found.is_own
    assert found.environment == {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}
    assert "AVX2_VNNI" in found.note("intel-n100")
    assert footing(("avx2",), AMX, [("openvino", "fp32")]).environment == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert not found.released().is_own
    assert not found.released().environment


def test_what_no_engine_would_use_changes_nothing():
    """AVX-512 BF16 beyond a VNNI profile: float and int8 kernels have no use for it, bf16 ones have."""
    zen4 = ("avx2", "avx512", "avx512_vnni", "avx512_bf16")
    assert footing(V4, zen4, ALL).is_own
    assert footing(V4, zen4, ALL).note("x86-64-v4-vnni") == ""
    assert footing(V4, zen4, [("openvino", "bf16")]).environment == {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}


def test_an_engine_that_is_not_known_here_is_taken_to_use_everything():
    assert footing(V4, (*V4, "avx512_bf16"), [("toy", "fp32")]).free == ("toy",)


def test_a_time_that_only_ranks_meets_and_misses_no_budget():
    assert budgets(timed(), Contract(latency_p95_ms=2.0))["latency_p95_ms"] == "met"
    free = timed(is_own_time=False)
    for limit in (2.0, 0.5):
        told = budgets(free, Contract(latency_p95_ms=limit, memory_mb=100.0))
        assert told["latency_p95_ms"] == "unverified"
        assert told["memory_mb"] == "met"


@pytest.fixture
def server(monkeypatch):
    """This machine as one that has AMX too."""
    have = (*detect.isa(), "amx_int8", "amx_bf16")
    monkeypatch.setattr(detect, "isa", lambda: have)
    return have


@pytest.mark.skipif("avx2" not in detect.isa(), reason="measures for an x86 profile")
@pytest.mark.proof
def test_strict_ends_with_3_where_another_kind_of_machine_was_timed(digits, run_build, tmp_path, server):
    words = [
        *digits.flags("model.onnx", "x86-64-v3"),
        "--latency-p95-ms",
        "1000",
        "--recipe",
        "onnxruntime/*",
    ]
    words += ["--json", tmp_path / "r.json"]
    result = run_build(*words, "--out", tmp_path / "loose")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    picked = document["bundles"][0]
    assert picked["budgets"]["latency_p95_ms"] == "unverified"
    assert picked["latency_ms"]["how"] == "measured"
    assert picked["latency_ms"]["ranks_only"]
    sheet = document["profiles"][0]
    assert any("rank candidates" in note and "amx_int8" in note for note in sheet["notes"])
    figure = next(row for row in sheet["candidates"] if row["status"] == "picked")["latency_p95_ms"]
    assert figure["ranks_only"]
    assert "amx_int8" in figure["on"]["isa"]
    # Candidates are still compared.
    assert any(
        "x the time of" in row["reason"] or "as fast as" in row["reason"] for row in document["candidates"]
    )
    strict = run_build(*words, "--out", tmp_path / "strict", "--strict")
    assert strict.exit_code == 3
    assert "latency_p95_ms cannot be verified" in str(strict.exception)


@pytest.mark.proof
@pytest.mark.skipif("avx512" not in detect.isa(), reason="has nothing to be held back from")
def test_openvino_held_to_the_profile_verifies_its_budget(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--latency-p95-ms", "1000", "--strict"]
    words += ["--recipe", "openvino/f32", "--json", tmp_path / "r.json"]
    result = run_build(*words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["bundles"][0]["budgets"]["latency_p95_ms"] == "met"
    assert document["bundles"][0]["latency_ms"]["held"] == "ONEDNN_MAX_CPU_ISA=AVX2"
    assert any("held to what x86-64-v3 has" in note for note in document["profiles"][0]["notes"])


@pytest.mark.proof
def test_the_detected_profile_of_a_machine_is_its_own(digits, run_build, tmp_path):
    (tmp_path / "here.toml").write_text(detect.detect())
    words = [*digits.flags("model.onnx", str(tmp_path / "here.toml")), "--latency-p95-ms", "1000", "--strict"]
    words += ["--recipe", "onnxruntime/*", "--json", tmp_path / "r.json"]
    result = run_build(*words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["bundles"][0]["budgets"]["latency_p95_ms"] == "met"
    assert "ranks_only" not in document["bundles"][0]["latency_ms"]


def test_every_shipped_profile_of_this_architecture_has_a_footing():
    host = this_host()
    for name in profile.shipped():
        loaded = profile.load(name)
        if loaded.arch == host.arch:
            assert footing(loaded.isa, host.isa, ALL).note(name) is not None
