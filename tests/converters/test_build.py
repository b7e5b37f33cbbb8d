"""`edgekit build` on a real classifier: three profiles, four kinds of source, every recipe."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from converters.recipes.recipe import ETHOS
from converters.recipes.recipes import catalogue
from edgekit import bundle, evidence, selftest
from edgekit.engines import LoadedBundle
from edgekit.samples import load_npz
from edgekit.selftest import run_samples

PROFILES = ("x86-64-v3", "raspberry-pi-5", "intel-core-ultra-npu")


@pytest.fixture(scope="module", params=["net.py:make", pytest.param("model.onnx", marks=pytest.mark.proof)])
def built(request, digits, run_build, tmp_path_factory):
    """A build for three profiles, from torch and from an ONNX file of opset 11."""
    out = tmp_path_factory.mktemp("dist")
    result = run_build(*digits.flags(request.param, *PROFILES), "--out", out, "--json", out / "result.json")
    assert result.exit_code == 0, result.output
    document = json.loads((out / "result.json").read_text())
    return SimpleNamespace(out=out, document=document, output=result.output, source=request.param)


def test_every_profile_gets_one_picked_bundle(built):
    picked = [entry["profile"] for entry in built.document["bundles"] if not entry["alternate"]]
    assert sorted(picked) == sorted(PROFILES)


def test_every_recipe_that_a_profile_allows_was_made_on_all_three_engines(built):
    failed = {
        item["recipe"]: item["reason"] for item in built.document["candidates"] if item["status"] == "failed"
    }
    assert not failed
    tried = {item["recipe"] for item in built.document["candidates"]}
    # None of the three profiles has an Ethos-U, and the source is no quantized one.
    assert tried == {
        name
        for name, recipe in catalogue().items()
        if not recipe.isa and recipe.accelerators != (ETHOS,) and recipe.scheme != "kept"
    }


def test_float_candidates_compute_what_the_source_computes(built):
    for item in built.document["candidates"]:
        if item["recipe"].endswith(("/fp32", "/f32")):
            assert item["parity"] < 1e-4, item["recipe"]


def test_int8_candidates_stay_close_and_are_smaller(built):
    sizes = {(item["profile"], item["recipe"]): item["size_bytes"] for item in built.document["candidates"]}
    for (profile, recipe), size in sizes.items():
        if recipe in ("onnxruntime/static-int8", "litert/static-int8", "litert/dynamic-int8"):
            assert size < sizes[profile, recipe.split("/")[0] + "/fp32"]
    for item in built.document["candidates"]:
        assert item["parity"] < 0.35, item["recipe"]
        assert item["accuracy"] is None or item["accuracy"]["drop"] <= 0.03


def test_latency_is_measured_only_for_the_profile_that_is_here(built):
    for item in built.document["candidates"]:
        if item["latency_ms"] is not None:
            wanted = "measured" if item["profile"] == "x86-64-v3" else "estimated"
            assert item["latency_ms"]["how"] == wanted


def test_bundles_of_absent_hardware_keep_up_to_three_alternates(built):
    alternates = [entry for entry in built.document["bundles"] if entry["alternate"]]
    assert {entry["profile"] for entry in alternates} == {"raspberry-pi-5", "intel-core-ultra-npu"}
    assert sum(entry["profile"] == "raspberry-pi-5" for entry in alternates) == 3
    for entry in alternates:
        assert Path(entry["path"]).is_file()


def test_a_written_bundle_reads_back_and_passes_its_self_test(built, tmp_path):
    for entry in built.document["bundles"]:
        found = bundle.read(Path(entry["path"]), sha256=entry["digest"].removeprefix("sha256:"))
        assert found.manifest.selftest.samples >= 32
        if found.manifest.engine.options.get("device") == "NPU":
            continue  # there is none here
        folder = tmp_path / found.sha256
        found.extract(folder)
        loaded = LoadedBundle(found.manifest, folder)
        assert selftest.check(found.manifest, loaded, folder).passed
        loaded.close()


def test_what_is_shipped_is_scored_again_from_the_bundle_alone(built, digits, tmp_path):
    entry = next(item for item in built.document["bundles"] if item["profile"] == "x86-64-v3")
    found = bundle.read(Path(entry["path"]))
    found.extract(tmp_path / "b")
    loaded = LoadedBundle(found.manifest, tmp_path / "b")
    samples = load_npz(digits.folder / "eval.npz", found.manifest.inputs)
    outputs, _ = run_samples(loaded.run, found.manifest.inputs, (), {}, samples)
    logits = next(iter(outputs.values())).reshape(len(samples), 10)
    assert np.mean(logits.argmax(1) == samples.labels) > 0.9


def test_evidence_lies_beside_each_bundle_and_names_its_digest(built):
    for entry in built.document["bundles"]:
        path = evidence.beside(Path(entry["path"]))
        told = evidence.decode(path.read_bytes(), sha256=entry["digest"].removeprefix("sha256:")).predicate
        assert told.recipe == entry["recipe"]
        assert {item.recipe for item in told.candidates} == {
            item["recipe"] for item in built.document["candidates"] if item["profile"] == entry["profile"]
        }
        assert told.latency_p50_ms.how == entry["latency_ms"]["how"]


def test_an_npu_bundle_is_symmetric_static_and_says_that_no_npu_was_here(built):
    entry = next(
        item
        for item in built.document["bundles"]
        if item["profile"] == "intel-core-ultra-npu" and item["recipe"] == "openvino/static-int8"
    )
    manifest = bundle.read(Path(entry["path"])).manifest
    assert manifest.engine.options["device"] == "NPU"
    assert all(spec.is_static for spec in manifest.inputs)
    assert any("no NPU here" in note for note in entry["notes"])


@pytest.mark.proof
def test_budgets_that_cannot_be_measured_are_unverified_and_strict_refuses_them(digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "raspberry-pi-5"), "--latency-p95-ms", "5", "--out", tmp_path]
    result = run_build(*words, "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    first = json.loads((tmp_path / "r.json").read_text())["bundles"][0]
    assert first["budgets"]["latency_p95_ms"] == "unverified"
    assert run_build(*words, "--strict").exit_code == 3


@pytest.mark.proof
@pytest.mark.parametrize("source", ["model.pt", "model.pt2"])
def test_torchscript_and_exported_programs_build(source, digits, run_build, tmp_path):
    out = tmp_path / "dist"
    result = run_build(
        *digits.flags(source, "nxp-imx93-ethos-u65"), "--out", out, "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "r.json").read_text())["bundles"]
    assert entry["recipe"] == "litert/static-int8"
    assert any("compiled by vela" in note for note in entry["notes"])


def test_a_stored_program_is_named_before_it_runs_and_no_code_refuses_it(digits, run_build, tmp_path):
    for source in ("net.py:make", "model.pt", "model.pt2"):
        result = run_build(*digits.flags(source, "x86-64-v3"), "--out", tmp_path, "--no-code")
        assert result.exit_code == 2
        assert "--no-code" in str(result.exception)


@pytest.mark.proof
def test_the_second_build_converts_nothing_and_gives_the_same_bytes(digits, run_build, tmp_path):
    words = digits.flags("model.onnx", "raspberry-pi-5")
    for name in ("one", "two"):
        result = run_build(*words, "--out", tmp_path / name, cache=tmp_path / "cache")
        assert result.exit_code == 0, result.output
        assert ("converting" in result.output) == (name == "one")
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


@pytest.mark.proof
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "litert"])
def test_two_conversions_in_two_folders_and_processes_give_the_same_bytes(
    digits, run_build, tmp_path, engine
):
    """Each engine alone, so that the pick and its alternates cover all its recipes."""
    profile = tmp_path / f"engine-{engine}.toml"
    profile.write_text(
        f'name = "{profile.stem}"\nextends = "generic-arm64"\ntitle = "one engine"\n[engines]\n{engine} = ">=1"\n'
    )
    words = digits.flags("net.py:make", str(profile))
    here = run_build(*words, "--out", tmp_path / "one", cache=None)
    assert here.exit_code == 0, here.output
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "edgekit", "build", *words, "--out", "two", "--no-cache"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = _bytes(tmp_path / "one"), _bytes(elsewhere / "two")
    assert len(first) >= 2
    assert first == second


@pytest.mark.proof
def test_calibration_from_a_folder_gives_the_bytes_that_one_file_gives(digits, run_build, tmp_path):
    words = digits.flags("model.onnx", "raspberry-pi-5")
    run_build(*words, "--out", tmp_path / "file")
    words[words.index("--calibration") + 1] = str(digits.folder / "calib")
    result = run_build(*words, "--out", tmp_path / "folder")
    assert "converting" not in result.output
    assert _bytes(tmp_path / "file") == _bytes(tmp_path / "folder")


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.edgekit"))}
