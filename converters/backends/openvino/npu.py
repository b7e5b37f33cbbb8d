"""Whether this OpenVINO can compile for Intel's NPU: asked of it, not guessed from files or versions.

The Linux wheels carry the NPU's plugin and not its compiler (openvino 2026.4), so the device compiles and caches.
"""

from functools import cache

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from edgekit.engines.openvino import core

# Meteor Lake's; with a platform named, a compiler needs no device.
PLATFORM = "3720"


@cache
def obstacle() -> str:
    """Why nothing can be compiled for an NPU here, in a line; empty if it can."""
    x = ops.parameter([1, 8], np.float32, name="x")
    model = ov.Model([ops.relu(x)], [x], "probe")
    try:
        core().compile_model(model, "NPU", {"NPU_PLATFORM": PLATFORM})
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
        return lines[0].strip() if lines else "OpenVINO gives no reason"
    return ""


def note() -> str:
    """What a candidate for an NPU tells of its compilation."""
    reason = obstacle()
    if reason:
        return f"compiled on the device and cached there: no NPU compiler answers here ({_without_paths(reason)})"
    return "compiled on the device and cached there"


def _without_paths(reason: str) -> str:
    """Only the names of files: a note is the same on every machine."""
    return " ".join(word.rsplit("/", 1)[-1] for word in reason.split())[:200]
