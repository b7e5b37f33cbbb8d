"""`edgekit.lock`: what each target was built with, so that another build makes the same bundles.

Always true
 1. A lock is used only if model, data, project, profile and tools are what they were; what changed is named.
 2. Only the locked recipes are made again. What is then measured is measured anew: no figure is copied.
 3. The same choice gives the same file: keys are sorted, and it holds no time and no path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from converters.keep.artifacts import key
from converters.recipes.recipes import PLAIN, Loading, Plan, Tuning
from converters.source.project import Project
from edgekit.errors import LockError
from edgekit.manifest import Contract, Option
from edgekit.profile import Profile

FORMAT = 1
NOTE = "the recipe comes from edgekit.lock: no other was tried"


class LockedBundle(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bundle; the target's first is its pick."""

    recipe: str
    digest: str
    tuning: Tuning = PLAIN
    # Fewer than the profile's, where they were faster; 0 is the profile's.
    threads: int = 0
    # Of another layout in memory, where that was faster.
    layout: dict[str, Option] = {}


class LockedTarget(msgspec.Struct, frozen=True):
    """`inputs` are digests of what decided the choice, by what they are; `tools` versions by name."""

    inputs: dict[str, str]
    tools: dict[str, str]
    bundles: tuple[LockedBundle, ...]


class Lock(msgspec.Struct, frozen=True):
    format: int
    targets: dict[str, LockedTarget]


def beside(project: Project, out: Path) -> Path:
    """Beside the project file under its name; a build from flags alone has it in its output folder."""
    where = Path(project.where)
    return where.with_suffix(".lock") if where.suffix == ".toml" else out / "edgekit.lock"


def read(path: Path) -> Lock | None:
    """None if there is none. Raises: LockError if it cannot be read."""
    if not path.is_file():
        return None
    try:
        lock = msgspec.json.decode(path.read_bytes(), type=Lock)
    except msgspec.DecodeError as error:
        raise LockError(f"{path}: cannot be read ({error}); write it anew with --lock") from error
    if lock.format != FORMAT:
        raise LockError(f"{path}: format {lock.format} is not known here; write it anew with --lock")
    return lock


def encode(targets: Mapping[str, LockedTarget]) -> bytes:
    data = msgspec.json.encode(Lock(FORMAT, dict(targets)), order="deterministic")
    return msgspec.json.format(data, indent=2) + b"\n"


def inputs(
    project: Project,
    profile: Profile,
    contract: Contract,
    *,
    source_sha256: str,
    calibration: str,
    evaluation: str,
) -> dict[str, str]:
    """Digests of what a target's choice depends on; `calibration` and `evaluation` are the data's."""
    asked: dict[str, Any] = msgspec.to_builtins(project.file)
    del asked["targets"], asked["contract"], asked["code"], asked["model"]["source"]
    # How it is built; what it is built of and to is the same. A project without it has the lock that it always had.
    del asked["model"]["weights_apart_mb"]
    # What it is judged on changes no bundle; a project without one has the lock that it always had.
    guard = asked.pop("guard")
    if guard is not None:
        asked["guard"] = {name: value for name, value in guard.items() if name != "unfamiliar"}
    # Paths may differ from machine to machine; the data is known by its contents.
    asked["data"] = {name: value for name, value in asked["data"].items() if name in ("metric", "seed")}
    return {
        "model": source_sha256,
        "calibration data": calibration,
        "evaluation data": evaluation,
        "project": key({"file": asked | {"data": _without_path(asked["data"])}}),
        "contract": key({"contract": msgspec.to_builtins(contract)}),
        "profile": key({"profile": msgspec.to_builtins(profile)}),
    }


def changes(locked: LockedTarget, now: Mapping[str, str], tools: Mapping[str, str]) -> list[str]:
    """What is not as it was, in words."""
    told = [f"the {name}" for name, digest in now.items() if locked.inputs.get(name) != digest]
    return told + [
        f"{name} ({locked.tools.get(name, 'absent')}, now {tools.get(name, 'absent')})"
        for name in sorted({*locked.tools, *tools})
        if locked.tools.get(name) != tools.get(name)
    ]


def plans(locked: LockedTarget, known: Sequence[Plan]) -> list[Plan]:
    """The locked candidates' plans, with their tuning. Raises: LockError for a recipe that is gone."""
    by_recipe = {plan.recipe.name: plan for plan in known}
    found: list[Plan] = []
    for item in locked.bundles:
        name = item.recipe.partition("+")[0]
        if name not in by_recipe:
            raise LockError(
                f"edgekit.lock: the profile has no recipe {name} now; write the lock anew with --lock"
            )
        plan = by_recipe[name]
        way = Loading(item.threads or plan.threads, item.layout)
        found.append(replace(plan, tuning=item.tuning).loaded(way))
    return found


def differences(locked: LockedTarget, made: Sequence[LockedBundle]) -> list[str]:
    """Bundles whose bytes, or whose choice, are not what the lock says."""
    wanted = {item.recipe: item.digest for item in locked.bundles}
    have = {item.recipe: item.digest for item in made}
    return [
        f"{name} is {have.get(name, 'not built')}, edgekit.lock says {wanted.get(name, 'nothing of it')}"
        for name in sorted({*wanted, *have})
        if wanted.get(name) != have.get(name)
    ]


def _without_path(table: Mapping[str, Any]) -> dict[str, Any]:
    """A metric of the user's own is known by its name, not by where its file lies."""
    return {name: Path(value).name if isinstance(value, str) else value for name, value in table.items()}
