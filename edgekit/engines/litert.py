"""LiteRT (ai-edge-litert), or tflite-runtime where that is what the device has: the two share one interpreter API.

Options: `delegate`, `xnnpack` (default), `none` for the plain kernels, or an accelerator's library (`_delegates`);
`weights`, `own` (default) or `shared`, which changes no result: operators that read the same weights share what XNNPACK packed
of them, where the installed LiteRT can (`_compiled`), and have their own otherwise; `variables`, `kept` (default) or `reset`: what
operators keep from call to call (a fused LSTM its state) is zero before each. Integer inputs and outputs of a fully quantized model are converted with the scale and zero point that
the model itself carries, so the public tensors stay float32. litert-torch narrows 64-bit tensors to 32 bits, and the
importer gives unsigned ones of 16 bits and more as signed ones, inputs and outputs too: the public types stay, a number
that does not fit is refused.
Source: "LiteRT 8-bit quantization specification": real = (q - zero_point) * scale.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines import _compiled, _delegates
from edgekit.errors import EngineError
from edgekit.manifest import EngineSpec, Option, TensorSpec
from edgekit.tensors import Array

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate

    _DISTRIBUTION = "ai-edge-litert"
except ModuleNotFoundError as absent:
    # Only its absence: why an installed one does not import must not be hidden by the absence of the other.
    if absent.name != "ai_edge_litert":
        raise
    from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate

    _DISTRIBUTION = "tflite-runtime"

_RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "none": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}

# Options beside the delegate's, and their values, the default first.
_CHOICES = {"weights": ("own", "shared"), "variables": ("kept", "reset")}

# numpy adds these before a recurrent kernel runs, for what its loop does in the end: it clears the upper halves of the vector
# registers. XNNPACK's int8 kernels (AVX-512 VNNI, LiteRT 2.3) leave them in use, and LiteRT's recurrent kernels, which are
# SSE, then take 2.7 to 3 times as long: 4.2 ms for 1.4 (256 steps of 128 units, an int8 head behind them).
_ZEROS = np.zeros(64, np.float32)

_NARROWED = {
    (np.dtype(np.int64), np.dtype(np.int32)),
    (np.dtype(np.float64), np.dtype(np.float32)),
    (np.dtype(np.uint16), np.dtype(np.int32)),
    (np.dtype(np.uint32), np.dtype(np.int32)),
    (np.dtype(np.uint64), np.dtype(np.int32)),
}


class LiteRtModel:
    def __init__(
        self,
        interpreter: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        resets: bool = False,
    ) -> None:
        self._interpreter, self._resets = interpreter, resets
        self._inputs = [
            (name, detail["index"], np.dtype(detail["dtype"]), detail)
            for name, detail in _match(interpreter.get_input_details(), inputs).items()
        ]
        public = {spec.name: np.dtype(spec.dtype) for spec in outputs}
        # Without a detail: as the interpreter gives it.
        self._outputs = [
            (name, detail["index"], None if _is_plain(detail, public[name]) else detail, public[name])
            for name, detail in _match(interpreter.get_output_details(), outputs).items()
        ]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        interpreter = self._interpreter
        try:
            for name, index, dtype, detail in self._inputs:
                array = inputs[name]
                interpreter.set_tensor(index, array if array.dtype == dtype else _quantized(array, detail))
            if self._resets:
                interpreter.reset_all_variables()
                np.add(_ZEROS, _ZEROS, out=_ZEROS)
            interpreter.invoke()
            found: dict[str, Array] = {}
            for name, index, other, public in self._outputs:
                array = interpreter.get_tensor(index)
                found[name] = array if other is None else _widened(_dequantized(array, other), public)
            return found
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"litert failed: {error}") from error

    def close(self) -> None:
        del self._interpreter


def _match(details: list[dict[str, Any]], specs: Sequence[TensorSpec]) -> dict[str, dict[str, Any]]:
    by_name = {detail["name"]: detail for detail in details}
    missing = [spec.engine_name for spec in specs if spec.engine_name not in by_name]
    if missing:
        raise EngineError(f"the model has no tensor {', '.join(missing)}; it has {', '.join(by_name)}")
    return {spec.name: by_name[spec.engine_name] for spec in specs}


def _is_plain(detail: dict[str, Any], public: np.dtype[Any]) -> bool:
    """Whether an output is public as the interpreter gives it."""
    scale, _ = detail["quantization"]
    return bool(detail["dtype"] == public and not (scale and np.issubdtype(public, np.integer)))


def _quantized(array: Array, detail: dict[str, Any]) -> Array:
    wanted = detail["dtype"]
    scale, zero_point = detail["quantization"]
    if array.dtype == wanted:
        return array
    if not scale:
        return _narrowed(array, np.dtype(wanted))
    info = np.iinfo(wanted)
    quantized: Array = np.clip(np.rint(array / scale) + zero_point, info.min, info.max).astype(wanted)
    return quantized


def _narrowed(array: Array, wanted: np.dtype[Any]) -> Array:
    """64-bit and unsigned numbers in 32 bits; others as they are. Raises: EngineError if one does not fit."""
    if (array.dtype, wanted) not in _NARROWED:
        return array
    narrow: Array = array.astype(wanted)
    if wanted == np.int32 and not np.array_equal(narrow.astype(np.int64), array):
        raise EngineError(f"litert: the model holds {array.dtype} as int32, and an input does not fit")
    return narrow


def _widened(array: Array, public: np.dtype[Any]) -> Array:
    return array.astype(public) if (public, array.dtype) in _NARROWED else array


def _dequantized(array: Array, detail: dict[str, Any]) -> Array:
    scale, zero_point = detail["quantization"]
    if not scale or not np.issubdtype(array.dtype, np.integer):
        return array
    real: Array = ((array.astype(np.float32) - zero_point) * np.float32(scale)).astype(np.float32)
    return real


def _checked(delegate: str, options: Mapping[str, Option]) -> int | None:
    """How many operators an external delegate must take, if that is said. Raises: EngineError for other options."""
    own = {key for key in options if key.startswith(_delegates.PREFIX)} | {_delegates.EXPECTED}
    known = {"delegate", *_CHOICES, *(own if _delegates.is_external(delegate) else ())}
    is_known = delegate in _RESOLVERS or _delegates.is_external(delegate)
    others = [name for name, values in _CHOICES.items() if options.get(name, values[0]) not in values]
    if not is_known or set(options) - known or others:
        choices = "; ".join(f"{name}, {' or '.join(values)}" for name, values in _CHOICES.items())
        raise EngineError(
            f"litert takes the option delegate, one of {', '.join(_RESOLVERS)} or a library's name, with one"
            f" {_delegates.EXPECTED} and {_delegates.PREFIX}…; {choices}"
        )
    expected = options.get(_delegates.EXPECTED)
    if expected is not None and (isinstance(expected, bool) or not isinstance(expected, int) or expected < 1):
        raise EngineError(f"litert: {_delegates.EXPECTED} is a number of operators, not {expected!r}")
    return expected


class LiteRtEngine:
    name = "litert"

    def version(self) -> str:
        return importlib.metadata.version(_DISTRIBUTION)

    def load(
        self,
        path: Path,
        spec: EngineSpec,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        cache: Path | None,  # noqa: ARG002  # XNNPACK keeps its packed weights in memory
    ) -> LiteRtModel:
        delegate = str(spec.options.get("delegate", "xnnpack"))
        expected = _checked(delegate, spec.options)
        external = [_delegates.load(load_delegate, spec.options)] if delegate not in _RESOLVERS else []
        try:
            interpreter = Interpreter(
                model_path=str(path),
                num_threads=spec.threads or None,
                # What an external delegate leaves is XNNPACK's.
                experimental_op_resolver_type=_RESOLVERS.get(delegate, OpResolverType.AUTO),
                experimental_delegates=external or None,
            )
            if external:
                _delegates.check(interpreter, delegate, expected)
            resets = spec.options.get("variables") == "reset"
            # LiteRT's `CompiledModel` takes no variables.
            if delegate == "xnnpack" and spec.options.get("weights") == "shared" and not resets:
                interpreter = _shared(interpreter, path, spec.threads)
            else:
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"litert cannot load {path.name}: {error}") from error
        return LiteRtModel(interpreter, inputs, outputs, resets=resets)


def _shared(interpreter: Any, path: Path, threads: int) -> Any:
    """The model with its packed weights shared; the interpreter itself where this LiteRT cannot, whatever the reason: it
    gives the same numbers. Raises: RuntimeError, ValueError if the interpreter cannot either.
    """
    try:
        return _compiled.SharedWeights(interpreter, path, threads)
    except (_compiled.AbsentError, RuntimeError, ValueError):
        interpreter.allocate_tensors()
        return interpreter


ENGINE = LiteRtEngine()
