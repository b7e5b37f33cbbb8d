"""On what footing a profile's candidates are timed here: whether the times are the profile's own, or only rank.

Pure: instruction sets and what the candidates compute in, a footing out.

Always true
 1. A time counts as the profile's own only where the CPU has what the profile has and nothing beyond it that the engine
    would use, or where the engine was held to the profile.
 2. All candidates of a profile are timed on one footing: one engine held and another free would rank wrongly.
 3. An engine that is not known here is taken to use whatever the CPU has.

Only oneDNN can be held, from outside the process: it reads `ONEDNN_MAX_CPU_ISA`, and OpenVINO's convolutions, products
and most of its own kernels ask it (seen with openvino 2026.4; its reductions still call themselves AVX-512). XNNPACK and
MLAS read the CPU's identification themselves and take no such word.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

# What an engine's kernels use of an x86 or Arm CPU beyond the base, by the precision of their products.
_USES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "onnxruntime": {
        "fp32": frozenset({"avx512"}),
        "int8": frozenset({"avx512", "avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"}),
    },
    # Told its precision, it does not compute float models in bf16 on its own.
    "openvino": {
        "fp32": frozenset({"avx512"}),
        "bf16": frozenset({"avx512", "avx512_bf16", "amx_bf16", "bf16"}),
        "int8": frozenset({"avx512", "avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"}),
    },
    "litert": {
        "fp32": frozenset({"avx512"}),
        "fp16": frozenset({"avx512", "avx512_fp16", "fp16"}),
        "int8": frozenset({"avx512", "avx512_vnni", "avx_vnni", "amx_int8", "dotprod", "i8mm"}),
    },
}
# oneDNN's levels, the highest first, with what each uses.
# Source: oneDNN developer guide, "CPU Dispatcher Control".
_ONEDNN_LEVELS: Mapping[str, frozenset[str]] = {
    "AVX512_CORE_AMX": frozenset({"avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}),
    "AVX512_CORE_BF16": frozenset({"avx512", "avx512_vnni", "avx512_bf16"}),
    "AVX512_CORE_VNNI": frozenset({"avx512", "avx512_vnni"}),
    "AVX512_CORE": frozenset({"avx512"}),
    "AVX2_VNNI": frozenset({"avx2", "avx_vnni"}),
    "AVX2": frozenset({"avx2"}),
}
_HOLDABLE = "openvino"
_VARIABLE = "ONEDNN_MAX_CPU_ISA"


@dataclass(frozen=True)
class Footing:
    """`beyond` is what the CPU has and the profile does not, as far as `free` engines, which nothing holds, would use it.

    `environment` of the timing process holds the others; `held` says to what, in words, and is empty where nothing had to
    be held.
    """

    beyond: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    held: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether the times are the profile's own."""
        return not self.free

    def released(self) -> "Footing":
        """The same with nothing held, since some candidate does not run so: what was held is free now."""
        return replace(self, free=(_HOLDABLE,), held="", environment={})

    def note(self, profile: str) -> str:
        """What a reader must know of the times; empty if they are as the profile would give them."""
        if self.held:
            return f"timed with OpenVINO held to what {profile} has ({self.held})"
        if self.is_own:
            return ""
        return (
            f"timed on a CPU that also has {', '.join(self.beyond)}, which {profile} does not promise and"
            f" {', '.join(self.free)} would use: the times rank candidates, and meet or miss no latency budget"
            " (edgekit profiles detect writes the profile of this machine)"
        )


def footing(profile: Collection[str], host: Collection[str], work: Iterable[tuple[str, str]]) -> Footing:
    """`profile` and `host` are instruction sets, `work` engine and precision of the products of each candidate."""
    extra = set(host) - set(profile)
    used = {(engine, isa) for engine, computes in work for isa in _used(engine, computes, extra)}
    if not used:
        return Footing()
    beyond = tuple(isa for isa in host if isa in {isa for _, isa in used})
    engines = tuple(sorted({engine for engine, _ in used}))
    level = _level(profile)
    if engines == (_HOLDABLE,) and level:
        return Footing(beyond, (), f"{_VARIABLE}={level}", {_VARIABLE: level})
    return Footing(beyond, engines)


def _used(engine: str, computes: str, extra: Collection[str]) -> set[str]:
    known = _USES.get(engine, {}).get(computes)
    return set(extra) if known is None else set(extra) & known


def _level(profile: Collection[str]) -> str:
    """The highest level of oneDNN that needs nothing beyond the profile; empty where there is none (Arm)."""
    return next((name for name, needs in _ONEDNN_LEVELS.items() if needs <= set(profile)), "")
