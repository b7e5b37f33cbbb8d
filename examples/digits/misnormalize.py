"""Make a bad release honestly: a copy of a bundle whose pre-processing divides by the wrong constant.

The kind of mistake a hand edit makes. The file is a proper bundle and gets properly signed; only the golden inputs,
which are stored raw, can tell on the device that the pre-processing no longer fits the network.
"""

from pathlib import Path

import msgspec

from edgekit import bundle


def misnormalize(source: Path, target: Path, *, version: str, factor: float = 8.0) -> None:
    """Write `target` as version `version` of `source` with its `scale` step multiplied by `factor`."""
    good = bundle.read(source)
    steps = tuple(
        msgspec.structs.replace(step, args={**step.args, "factor": step.args["factor"] * factor})
        if step.op == "scale"
        else step
        for step in good.manifest.preprocess["x"]
    )
    manifest = msgspec.structs.replace(good.manifest, version=version, preprocess={"x": steps})
    bundle.write(target, manifest, {entry.path: good.read(entry.path) for entry in manifest.files})
