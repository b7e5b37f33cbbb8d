"""Emulated ARM: an emulator that was set up runs bundles' self-tests and transforms; without one everything says so.

Uses the emulator of the user's cache, and skips where none is set up: no test downloads anything.
"""

import json
import runpy
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from converters.emulation import setup, verify
from converters.emulation.machine import FORMAT, META, Machine, Meta
from edgekit import bundle, evidence, profile
from edgekit.cli import cli
from edgekit.errors import SelfTestFailedError, ToolFailedError, UsageError
from edgekit.evidence import Where
from edgekit.samples import dump_arrays, load_npz

TRANSFORMS = Path(__file__).with_name("emulated_transforms.py")
# Read before the tests get a cache of their own.
USERS_EMULATOR = setup.home()
HERE = Where(cpu="this test's machine")


def edgekit(*words: str | Path) -> str:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False).stdout


@pytest.fixture(scope="module")
def machine() -> Machine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "home", lambda: USERS_EMULATOR)
        found = setup.installed()
    if found is None:
        pytest.skip("no emulator is set up; run: edgekit emulator setup")
    return found


@pytest.fixture
def emulator(machine, monkeypatch):
    monkeypatch.setattr(setup, "home", lambda: machine.folder)
    return machine


@pytest.fixture
def no_emulator(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def built(digits, run_build, tmp_path_factory):
    """Bundles for the Raspberry Pi 5, built where no emulator is."""
    out = tmp_path_factory.mktemp("arm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(out / "nothing"))
        run_build(*digits.flags("model.onnx", "raspberry-pi-5"), "--recipe", "*/fp32", "--out", out)
    return out


@pytest.fixture
def pi_bundle(built):
    return built / "digits-1.0.0-raspberry-pi-5.edgekit"


def altered(path: Path, target: Path, **changes: float) -> Path:
    """The bundle with another tolerance, or with golden outputs moved by `moved`."""
    found = bundle.read(path)
    manifest = found.manifest
    files = {entry.path: found.read(entry.path) for entry in manifest.files}
    test = manifest.selftest
    if moved := changes.get("moved"):
        golden = load_npz(files[test.artifact]).inputs
        golden["logits"] = golden["logits"] + np.float32(moved)
        files[test.artifact] = dump_arrays(golden)
    entries = tuple(bundle.file_entry(name, data) for name, data in sorted(files.items()))
    bundle.write(target, msgspec.structs.replace(manifest, files=entries), files)
    return target


def test_without_an_emulator_the_status_says_how_to_get_one(no_emulator):
    assert "edgekit emulator setup" in edgekit("emulator", "status")
    assert json.loads(edgekit("emulator", "status", "--json")) == {"installed": False}


def test_without_an_emulator_verify_says_how_to_get_one(no_emulator, pi_bundle):
    with pytest.raises(ToolFailedError, match="edgekit emulator setup"):
        edgekit("verify", "--emulate", pi_bundle)


def test_without_an_emulator_the_evidence_says_not_emulated(pi_bundle):
    statement = evidence.decode(evidence.beside(pi_bundle).read_bytes())
    assert statement.predicate.emulation.outcome == "not emulated"
    assert "set up" in statement.predicate.emulation.reason


@pytest.mark.parametrize(
    ("name", "reason"), [("x86-64-v3", None), ("nxp-imx93-ethos-u65", "ethos-u cannot be emulated")]
)
def test_only_arm_cpus_are_emulated(name, reason, pi_bundle):
    found = verify.of_build(pi_bundle, profile.load(name), HERE, None, lambda _: None)
    assert (found is None) if reason is None else (reason in found.reason)


def test_a_profile_without_an_emulator_is_refused(pi_bundle):
    with pytest.raises(UsageError, match="names no emulator"):
        edgekit("verify", "--emulate", "--profile", "x86-64-v3", pi_bundle)


def test_an_emulator_that_is_damaged_or_of_another_format_counts_as_absent(monkeypatch, tmp_path):
    monkeypatch.setattr(setup, "home", lambda: tmp_path)
    for content in (b"{", msgspec.json.encode(Meta(FORMAT, "gone", "7.2", "3.11", {}))):
        (tmp_path / META).write_bytes(content)
        assert setup.installed() is None


def test_a_set_up_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolFailedError, match="Debian"):
        setup.setup(lambda _: None)
    assert not [path for path in tmp_path.rglob("*") if "emulator" in path.name]


def test_the_same_bytes_give_the_same_tensors_on_emulated_arm(machine):
    here = runpy.run_path(str(TRANSFORMS))["digests"]()
    assert len(set(here.values())) == len(here)
    for cpu in ("cortex-a53", "cortex-a76"):
        assert json.loads(machine.run(TRANSFORMS, [], cpu=cpu, timeout_s=120)) == here


def test_a_bundle_passes_its_self_test_on_emulated_arm(emulator, pi_bundle):
    ran = json.loads(edgekit("verify", "--emulate", "--json", pi_bundle))
    assert ran["passed"]
    assert ran["samples"] == ran["of"] == 64
    assert ran["on"]["engine_version"] == emulator.meta.packages["ai-edge-litert"]
    assert {"neon", "dotprod"} <= set(ran["on"]["isa"])
    assert "cortex-a76" in ran["on"]["cpu"]


def test_another_cpu_of_the_profile_has_its_own_instruction_sets(emulator, pi_bundle):
    ran = json.loads(edgekit("verify", "--emulate", "--profile", "raspberry-pi-4", "--json", pi_bundle))
    assert ran["passed"]
    assert "dotprod" not in ran["on"]["isa"]


@pytest.mark.proof
def test_outputs_beyond_the_tolerance_fail_and_the_evidence_says_so(emulator, pi_bundle, tmp_path):
    wrong = altered(pi_bundle, tmp_path / "wrong.edgekit", moved=1.0)
    with pytest.raises(SelfTestFailedError, match="logits"):
        edgekit("verify", "--emulate", wrong)
    found = verify.of_build(wrong, profile.load("raspberry-pi-5"), HERE, None, lambda _: None)
    assert found.outcome == "failed"
    assert found.max_error["logits"].how == "emulated"
    assert found.max_error["logits"].value > found.tolerance["logits"]


def test_a_build_emulates_once_and_its_bundle_is_the_same(
    emulator, built, digits, run_build, tmp_path, monkeypatch
):
    words = [*digits.flags("model.onnx", "raspberry-pi-5"), "--recipe", "*/fp32"]
    run_build(*words, "--out", tmp_path)
    path = tmp_path / "digits-1.0.0-raspberry-pi-5.edgekit"
    assert path.read_bytes() == (built / path.name).read_bytes()
    found = evidence.decode(evidence.beside(path).read_bytes()).predicate.emulation
    assert found.outcome == "passed"
    assert found.against.engine_version != found.agreement.on.engine_version
    monkeypatch.setattr(Machine, "run", lambda *_, **__: pytest.fail("emulated again"))
    run_build(*words, "--out", tmp_path)
    assert evidence.decode(evidence.beside(path).read_bytes()).predicate.emulation == found
