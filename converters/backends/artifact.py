"""A converted model on disk: what a backend makes, what runs here and what ships."""

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from converters.source.native import Native
from edgekit.evidence import Compiled
from edgekit.manifest import Buckets, Option, TensorSpec


@dataclass(frozen=True)
class Artifact:
    """Files of a converted model in `folder`; `model` is the one that the engine loads, `bindings` the engine's
    tensor names where they differ from the public ones.

    Of a source with buckets, `models` are the files of each, smallest first, and `model` is the last of them.

    Where an accelerator's compiler made `model`, `judged` is the file that runs here in its place and is not shipped,
    and `compiled` holds the compiler's figures.

    `options` are what the engine must be told of these files wherever it loads them.
    """

    folder: Path
    model: str
    bindings: dict[str, str]
    notes: tuple[str, ...] = ()
    judged: str = ""
    compiled: Compiled | None = None
    models: tuple[str, ...] = ()
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """What is shipped."""
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name != self.judged)

    @property
    def runs_here(self) -> str:
        """The file that this machine's engine loads."""
        return self.judged or self.model

    @cached_property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def buckets(self, of_source: Buckets | None) -> Buckets | None:
        """The source's buckets with the file of each."""
        return None if of_source is None else msgspec.structs.replace(of_source, models=self.models)

    def bound(self, specs: tuple[TensorSpec, ...], *, are_outputs: bool = False) -> tuple[TensorSpec, ...]:
        """The specs with the engine's names."""

        def engine_name(name: str) -> str:
            own = self.bindings.get(passed(name)) if are_outputs else None
            return own or self.bindings.get(name, "")

        return tuple(TensorSpec(spec.name, spec.dtype, spec.shape, engine_name(spec.name)) for spec in specs)


def passed(name: str) -> str:
    """What bindings call an output that has the name of an input, since the model passes that through."""
    return f"{name}@output"


def copied(native: Native, folder: Path) -> Artifact:
    """A source in an engine's own format, under fixed names, so that a file's name does not change a bundle."""
    for file in native.files:
        shutil.copyfile(file, folder / f"model{file.suffix.lower()}")
    notes = (native.note,) if native.note else ()
    model = f"model{native.files[0].suffix.lower()}"
    return Artifact(folder, model, dict(native.names), notes, options=dict(native.options))
