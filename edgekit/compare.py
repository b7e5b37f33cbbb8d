"""What differs between two bundles: manifest fields, files, tensors, and the figures of their evidence. Pure; no model is
loaded.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from edgekit.evidence import BuildEvidence
from edgekit.manifest import Manifest
from edgekit.rowset import described

# Compared on their own, below.
_APART = ("files", "inputs", "outputs")


class Change(msgspec.Struct, frozen=True):
    """One difference; `None` where a side does not have it."""

    what: str
    before: Any
    after: Any


class Difference(msgspec.Struct, frozen=True):
    """`fields` by dotted path, `tensors` and `files` by name; files are told by size and the start of their hash.

    `figures` are those of the evidence beside the two, equal ones too: a `Figure` keeps how it came about.
    """

    fields: tuple[Change, ...]
    tensors: tuple[Change, ...]
    files: tuple[Change, ...]
    figures: tuple[Change, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.fields or self.tensors or self.files)


def difference(
    before: Manifest,
    after: Manifest,
    evidence: tuple[BuildEvidence | None, BuildEvidence | None] = (None, None),
) -> Difference:
    """What a device would see change from one to the other, and what their builds measured."""
    return Difference(
        fields=tuple(_changes(_fields(before), _fields(after))),
        tensors=tuple(_changes(_tensors(before), _tensors(after))),
        files=tuple(_changes(_files(before), _files(after))),
        figures=tuple(_side_by_side(*map(_figures, evidence))),
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for what in dict.fromkeys((*before, *after)):
        if before.get(what) != after.get(what):
            yield Change(what, before.get(what), after.get(what))


def _side_by_side(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for what in dict.fromkeys((*before, *after)):
        yield Change(what, before.get(what), after.get(what))


def _figures(build: BuildEvidence | None) -> dict[str, Any]:
    """What the evidence of one bundle says of it, by name; nothing without evidence."""
    if build is None:
        return {}
    own = next((item for item in build.candidates if item.recipe == build.recipe), None)
    found: dict[str, Any] = {"recipe": build.recipe, "status": own.status if own else None}
    found[build.metric] = build.accuracy
    if own is not None:
        found |= {"drop": own.accuracy_drop, "parity": own.parity}
    found |= {
        "latency p50 (ms)": build.latency_p50_ms,
        "latency p95 (ms)": build.latency_p95_ms,
        "memory (MB)": build.memory_mb,
    }
    for output in own.outputs if own else ():
        found[f"output {output.name}, {output.metric}"] = output.value
        found[f"output {output.name}, SNR (dB)"] = output.snr_db
    found |= {f"budget {name}": outcome for name, outcome in build.budgets.items()}
    return {name: value for name, value in found.items() if value is not None}


def _fields(manifest: Manifest) -> dict[str, Any]:
    plain = msgspec.to_builtins(manifest)
    plain["preprocess"] = {
        name: [step.describe() for step in steps] for name, steps in manifest.preprocess.items()
    }
    plain["postprocess"] = [step.describe() for step in manifest.postprocess]
    return dict(_flat("", {key: value for key, value in plain.items() if key not in _APART}))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, part)
    else:
        yield prefix, value


def _tensors(manifest: Manifest) -> dict[str, str]:
    inputs = {f"input {spec.name}": spec.describe().partition(": ")[2] for spec in manifest.inputs}
    return inputs | {f"output {name}": told for name, told in described(manifest).items()}


def _files(manifest: Manifest) -> dict[str, str]:
    return {entry.path: f"{entry.size} bytes, sha256 {entry.sha256[:12]}…" for entry in manifest.files}
