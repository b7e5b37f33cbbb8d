"""Whole builds, kept: the second build of the same input copies what the first one made and says so.

Always true
 1. A kept build is used only if nothing that decides it has changed: the model's and the data's bytes, the project,
    the profiles, the options, EdgeKit's own code, the versions of all tools, and the machine that measured.
 2. Figures from a kept build carry a note with the time at which they were measured.
 3. A build that runs the user's code is kept only where the project says what that code reads (`[code] reads`), and
    only while no installed package changed.
 4. Only builds that met their contract are kept; an entry is whole or absent.

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
from converters.keep import inputs, lock
from converters.keep.artifacts import key
from converters.keep.files import write_whole
from converters.outcome import Options, Outcome
from converters.sheet import Sheet
from converters.source.project import Project
from edgekit import detect, evidence
from edgekit.plain import plain
from edgekit.profile import Profile

FOLDER = "builds"
# Beside them, what searches tried (rounds/trials.py).
SEARCHES = "searches"
ENTRY = "build.json"
REPORT = "report.html"
_TOOLS = (
    "ai-edge-litert", "ai-edge-quantizer", "ethos-u-vela", "litert-torch", "nncf", "numpy", "onnx", "onnxruntime",
    "onnxslim", "openvino", "optuna", "torch",
)  # fmt: skip


class Entry(msgspec.Struct, frozen=True):
    """`document` with paths relative to the output folder; `files` lie beside this entry under the same names."""

    built: str
    document: dict[str, Any]
    files: tuple[str, ...]


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
            "tools": {name: _version(name) for name in _TOOLS},
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


def find(name: str, options: Options) -> Outcome | None:
    """The kept build of that name, written into `options.out`; None if there is none."""
    assert options.cache is not None
    folder = options.cache / FOLDER / name
    if not (folder / ENTRY).is_file():
        return None
    entry = msgspec.json.decode((folder / ENTRY).read_bytes(), type=Entry)
    note = f"nothing changed since the build of {entry.built}: its bundles and figures are used again"
    for file in entry.files:
        data = (folder / file).read_bytes()
        if file.endswith(".evidence.json"):
            told = evidence.decode(data)
            predicate = msgspec.structs.replace(told.predicate, notes=(*told.predicate.notes, note))
            data = evidence.encode(msgspec.structs.replace(told, predicate=predicate))
        write_whole(options.out / file, data)
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


def keep(name: str, outcome: Outcome, options: Options) -> None:
    """Keep a build that met its contract."""
    assert options.cache is not None
    if outcome.missed:
        return
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
    )
    root = options.cache / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=root))
    try:
        for path in files:
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.out / path, partial / path)
        (partial / ENTRY).write_bytes(msgspec.json.encode(entry, enc_hook=plain))
        shutil.rmtree(root / name, ignore_errors=True)  # a build that was asked to measure again
        partial.rename(root / name)
    except OSError:
        # Another build kept the same inputs at the same time; one of the two is enough.
        if not (root / name).is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _own_code() -> Iterator[Path]:
    """A change of EdgeKit itself may change what it builds, whatever its version says."""
    for package in (converters, edgekit):
        root = Path(str(package.__file__)).parent
        yield from sorted(path for path in root.rglob("*.py"))


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
