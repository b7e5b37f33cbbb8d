"""Which files decide what a project builds.

Always true
 1. What a project's own code reads cannot be seen from here: without `[code] reads` such a project has no such list.
 2. What a build writes (its output folder, Python's byte code) is no input, even inside a folder that is one.

Loads no engine; `onnx` only for a model whose weights may lie in other files.
"""

import glob
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from converters.source import code
from converters.source.project import Project
from edgekit.errors import ProjectError

HINT = (
    "this build ran code of yours; name what that code reads in the project file ([code] reads = ['*.py', 'data'])"
    " and a second build of the same takes a moment"
)
_BYTE_CODE = "__pycache__"


def has_code(project: Project) -> bool:
    return bool(_code(project))


def files(project: Project, out: Path) -> dict[str, list[Path]] | None:
    """The files by what names them; None if the project runs code and does not say what that code reads.

    `out` is the folder that builds write into. Raises: ProjectError if a pattern of `[code] reads` matches nothing.
    """
    own, reads = _code(project), project.file.code.reads
    if own and not reads:
        return None
    found = {"code": own} if own else {}
    for pattern in reads:
        found[pattern] = _matching(project, pattern, out.resolve())
    if not code.is_reference(project.model.source):
        # A file that the model names and that is not there: reading the model says so better than this could.
        found["source"] = [path for path in _model(project.folder / project.model.source) if path.is_file()]
    for text in _texts(project):
        path = project.folder / text
        if path.is_dir():
            found[text] = sorted(path.glob("*.npz"))
        elif path.is_file():
            found[text] = [path]
    return found


def installed() -> list[str]:
    """Names and versions of all installed packages, as their folders have them: what a project's code may import."""
    return sorted({entry.name for path in sys.path for entry in Path(path).glob("*.dist-info")})


def _texts(project: Project) -> list[str]:
    values = list(msgspec.to_builtins(project.file.data).values())
    if project.file.guard is not None:
        values.append(project.file.guard.unfamiliar)
    return [value for value in values if isinstance(value, str) and value]


def _code(project: Project) -> list[Path]:
    """Files of the user's that a build runs."""
    texts = filter(code.is_reference, (project.model.source, *_texts(project)))
    return [code.split(text, project.folder)[0] for text in texts]


def _matching(project: Project, pattern: str, out: Path) -> list[Path]:
    texts = glob.glob(pattern, root_dir=project.folder, recursive=True)  # noqa: PTH207  # Path.glob refuses '.' and '/data'
    named = [project.folder / text for text in texts]
    below = [each for path in named for each in (path.rglob("*") if path.is_dir() else [path])]
    found = {
        path.resolve()
        for path in below
        if path.is_file() and _BYTE_CODE not in path.parts and not path.resolve().is_relative_to(out)
    }
    if not found:
        raise ProjectError(f"{project.where}: code.reads: {pattern!r} matches no file in {project.folder}")
    return sorted(found)


def _model(path: Path) -> Iterator[Path]:
    """A model's file and the others that it names or that belong to it."""
    yield path
    weights = path.with_suffix(".bin")
    if path.suffix.lower() == ".xml" and weights.is_file():
        yield weights
    if path.suffix.lower() == ".onnx" and _names_files(path):
        from converters.source import onnx_files

        yield from onnx_files.of_model(path)[1:]


def _names_files(path: Path) -> bool:
    """Whether weights may lie in other files."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"location") >= 0
