"""LiteRT's interpreter, for a look at a model that is being made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter

from edgekit.quiet import quietly

SIGNATURE = "serving_default"


def preserving(path: Path) -> Interpreter:
    """An interpreter that keeps every tensor, so that it can be read after a run."""

    def make() -> Interpreter:
        interpreter = Interpreter(model_path=str(path), num_threads=2, experimental_preserve_all_tensors=True)
        interpreter.allocate_tensors()
        return interpreter

    return quietly(make)


def run_once(interpreter: Interpreter, feed: Mapping[str, Any]) -> None:
    """One run by argument names."""
    # ai-edge-quantizer 0.10 renames an input behind which it converts.
    indices = {
        entry["name"].removesuffix("_quant").removesuffix("_dequant"): entry["index"]
        for entry in interpreter.get_input_details()
    }
    for name, array in feed.items():
        interpreter.set_tensor(indices[f"{SIGNATURE}_{name}"], array)
    # What a fused recurrent layer keeps is zero before each run, as it is in a bundle.
    interpreter.reset_all_variables()
    interpreter.invoke()


def loaded_once(content: bytes) -> None:
    """Raises: RuntimeError, ValueError if no interpreter takes the model."""

    def load() -> None:
        Interpreter(model_content=content, num_threads=1).allocate_tensors()

    quietly(load)
