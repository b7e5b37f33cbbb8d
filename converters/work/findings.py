"""What a build has made so far: artifacts, their outputs, their layers' errors; each made once, failures included.

Keys are digests of everything that decides a finding, so findings of several processes can be put together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from converters.backends.artifact import Artifact
from converters.judge.bounds import Own
from converters.quantize.sensitivity import LayerError
from converters.work.watched import Watched
from edgekit.errors import ToolFailedError
from edgekit.quiet import first_line
from edgekit.tensors import Array

Found = TypeVar("Found")


@dataclass(frozen=True)
class Evaluated:
    """What is kept of a model's outputs on one half: the metric's digest of it and of its shifted samples, what the judges
    of its outputs keep of them, and (of the judged half) the golden samples' whole outputs, (N, *shape), and what is
    watched for drift. `drawn` are its draws where each is a call of the metric, clean and shifted.
    """

    digest: dict[str, Array]
    shifted: dict[str, Array] | None
    golden: dict[str, Array]
    outputs: dict[str, Array] = field(default_factory=dict)
    watched: dict[str, Watched] = field(default_factory=dict)
    drawn: tuple[Own | None, Own | None] = (None, None)


@dataclass
class Findings:
    """By key; an exception stands where making failed. `evaluated` is the judged half, `glimpsed` a few samples of it,
    `searched` the search half.
    """

    artifacts: dict[str, Artifact | Exception] = field(default_factory=dict)
    evaluated: dict[str, Evaluated | Exception] = field(default_factory=dict)
    searched: dict[str, Evaluated | Exception] = field(default_factory=dict)
    layers: dict[str, tuple[LayerError, ...] | Exception] = field(default_factory=dict)
    glimpsed: dict[str, Evaluated | Exception] = field(default_factory=dict)

    def update(self, other: "Findings") -> None:
        """Take over what another process found."""
        self.artifacts |= other.artifacts
        self.evaluated |= other.evaluated
        self.searched |= other.searched
        self.layers |= other.layers
        self.glimpsed |= other.glimpsed

    def artifacts_only(self) -> "Findings":
        """Without outputs and layers, which are large or soon done with."""
        return Findings(_portable(self.artifacts))

    def portable(self) -> "Findings":
        """A copy that any process can read: tools' own exceptions, which may not travel, as ours."""
        return Findings(*(_portable(table) for table in vars(self).values()))


def once(table: dict[str, Found | Exception], name: str, make: Callable[[], Found]) -> Found:
    """What is in the table, or `make()`. Raises: what `make` raised, again for everyone who asks."""
    if name not in table:
        try:
            table[name] = make()
        except Exception as error:  # noqa: BLE001  # kept, and raised below for each profile that asks
            table[name] = error
    found = table[name]
    if isinstance(found, Exception):
        raise found
    return found


def told(error: Exception) -> str:
    """An error as a candidate's reason: ours are sentences, a tool's own has its type's name before it."""
    return first_line(error)


def _portable(table: dict[str, Found | Exception]) -> dict[str, Found | Exception]:
    return {
        name: ToolFailedError(told(found)) if isinstance(found, Exception) else found
        for name, found in table.items()
    }
