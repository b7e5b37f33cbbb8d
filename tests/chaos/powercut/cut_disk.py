"""What a disk may hold after the power was cut: a model of POSIX files and folders under recorded operations.

The recorder (`device_agent.durable.watched`) gives the operations of the real agent. `Disk.apply` performs them on a
model that keeps apart what is on the medium and what is pending. `Disk.after_cut` lists every state that may be found
when power comes back:

 - A file's data: what was synced last, and of everything since: nothing, half of it, all of it as zeros, or all of it.
   A file that was cut shorter without a sync has its old length, or the new one.
 - A folder's entries: each creation, removal and renaming since the folder's last sync happened or did not,
   independently of all others, whatever their order was. A renaming is one change, as rename(2) promises.
 - A folder that was removed takes with it what is in it; one whose own entry did not reach the medium is not there,
   however well its content was synced.

All combinations are listed as long as there are at most `LIMIT`. Beyond that (an extraction leaves a dozen entries
pending): none, all, each change alone and all but each, with the files' data taken one at a time. That suffices for the
rules that are checked, all of which relate one file's or entry's state to what was promised after it, never three
unsynced things to each other.

What is deliberately worse than real file systems: ext4 and f2fs order the changes of a folder, and keep a renamed file's
data with its name. Bit rot and lost writes that were synced are other tests' business (records, spool).
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.durable import Operation

LIMIT = 256


@dataclass
class File:
    """`pending` are the contents after each unsynced change; the last is what a running system reads."""

    synced: bytes = b""
    pending: list[bytes] = field(default_factory=list)

    @property
    def now(self) -> bytes:
        return self.pending[-1] if self.pending else self.synced

    def after_cut(self) -> tuple[bytes, ...]:
        if not self.pending:
            return (self.synced,)
        old, new = self.synced, self.now
        kept = len(_common(old, new))
        added = len(new) - kept
        found = [old, new, new[: kept + added // 2], new[:kept] + bytes(added)]
        # A file that is overwritten in place was cut to nothing first.
        found += [content for content in self.pending if len(content) < len(old)]
        return tuple(dict.fromkeys(found))


def _common(first: bytes, second: bytes) -> bytes:
    return first if second.startswith(first) else b""


@dataclass
class Link:
    target: str


@dataclass
class Folder:
    """`synced` entries by name; `pending` are changes: (new name, what it names or None, old name)."""

    synced: dict[str, "Node"] = field(default_factory=dict)
    pending: list[tuple[str, "Node | None", str]] = field(default_factory=list)

    @property
    def now(self) -> dict[str, "Node"]:
        return applied(self.synced, self.pending)


Node = File | Link | Folder
Change = tuple[str, Node | None, str]


def applied(entries: dict[str, Node], changes: Iterable[Change]) -> dict[str, Node]:
    result = dict(entries)
    for name, node, old in changes:
        if old:
            result.pop(old, None)
        if node is None:
            result.pop(name, None)
        else:
            result[name] = node
    return result


# A state: path → None for a folder, bytes for a file, str for what a link names.
Tree = dict[str, bytes | str | None]


def digest(tree: Tree) -> str:
    told = hashlib.sha256()
    for path in sorted(tree):
        told.update(f"{path}\0{type(tree[path]).__name__}\0".encode())
        value = tree[path]
        told.update(hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).digest())
    return told.hexdigest()


class Disk:
    """The file system below `root`, as an agent's operations make it. Operations elsewhere are not its business."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = Folder()

    def concerns(self, operation: Operation) -> bool:
        # The entry of the root itself lies in its parent, which is the model's top.
        return operation.path == self._root.parent or self._root in (operation.path, *operation.path.parents)

    def apply(self, operation: Operation) -> None:
        path, detail = operation.path, operation.detail
        if operation.kind in ("create", "write", "cut", "sync"):
            self._apply_to_file(operation)
        elif operation.kind == "rename":
            assert isinstance(detail, Path)
            assert detail.parent == path.parent
            self._change(path.parent, detail.name, self._folder(path.parent).now[path.name], path.name)
        elif operation.kind == "sync-folder":
            folder = self._folder(path)
            folder.synced, folder.pending = folder.now, []
        else:
            made: dict[str, Node] = {"mkdir": Folder(), "symlink": Link(str(detail))}
            self._change(path.parent, path.name, made.get(operation.kind))

    def _apply_to_file(self, operation: Operation) -> None:
        path, detail = operation.path, operation.detail
        known = self._folder(path.parent).now.get(path.name)
        if operation.kind == "create" and not isinstance(known, File):
            self._change(path.parent, path.name, File())
            return
        assert isinstance(known, File), path
        if operation.kind == "sync":
            known.synced, known.pending = known.now, []
        elif operation.kind == "cut":
            assert isinstance(detail, int)
            known.pending.append(known.now[:detail])
        else:
            assert isinstance(detail, bytes)
            known.pending.append(known.now + detail if operation.kind == "write" else b"")

    def after_cut(self) -> Iterator[Tree]:
        """Every state that may be found, some of them twice."""
        folders = [folder for folder in self._folders(self._top) if folder.pending]
        changes = [(id(folder), change) for folder in folders for change in range(len(folder.pending))]
        files = [file for file in self._files(self._top) if file.pending]
        choices = [file.after_cut() for file in files]
        count = 2 ** len(changes)
        for choice in choices:
            count *= len(choice)
        if count <= LIMIT:
            every = (
                {change for change, is_kept in zip(changes, kept, strict=True) if is_kept}
                for kept in itertools.product((False, True), repeat=len(changes))
            )
            for happened in every:
                for contents in itertools.product(*choices):
                    yield self._tree(happened, dict(zip(map(id, files), contents, strict=True)))
            return
        few: list[set[tuple[int, int]]] = [set(), set(changes)]
        few += [{change} for change in changes] + [set(changes) - {change} for change in changes]
        for happened in few:
            yield self._tree(happened, {id(file): file.synced for file in files})
            yield self._tree(happened, {id(file): file.now for file in files})
        for file, choice in zip(files, choices, strict=True):
            for content in choice:
                contents = {id(other): other.now for other in files} | {id(file): content}
                yield self._tree(set(changes), contents)

    # -- inside --------------------------------------------------------------------------------------------------

    def _folder(self, path: Path) -> Folder:
        node: Node = self._top
        for name in path.relative_to(self._root.parent).parts:
            assert isinstance(node, Folder)
            node = node.now[name]
        assert isinstance(node, Folder), path
        return node

    def _change(self, folder: Path, name: str, node: Node | None, old: str = "") -> None:
        self._folder(folder).pending.append((name, node, old))

    def _folders(self, folder: Folder) -> Iterator[Folder]:
        """Every folder that may be there: by what is synced and by what is pending."""
        seen: set[int] = set()
        waiting: list[Node | None] = [folder]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Folder) and id(node) not in seen:
                seen.add(id(node))
                yield node
                waiting += [*node.synced.values(), *(change[1] for change in node.pending)]

    def _files(self, top: Folder) -> list[File]:
        found: dict[int, File] = {}
        for folder in self._folders(top):
            for node in (*folder.synced.values(), *(change[1] for change in folder.pending)):
                if isinstance(node, File):
                    found[id(node)] = node
        return list(found.values())

    def _tree(self, happened: set[tuple[int, int]], contents: dict[int, bytes]) -> Tree:
        tree: Tree = {}
        waiting: list[tuple[str, Folder]] = [("", self._top)]
        while waiting:
            prefix, folder = waiting.pop()
            changes = [change for n, change in enumerate(folder.pending) if (id(folder), n) in happened]
            for name, node in applied(folder.synced, changes).items():
                path = f"{prefix}{name}"
                if isinstance(node, Folder):
                    tree[path] = None
                    waiting.append((f"{path}/", node))
                elif isinstance(node, Link):
                    tree[path] = node.target
                else:
                    tree[path] = contents.get(id(node), node.synced)
        return tree


def materialise(tree: Tree, parent: Path) -> None:
    """Make the state below `parent`, which is empty."""
    for path in sorted(tree):
        value = tree[path]
        target = parent / path
        if value is None:
            target.mkdir(mode=0o700)
        elif isinstance(value, str):
            target.symlink_to(value)
        else:
            target.write_bytes(value)
            target.chmod(0o600)
