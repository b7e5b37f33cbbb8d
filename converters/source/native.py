"""A source that is already one engine's own format, taken as it is.

Always true
 1. The bytes that ship are the bytes that came, unless an Ethos-U's compiler makes its own of them.
 2. The reference is the file itself in its engine. Another engine gets candidates where its converter reads such files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converters.source.work import Work
from edgekit.manifest import Option
from edgekit.profile import Precision


@dataclass(frozen=True)
class Native:
    """`files` are what the engine reads, the first of them by name; `names` maps public names to the engine's where
    they differ. `precision` is what it computes in, `stored` what its weights are stored in where that is another. `work` is read from the graph. `scales` has scale and zero point of the inputs and outputs, by public
    name, that are stored as integers and float to the caller. `options` are what its engine must load it with, whatever is made of
    it, and `note` says why.
    """

    engine: str
    what: str
    files: tuple[Path, ...]
    names: Mapping[str, str]
    precision: Precision
    work: Work
    stored: Precision | None = None
    scales: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    note: str = ""

    @property
    def suffix(self) -> str:
        """Of the file that an engine is given, in small letters."""
        return self.files[0].suffix.lower()
