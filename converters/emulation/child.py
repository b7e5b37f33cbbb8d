"""The emulated side: runs under qemu with numpy, msgspec, packaging, the engines and `edgekit`; nothing of `converters`.

    python3 -P child.py try ENGINE…        import these engines once
    python3 -P child.py selftest JOB.json  run a bundle's golden inputs, as many as fit into the time given

Prints JSON lines: progress, and at last what it ran on.
"""

import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgekit import bundle, engines, rows
from edgekit.engines import LoadedBundle
from edgekit.samples import dump_arrays, stacked
from edgekit.selftest import golden_inputs, iter_samples, kept_of, record

AT_HWCAP, AT_HWCAP2 = 16, 26
# Source: Linux, arch/arm64/include/uapi/asm/hwcap.h.
_HWCAP = {"neon": 1, "fp16": 10, "dotprod": 20}
_HWCAP2 = {"i8mm": 13, "bf16": 14}


def isa() -> list[str]:
    """Instruction sets that the emulated kernel tells programs of."""
    library = ctypes.CDLL(None)
    library.getauxval.restype = ctypes.c_ulong
    first, second = library.getauxval(AT_HWCAP), library.getauxval(AT_HWCAP2)
    return [name for name, bit in _HWCAP.items() if first >> bit & 1] + [
        name for name, bit in _HWCAP2.items() if second >> bit & 1
    ]


def selftest(job: dict[str, str | float]) -> None:
    """Write the golden data of as many samples as `budget_s` allows, at least one, to `out`."""
    found = bundle.read(Path(str(job["bundle"])))
    manifest = found.manifest
    with tempfile.TemporaryDirectory(prefix="edgekit-emulated-") as name:
        found.extract(Path(name))
        loaded = LoadedBundle(manifest, Path(name))
        samples = golden_inputs(manifest, Path(name))
        answers: list[dict[str, np.ndarray]] = []
        run = rows.fixed(loaded.run, manifest.sets or ())
        began = time.monotonic()
        runs = iter_samples(run, manifest.admitted, manifest.state, manifest.preprocess, samples)
        for answer, _ in runs:
            answers.append(answer)
            tell({"done": len(answers), "of": len(samples)})
            if time.monotonic() - began > float(job["budget_s"]):
                break
        loaded.close()
    outputs = {spec.name: stacked([row[spec.name] for row in answers]) for spec in manifest.outputs}
    Path(str(job["out"])).write_bytes(
        dump_arrays(record(outputs, kept_of(manifest.selftest), manifest.sets or ()))
    )
    version = engines.get(manifest.engine.name).version()
    tell({"samples": len(answers), "engine_version": version, "isa": isa()})


def tell(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "try":
        tell({"engines": {name: engines.get(name).version() for name in sys.argv[2:]}})
    else:
        selftest(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
