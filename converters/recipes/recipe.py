"""What an engine's folder tells of it: its recipes, and the facts that the rest of a build goes by.

A recipe's name is `engine/scheme-precision`: `fp32`, `f32`, `bf16` and `fp16` compute in that float;
`static-int8` has int8 weights and activations with calibrated ranges (smallest to largest value seen),
`percentile-int8` likewise with the outermost hundredth of a percent of values cut off, `dynamic-int8` has int8
weights and takes activation ranges at run time, `weights-int8` stores weights in eight bits and computes in float,
`static-int16x8` has int8 weights and 16-bit activations. `weights-int8-bf16` computes in bf16 instead of
fp32. `as-is` is a source that came in the engine's own format, and an ONNX file that is quantized already, for ONNX
Runtime; `kept-int8` is such a source as another engine's own reader takes it, with the integers and scales that it has.

Data alone: reading an engine's facts loads no engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekit.manifest import Option
from edgekit.profile import Precision

Scheme = Literal["float", "static", "static16", "percentile", "dynamic", "weights", "as-is", "kept"]
AS_IS: Scheme = "as-is"
KEPT: Scheme = "kept"
# Kinds of accelerator.
NPU = "openvino-npu"
ETHOS = "ethos-u"
DELEGATE = "litert-delegate"
# Instruction sets that compute bf16.
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
# Share of an output's largest value below which a difference is another CPU's rounding.
FLOORS: Mapping[Precision, float] = {"fp32": 1e-4, "bf16": 0.03, "fp16": 0.01, "int8": 0.02}


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
    def is_searched_over(self) -> bool:
        """Whether the search half has a say: not of float32 nor of the source's own file, which are to be the same function."""
        return self.precision != "fp32" and self.scheme != AS_IS

    @property
    def computes(self) -> Precision:
        """The precision of its products."""
        return self.remainder if self.scheme == "weights" else self.precision


@dataclass(frozen=True)
class LoadOptions:
    """What a manifest tells the engine at load time: `always`, and what the precision of the products adds to it or
    replaces.
    """

    always: Mapping[str, Option] = field(default_factory=dict)
    by_precision: Mapping[Precision, Mapping[str, Option]] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> dict[str, Option]:
        return {**self.always, **self.by_precision.get(recipe.computes, {})}


@dataclass(frozen=True)
class Device:
    """An accelerator that the engine drives by itself: how it is loaded there, and how here, where it is judged."""

    options: LoadOptions
    judged: Mapping[str, Option]
    note: str


@dataclass(frozen=True)
class Way:
    """Another way in which a device may run the same bytes: options that replace the judged ones, and environment of
    the process.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineFacts:
    """`FACTS` of an engine's folder. Only `name`, `recipes`, `tools` and `suffix` have to be told.

    recipes             in any order; a profile's precisions, instruction sets and accelerator choose among them
    tools               distributions whose versions decide an artifact's bytes
    suffix              of its model file, in small letters
    options             what its candidates are loaded with
    beside              options that change no output, with which a model leaves the cores to others that run beside it
    devices             accelerators that it drives, by kind
    signed_activations  architectures whose kernels multiply signed by signed
    ways                a self-test's tolerance is the largest difference among these: one thread alone if nothing else
    floors              the least tolerance by precision, as a share of an output's largest value
    emulated            the arm64 wheel that runs under qemu, as a requirement; empty if there is none
    takes_as_is         suffixes of formats, beside its own, of which it runs a file that is quantized already
    reads               suffixes of files in an engine's own format, its own or another's, that its converter makes candidates of
    loads_slowly        precisions whose converter takes seconds to load, which a worker does while the source is read
    source              the module whose `open_file(project, path)` opens a file of that suffix, to ship as it is; empty
                        where such files are no sources
    """

    name: str
    recipes: tuple[Recipe, ...]
    tools: tuple[str, ...]
    suffix: str
    options: LoadOptions = LoadOptions()
    beside: Mapping[str, Option] = field(default_factory=dict)
    devices: Mapping[str, Device] = field(default_factory=dict)
    signed_activations: tuple[str, ...] = ()
    ways: tuple[Way, ...] = (Way(),)
    floors: Mapping[Precision, float] = field(default_factory=lambda: FLOORS)
    emulated: str = ""
    takes_as_is: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    loads_slowly: tuple[Precision, ...] = ()
    source: str = ""
