"""Whole builds, kept: the second build of the same input copies what the first one made and says so.

Always true
 1. A kept build is used only if nothing that decides it has changed: the model's and the data's bytes, the project,
    the profiles, the options, EdgeKit's own code, the versions of all tools, and the machine that measured.
 2. Figures from a kept build carry a note with the time at which they were measured.
 3. A build that runs the user's code is kept only where the project says what that code reads (`[code] reads`), and
    only while no installed package changed.
 4. Only builds that met their contract and had the time for all they tried are kept; an entry is whole or absent, and what is damaged is built anew.
 5. A build that was finished is not lost because it could not be kept.

Loads no engine and no converter: that is most of what a second build would take.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import converters
import edgekit
from converters.keep import inputs, lock, room
from converters.keep.artifacts import Cache, key, place
from converters.keep.files import place_whole, write_whole
from converters.outcome import Options, Outcome
from converters.recipes import facts
from converters.sheet import Sheet
from converters.source import linking
from converters.source.project import Project
from edgekit import detect, evidence
from edgekit.plain import plain
from edgekit.profile import Profile

ENTRY = "build.json"
REPORT = "report.html"
# Beside those of the engines.
_TOOLS = ("ethos-u-vela", "numpy", "onnx", "onnxslim", "optuna", "torch")


class Entry(msgspec.Struct, frozen=True):
    """`document` with paths relative to the output folder; `files` lie beside this entry under the same names."""

    built: str
    document: dict[str, Any]
    files: tuple[str, ...]
    digests: dict[str, str]


def fingerprint(
    project: Project, profiles: Sequence[Profile], options: Options, emulator: Path
) -> str | None:
    """The key of everything that decides a build; None where that cannot be told without running it. `emulator` is the
    file that says which one is set up, if any.

    Raises: ProjectError if what the project's code is said to read is not there.
    """
    if options.cache is None or options.lock != "use":
        return None
    file = lock.beside(project, options.out)
    files = inputs.files(project, options.out)
    if files is None:
        return None
    asked = {name: value for name, value in asdict(options).items() if name not in ("out", "cache", "jobs")}
    return key(
        {
            "project": msgspec.to_builtins(project.file),
            "inputs": {name: _hashed(paths) for name, paths in files.items()},
            "profiles": msgspec.to_builtins(list(profiles)),
            "options": asked,
            "lock": _hashed([file] if file.is_file() else []),
            "packages": inputs.installed() if inputs.has_code(project) else [],
            "code": _hashed(_own_code()),
            "engines": {name: facts.foreign_digest(name) for each in profiles for name in each.engines},
            "tools": {name: _version(name) for name in _tools(profiles)},
            "python": platform.python_version(),
            "host": [
                detect.cpu_name(),
                *detect.isa(),
                platform.machine(),
                str(len(os.sched_getaffinity(0))),
            ],
            "emulator": _hashed([emulator] if emulator.is_file() else []),
        }
    )


def find(name: str, options: Options, cache: Cache) -> Outcome | None:
    """The kept build of that name, written into `options.out`; None if there is none that can be read.

    Raises: OSError if the output folder cannot be written.
    """
    assert options.cache is not None
    folder = options.cache / room.BUILDS / name
    with room.lock(options.cache, alone=False):
        try:
            entry = _read(folder) if folder.is_dir() else None
        except (OSError, ValueError) as error:
            cache.tell(f"a kept build is damaged and made anew ({name[:12]}…: {error})")
            return None
        if entry is None:
            return None
        note = f"nothing changed since the build of {entry.built}: its bundles and figures are used again"
        for file in entry.files:
            if not file.endswith(".evidence.json"):
                place_whole(options.out / file, folder / file)
                continue
            told = evidence.decode((folder / file).read_bytes())
            predicate = msgspec.structs.replace(told.predicate, notes=(*told.predicate.notes, note))
            write_whole(
                options.out / file, evidence.encode(msgspec.structs.replace(told, predicate=predicate))
            )
    sheets = tuple(
        msgspec.structs.replace(sheet, notes=(*sheet.notes, note))
        for sheet in msgspec.convert(entry.document["profiles"], tuple[Sheet, ...])
    )
    document = {
        **entry.document,
        "bundles": [
            {**row, "path": str(options.out / row["path"]), "notes": [*row["notes"], note]}
            for row in entry.document["bundles"]
        ],
        "profiles": msgspec.to_builtins(sheets, enc_hook=plain),
    }
    return Outcome(document, sheets, (), options.out / REPORT)


def _read(folder: Path) -> Entry:
    """An entry whose files are whole. Raises: OSError; ValueError for one that is not as it was written."""
    entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
    for file in entry.files:
        if _hashed_one(folder / file) != entry.digests.get(file):
            raise ValueError(f"{file} is not what was kept")
    room.touch(folder)
    return entry


def keep(name: str, outcome: Outcome, options: Options, cache: Cache) -> None:
    """Keep a build that met its contract and had time for all; a cache that cannot be written costs a warning."""
    if not outcome.missed and not outcome.cut:
        cache.keeping(lambda: _keep(name, outcome, options))


def _keep(name: str, outcome: Outcome, options: Options) -> None:
    """Raises: OSError."""
    assert options.cache is not None
    files = [Path(row["path"]).relative_to(options.out) for row in outcome.document["bundles"]]
    files += [evidence.beside(path) for path in files]
    rows = [
        {**row, "path": str(Path(row["path"]).relative_to(options.out))}
        for row in outcome.document["bundles"]
    ]
    entry = Entry(
        built=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        document={**outcome.document, "bundles": rows},
        files=tuple(map(str, files)),
        digests={str(path): _hashed_one(options.out / path) for path in files},
    )
    root = options.cache / room.BUILDS
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        for path in files:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            linking.put(options.out / path, partial / path)
        (partial / ENTRY).write_bytes(msgspec.json.encode(entry, enc_hook=plain))
        with room.lock(options.cache, alone=True):  # nobody reads the old one meanwhile
            shutil.rmtree(root / name, ignore_errors=True)  # a build that was asked to measure again
            # Another build may keep the same inputs at the same time; one of the two is enough.
            place(partial, root / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hashed_one(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_code() -> Iterator[Path]:
    """A change of EdgeKit itself may change what it builds, whatever its version says."""
    for package in (converters, edgekit):
        root = Path(str(package.__file__)).parent
        yield from sorted(path for path in root.rglob("*.py"))


def _tools(profiles: Sequence[Profile]) -> list[str]:
    """EdgeKit's own engines all of them, since a source may be opened by one that no profile has."""
    known = [
        *facts.own(),
        *(facts.of(name) for profile in profiles for name in profile.engines if facts.has(name)),
    ]
    return sorted({*_TOOLS, *(name for engine in known for name in engine.tools)})


def _hashed(paths: Iterator[Path] | Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
