"""Every state that a power cut may leave, at every point of a trace, with what had been promised by then."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cut_device import Mark
from cut_disk import Disk, Tree, digest

from device_agent.durable import Operation

# What is written anew, or lies outside durable's promises (SQLite orders its own writes; `test_cut_spool` cuts those).
_IGNORED = ("status.json", ".status.json.new")


class State(NamedTuple):
    """`point` is how many operations had been made when the power was cut."""

    point: int
    digest: str
    tree: Tree
    promises: dict[tuple[str, ...], Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.digest, repr(sorted(self.promises.items(), key=repr))


def operations(trace: list[Operation | Mark], root: Path) -> list[int]:
    """Where in the trace this folder's disk is changed."""
    disk = Disk(root)
    return [n for n, entry in enumerate(trace) if isinstance(entry, Operation) and disk.concerns(entry)]


def states(trace: list[Operation | Mark], root: Path, without: int | None = None) -> Iterator[State]:
    """Each state once per set of promises; `without` leaves out one operation of the trace.

    After each operation the promises are those made before it. What was promised after the last one, and before the
    recorded life's own cuts, is held against the disk too.
    """
    disk = Disk(root)
    promises: dict[tuple[str, ...], Any] = {}
    seen: set[tuple[str, str]] = set()
    point = 0
    for number, entry in enumerate([*trace, Mark(("power",), "the end")]):
        if isinstance(entry, Mark) and entry.what != ("power",):
            promises[entry.what] = (entry.value,) if entry.what == ("serves",) else entry.value
            continue
        if isinstance(entry, Operation):
            if number == without or not disk.concerns(entry) or entry.path.name in _IGNORED:
                continue
            _expect(promises, entry)
            disk.apply(entry)
            point += 1
        for tree in disk.after_cut():
            found = State(point, digest(tree), tree, dict(promises))
            if found.key not in seen:
                seen.add(found.key)
                yield found


def _expect(promises: dict[tuple[str, ...], Any], entry: Operation) -> None:
    """What the operation itself takes back of what was promised, whether or not it is on the medium yet."""
    if entry.kind == "symlink" and entry.path.name == ".current.new" and ("serves",) in promises:
        promises["serves",] = (*promises["serves",], entry.detail)
    if entry.kind == "unlink" and entry.path.name == "current":
        promises.pop(("serves",), None)
    if entry.kind == "unlink" and entry.path.parent.name == "fetch":
        promises.pop(("fetched", entry.path.name[:64]), None)
