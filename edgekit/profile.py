"""Hardware profiles: one TOML file per kind of target, data and never code.

`extends` builds one profile on another: tables merge key by key, any other value replaces. A device takes the most
specific bundle of its chain.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from edgekit.errors import ProfileError
from edgekit.manifest import DELEGATE, Name, Option
from edgekit.plugins import ADAPTERS

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Isa = Literal[
    "avx2", "avx512", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "dotprod", "i8mm", "fp16", "bf16",
]  # fmt: skip
Positive = Annotated[float, Meta(gt=0)]


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What int8 kernels of this target ask for. `reduce_range`: weights in 7 bits, where 8-bit products saturate
    (AVX2 and AVX-512 without VNNI). `static_shapes_only`: a model with data-dependent shapes inside is refused.
    """

    symmetric_activations: bool = False
    per_channel: bool = True
    static_shapes_only: bool = False
    reduce_range: bool = False


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands beside the CPU: an OpenVINO NPU, an Arm Ethos-U with its Vela configuration, or whatever an external
    delegate of LiteRT drives: its library's name, the operators that it takes (LiteRT's names) and its own options.
    """

    kind: Literal["openvino-npu", "ethos-u", "litert-delegate"]
    config: str = ""
    system_config: str = ""
    memory_mode: str = ""
    delegate: str = ""
    operators: tuple[str, ...] = ()
    options: dict[str, Option] = {}


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Default limits; a project's own replace them."""

    latency_p95_ms: Positive | None = None
    memory_mb: Positive | None = None
    size_mb: Positive | None = None


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`engines` maps engine to a PEP 440 version range, in order of preference. Speeds are for estimates: billions
    of multiply-accumulates a second over all cores, and GB/s of memory traffic.
    """

    name: Name
    title: str
    arch: Literal["x86_64", "aarch64", "armv8-m"]
    isa: tuple[Isa, ...]
    cores: Annotated[int, Meta(ge=1)]
    memory_mb: Positive
    storage_mb: Positive
    gmacs_int8: Positive
    gmacs_fp32: Positive
    mem_gbps: Positive
    engines: dict[str, str]
    precisions: tuple[Precision, ...]
    quantization: Quantization = Quantization()
    overlap: bool = True
    accelerator: Accelerator | None = None
    emulator: str | None = None
    budgets: Budgets = Budgets()
    chain: tuple[Name, ...] = ()


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "quantization": Quantization,
    "accelerator": Accelerator,
    "budgets": Budgets,
}
# Engine → an example of a range, and the release lines that exist, majors and minors. LiteRT's 2.14 is tflite-runtime.
# Of an engine that does not stand here, any range will do.
_RELEASES: Mapping[str, tuple[str, Sequence[int], Sequence[int]]] = {
    "onnxruntime": (">=1.22,<2", (1,), range(100)),
    "openvino": (">=2026.4,<2027", range(2023, 2036), range(10)),
    "litert": (">=2.1,<3", (2,), range(100)),
}
_ANY: tuple[str, Sequence[int], Sequence[int]] = (">=1.0,<2", (), ())
# Accelerator → the engine that drives it.
_DRIVERS: Mapping[str, str] = {
    "openvino-npu": "openvino",
    "ethos-u": "litert",
    "litert-delegate": "litert",
}
# Instruction set → the architecture that has it, and the one it never comes without.
_ISA_NEEDS: Mapping[str, tuple[str, str]] = {
    "avx2": ("x86_64", ""),
    "avx512": ("x86_64", "avx2"),
    "avx512_vnni": ("x86_64", "avx512"),
    "avx_vnni": ("x86_64", "avx2"),
    "avx512_bf16": ("x86_64", "avx512"),
    "avx512_fp16": ("x86_64", "avx512"),
    "amx_int8": ("x86_64", "avx512"),
    "amx_bf16": ("x86_64", "avx512"),
    "neon": ("aarch64", ""),
    "dotprod": ("aarch64", "neon"),
    "i8mm": ("aarch64", "neon"),
    "fp16": ("aarch64", "neon"),
    "bf16": ("aarch64", "neon"),
}
# Precision → instruction sets of which a CPU needs one; without it the precision is slower than fp32.
_PRECISION_NEEDS: Mapping[str, tuple[str, ...]] = {
    "bf16": ("amx_bf16", "avx512_bf16", "bf16"),
    "fp16": ("avx512_fp16", "fp16"),
}
# Multiply-accumulates a cycle that each Ethos-U comes with: Vela's accelerator configurations.
_ETHOS_U = tuple(
    f"ethos-{unit}-{macs}"
    for unit, sizes in {
        "u55": (32, 64, 128, 256),
        "u65": (256, 512),
        "u85": (128, 256, 512, 1024, 2048),
    }.items()
    for macs in sizes
)
# Sections of the configuration that comes with Vela. In the last ones the Ethos-U writes to the memory beside its SRAM.
_MEMORY_MODES = (
    "Sram_Only", "Shared_Sram", "Dedicated_Sram", "Dedicated_Sram_256KB", "Dedicated_Sram_384KB", "Dedicated_Sram_512KB",
)  # fmt: skip
# CPU models of qemu's arm64 user mode.
_EMULATORS = (
    "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a710",
    "neoverse-n1", "neoverse-n2", "neoverse-v1", "a64fx", "max",
)  # fmt: skip


def shipped() -> dict[str, Path]:
    """The profiles that come with EdgeKit, by name."""
    found = (
        Path(str(entry)) for entry in files("hardware_profiles").iterdir() if entry.name.endswith(".toml")
    )
    return {path.stem: path for path in sorted(found)}


def load(name_or_file: str | Path) -> Profile:
    """The profile of that name, or in that file (anything that ends in `.toml`).

    Raises: ProfileError with the file, the key and what would be right.
    """
    path = _find(name_or_file)
    table, chain = _resolve(path, ())
    return _convert(path.name, table, chain)


def parse(text: str, name: str) -> Profile:
    """A profile from TOML text that extends nothing or a shipped one; `name` stands for the file in messages.

    Raises: ProfileError.
    """
    table, chain = _resolve_table(_read_toml(text, name), Path(name), ())
    return _convert(name, table, chain)


def _convert(file: str, table: dict[str, Any], chain: tuple[str, ...]) -> Profile:
    try:
        profile = msgspec.convert({**table, "chain": chain}, Profile)
    except msgspec.ValidationError as error:
        raise ProfileError(f"{file}: {_explained(str(error), table)}") from error
    _check(file, profile)
    return profile


def _read_toml(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{file}: not TOML: {error}") from error


def _explained(message: str, table: Mapping[str, Any]) -> str:
    """The decoder's message with the key in front, the value found, and the nearest right key for an unknown one."""
    found = re.search(r" - at `\$\.?(.*?)`$", message)
    where = found.group(1) if found else ""
    text = message[: found.start()] if found else message
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown:
        section = next((kind for key, kind in _SECTIONS.items() if key == where), Profile)
        known = [*section.__struct_fields__, *(["extends"] if section is Profile else [])]
        known = [name for name in known if name != "chain"]
        hint = _nearest(unknown.group(1), known)
        key = f"{where}.{unknown.group(1)}" if where else unknown.group(1)
        return f"{key}: unknown key; {hint}"
    value: Any = table
    for part in filter(None, re.split(r"\.|\[.*?\]", where)):
        value = value.get(part) if isinstance(value, Mapping) else value
    if where:
        return f"{where}: {text[0].lower()}{text[1:]}, found {value!r}"
    return text[0].lower() + text[1:]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _find(name_or_file: str | Path) -> Path:
    if str(name_or_file).endswith(".toml"):
        path = Path(name_or_file)
        if not path.is_file():
            raise ProfileError(f"{path}: there is no such profile file")
        return path
    known = shipped()
    if str(name_or_file) not in known:
        raise ProfileError(
            f"unknown profile {str(name_or_file)!r}; known are {', '.join(known)}, or give a .toml file"
        )
    return known[str(name_or_file)]


def _resolve(path: Path, seen: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The merged table and the names from the most specific to the most general."""
    try:
        table = _read_toml(path.read_text(encoding="utf-8"), path.name)
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path.name}: not UTF-8: {error}") from error
    return _resolve_table(table, path, seen)


def _resolve_table(
    table: dict[str, Any], path: Path, seen: tuple[str, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    if "chain" in table:
        raise ProfileError(f"{path.name}: unknown key 'chain'; use 'extends'")
    name = str(table.setdefault("name", path.stem))
    if name in seen:
        raise ProfileError(f"{path.name}: extends itself through {' -> '.join((*seen, name))}")
    parent = table.pop("extends", None)
    if parent is None:
        return table, (name,)
    sibling = path.with_name(f"{parent}.toml")
    found = sibling if sibling.is_file() else _find(str(parent))
    base, chain = _resolve(found, (*seen, name))
    # A mistake in what is extended is told under that file's name, not under the one that builds on it.
    _convert(found.name, base, chain)
    return _merged(base, table), (name, *chain)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(result.get(key), dict)
        # Engines are an ordered preference: naming some replaces the list instead of adding to it.
        result[key] = _merged(result[key], value) if both_tables and key != "engines" else value
    return result


def _check(file: str, profile: Profile) -> None:
    for rule in _RULES:
        if complaint := rule(profile):
            raise ProfileError(f"{file}: {complaint}")


def _engines(profile: Profile) -> str:
    if not profile.engines:
        return f"engines: name at least one of {', '.join(ADAPTERS.names())}"
    for engine, versions in profile.engines.items():
        if ADAPTERS.find(engine) is None:
            return f"engines: unknown engine {engine!r}; {_nearest(engine, ADAPTERS.names())}"
        example, majors, minors = _RELEASES.get(engine, _ANY)
        try:
            wanted = SpecifierSet(versions)
        except InvalidSpecifier:
            return f"engines.{engine}: {versions!r} is no version range; use e.g. {example!r}"
        releases = (f"{major}.{minor}.{patch}" for major in majors for minor in minors for patch in range(10))
        if engine in _RELEASES and not any(wanted.contains(release) for release in releases):
            return f"engines.{engine}: {versions!r} matches no {engine} release; use e.g. {example!r}"
    return ""


def _isa(profile: Profile) -> str:
    foreign = sorted(isa for isa in profile.isa if _ISA_NEEDS[isa][0] != profile.arch)
    if foreign:
        own = ", ".join(isa for isa, (arch, _) in _ISA_NEEDS.items() if arch == profile.arch)
        return f"isa: {', '.join(foreign)} does not exist on {profile.arch}; that has {own or 'none to name'}"
    for isa in profile.isa:
        needed = _ISA_NEEDS[isa][1]
        if needed and needed not in profile.isa:
            return f"isa: {isa} never comes without {needed}; add that"
    return _repeated("isa", profile.isa)


def _precisions(profile: Profile) -> str:
    if not profile.precisions:
        return "precisions: name at least one of fp32, fp16, bf16, int8"
    for precision in profile.precisions if profile.accelerator is None else ():
        needs = _PRECISION_NEEDS.get(precision, ())
        if needs and not set(needs) & set(profile.isa):
            return (
                f"precisions: {precision} needs one of {', '.join(needs)} in isa; without it fp32 is faster"
            )
    return _repeated("precisions", profile.precisions)


def _repeated(key: str, values: Sequence[str]) -> str:
    twice = sorted({value for value in values if values.count(value) > 1})
    return f"{key}: {', '.join(twice)} stands there twice; once is right" if twice else ""


def _accelerator(profile: Profile) -> str:
    if profile.accelerator is None:
        return ""
    kind = profile.accelerator.kind
    engine = _DRIVERS[kind]
    if set(profile.engines) != {engine}:
        return f"engines: an accelerator of kind {kind} is driven by {engine} only; name that alone"
    if not profile.quantization.static_shapes_only:
        return f"quantization.static_shapes_only: must be true for {kind}"
    if kind == "litert-delegate":
        return _delegate(profile.accelerator)
    if profile.accelerator.delegate or profile.accelerator.operators or profile.accelerator.options:
        return f"accelerator: delegate, operators and options are of the kind litert-delegate, not {kind}"
    return _ethos_u(profile, profile.accelerator) if kind == "ethos-u" else _npu(profile, profile.accelerator)


def _delegate(accelerator: Accelerator) -> str:
    if not DELEGATE.fullmatch(accelerator.delegate):
        return (
            f"accelerator.delegate: {accelerator.delegate!r} is no name of a library; give it as libNAME.so, without a"
            " folder: the board says where its delegates lie"
        )
    if not accelerator.operators:
        return (
            "accelerator.operators: name those that the delegate takes, e.g. ['CONV_2D', 'FULLY_CONNECTED']"
        )
    for name in accelerator.operators:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            return f"accelerator.operators: {name!r} is none of LiteRT's names, such as CONV_2D"
    if accelerator.config or accelerator.system_config or accelerator.memory_mode:
        return "accelerator: config, system_config and memory_mode are Vela's; a delegate has options"
    return _repeated("accelerator.operators", accelerator.operators)


def _ethos_u(profile: Profile, accelerator: Accelerator) -> str:
    if accelerator.config not in _ETHOS_U:
        return f"accelerator.config: no Ethos-U is called {accelerator.config!r}; {_nearest(accelerator.config, _ETHOS_U)}"
    if not (accelerator.system_config and accelerator.memory_mode):
        return "accelerator: ethos-u needs system_config and memory_mode, sections of Vela's configuration"
    # Vela takes another unit's system without a word, and then estimates with the wrong clock and buses.
    unit = f"Ethos_{accelerator.config.split('-')[1].upper()}_"
    if not accelerator.system_config.startswith(unit):
        return f"accelerator.system_config: {accelerator.system_config!r} is not one for {accelerator.config}; those begin with {unit}"
    if accelerator.memory_mode not in _MEMORY_MODES:
        return f"accelerator.memory_mode: Vela has no {accelerator.memory_mode!r}; {_nearest(accelerator.memory_mode, _MEMORY_MODES)}"
    if unit == "Ethos_U55_" and accelerator.memory_mode.startswith("Dedicated"):
        return "accelerator.memory_mode: an Ethos-U55 only reads the memory beside its SRAM; use Shared_Sram or Sram_Only"
    if profile.precisions != ("int8",):
        return f"precisions: an Ethos-U computes in int8 only, not {', '.join(profile.precisions)}"
    return ""


def _npu(profile: Profile, accelerator: Accelerator) -> str:
    if profile.arch != "x86_64":
        return f"accelerator.kind: an OpenVINO NPU stands beside an x86_64 CPU, not {profile.arch}"
    if not profile.quantization.symmetric_activations:
        return "quantization.symmetric_activations: must be true for openvino-npu"
    if accelerator.config or accelerator.system_config or accelerator.memory_mode:
        return "accelerator: config, system_config and memory_mode are Vela's; openvino-npu has none"
    return ""


def _emulator(profile: Profile) -> str:
    if profile.emulator is None:
        return ""
    if profile.arch != "aarch64":
        return f"emulator: only aarch64 is emulated, not {profile.arch}; leave it out"
    if profile.emulator not in _EMULATORS:
        return f"emulator: no CPU of qemu is called {profile.emulator!r}; {_nearest(profile.emulator, _EMULATORS)}"
    return ""


def _quantities(profile: Profile) -> str:
    for key in ("memory_mb", "storage_mb", "gmacs_int8", "gmacs_fp32", "mem_gbps"):
        if not math.isfinite(getattr(profile, key)):
            return f"{key}: {getattr(profile, key)} is no quantity; give a finite number"
    for budget, capacity in (("memory_mb", "memory_mb"), ("size_mb", "storage_mb")):
        wanted, there = getattr(profile.budgets, budget), getattr(profile, capacity)
        if wanted is not None and wanted > there:
            return f"budgets.{budget}: {wanted:g} is more than the {capacity} of {there:g}; at most that is right"
    return ""


_RULES: tuple[Callable[[Profile], str], ...] = (
    _engines,
    _isa,
    _accelerator,
    _precisions,
    _emulator,
    _quantities,
)
