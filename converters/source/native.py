"""A source that is already one engine's own format, taken as it is.

Always true
 1. The bytes that ship are the bytes that came, unless an Ethos-U's compiler makes its own of them.
 2. The reference is the file itself in its engine; nothing is converted, so no other engine gets a candidate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.source.work import Work
from edgekit.profile import Precision


@dataclass(frozen=True)
class Native:
    """`files` are what the engine reads, the first of them by name; `names` maps public names to the engine's where
    they differ. `work` is read from the graph.
    """

    engine: str
    what: str
    files: tuple[Path, ...]
    names: Mapping[str, str]
    precision: Precision
    work: Work
