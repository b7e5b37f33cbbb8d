"""Whose a path is: the supervisor's, or a deployment's worker's. One table for both processes, so they always agree."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["live", "ready", "server", "metrics", "model", "model-ready", "infer", "predict", "unknown"]


@dataclass(frozen=True)
class Target:
    """What a path means; `deployment` and `version` are empty where it names none."""

    kind: Kind
    deployment: str = ""
    version: str = ""

    @property
    def is_workers(self) -> bool:
        return self.kind in ("model", "model-ready", "infer", "predict")

    @property
    def method(self) -> str:
        return "POST" if self.kind in ("infer", "predict") else "GET"


_FIXED: dict[tuple[str, ...], Kind] = {
    ("v2",): "server",
    ("v2", "health", "live"): "live",
    ("v2", "health", "ready"): "ready",
    ("metrics",): "metrics",
    ("predict",): "predict",
}
# What may follow /v2/models/NAME and /v2/models/NAME/versions/VERSION.
_OF_MODEL: dict[tuple[str, ...], Kind] = {(): "model", ("ready",): "model-ready", ("infer",): "infer"}


def target_of(path: str, deployments: tuple[str, ...]) -> Target:
    """The target of a request path. `/predict` alone means the only deployment of a device that has one."""
    parts = tuple(path.strip("/").split("/"))
    if parts in _FIXED:
        kind = _FIXED[parts]
        only = deployments[0] if kind == "predict" and len(deployments) == 1 else ""
        return Target(kind, only)
    match parts:
        case ("predict", name):
            return Target("predict", name)
        case ("v2", "models", name, "versions", version, *rest) if version and tuple(rest) in _OF_MODEL:
            return Target(_OF_MODEL[tuple(rest)], name, version)
        case ("v2", "models", name, *rest) if tuple(rest) in _OF_MODEL:
            return Target(_OF_MODEL[tuple(rest)], name)
    return Target("unknown")
