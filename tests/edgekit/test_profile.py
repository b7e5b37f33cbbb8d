"""Profiles: data that is checked, inherited key by key, and refused with the key and the remedy."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgekit import detect, profile
from edgekit.cli.profiles import profiles
from edgekit.errors import ProfileError
from edgekit.profile import Profile

REQUIRED = {
    "x86-64-v3", "x86-64-v4-vnni", "intel-n100", "intel-core-ultra-npu", "raspberry-pi-4", "raspberry-pi-5",
    "generic-arm64", "nxp-imx93-ethos-u65", "arm-ethos-u55-128", "arm-ethos-u85-512",
}  # fmt: skip


def test_every_shipped_profile_loads_under_its_own_name() -> None:
    assert set(profile.shipped()) >= REQUIRED
    for name in profile.shipped():
        assert profile.load(name).name == name


def test_a_profile_inherits_tables_key_by_key_and_replaces_engine_lists() -> None:
    npu = profile.load("intel-core-ultra-npu")
    assert npu.chain == ("intel-core-ultra-npu", "x86-64-v3")
    assert list(npu.engines) == ["openvino"]
    assert npu.quantization.per_channel
    assert not npu.quantization.reduce_range


def test_nothing_compiled_for_one_accelerator_is_offered_to_another() -> None:
    for name in profile.shipped():
        chain = [profile.load(link) for link in profile.load(name).chain]
        assert not any(parent.accelerator for parent in chain[1:])


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_of_ones_own_works_wherever_a_name_does(tmp_path: Path) -> None:
    mine = profile.load(write(tmp_path, 'name = "mine"\nextends = "raspberry-pi-5"\nmemory_mb = 8192\n'))
    assert mine.chain == ("mine", "raspberry-pi-5", "generic-arm64")
    assert mine.memory_mb == 8192
    assert mine.cores == 4


NPU = 'name = "mine"\nextends = "intel-core-ultra-npu"\n'
U55 = 'name = "mine"\nextends = "arm-ethos-u55-128"\n'
BASE = 'name = "mine"\nextends = "raspberry-pi-5"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BASE + "memry_mb = 1\n", r"mine.toml: memry_mb: unknown key; did you mean 'memory_mb'\?"),
        (BASE + "[quantization]\nper_chanel = true\n", r"quantization.per_chanel: unknown key; did you mean 'per_channel'"),
        (BASE + "cores = 0\n", r"mine.toml: cores: .*>= 1.*found 0"),
        (BASE + 'cores = "four"\n', r"mine.toml: cores: expected `int`.*found 'four'"),
        (BASE + 'isa = ["avx2"]\n', r"isa: avx2 does not exist on aarch64"),
        (BASE + 'isa = ["sse9"]\n', r"isa.*sse9"),
        (BASE + 'precisions = ["bf16"]\n', r"bf16 needs one of"),
        (BASE + "[engines]\ntensorrt = '>=1'\n", r"unknown engine 'tensorrt'; known are litert"),
        (BASE + "[engines]\nlitert = 'new'\n", r"engines.litert: 'new' is no version range; use e.g."),
        (BASE + "[accelerator]\nkind = 'ethos-u'\n", r"an accelerator of kind ethos-u is driven by litert only"),
        (U55 + "[quantization]\nstatic_shapes_only = false\n", r"static_shapes_only: must be true for ethos-u"),
        (BASE + "[accelerator]\nkind = 'openvino-npu'\n", r"engines: an accelerator of kind openvino-npu is driven by openvino only"),
        (U55 + "[accelerator]\nmemory_mode = 'Shared'\n", r"accelerator.memory_mode: Vela has no 'Shared'; did you mean 'Shared_Sram'"),
        (U55 + "[accelerator]\nmemory_mode = 'Dedicated_Sram_384KB'\n", r"an Ethos-U55 only reads .*; use Shared_Sram or Sram_Only"),
        (BASE + "[engines]\nlitert = '>=9'\n", r"engines.litert: '>=9' matches no litert release; use e.g. '>=2.1,<3'"),
        (BASE + 'isa = ["dotprod"]\n', r"isa: dotprod never comes without neon"),
        (BASE + 'isa = ["neon", "neon"]\nprecisions = ["int8"]', r"isa: neon stands there twice"),
        (BASE + 'isa = ["neon"]\n', r"precisions: fp16 needs one of avx512_fp16, fp16 in isa"),
        (BASE + 'emulator = "cortex-a67"\n', r"emulator: no CPU of qemu is called 'cortex-a67'; did you mean 'cortex-a"),
        (BASE + "mem_gbps = inf\n", r"mem_gbps: inf is no quantity"),
        (BASE + "[budgets]\nmemory_mb = 99999\n", r"budgets.memory_mb: 99999 is more than the memory_mb of 4096"),
        (NPU + "[quantization]\nsymmetric_activations = false\n", r"symmetric_activations: must be true for openvino-npu"),
        (NPU + "[accelerator]\nconfig = 'x'\n", r"are Vela's; openvino-npu has none"),
        (NPU + "emulator = 'max'\n", r"emulator: only aarch64 is emulated, not x86_64"),
        (U55 + "precisions = ['fp32', 'int8']\n", r"an Ethos-U computes in int8 only, not fp32, int8"),
        (U55 + "[accelerator]\nconfig = 'ethos-u55-12'\n", r"called 'ethos-u55-12'; did you mean 'ethos-u55-128'"),
        (U55 + "[accelerator]\nmemory_mode = ''\n", r"needs system_config and memory_mode"),
        (U55 + "[accelerator]\nsystem_config = 'Ethos_U65_High_End'\n", r"is not one for ethos-u55-128; those begin with Ethos_U55_"),
        (U55 + "[engines]\nonnxruntime = '>=1.22'\n", r"is driven by litert only"),
        (BASE + "chain = ['a']\n", r"unknown key 'chain'; use 'extends'"),
        ('extends = "mine"\nname = "mine"\n', r"extends itself"),
        ('extends = "absent"\n', r"unknown profile 'absent'; known are"),
        ("name = [", r"mine.toml: not TOML"),
    ],
)  # fmt: skip
def test_refuses_with_the_file_the_key_and_what_would_be_right(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=says):
        profile.load(write(tmp_path, text))


def test_a_mistake_in_what_is_extended_is_told_under_that_files_name(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "raspberry-pi-5"\ncores = 0\n')
    with pytest.raises(ProfileError, match=r"^base\.toml: cores"):
        profile.load(write(tmp_path, 'extends = "base"\ncores = 2\n'))


def test_a_profile_without_a_name_is_called_after_its_file_and_never_after_its_parent(tmp_path: Path) -> None:
    mine = profile.load(write(tmp_path, 'extends = "raspberry-pi-5"\n'))
    assert mine.name == mine.chain[0] == "mine"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=r"known are .*raspberry-pi-5"):
        profile.load("raspberry-pi-9")


def test_this_machines_profile_is_one_that_loads() -> None:
    mine = profile.parse(detect.detect(), "detected.toml")
    assert mine.cores >= 1
    assert mine.engines
    assert mine.chain[1] == detect.closest_shipped()
    assert set(profile.load(detect.closest_shipped()).isa) <= {*mine.isa, "neon"}


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16\n", ("avx2", "avx512", "avx512_vnni", "amx_bf16")),
        ("Features\t: fp asimd asimddp asimdhp\n", ("neon", "dotprod", "fp16")),
        ("", ()),
    ],
)
def test_the_isa_is_read_from_the_kernel(cpuinfo: str, expected: tuple[str, ...]) -> None:
    assert detect.isa(cpuinfo) == expected


def test_commands_list_show_and_detect(tmp_path: Path) -> None:
    run = CliRunner().invoke
    listed = json.loads(run(profiles, ["list", "--json"]).output)
    assert {entry["name"] for entry in listed} >= REQUIRED
    assert "Raspberry Pi 5" in run(profiles, ["list"]).output
    shown = run(profiles, ["show", "raspberry-pi-5"]).output
    assert "raspberry-pi-5 → generic-arm64" in shown
    out = tmp_path / "here.toml"
    assert run(profiles, ["detect", "--out", str(out)]).exit_code == 0
    assert isinstance(profile.load(out), Profile)
    assert msgspec.json.decode(run(profiles, ["show", str(out), "--json"]).output)["cores"] >= 1


def test_a_machine_with_bf16_gets_a_profile_whose_recipes_compute_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from converters.recipes.recipes import plans

    have = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    monkeypatch.setattr(detect, "isa", lambda _cpuinfo=None: have)
    monkeypatch.setattr(detect.platform, "machine", lambda: "x86_64")
    mine = profile.parse(detect.detect(), "detected.toml")
    assert "openvino/bf16" in [plan.name for plan in plans(mine)]


DELEGATE = """
extends = "raspberry-pi-5"
title = "A board with an accelerator"
engines = { litert = ">=2.1,<3" }
[quantization]
static_shapes_only = true
[accelerator]
kind = "litert-delegate"
delegate = "libvx_delegate.so"
operators = ["CONV_2D", "FULLY_CONNECTED"]
options = { device_id = 0 }
"""


def test_a_profile_names_an_external_delegate_by_its_library_alone() -> None:
    accelerator = profile.parse(DELEGATE, "board.toml").accelerator
    assert accelerator is not None
    assert (accelerator.delegate, accelerator.operators) == (
        "libvx_delegate.so",
        ("CONV_2D", "FULLY_CONNECTED"),
    )
    assert accelerator.options == {"device_id": 0}


@pytest.mark.parametrize(
    ("wrong", "right", "complaint"),
    [
        (
            '"libvx_delegate.so"',
            '"/usr/lib/libvx_delegate.so"',
            "is no name of a library; give it as libNAME.so",
        ),
        ('"libvx_delegate.so"', '"vx"', "is no name of a library"),
        ('["CONV_2D", "FULLY_CONNECTED"]', "[]", "name those that the delegate takes"),
        ('"CONV_2D"', '"conv"', "is none of LiteRT's names"),
        ('"CONV_2D"', '"FULLY_CONNECTED"', "stands there twice"),
        ("options = {", 'config = "x"\noptions = {', "are Vela's; a delegate has options"),
        ("static_shapes_only = true", "", "must be true for litert-delegate"),
        ("litert = ", "onnxruntime = ", "is driven by litert only"),
    ],
)
def test_what_cannot_be_a_delegate_is_refused_in_the_profile(wrong: str, right: str, complaint: str) -> None:
    with pytest.raises(ProfileError, match=complaint):
        profile.parse(
            DELEGATE.replace(wrong, right).replace(
                ">=2.1,<3", ">=1.22,<2" if "onnx" in right else ">=2.1,<3"
            ),
            "board.toml",
        )


def test_other_accelerators_have_no_delegate() -> None:
    text = 'extends = "intel-core-ultra-npu"\ntitle = "A board"\n[accelerator]\ndelegate = "libx.so"\n'
    with pytest.raises(ProfileError, match="are of the kind litert-delegate, not openvino-npu"):
        profile.parse(text, "board.toml")
