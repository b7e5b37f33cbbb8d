"""A search's journal, in which one build works at a time."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.keep import room

JOURNAL = "trials.log"


@contextmanager
def journal(root: Path | None, name: str, spare: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The journal of that name, kept in the cache at `root` and locked while the search lasts, so that neither another
    build's trials nor the cache's eviction come in between.

    Where another build has it, or the cache cannot be written, a copy of what is known, in `spare`, serves this build alone.
    """
    own = spare / room.SEARCHES / name
    own.mkdir(parents=True, exist_ok=True)
    if root is None:
        yield own / JOURNAL
        return
    folder = root / room.SEARCHES / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        tell(f"this search is not kept: {folder} cannot be made ({error.strerror})")
        yield own / JOURNAL
        return
    with room.lock(folder, alone=True, wait=False, name=room.IN_USE) as has_lock:
        if has_lock:
            yield folder / JOURNAL
            return
        tell(
            "another build is searching over the same, or the cache cannot be written: these trials are not kept"
        )
        if (folder / JOURNAL).is_file():
            shutil.copyfile(folder / JOURNAL, own / JOURNAL)
        yield own / JOURNAL
