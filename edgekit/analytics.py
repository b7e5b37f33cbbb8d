"""Libraries that tell their makers of each use, switched off: an engine computes here, and nobody hears of it.

Each is switched off in the way that the library itself provides for. Call it before any of them is imported; what a
process has loaded already stays as it is.
"""

import os
import sys

# ONNX Runtime 1.32 also writes a session id (.ses) into the temporary folder of whoever imports it.
# NNCF 3.4 takes this as a run in CI, of which it tells nothing.
_VARIABLES = ("ORT_DISABLE_TELEMETRY", "NNCF_CI")

# openvino 2026.4 imports this in `openvino/__init__.py` and asks an analytics service on the web for a connection: it
# knows no variable against that but those of CI services, and reads its opt-out file in the user's home only. Where
# the module cannot be imported it takes a stub of its own (openvino/tools/ovc/telemetry_stub.py), as it does where the
# package is not installed.
_MODULE = "openvino_telemetry"


def switch_off() -> None:
    """In this process; the variables in its children too."""
    for name in _VARIABLES:
        os.environ.setdefault(name, "1")
    sys.modules.setdefault(_MODULE, None)  # type: ignore[arg-type]  # None: importing it raises ImportError (import system reference)
