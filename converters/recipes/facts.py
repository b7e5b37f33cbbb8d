"""The facts of each engine, found by its name: of the folders under `converters/backends`, and of distributions that bring
more (`edgekit.plugins`).

Loads no engine. `converters.backends` is named in text alone: it stands above this room.
"""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from converters.recipes.recipe import EngineFacts
from edgekit.distribution import extra
from edgekit.errors import ToolFailedError
from edgekit.plugins import ADAPTERS, BACKENDS


def names() -> tuple[str, ...]:
    """All engines that candidates can be made for, EdgeKit's own first."""
    return BACKENDS.names()


def has(engine: str) -> bool:
    """Whether candidates can be made for it."""
    return BACKENDS.find(engine) is not None


def own() -> tuple[EngineFacts, ...]:
    """Of the engines that EdgeKit itself brings."""
    return tuple(of(name) for name in BACKENDS.own)


@cache
def of(engine: str) -> EngineFacts:
    """Raises: ToolFailedError if nothing makes candidates for it, or what does so tells something that cannot be."""
    try:
        found: EngineFacts = import_module(f"{package(engine)}.facts").FACTS
    except (ImportError, AttributeError) as error:
        raise ToolFailedError(f"the facts of {engine} cannot be read: {error}") from error
    foreign = [recipe.name for recipe in found.recipes if recipe.engine != engine]
    foreign += [recipe.name for recipe in found.recipes if recipe.name.partition("/")[0] != engine]
    if found.name != engine or foreign:
        raise ToolFailedError(
            f"{package(engine)}.facts is that of {engine}, and speaks of {', '.join(foreign) or found.name}"
        )
    return found


def package(engine: str) -> str:
    """The package with its `facts` and its `backend`. Raises: ToolFailedError if there is none."""
    found = BACKENDS.find(engine)
    if found is None:
        raise ToolFailedError(
            f"nothing here makes candidates for {engine}; that takes a package under the entry point edgekit.backends"
        )
    return found.module


@cache
def tools(engine: str) -> Mapping[str, str]:
    """Versions of what decides the bytes of the engine's artifacts, the distribution that brings the engine among it.

    Raises: ToolFailedError for one that is not installed.
    """
    found = BACKENDS.find(engine)
    brought = (found.distribution,) if found and found.distribution else ()
    try:
        return {name: importlib.metadata.version(name) for name in (*of(engine).tools, *brought)}
    except importlib.metadata.PackageNotFoundError as error:
        raise ToolFailedError(
            f"candidates for {engine} need {error.name}; {extra('build', 'litert-convert')}"
        ) from error


@cache
def foreign_digest(engine: str) -> str:
    """SHA-256 of the Python files of an engine that another distribution brings, which may change under one version; empty
    for EdgeKit's own.
    """
    files = _foreign_code(engine)
    return (
        hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
        if files
        else ""
    )


def _foreign_code(engine: str) -> list[Path]:
    files: list[Path] = []
    for registry in (ADAPTERS, BACKENDS):
        found = registry.find(engine)
        spec = find_spec(found.module) if found and found.distribution else None
        if spec is None:
            continue
        if spec.submodule_search_locations is None:
            files += [Path(spec.origin)] if spec.origin else []
        for place in spec.submodule_search_locations or ():
            files += sorted(Path(place).rglob("*.py"))
    return files
