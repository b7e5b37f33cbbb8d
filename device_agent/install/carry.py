"""What is there, and the steps of a plan done, below a root: `/` itself, or a tree that becomes an image."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from device_agent import durable
from device_agent.install import files
from device_agent.install.plan import Keep, Link, Remove, Run, Step, Write
from edgekit.errors import NotPossibleError, ToolFailedError

TIMEOUT_S = 120.0
# What `userdel` answers where there is no such user (userdel(8)): what should be gone is gone.
_NO_SUCH_USER = 6


class Done(msgspec.Struct, frozen=True):
    """`what` was done, to which file or by which words; `detail` says why something was left."""

    what: str
    subject: str
    detail: str = ""


def look(root: Path, paths: Sequence[PurePosixPath]) -> dict[PurePosixPath, bytes | None]:
    """The files below `root`; folders and links count as there, with no bytes."""
    found: dict[PurePosixPath, bytes | None] = {}
    for path in paths:
        place = at(root, path)
        try:
            found[path] = place.read_bytes() if place.is_file() and not place.is_symlink() else None
        except OSError as error:
            raise NotPossibleError(f"{place} cannot be read ({error.strerror}); run this as root") from error
        if found[path] is None and (place.is_symlink() or place.is_dir()):
            found[path] = b""
    return found


def at(root: Path, path: PurePosixPath | str) -> Path:
    return root / str(path).lstrip("/")


def carry_out(root: Path, steps: Sequence[Step]) -> Iterator[Done]:
    """One after the other. Raises: ToolFailedError with what the program said; NotPossibleError for a file."""
    for step in steps:
        try:
            yield _do(root, step)
        except OSError as error:
            where = error.filename or root
            raise NotPossibleError(f"{where}: {error.strerror}; nothing after it was done") from error


def _do(root: Path, step: Step) -> Done:
    match step:
        case Keep():
            return Done("unchanged", step.path)
        case Write():
            place = at(root, step.path)
            durable.make_folder(place.parent, mode=0o755)
            durable.write(place, step.data, step.mode)
            return Done(step.was, step.path)
        case Remove():
            place = at(root, step.path)
            durable.remove(place)
            durable.sync_folder(place.parent)
            return Done("removed", step.path)
        case Link():
            place = at(root, step.path)
            durable.make_folder(place.parent, mode=0o755)
            durable.point(place, step.target)
            return Done("linked", step.path)
        case Run():
            return _run(root, step)


def _run(root: Path, step: Run) -> Done:
    said = " ".join(step.words)
    program = shutil.which(step.words[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        if step.can_wait and root != Path("/"):
            return Done("left", said, f"{step.words[0]} is not here; the first boot does it")
        raise ToolFailedError(f"{step.words[0]} is not installed here; what is left to do is: {said}")
    done = subprocess.run(
        [program, *step.words[1:]], capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if step.words[0] == "userdel" and done.returncode == _NO_SUCH_USER:
        return Done("left", said, "there is no such user")
    if done.returncode != 0:
        raise ToolFailedError(
            f"{said} ended with exit code {done.returncode}: {done.stderr.strip() or 'no word'}"
        )
    return Done("ran", said)


def exposure(unit: str) -> float | None:
    """What `systemd-analyze security` counts of the unit, 0 (best) to 10; None where it is not installed or too old."""
    if shutil.which("systemd-analyze") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        # The program need not be here, nor on this machine at all.
        place = Path(folder) / files.UNIT.name
        place.write_text(re.sub(r"(?<=^ExecStart=)\S+", "/bin/true", unit, flags=re.MULTILINE))
        words = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(place)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    return float(found[1]) if found else None
