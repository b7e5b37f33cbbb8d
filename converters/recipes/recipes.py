"""Which candidates a profile gets: a table of recipes, and what a profile's keys make of it.

A recipe's name is `engine/scheme-precision`: `fp32`, `f32`, `bf16` and `fp16` compute in that float;
`static-int8` has int8 weights and activations with calibrated ranges (smallest to largest value seen),
`percentile-int8` likewise with the outermost hundredth of a percent of values cut off, `dynamic-int8` has int8
weights and takes activation ranges at run time, `weights-int8` stores weights in eight bits and computes in float,
`static-int16x8` has int8 weights and 16-bit activations. `weights-int8-bf16` computes in bf16 instead of
fp32. `as-is` is a source that came in the engine's own format.

A candidate may depart from its recipe's defaults in a `Tuning`, whose label then follows the name:
`openvino/static-int8+mixed` is `openvino/static-int8` with some layers left in float.

Pure: a profile in, recipes with their constraints out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from edgekit.errors import UsageError
from edgekit.manifest import ENGINES, Option
from edgekit.profile import Precision, Profile

Scheme = Literal["float", "static", "static16", "percentile", "dynamic", "weights", "as-is"]
AS_IS: Scheme = "as-is"
NPU = "openvino-npu"
ETHOS = "ethos-u"
# More threads than this gain nothing on models of this size and starve the rest of the board.
MAX_THREADS = 4
# Instruction sets that compute bf16.
BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How to make a candidate. `isa` lists instruction sets of which the target needs one; `accelerators` the kinds
    of target it is for, None being the CPU. `remainder` is the float that int8 weights are computed with.
    """

    name: str
    engine: str
    precision: Precision
    scheme: Scheme
    isa: tuple[str, ...] = ()
    accelerators: tuple[str | None, ...] = (None,)
    remainder: Precision = "fp32"

    @property
    def needs_calibration(self) -> bool:
        return self.scheme in ("static", "static16", "percentile")

    @property
    def computes(self) -> Precision:
        """The precision of its products."""
        return self.remainder if self.scheme == "weights" else self.precision


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("onnxruntime/fp32", "onnxruntime", "fp32", "float"),
        Recipe("onnxruntime/static-int8", "onnxruntime", "int8", "static"),
        Recipe("onnxruntime/percentile-int8", "onnxruntime", "int8", "percentile"),
        Recipe("onnxruntime/dynamic-int8", "onnxruntime", "int8", "dynamic"),
        Recipe("openvino/f32", "openvino", "fp32", "float"),
        Recipe("openvino/bf16", "openvino", "bf16", "float", isa=BF16),
        Recipe("openvino/fp16", "openvino", "fp16", "float", accelerators=(NPU,)),
        Recipe("openvino/static-int8", "openvino", "int8", "static", accelerators=(None, NPU)),
        # bf16 for what static int8 leaves gains nothing: on PP-OCRv6's recogniser, detector and orientation classifier
        # 1.00 to 1.07 x the time with an f32 remainder (Zen 5, openvino 2026.4), and the recogniser loses more.
        # Held to AVX2 by ONEDNN_MAX_CPU_ISA, openvino 2026.4 loads no linear layer with such weights ("could not create a
        # primitive descriptor").
        Recipe("openvino/weights-int8", "openvino", "int8", "weights", isa=("avx512",)),
        Recipe("openvino/weights-int8-bf16", "openvino", "int8", "weights", isa=BF16, remainder="bf16"),
        Recipe("litert/fp32", "litert", "fp32", "float"),
        Recipe("litert/fp16", "litert", "fp16", "float"),
        Recipe("litert/static-int8", "litert", "int8", "static", accelerators=(None, ETHOS)),
        Recipe("litert/dynamic-int8", "litert", "int8", "dynamic"),
        Recipe("litert/weights-int8", "litert", "int8", "weights"),
        # A CPU has no fast kernels for 16-bit activations, and other engines offer it percentiles.
        Recipe("litert/static-int16x8", "litert", "int8", "static16", accelerators=(ETHOS,)),
        Recipe("litert/percentile-int8", "litert", "int8", "percentile", accelerators=(ETHOS,)),
    )
}


class VelaConfig(msgspec.Struct, frozen=True):
    """What Vela compiles for: an Ethos-U, and sections of Vela's configuration file."""

    accelerator: str
    system_config: str
    memory_mode: str


class Constraints(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a profile asks of an artifact's bytes; two profiles that ask the same share one conversion.

    `vela` compiles the artifact that the other constraints make.
    """

    symmetric_activations: bool
    per_channel: bool
    reduce_range: bool
    accelerator: str = ""
    vela: VelaConfig | None = None
    signed_activations: bool = False


class Tuning(msgspec.Struct, frozen=True):
    """How a candidate departs from its recipe's defaults.

    `float_layers` stay in float; the names are the engine's own, as its backend's `sensitivity` gives them. `settings`
    are named numbers, switches and texts of the engine's quantizer (a percentile, a bias correction).
    """

    label: str = ""
    float_layers: tuple[str, ...] = ()
    settings: dict[str, Option] = {}


PLAIN = Tuning()


@dataclass(frozen=True)
class Plan:
    """One candidate to make. `options` go into the manifest; `judged_options` differ where the target's device is
    not here.
    """

    recipe: Recipe
    constraints: Constraints
    versions: str
    options: dict[str, Option]
    judged_options: dict[str, Option]
    threads: int
    notes: tuple[str, ...] = ()
    tuning: Tuning = PLAIN
    # Why it cannot be made; empty if it can.
    obstacle: str = ""
    # Whether a model with data-dependent shapes inside is refused.
    static_shapes_only: bool = False

    @property
    def is_accelerated(self) -> bool:
        """Whether something other than a CPU computes on the device."""
        return bool(self.constraints.accelerator or self.constraints.vela)

    @property
    def name(self) -> str:
        """The recipe's name, and what the tuning adds to it."""
        return self.recipe.name + (f"+{self.tuning.label}" if self.tuning.label else "")


def check_patterns(patterns: Sequence[str]) -> None:
    """Raises: UsageError for a pattern that no recipe matches."""
    for pattern in patterns:
        if not any(
            fnmatchcase(name, pattern) for name in (*RECIPES, *(f"{engine}/as-is" for engine in ENGINES))
        ):
            raise UsageError(f"--recipe {pattern}: there is no such recipe; there are {', '.join(RECIPES)}")


def plans(profile: Profile, patterns: Sequence[str] = ()) -> list[Plan]:
    """Candidates for a profile, its preferred engine first; with patterns, those whose name matches one."""
    accelerator = profile.accelerator.kind if profile.accelerator else None
    return [
        _plan(profile, recipe, profile.engines[engine])
        for engine in profile.engines
        for recipe in RECIPES.values()
        if recipe.engine == engine
        and recipe.precision in profile.precisions
        and (recipe.remainder == "fp32" or recipe.remainder in profile.precisions)
        and (not recipe.isa or set(recipe.isa) & set(profile.isa))
        and accelerator in recipe.accelerators
        and (not patterns or any(fnmatchcase(recipe.name, pattern) for pattern in patterns))
    ]


def as_is(
    profile: Profile, engine: str, precision: Precision, what: str, patterns: Sequence[str] = ()
) -> list[Plan]:
    """The one candidate of a source in `engine`'s own format, and for each other engine why it gets none."""
    found = []
    for name, versions in profile.engines.items():
        plan = _plan(profile, Recipe(f"{name}/as-is", name, precision, AS_IS), versions)
        if patterns and not any(fnmatchcase(plan.name, pattern) for pattern in patterns):
            continue
        obstacle = ""
        if name != engine:
            obstacle = f"the source is {what}, which only {engine} reads"
        elif precision not in profile.precisions:
            obstacle = (
                f"the source computes in {precision}; {profile.name} takes {', '.join(profile.precisions)}"
            )
        found.append(replace(plan, obstacle=obstacle))
    return found


def threads_for(profile: Profile) -> int:
    return min(profile.cores, MAX_THREADS)


def _plan(profile: Profile, recipe: Recipe, versions: str) -> Plan:
    quantization = profile.quantization
    accelerator = profile.accelerator.kind if profile.accelerator else ""
    has_int8_weights = recipe.precision == "int8" and recipe.scheme != AS_IS
    is_int8 = has_int8_weights and recipe.scheme != "weights"
    constraints = Constraints(
        symmetric_activations=is_int8 and quantization.symmetric_activations,
        per_channel=has_int8_weights and quantization.per_channel,
        reduce_range=is_int8 and quantization.reduce_range,
        accelerator=accelerator,
        vela=_vela(profile),
        # ONNX Runtime's Arm kernels multiply signed by signed, its x86 ones unsigned by signed.
        signed_activations=is_int8 and recipe.engine == "onnxruntime" and profile.arch == "aarch64",
    )
    options = _options(recipe)
    judged = dict(options)
    notes: list[str] = []
    if accelerator == NPU:
        options = {
            "device": "NPU",
            **({"INFERENCE_PRECISION_HINT": "f16"} if recipe.precision == "fp16" else {}),
        }
        judged = {"device": "CPU", "INFERENCE_PRECISION_HINT": "f32"}
        notes.append(
            "judged on OpenVINO's CPU device: there is no NPU here, and no blob was compiled for one"
        )
    return Plan(
        recipe,
        constraints,
        versions,
        options,
        judged,
        threads_for(profile),
        tuple(notes),
        static_shapes_only=quantization.static_shapes_only,
    )


def _vela(profile: Profile) -> VelaConfig | None:
    unit = profile.accelerator
    if unit is None or unit.kind != ETHOS:
        return None
    return VelaConfig(unit.config, unit.system_config, unit.memory_mode)


# What each recipe sets at load time. OpenVINO on a CPU with bf16 or AMX computes float models in bf16 unless told.
def _options(recipe: Recipe) -> dict[str, Option]:
    if recipe.engine == "onnxruntime":
        return {"graph_optimization_level": "all"}
    if recipe.engine == "openvino":
        is_bf16 = "bf16" in (recipe.precision, recipe.remainder)
        return {"INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32"}
    return {}
