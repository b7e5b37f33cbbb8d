"""A source that is already one engine's own format, taken as it is.

Always true
 1. The bytes that ship are the bytes that came, unless an Ethos-U's compiler makes its own of them.
 2. The reference is the file itself in its engine; nothing is converted, so no other engine gets a candidate.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from converters.artifact import Artifact
from converters.judge.roofline import Work
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

    def copied(self, folder: Path) -> Artifact:
        """Under fixed names, so that a file's name does not change a bundle."""
        for file in self.files:
            shutil.copyfile(file, folder / f"model{file.suffix.lower()}")
        return Artifact(folder, f"model{self.files[0].suffix.lower()}", dict(self.names))
