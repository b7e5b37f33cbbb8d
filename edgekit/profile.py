"""Hardware profiles: one TOML file per kind of target, data and never code.

`extends` builds one profile on another: tables merge key by key, any other value replaces. A device takes the most
specific bundle of its chain.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from edgekit.errors import ProfileError
from edgekit.manifest import ENGINES, Name

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Isa = Literal[
    "avx2", "avx512", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "dotprod", "i8mm", "fp16", "bf16",
]  # fmt: skip
Positive = Annotated[float, Meta(gt=0)]


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What int8 kernels of this target ask for. `reduce_range`: weights in 7 bits, where 8-bit products saturate
    (AVX2 and AVX-512 without VNNI).
    """

    symmetric_activations: bool = False
    per_channel: bool = True
    static_shapes_only: bool = False
    reduce_range: bool = False


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands beside the CPU: an OpenVINO NPU, or an Arm Ethos-U with its Vela configuration."""

    kind: Literal["openvino-npu", "ethos-u"]
    config: str = ""
    system_config: str = ""
    memory_mode: str = ""


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
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_ISA_OF_ARCH: Mapping[str, set[str]] = {
    "x86_64": {isa for isa in get_args(Isa) if isa.startswith(("avx", "amx"))},
    "aarch64": {"neon", "dotprod", "i8mm", "fp16", "bf16"},
    "armv8-m": set(),
}


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
    """A profile from TOML text that extends nothing; `name` stands for the file in messages. Raises: ProfileError."""
    table = _read_toml(text, name)
    return _convert(name, table, (str(table.get("name", name)),))


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
        near = difflib.get_close_matches(unknown.group(1), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        key = f"{where}.{unknown.group(1)}" if where else unknown.group(1)
        return f"{key}: unknown key; {hint}"
    value: Any = table
    for part in filter(None, re.split(r"\.|\[.*?\]", where)):
        value = value.get(part) if isinstance(value, Mapping) else value
    if where:
        return f"{where}: {text[0].lower()}{text[1:]}, found {value!r}"
    return text[0].lower() + text[1:]


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
    if "chain" in table:
        raise ProfileError(f"{path.name}: unknown key 'chain'; use 'extends'")
    name = str(table.get("name", path.stem))
    if name in seen:
        raise ProfileError(f"{path.name}: extends itself through {' -> '.join((*seen, name))}")
    parent = table.pop("extends", None)
    if parent is None:
        return table, (name,)
    sibling = path.with_name(f"{parent}.toml")
    base, chain = _resolve(sibling if sibling.is_file() else _find(str(parent)), (*seen, name))
    return _merged(base, table), (name, *chain)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(result.get(key), dict)
        # Engines are an ordered preference: naming some replaces the list instead of adding to it.
        result[key] = _merged(result[key], value) if both_tables and key != "engines" else value
    return result


def _check(file: str, profile: Profile) -> None:
    if not profile.engines:
        raise ProfileError(f"{file}: engines: name at least one of {', '.join(ENGINES)}")
    for engine, versions in profile.engines.items():
        if engine not in ENGINES:
            raise ProfileError(f"{file}: engines: unknown engine {engine!r}; known are {', '.join(ENGINES)}")
        try:
            SpecifierSet(versions)
        except InvalidSpecifier as error:
            raise ProfileError(
                f"{file}: engines.{engine}: {versions!r} is no version range; use e.g. '>=2.1,<3'"
            ) from error
    if not profile.precisions:
        raise ProfileError(f"{file}: precisions: name at least one of fp32, fp16, bf16, int8")
    foreign = sorted(set(profile.isa) - _ISA_OF_ARCH[profile.arch])
    if foreign:
        raise ProfileError(f"{file}: isa: {', '.join(foreign)} does not exist on {profile.arch}")
    if "bf16" in profile.precisions and not _BF16 & set(profile.isa) and profile.accelerator is None:
        raise ProfileError(
            f"{file}: precisions: bf16 needs one of {', '.join(sorted(_BF16))} in isa; without it bf16 is slower than fp32"
        )
    if profile.accelerator is not None:
        _check_accelerator(file, profile, profile.accelerator)


def _check_accelerator(file: str, profile: Profile, accelerator: Accelerator) -> None:
    engine = "litert" if accelerator.kind == "ethos-u" else "openvino"
    if engine not in profile.engines:
        raise ProfileError(
            f"{file}: engines: an accelerator of kind {accelerator.kind} is driven by {engine}; add it"
        )
    if not profile.quantization.static_shapes_only:
        raise ProfileError(f"{file}: quantization.static_shapes_only: must be true for {accelerator.kind}")
    if accelerator.kind == "ethos-u" and not (
        accelerator.config and accelerator.system_config and accelerator.memory_mode
    ):
        raise ProfileError(
            f"{file}: accelerator: ethos-u needs config, system_config and memory_mode for Vela"
        )
