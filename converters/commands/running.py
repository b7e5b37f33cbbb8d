"""One run of a build, for the command and for `edgekit.build`: the kept build of the same inputs, or a new one."""

from collections.abc import Callable
from typing import Protocol

from converters.emulation import setup as emulation
from converters.emulation.machine import META
from converters.keep import builds, inputs, room
from converters.keep.artifacts import Cache
from converters.outcome import Options, Outcome
from converters.report import folder
from converters.source.project import Project
from converters.work.steps import Steps
from edgekit import profile


class Watcher(Protocol):
    """Who is told how far a build is."""

    @property
    def steps(self) -> Steps: ...

    @property
    def tell(self) -> Callable[[str], None]: ...


def run(project: Project, options: Options, watcher: Watcher, *, measure: bool) -> Outcome:
    """`measure` makes it anew although nothing changed. Raises: as `converters.build.build`."""
    profiles = [profile.load(project.profile(target)) for target in project.file.targets]
    emulator = emulation.home() / META
    name = builds.fingerprint(project, profiles, options, emulator)
    room.limit_bytes()  # read before the work, not after
    cache = Cache(options.cache, tell=watcher.tell)
    found = None if name is None or measure else builds.find(name, options, cache)
    if found is not None:
        watcher.tell(
            "nothing changed since the last build of this: its bundles and figures are used again (--measure)"
        )
        folder.write(options.out, found.sheets)
        return found
    # Loads every engine and converter.
    from converters.build import build

    outcome = build(project, options, watcher.tell, watcher.steps)
    # A file that changed meanwhile may have been read before or after.
    if name is not None and name == builds.fingerprint(project, profiles, options, emulator):
        builds.keep(name, outcome, options, cache)
    elif inputs.has_code(project) and not project.file.code.reads:
        watcher.tell(inputs.HINT)
    return outcome
